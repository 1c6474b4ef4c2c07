"""Steps where every batch is the same: conjugate gradients on the exact model, bounded and judged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import raphson as rp
from raphson.optim._damping import HELD, DampingSchedule
from raphson.optim._full_batch import is_same, keeps, minimum
from raphson.optim._gathered import Gathered

KFAC, QuadraticStep, DampingOptions = rp.optim.KFAC, rp.optim.QuadraticStep, rp.optim.DampingOptions
SCALE = rp.HeteroscedasticGaussian("mean_log_scale")


def table(n=300, d=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, generator=generator, dtype=torch.float64) * torch.exp(1.5 * x[:, 1])
    return x, (x[:, 0] + x[:, 2].sin() + 0.1 * noise)[:, None]


def regressor(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def under_way(x, y):
    model = regressor()
    opt = KFAC(model, SCALE)
    for _ in range(3):
        opt.step(x, y)
    return model, opt


def vector(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def jacobian(model, x):
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    found = jacrev(lambda p: functional_call(model, p, (x,)))(parameters)
    return torch.cat([found[n].flatten(2) for n in parameters], -1)


def gathered(opt, *batch):
    return opt._gather(*batch, *[None] * (3 - len(batch)))[0]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_products_and_bounds_against_dense_jacobians(parts, weighted):
    x, y = table(40)
    weight = torch.linspace(0.5, 2.0, 40, dtype=torch.float64) if weighted else None
    model = regressor()
    opt = KFAC(model, SCALE, step_size="quadratic")
    rows = torch.arange(40).split(40 // parts)
    for part in rows[:-1]:
        opt.accumulate(x[part], y[part], None if weight is None else weight[part])
    last = rows[-1]
    batch = gathered(opt, x[last], y[last], None if weight is None else weight[last])
    j, f = jacobian(model, x), model(x).detach()
    w = torch.full((40,), 1 / 40, dtype=torch.float64) if weight is None else weight / weight.sum()
    matrix = torch.einsum("n,ncp,ncd,ndq->pq", w, j, SCALE.fisher(f).to_dense(), j)
    v = torch.randn(matrix.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(batch.product(v), matrix @ v)
    share, curved = batch.bounded(v, 2.0, 20)
    assert curved == pytest.approx(float(v @ matrix @ v))

    def change(s):  # of the log-scales, whose Fisher information is that of the mean, exp(-2 s)
        return float((2 * s * j @ v)[:, 1].abs().max())

    assert change(share) <= torch.tensor(2.0).log() < change(2 * share)


def test_conjugate_gradients_are_preconditioned_by_the_inverse_itself():
    model, opt = under_way(*table())
    state = opt.state_dict()["kfac"]["curvature"]
    assert state["power"] == 1.0
    kept = opt._curvature._blocks[0]._average
    left, right = kept.now.left[0], kept.now.right[0]
    found = [matrix[0].inverse() - factor for matrix, factor in zip(kept.derived[:2], (left, right), strict=True)]
    for shift in found:  # what was added to the factors is a multiple of the identity
        torch.testing.assert_close(shift, shift[0, 0] * torch.eye(len(shift)).double(), rtol=1e-6, atol=1e-9)
        assert float(shift[0, 0]) > 0


def test_enough_iterations_find_the_minimum_from_the_last_step():
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(12, 12, dtype=torch.float64, generator=generator)
    matrix, g, last = root @ root.T + torch.eye(12), *torch.randn(2, 12, dtype=torch.float64, generator=generator)
    for previous in (None, last):
        found = minimum(matrix.mv, lambda v: v / matrix.diagonal(), g, previous, 30)
        torch.testing.assert_close(found, -torch.linalg.solve(matrix, g), rtol=1e-5, atol=1e-6)
    along = minimum(matrix.mv, lambda v: v, g, last, 0)
    torch.testing.assert_close(along, -last * (g @ last) / (last @ matrix @ last))


def test_the_same_batch_is_told_by_its_loss_and_another_ends_it():
    x, y = table()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    opt = KFAC(regressor(), SCALE)
    for _ in range(4):
        opt.step(x, y)
        assert opt._progress.expected is not None
    opt.step(x[order], y[order])
    assert opt._progress.expected is not None
    opt.step(x[:280], y[:280])
    assert opt._progress.expected is None
    opt.step(x[:280], y[:280])
    assert opt._progress.expected is None


@pytest.mark.parametrize(
    ("likelihood", "options"),
    [
        (rp.HeteroscedasticGaussian("mean_log_scale"), {"damping": DampingOptions(0.1, adapt=False)}),
        (rp.HeteroscedasticGaussian("mean_log_scale"), {"step_size": QuadraticStep(iterations=0)}),
        (rp.HeteroscedasticGaussian("mean_log_scale"), {"step_size": QuadraticStep(momentum=True)}),
        (rp.HeteroscedasticGaussian("mean_log_scale"), {"step_size": "fixed"}),
        (rp.HeteroscedasticGaussian("natural"), {"step_size": QuadraticStep(iterations=0)}),
    ],
)
def test_what_asks_for_other_steps_gets_them(likelihood, options):
    x, y = table()
    opt = KFAC(Negative(regressor()) if likelihood.concave else regressor(), likelihood, **options)
    opt.step(x, y)
    assert opt._progress.expected is None


class Negative(nn.Module):
    """A network whose second output is negative."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        f = self.inner(x)
        return torch.stack([f[:, 0], -nn.functional.softplus(f[:, 1])], -1)


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_the_objective_falls_at_every_step_below_that_of_single_directions(weight_decay):
    x, y = table()
    ends = []
    for rule in (QuadraticStep(), QuadraticStep(iterations=0)):
        model = regressor()
        opt, values = KFAC(model, SCALE, step_size=rule, weight_decay=weight_decay), []
        for _ in range(40):
            loss = float(opt.step(x, y))
            values.append(
                float(SCALE.nll(model(x).detach(), y).mean()) + 0.5 * weight_decay * float(vector(model).square().sum())
            )
            assert loss == loss
        ends.append(values)
    assert all(b <= a + 1e-9 for a, b in zip(ends[0][1:], ends[0][2:], strict=False))
    assert ends[0][-1] < ends[1][-1]


