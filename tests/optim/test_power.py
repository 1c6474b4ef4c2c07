"""The power of the inverse curvature: less of a step, closer to the natural gradient."""

import copy

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.optim._preconditioner import Preconditioner

KFAC, CurvatureOptions, DampingOptions = rp.optim.KFAC, rp.optim.CurvatureOptions, rp.optim.DampingOptions
DAMPING = 0.3


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(30, 2, generator=generator, dtype=torch.float64)


def vector(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def steps(lrs, structure, period=1, exponent=0.4):
    """Return the gradients and steps of a linear layer under squared error, where curvature is exact and constant."""
    torch.manual_seed(0)
    model, (x, y), found = nn.Linear(4, 2, bias=False).double(), data(), []
    options = CurvatureOptions("exact", structure, decay=0.0, factor_period=1, inverse_period=period)
    rule = rp.optim.QuadraticStep(averaging=0.0, exponent=exponent)
    damping = DampingOptions(DAMPING, adapt=False)
    opt = KFAC(model, rp.Gaussian(), damping=damping, step_size=rule, curvature=options)
    for lr in lrs:
        opt.param_groups[0]["lr"] = lr
        gradient, before = rp.Objective(model, rp.Gaussian(), (x, y)).gradient(), vector(model)
        opt.step(x, y)
        found.append((gradient, vector(model) - before))
    return found


def along(gradient, power, structure, lr):
    """Return ``lr`` of the way to the model's minimum along the damped inverse to a power times the gradient."""
    x, _ = data()
    a, eye = x.T @ x / len(x), torch.eye
    matrix = torch.kron(eye(2).double(), a)
    pi = (a.trace() / 4).sqrt()
    split = torch.kron((1 + DAMPING**0.5 / pi) * eye(2).double(), a + pi * DAMPING**0.5 * eye(4).double())
    values, vectors = torch.linalg.eigh(matrix + DAMPING * eye(8).double() if structure == "ekfac" else split)
    direction = vectors @ (values**-power * (vectors.T @ gradient))
    curved = direction @ matrix @ direction + DAMPING * direction @ direction
    return -lr * direction * (gradient @ direction) / curved


@pytest.mark.parametrize("structure", ["kfac", "ekfac"])
@pytest.mark.parametrize(("lr", "power"), [(4.0, 0.4), (1.0, 0.4), (0.25, 0.7), (0.01, 0.94)])
def test_it_rises_with_the_root_of_the_factor(structure, lr, power):
    ((gradient, step),) = steps([lr], structure)
    torch.testing.assert_close(step, along(gradient, power, structure, lr))


@pytest.mark.parametrize("structure", ["kfac", "ekfac"])
def test_it_follows_a_schedule_with_the_next_inverses(structure):
    found = steps([1.0, 0.25, 0.25], structure)
    for (gradient, step), power, lr in zip(found, (0.4, 0.7, 0.7), (1.0, 0.25, 0.25), strict=True):
        torch.testing.assert_close(step, along(gradient, power, structure, lr))


def test_the_inverse_stays_what_it_is():
    ((gradient, step),) = steps([0.25], "kfac", exponent=1.0)
    torch.testing.assert_close(step, along(gradient, 1.0, "kfac", 0.25))


def mixed():
    """Return a network with Kronecker blocks and a diagonal."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2)).double()


def trained(model, opt, lrs):
    x, y = data()
    losses = []
    for lr in lrs:
        opt.param_groups[0]["lr"] = lr
        losses.append(float(opt.step(x, y)))
    return losses


@pytest.mark.parametrize("structure", ["kfac", "ekfac"])
def test_blocks_and_diagonal_have_the_same_between_inverses_and_after_resuming(structure):
    def made():
        options = CurvatureOptions(structure=structure, inverse_period=7)
        model = mixed()
        return model, KFAC(model, rp.Gaussian(), step_size="quadratic", curvature=options)

    first = [1 - k / 30 for k in range(17)]
    rest = [1 - k / 30 for k in range(17, 30)]
    model, opt = made()
    trained(model, opt, first)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(opt.state_dict())
    whole = trained(model, opt, rest)
    model, opt = made()
    model.load_state_dict(weights)
    opt.load_state_dict(state)
    assert trained(model, opt, rest) == whole


def test_it_is_kept_until_inverses_are_due():
    model, (x, y) = mixed(), data()
    options = CurvatureOptions(factor_period=1, inverse_period=10)
    opt = KFAC(model, rp.Gaussian(), damping=1e-2, step_size="quadratic", curvature=options)
    curvature: Preconditioner = opt._curvature
    for _ in range(50):
        opt.step(x, y)
    seen = []
    for _ in range(12):
        opt.param_groups[0]["lr"] = 0.25
        opt.step(x, y)
        at = curvature._inverted_at == opt._progress.count - 1
        seen.append((at, opt.state_dict()["kfac"]["curvature"]["power"]))
    changed = [at for at, _ in seen].index(True)
    assert changed > 0
    assert [power for _, power in seen] == pytest.approx([0.7] * changed + [0.85] * (12 - changed))
