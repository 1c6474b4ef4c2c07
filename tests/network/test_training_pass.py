"""One recorded pass in training mode against automatic differentiation of the network as it was sampled."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

import raphson as rp
from raphson.data import Batch
from raphson.network import FactorPlan, TrainedModel

DTYPE = torch.float64


class Attention(nn.Module):
    """Attention with its packed weight, a norm, and an output layer tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.drop = nn.LayerNorm(8), nn.Dropout(0.2)

    def forward(self, tokens):
        h = self.embed(tokens)
        h = self.norm(h + self.drop(self.attention(h, h, h, need_weights=False)[0]))
        return h @ self.embed.weight.T


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


def case(name):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    n = 12
    if name == "dropout":
        model, x = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.4), nn.GELU(), nn.Linear(8, 3)), (n, 5)
    elif name == "batch norm":
        model = nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3)),
        )
        x = (n, 2, 8, 8)
    elif name == "recurrent":
        model, x = Recurrent(), (n, 4, 3)
    else:
        model, x = Attention(), None
        tokens = torch.randint(0, 6, (n, 5), generator=generator)
        return model.to(DTYPE).train(), tokens, torch.randint(0, 6, (n, 5), generator=generator)
    inputs = torch.randn(x, generator=generator, dtype=DTYPE)
    return model.to(DTYPE).train(), inputs, torch.randint(0, 3, (n,), generator=generator)


NAMES = ("dropout", "batch norm", "recurrent", "attention")


def made(name, weight=None):
    model, x, y = case(name)
    trained = TrainedModel(model, rp.Categorical())
    torch.manual_seed(7)
    return model, x, y, trained, trained.run(Batch(x, y, weight), products=True)


def sampled(model, x):
    """The network as a function of its parameters, with the random numbers of the pass."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}

    def f(params):
        torch.manual_seed(7)
        return functional_call(model, {**params, **{k: b.clone() for k, b in buffers.items()}}, (x,))

    return f


def along(f, params, v, step=1e-6):
    """The derivative along a direction by central differences: torch.func.jvp draws other random numbers."""
    with torch.no_grad():
        ahead, back = (f({k: p + s * v[k] for k, p in params.items()}) for s in (step, -step))
    return (ahead - back) / (2 * step)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_products_and_curvature(name):
    model, x, y, trained, found = made(name)
    f = sampled(model, x)
    params = {k: p.detach() for k, p in model.named_parameters()}
    leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
    out = f(leaves)
    torch.testing.assert_close(found.f, out.detach())
    loss = nn.functional.cross_entropy(out.flatten(0, -2), y.flatten())
    expected = torch.autograd.grad(loss, list(leaves.values()))
    torch.testing.assert_close(found.gradient(), torch.cat([g.reshape(-1) for g in expected]))
    torch.testing.assert_close(found.loss, loss.detach())
    directions = [torch.randn(trained.space.numel, dtype=DTYPE) for _ in range(2)]
    moved = [along(f, params, trained.space.unflatten(v)) for v in directions]
    for v, m in zip(directions, moved, strict=True):
        torch.testing.assert_close(found.jvp(v), m, rtol=1e-6, atol=1e-7)
    hessian = rp.Categorical().fisher(out.detach(), y)
    count = y.numel()
    for i, j in ((0, 0), (0, 1), (1, 1)):
        expected = (moved[i] * hessian.mv(moved[j])).sum() / count
        torch.testing.assert_close(found.curvature(directions)[i, j], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_one_forward_pass_is_seen_from_outside(name):
    model, x, y, trained, found = made(name)
    state = torch.get_rng_state()
    buffers = {k: b.clone() for k, b in model.named_buffers()}
    other, *_ = case(name)
    torch.manual_seed(7)
    other(x)
    assert torch.equal(torch.get_rng_state(), state)  # as many random numbers as one forward pass takes
    for k, b in other.named_buffers():
        torch.testing.assert_close(b, buffers[k])
    found.gradient()
    again = found.loss_now()
    torch.testing.assert_close(again, found.loss)
    found.release()
    v = torch.randn(trained.space.numel, dtype=DTYPE)
    released = found.curvature([v])
    torch.manual_seed(7)
    if name == "batch norm":
        model.load_state_dict(case(name)[0].state_dict())
    fresh = trained.run(Batch(x, y, None), products=True)
    fresh.gradient()
    torch.testing.assert_close(released, fresh.curvature([v]))
    torch.set_rng_state(state)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_curvature(name):
    model, x, y, trained, found = made(name)
    found.gradient()
    plan = FactorPlan(found, "expand")
    covered = torch.zeros(trained.space.numel)
    for block in plan.blocks:
        for place in block.places:
            covered[place] += 1
    covered[plan.rest] += 1
    assert bool((covered == 1).all())
    expected = {
        "dropout": (),
        "batch norm": ("1.weight", "1.bias"),
        "recurrent": tuple(f"rnn.{k}" for k in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")),
        "attention": ("embed.weight", "norm.weight", "norm.bias"),  # tied both ways round
    }
    assert plan.diagonal == expected[name]


def test_the_sampled_diagonal_has_the_right_mean():
    model, x, y, trained, found = made("recurrent")
    found.gradient()
    plan = FactorPlan(found, "expand")
    generator = torch.Generator().manual_seed(0)
    measured = plan.measure(found, "mc", 4000, generator)
    objective = rp.Objective(model.eval(), rp.Categorical(), (x, y))
    expected = rp.fisher(objective, "expected", "dense").diagonal()[plan.rest]
    torch.testing.assert_close(measured.diagonal, expected, rtol=0.15, atol=0.02 * float(expected.max()))


def test_examples_with_weights():
    weight = torch.tensor([1.0, 2.0, 0.0, 3.0] * 3, dtype=DTYPE)
    model, x, y, _, found = made("dropout", weight)
    out = sampled(model, x)(dict(model.named_parameters()))
    nll = nn.functional.cross_entropy(out, y, reduction="none")
    torch.testing.assert_close(found.loss, (weight * nll).sum().detach() / weight.sum())
    with pytest.raises(rp.InputError, match="add up to 0"):
        made("dropout", torch.zeros(12, dtype=DTYPE))