def test_the_first_step_is_taken_back():
    x, y = table()
    model = regressor()
    opt = KFAC(model, SCALE)
    first = float(opt.step(x, y))
    assert float(opt.step(x, y)) == pytest.approx(first, rel=1e-12)


def test_a_step_that_fails_is_taken_back_with_more_damping(monkeypatch):
    x, y = table()
    model, opt = under_way(x, y)
    damping, losses = opt.damping, []
    real = Gathered.loss_now

    def worse(self):
        losses.append(vector(model))
        return real(self) if len(losses) == 3 else torch.tensor(float("nan" if len(losses) == 1 else "inf"))

    monkeypatch.setattr(Gathered, "loss_now", worse)
    opt.step(x, y)
    assert len(losses) == 3
    assert 0.5 * 16 * damping < opt.damping < 2 * 16 * damping
    torch.testing.assert_close(vector(model), losses[-1])
    losses.clear()
    monkeypatch.setattr(Gathered, "loss_now", lambda self: torch.tensor(float("inf")))
    before = vector(model)
    opt.step(x, y)
    assert torch.equal(vector(model), before)


def test_promises_and_rounding():
    assert keeps(-1.0, -2.0, 1.0, torch.float64)
    assert not keeps(-0.01, -2.0, 1.0, torch.float64)
    assert not keeps(float("nan"), -2.0, 1.0, torch.float64)
    assert keeps(1e-17, -1e-16, 1.0, torch.float64)
    assert is_same(1.0 + 1e-6, 1.0, torch.float32)
    assert not is_same(1.0 + 1e-4, 1.0, torch.float32)


