"""Posteriors after more data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import raphson as rp

from .laplace_cases import CASES, DTYPE, Case
from .test_evidence import ridge, table

STRUCTURES = ["dense", "diagonal", "kfac", "ekfac", "low_rank"]


def same(one: rp.Posterior, other: rp.Posterior, x: Tensor) -> None:
    torch.testing.assert_close(one.precision.to_dense(), other.precision.to_dense())
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(one.log_marginal_likelihood(), other.log_marginal_likelihood())
    a, b = one.predict(x), other.predict(x)
    torch.testing.assert_close(a.output_mean, b.output_mean)
    torch.testing.assert_close(a.output_covariance, b.output_covariance)


@pytest.mark.parametrize("structure", ["dense", "kfac", "ekfac"])
def test_two_halves_of_a_linear_model_are_all_at_once(structure: str) -> None:
    x, y = table()
    sigma, delta = 0.4, 0.7
    options = {"structure": structure, "prior_precision": delta}
    all_at_once = rp.laplace(ridge(x, y, sigma, delta), rp.Gaussian(sigma), (x, y), **options)
    first = rp.laplace(ridge(x[:12], y[:12], sigma, delta), rp.Gaussian(sigma), (x[:12], y[:12]), **options)
    before = first.mean.clone()
    second = first.update((x[12:], y[12:]))
    same(second, all_at_once, x[:4])
    assert torch.equal(first.mean, before) and torch.equal(first.objective.space.vector(), before)
    # at the mode of all data the mean has nowhere to go
    there = rp.laplace(ridge(x, y, sigma, delta), rp.Gaussian(sigma), (x[:12], y[:12]), **options)
    same(there.update((x[12:], y[12:])), all_at_once, x[:4])
    # and the tuned scale is that of all data
    tuned = [post.tune_prior(scale=True) for post in (second, all_at_once)]
    assert tuned[0].objective.likelihood.scale == pytest.approx(tuned[1].objective.likelihood.scale, rel=1e-6)
    assert tuned[0].prior_precision == pytest.approx(tuned[1].prior_precision, rel=1e-5)


@pytest.mark.filterwarnings("ignore:The mean is not the mode")
@pytest.mark.parametrize("structure", ["dense", "diagonal", "kfac"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_curvatures_add_up(case: Case, structure: str) -> None:
    if structure == "kfac" and case.name in {"convolutions", "tied table"}:
        pytest.skip("dense blocks of Kronecker products add up as dense blocks")
    model, likelihood, (x, y), _ = case.make()
    whole = rp.laplace(model, likelihood, (x, y), structure=structure)
    parts = rp.laplace(model, likelihood, (x[:5], y[:5]), structure=structure).update((x[5:], y[5:]))
    torch.testing.assert_close(parts.precision.to_dense(), whole.precision.to_dense())


@pytest.mark.filterwarnings("ignore:The mean is not the mode")
@pytest.mark.parametrize("structure", ["ekfac", "low_rank"])
def test_what_does_not_add_up_exactly_is_near(structure: str) -> None:
    model, likelihood, (x, y), _ = CASES[0].make(60)
    whole = rp.laplace(model, likelihood, (x, y), structure=structure, rank=20)
    parts = rp.laplace(model, likelihood, (x[:30], y[:30]), structure=structure, rank=20).update((x[30:], y[30:]))
    gap = (parts.precision.to_dense() - whole.precision.to_dense()).norm()
    assert float(gap) < 0.1 * float(whole.curvature.to_dense().norm())
    torch.testing.assert_close(parts.curvature.trace(), whole.curvature.trace(), rtol=1e-6, atol=0)


def test_a_mean_that_is_no_mode_stays_and_says_so() -> None:
    model, likelihood, (x, y), _ = CASES[0].make(60)
    post = rp.laplace(model, likelihood, (x[:30], y[:30]), structure="dense")
    with pytest.warns(rp.RaphsonWarning, match="not the mode"):
        later = post.update((x[30:], y[30:]))
    assert torch.equal(later.mean, post.mean)
    with pytest.raises(rp.InputError, match="tune per='layer'"):
        rp.laplace(model, likelihood, (x, y)).update((x, y)).tune_prior(per="tensor")
    assert later.mean.dtype == DTYPE
