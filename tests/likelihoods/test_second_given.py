"""The second parameter that suits a first one which differs between rows: where a fit of a constant one starts."""

from __future__ import annotations

import math

import pytest
import scipy.optimize
import torch

import raphson as rp
from raphson.likelihoods.families._gaussian_parametrizations import PARAMETRIZATIONS

DTYPE = torch.float64
EXACT = [rp.HeteroscedasticGaussian(name) for name in PARAMETRIZATIONS if name != "natural"] + [rp.InverseGaussian()]
NEAR = [rp.Gamma(), rp.Beta(), rp.NegativeBinomial()]


def outputs(first, second):
    """Outputs (N, 2 M), the two parameters of a response side by side."""
    return torch.stack([first, second.expand_as(first)], -1).flatten(-2)


def draw(likelihood, second, n=500, m=2):
    g = torch.Generator().manual_seed(0)
    first = torch.randn(n, m, dtype=DTYPE, generator=g) * 0.7
    y = likelihood.sample(outputs(first, torch.tensor(second, dtype=DTYPE)), g)
    return first, y, torch.rand(n, dtype=DTYPE, generator=g)


@pytest.mark.parametrize("likelihood", EXACT, ids=repr)
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_optimum(likelihood, weighted):
    first, y, weights = draw(likelihood, [0.5, 0.9])
    w = weights if weighted else torch.ones_like(weights)
    found = likelihood.second_given(first, y, weights if weighted else None)
    assert found.shape == (2,)
    scores = likelihood.gradient(outputs(first, found), y)[:, 1::2]
    assert bool(((w @ scores).abs() <= 1e-12 * (w @ scores.abs())).all())


@pytest.mark.parametrize("likelihood", NEAR, ids=repr)
def test_it_is_near_the_optimum(likelihood):
    first, y, weights = draw(likelihood, [1.0], n=4000, m=1)
    found = likelihood.second_given(first, y, weights)

    def value(second):
        second = torch.tensor([second], dtype=DTYPE)
        return float(weights @ likelihood.nll(outputs(first, second), y) / weights.sum())

    best = scipy.optimize.minimize_scalar(value, (0.0, 2.0))
    assert value(float(found)) - best.fun < 2e-3
    assert float(found) == pytest.approx(best.x, abs=0.15)


@pytest.mark.parametrize("likelihood", EXACT + NEAR, ids=repr)
def test_targets_at_the_first_parameter_leave_it_finite(likelihood):
    y = torch.tensor([[0.25], [0.5], [0.25]], dtype=DTYPE)
    if isinstance(likelihood, rp.NegativeBinomial):
        y = torch.tensor([[1.0], [2.0], [1.0]], dtype=DTYPE)
    name = likelihood.parameters[0]
    first = y.logit() if name == "logit_mean" else y.log() if name.startswith("log") else y
    found = likelihood.second_given(first, y)
    f = outputs(first, found)
    likelihood.check_outputs(f)
    assert bool(torch.isfinite(likelihood.nll(f, y)).all())


def test_others_do_not_know_it():
    y = torch.ones(3, 1, dtype=DTYPE)
    for likelihood in (rp.HeteroscedasticGaussian("natural"), rp.Poisson(), rp.StudentT()):
        assert likelihood.second_given(y, y) is None


def test_a_scale_by_hand():
    """Residuals 3 and 4 with weights 1 and 3: the variance is (9 + 48) / 4."""
    first, y = torch.tensor([[1.0], [-2.0]], dtype=DTYPE), torch.tensor([[4.0], [2.0]], dtype=DTYPE)
    found = rp.HeteroscedasticGaussian().second_given(first, y, torch.tensor([1.0, 3.0], dtype=DTYPE))
    assert float(found) == pytest.approx(0.5 * math.log(57 / 4), rel=1e-14)
