"""The layer that makes the outputs: its factor without samples, and a length of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.data import Batch
from raphson.network import FactorPlan, TrainedModel
from raphson.optim._quadratic_model import QuadraticModel

DTYPE = torch.float64


def network(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def batch(outputs=3, weight=None):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 4, generator=generator, dtype=DTYPE)
    return Batch(x, torch.rand(30, outputs, generator=generator, dtype=DTYPE), weight)


def planned(likelihood, given, model=None):
    made = TrainedModel(model or network(), likelihood).run(given, True)
    made.gradient()
    return made, FactorPlan(made, "expand")


@pytest.mark.parametrize("estimator", ["mc", "exact"])
def test_its_factor_is_the_weighted_mean_of_the_output_hessians(estimator):
    weight = torch.rand(30, generator=torch.Generator().manual_seed(2), dtype=DTYPE)
    made, plan = planned(rp.Bernoulli(), batch(weight=weight))
    left = plan.measure(made, estimator, 1, torch.Generator().manual_seed(0)).factors[1].left
    p = torch.sigmoid(made.f)
    expected = (weight[:, None] * p * (1 - p)).sum(0) / weight.sum()
    torch.testing.assert_close(left, expected[None])


def test_of_outputs_that_share_a_curvature_it_is_a_matrix():
    labels = torch.arange(30) % 3
    made, plan = planned(rp.Categorical(), Batch(batch().x, labels, None))
    assert plan.at_output is None
    assert plan.measure(made, "mc", 1, torch.Generator()).factors[1].left.shape == (1, 3, 3)


def test_of_a_likelihood_that_is_not_concave_it_is_sampled():
    made, plan = planned(rp.HeteroscedasticGaussian(), batch(1), network(2))
    assert plan.at_output is None
    assert plan.measure(made, "mc", 1, torch.Generator()).factors[1].left.ndim == 3


@pytest.mark.parametrize("bias", [True, False])
def test_its_jacobian_product_is_the_general_one(bias):
    model = network()
    model[2] = nn.Linear(5, 3, bias=bias).double()
    made, plan = planned(rp.Bernoulli(), batch(), model)
    v = torch.zeros(made.space.numel, dtype=DTYPE)
    for place in plan.blocks[plan.at_output].places:
        v[place] = torch.randn(v[place].shape, dtype=DTYPE)
    torch.testing.assert_close(plan.output_jvp(made, v), made.jvp(v))
    other = torch.randn_like(v)
    torch.testing.assert_close(made.curvature([other, v], plan.output_jvp), made.curvature([other, v]))


def test_a_step_is_the_minimum_in_both_lengths():
    given, model = batch(), network()
    before = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    opt = rp.optim.KFAC(model, rp.Bernoulli(), damping=1e-3, step_size="quadratic")
    opt.step(given.x, given.y)
    taken = torch.cat([p.detach().reshape(-1) for p in model.parameters()]) - before
    objective = rp.Objective(network(), rp.Bernoulli(), (given.x, given.y))
    matrix = rp.ggn(objective, structure="dense").to_dense() + 1e-3 * torch.eye(len(taken), dtype=DTYPE)
    slope = objective.gradient() + matrix @ taken  # of the model, at its minimum
    last = slice(5 * 4 + 5, None)
    rest = slice(0, last.start)
    assert abs(float(slope[rest] @ taken[rest])) < 1e-12
    assert abs(float(slope[last] @ taken[last])) < 1e-12
    first, second = opt.state_dict()["kfac"]["length"]["found"]
    assert first > 0 and second > 0


@pytest.mark.parametrize(
    ("slopes", "expected"),
    [
        ((-1.0, -0.7), (0.3, 0.4)),  # the minimum itself
        ((-1.0, -0.9), (4.6 / 26, 18.4 / 26)),  # it would go 8 times farther: as far as the bound, both the best so
        ((-1.0, -0.2), (0.5, 0.0)),  # the last layer would go less far: 0.8, 0.2
        ((-0.5, -0.6), (0.25, 0.0)),  # the rest would go back: -0.1, 0.6
    ],
)
def test_it_goes_farther_than_the_rest_or_as_far(slopes, expected):
    matrix = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=DTYPE)
    model = QuadraticModel(list(torch.eye(2, dtype=DTYPE)), torch.tensor(slopes, dtype=DTYPE), matrix)
    torch.testing.assert_close(model.longer(), torch.tensor(expected, dtype=DTYPE))