def test_resuming_goes_on_bit_for_bit(tmp_path):
    x, y = table()
    model, opt = under_way(x, y)
    torch.save((model.state_dict(), opt.state_dict()), tmp_path / "saved.pt")
    straight = [float(opt.step(x, y)) for _ in range(4)]
    again = regressor(1)
    other = KFAC(again, SCALE)
    states = torch.load(tmp_path / "saved.pt")
    again.load_state_dict(copy.deepcopy(states[0]))
    other.load_state_dict(states[1])
    assert [float(other.step(x, y)) for _ in range(4)] == straight
    assert torch.equal(vector(model), vector(again))


def test_reach_is_the_mean_curvature_of_outputs_times_the_length_of_inputs():
    x, y = table()
    model, opt = under_way(x, y)
    reach = opt._curvature.reach()
    first, last = opt._curvature._blocks
    for state, places in ((first, slice(0, 32)), (last, slice(32, 50))):
        left, right = state._average.now[:2]  # of the outputs, and of the inputs with a 1 for the bias
        by_hand = left[0].trace() / len(left[0]) * right[0].trace()
        torch.testing.assert_close(reach[places], by_hand.expand(places.stop - places.start))
    hidden = torch.tanh(model[0](x)).detach()
    assert last._average.now.right[0].trace() == pytest.approx(float(hidden.square().sum(1).mean()) + 1, rel=0.2)


def test_a_layer_without_curvature_has_some_reach():
    x, y = table()
    model, opt = under_way(x, y)
    for factor in opt._curvature._blocks[0]._average.now[:2]:
        factor.zero_()
    opt._curvature._reaches = []
    reach = opt._curvature.reach()
    assert torch.isfinite(reach).all()
    assert float(reach.min()) > 0


def test_damping_is_spread_by_reach_in_the_model_and_its_preconditioner():
    x, y = table()
    model, opt = under_way(x, y)
    kept, reach = (
        [state._average for state in opt._curvature._blocks],
        [state.reach() for state in opt._curvature._blocks],
    )
    opt._curvature.refresh(lambda name: 0.0, 100, 0.5)
    for average, own in zip(kept, reach, strict=True):
        left, right = (d[0].inverse() - f[0] for d, f in zip(average.derived[:2], average.now[:2], strict=True))
        assert float(left[0, 0] * right[0, 0]) == pytest.approx(0.5 * own, rel=1e-6)
    given = DampingSchedule(DampingOptions(1e-6))
    given.hold(1.0)
    assert given.value == 1e-6
    found = DampingSchedule(DampingOptions())
    found.value = 1e-6
    found.hold(1.0)
    assert found.value == HELD


def test_the_first_step_of_natural_parameters_is_taken_back_and_another_batch_ends_what_follows():
    x, y = table()
    opt = KFAC(Negative(regressor()), rp.HeteroscedasticGaussian("natural"))
    first = float(opt.step(x, y))
    assert float(opt.step(x, y)) == pytest.approx(first, rel=1e-12)
    for _ in range(10):
        assert opt._progress.same
        assert opt._progress.expected is None
        opt.step(x, y)
    for _ in range(12):
        opt.step(x[:280], y[:280])
        opt.step(x[20:], y[20:])
    assert not opt._progress.same


def test_accumulated_batches_of_natural_parameters_have_single_directions():
    x, y = table()
    opt = KFAC(Negative(regressor()), rp.HeteroscedasticGaussian("natural"), step_size="quadratic")
    for _ in range(3):
        opt.accumulate(x[:150], y[:150])
        opt.step(x[150:], y[150:])
        assert opt._progress.count == 1 or opt._progress.expected is None
    assert opt._progress.same


@pytest.mark.parametrize("structure", ["kfac", "ekfac"])
def test_parameters_outside_layers_have_a_reach_of_their_own(structure):
    x, y = table()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2)).double()
    opt = KFAC(model, SCALE, curvature=rp.optim.CurvatureOptions(structure=structure))
    losses = [float(opt.step(x, y)) for _ in range(20)]
    assert all(b <= a + 1e-9 for a, b in zip(losses[1:], losses[2:], strict=False))
    reach, places = opt._curvature.reach(), opt._trained.space.slices["1.weight"]
    own = opt._curvature._diagonal[opt._curvature._plan.diagonal_places["1.weight"]].mean()
    torch.testing.assert_close(reach[places], own.expand(8))
