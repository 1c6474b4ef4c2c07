"""Optima at the edge of what outputs may be, against SciPy's; scales that have nothing to estimate."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import raphson as rp
from raphson.likelihoods import (
    Bernoulli,
    Binomial,
    Gamma,
    HeteroscedasticGaussian,
    InverseGaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    StudentT,
    Weibull,
)

RNG = np.random.default_rng(0)
N = 60
X = np.column_stack([RNG.normal(size=N), np.arange(N) % 3 == 0]).astype(float)
GROUP = X[:, 1] > 0
COUNTS, SHARES = RNG.poisson(3, N), RNG.integers(1, 6, N)


def fit(likelihood: Likelihood, y: Any, **options: Any) -> rp.VectorGLM:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rp.VectorGLM(likelihood, **options).fit(X, y)


def refused(model: rp.VectorGLM, status: str, words: str) -> None:
    """No standard error, and the reason in the summary, which shows no number that is none."""
    assert model.solution_.status.name == status
    with pytest.raises(rp.NotEstimableError, match=words):
        model.standard_errors()
    printed = str(model.summary())
    assert " nan" not in printed and " inf " not in printed
    assert np.isfinite(model.coef_).all() and np.isfinite(model.intercept_).all()


@pytest.mark.parametrize("link", ["identity", "sqrt"])
@pytest.mark.parametrize("family", [Poisson, NegativeBinomial])
def test_zero_counts_without_standard_errors(family: Any, link: str) -> None:
    refused(fit(family(link=link), np.zeros(N)), "BOUNDARY", "goes to 0 in 60 rows")
    # a group of zeros: with a linear root some row alone is at zero
    refused(fit(family(link=link), np.where(GROUP, 0, COUNTS)), "BOUNDARY", "goes to 0 in")


@pytest.mark.parametrize("likelihood", [Bernoulli(link="identity"), Binomial(7, link="identity")], ids=repr)
def test_shares_of_zero_and_one_by_the_identity(likelihood: Any) -> None:
    n = getattr(likelihood, "trials", 1)
    for value in (0, n):
        refused(fit(likelihood, np.full(N, value)), "BOUNDARY", f"goes to {value // n} in 60 rows")


@pytest.mark.parametrize("likelihood", [Bernoulli(link="log"), Binomial(7, link="log")], ids=repr)
def test_shares_by_the_logarithm(likelihood: Any) -> None:
    n = getattr(likelihood, "trials", 1)
    refused(fit(likelihood, np.full(N, n)), "BOUNDARY", "goes to 0 in 60 rows")
    refused(fit(likelihood, np.zeros(N)), "DIVERGING", "no finite maximum likelihood estimate")
    # a group without successes: its coefficient is infinite, the others are those of the other rows
    y = np.where(GROUP, 0, SHARES if n > 1 else RNG.integers(0, 2, N))
    found = fit(likelihood, y).estimates().to_frame()
    rest = rp.VectorGLM(likelihood).fit(X[~GROUP, :1], y[~GROUP]).estimates().to_frame()
    assert found["coef"].isna().tolist() == [False, False, True]
    np.testing.assert_allclose(found.iloc[:2].to_numpy(float), rest.to_numpy(float), rtol=1e-5)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("likelihood", [Poisson(link="identity"), Binomial(5, link="identity")], ids=repr)
def test_fits_with_bounds_are_no_worse_than_a_constrained_optimizer(likelihood: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(25, 2))
    y = rng.poisson(0.8, 25) if isinstance(likelihood, Poisson) else rng.binomial(5, 0.2, 25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = rp.VectorGLM(likelihood).fit(x, y)
    design, targets = np.column_stack([np.ones(25), x]), torch.from_numpy(y)[:, None]

    def loss(b: np.ndarray) -> float:
        f = torch.from_numpy(np.clip(design @ b, 1e-12, None if isinstance(likelihood, Poisson) else 1 - 1e-12))
        return float(likelihood.nll(f[:, None], targets).sum())

    inside = [{"type": "ineq", "fun": lambda b: design @ b - 1e-12}]
    if not isinstance(likelihood, Poisson):
        inside.append({"type": "ineq", "fun": lambda b: 1 - 1e-12 - design @ b})
    start = [y.mean() / getattr(likelihood, "trials", 1), 0.0, 0.0]
    best = minimize(loss, start, method="SLSQP", constraints=inside, options={"maxiter": 500, "ftol": 1e-12}).fun
    assert -model.loglik_ <= best + 1e-5 * abs(best)
    assert model.solution_.status.name in ("CONVERGED", "BOUNDARY")
    at_edge = float((design @ np.r_[model.intercept_, model.coef_[0]]).min()) < 1e-6
    assert (model.solution_.status.name == "BOUNDARY") == at_edge


@pytest.mark.parametrize("parametrization", ["mean_variance", "mean_scale", "mean_precision", "natural"])
def test_a_linear_variance_is_found_from_inside(parametrization: str) -> None:
    """All parametrizations are the same model where the second output is constant within two groups."""
    rng = np.random.default_rng(3)
    group = np.repeat([0.0, 1.0], 100)[:, None]
    y = rng.normal(size=200) * (0.5 + group[:, 0]) + group[:, 0]
    model = rp.VectorGLM(HeteroscedasticGaussian(parametrization), constraints="own").fit(group, y)
    assert model.solution_.status.name == "CONVERGED"
    likelihood, f = model._likelihood(), torch.from_numpy(model.linear_predictors([[0.0], [1.0]]))
    halves = y.reshape(2, 100)
    np.testing.assert_allclose(likelihood.mean(f)[:, 0], halves.mean(1), rtol=1e-6)
    np.testing.assert_allclose(likelihood.variance(f)[:, 0], halves.var(1), rtol=1e-6)
    assert (model.standard_errors("expected") > 0).all()


def test_a_variance_that_falls_into_a_pit_is_named() -> None:
    """Near the corner of the table one row is fitted exactly as its variance vanishes: the likelihood has no bound."""
    rng = np.random.default_rng(4)
    n = int(rng.integers(20, 200))
    x = rng.uniform(0, 1, size=(n, int(rng.integers(1, 3))))
    y = rng.normal(size=n) * (0.5 + x[:, 0]) + x[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = rp.VectorGLM(HeteroscedasticGaussian("mean_variance"), constraints="own").fit(x, y)
    refused(model, "BOUNDARY", "edge of what 'variance' may be")


@pytest.mark.parametrize(
    "likelihood",
    [Gamma(), Gamma(link="identity"), InverseGaussian(), Weibull(), HeteroscedasticGaussian()]
    + [HeteroscedasticGaussian(name) for name in ("mean_variance", "natural", "mean_softplus_scale")],
    ids=repr,
)
@pytest.mark.parametrize("other", [3.0, 5.0])
def test_no_spread_to_estimate_is_said(likelihood: Any, other: float) -> None:
    model = fit(likelihood, np.where(GROUP, 3.0, other))
    assert model.solution_.status.name == "DIVERGING"
    with pytest.raises(rp.NotEstimableError, match="no finite optimum"):
        model.standard_errors()
    printed = str(model.summary())
    assert " nan" not in printed and " inf" not in printed


@pytest.mark.parametrize("power", [-100, 100, 140])
def test_student_t_in_any_unit(power: int) -> None:
    y = np.random.default_rng(5).standard_t(2, N)
    plain, scaled = fit(StudentT(), y), fit(StudentT(), y * 10.0**power)
    assert scaled.solution_.status.name == "CONVERGED"
    np.testing.assert_allclose(scaled.coef_[0] / 10.0**power, plain.coef_[0], rtol=1e-5)
    np.testing.assert_allclose(scaled.intercept_[2], plain.intercept_[2], rtol=1e-5)


@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_levels_without_rows_are_named(l2: float) -> None:
    y = np.random.default_rng(6).choice([0, 1, 4], N)
    model = fit(rp.Ordinal(5), y, l2=l2)
    refused(model, "BOUNDARY", "never '2' and '3'")
    few = fit(rp.Ordinal(3), np.where(y == 4, 2, y), l2=l2)
    assert few.solution_.status.name == "CONVERGED"
    assert few.loglik_ >= model.loglik_


def test_small_noise_is_spread() -> None:
    y = 20.0 + X[:, 0] + 1e-4 * np.random.default_rng(7).normal(size=N)
    model = rp.VectorGLM(HeteroscedasticGaussian()).fit(X, y)
    assert model.solution_.converged
    residual = y - model.predict(X)
    assert np.exp(model.intercept_[1]) == pytest.approx(np.sqrt(np.mean(residual**2)), rel=1e-5)


@pytest.mark.parametrize("seed", [0, 56, 73])
def test_a_weak_penalty_has_a_finite_optimum_however_far_off(seed):
    """At the tolerance the value may still fall, but slopes that are penalized do not grow without bound."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20, 17)) * 10.0 ** rng.uniform(-1, 1, 17) + 20.0 * rng.normal(size=17)
    x[rng.random(x.shape) < 0.6] = 0.0
    x[15:] = x[:5]
    y, weights = rng.permutation(np.arange(20) % 3), rng.uniform(0.5, 2.0, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = rp.MultinomialLogisticRegression(l2=1e-6, tol=1e-6).fit(x, y, weights)
    assert model.solution_.converged and model.separation_ is None


def test_an_intercept_without_a_finite_estimate_is_found_beside_penalized_slopes():
    x = np.random.default_rng(0).normal(size=(50, 3))
    with pytest.warns(rp.SeparationWarning, match="no finite optimum"):
        model = rp.VectorGLM(rp.Poisson(), l2=1e-3).fit(x, np.zeros(50))
    assert not model.solution_.converged
