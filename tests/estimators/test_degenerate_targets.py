"""Targets that leave nothing to estimate, or so large that no gradient is small: the right answer, or why not."""

from __future__ import annotations

import numpy as np
import pytest

import raphson as rp

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 1))
PENALTIES = [{}, {"l2": 0.1}, {"penalty": "jeffreys"}]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", PENALTIES, ids=["none", "ridge", "jeffreys"])
@pytest.mark.parametrize("value", [0.0, 3.0, 1e10])
@pytest.mark.parametrize(
    "likelihood", [rp.StudentT(), rp.StudentT(df=4.0), rp.HeteroscedasticGaussian(), rp.MultivariateGaussian(1)]
)
def test_equal_targets_leave_no_spread(likelihood, value, options):
    model = rp.VectorGLM(likelihood, **options).fit(X, np.full(50, value))
    assert not model.solution_.converged
    with pytest.raises(rp.NotEstimableError, match="show no spread"):
        model.standard_errors()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("likelihood", [rp.StudentT(), rp.HeteroscedasticGaussian(), rp.Gamma(), rp.Weibull()])
def test_as_many_coefficients_as_rows_leave_no_spread(likelihood, n):
    model = rp.VectorGLM(likelihood).fit(X[:n], np.array([1.0, 2.0])[:n])
    with pytest.raises(rp.NotEstimableError, match="show no spread"):
        model.standard_errors()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", PENALTIES, ids=["none", "ridge", "jeffreys"])
@pytest.mark.parametrize("levels", [[0], [1], [0, 1], [0, 2], [1, 3], [1, 2], [0, 3]], ids=str)
def test_levels_without_rows_are_named_or_their_cuts_are_finite(levels, options):
    y = np.resize(levels, 50)
    model = rp.VectorGLM(rp.Ordinal(4), **options).fit(X, y)
    if model.solution_.converged:
        assert options == {"penalty": "jeffreys"} and np.isfinite(model.standard_errors().to_numpy(dtype=float)).all()
        return
    limit = model._fitted.limit is not None
    if not limit:
        with pytest.raises(rp.NotEstimableError, match="never|no finite|grow without bound"):
            model.standard_errors()


@pytest.mark.parametrize("unit", [1e8, 1e10, 1e12, 1e15])
def test_large_counts(unit):
    # with a mean far above, a Poisson model is a Gaussian one of the relative deviations, weighted by the means
    y = np.floor(unit * np.exp(0.3 * X[:, 0] + 0.1 * RNG.normal(size=50)))
    model = rp.VectorGLM(rp.Poisson()).fit(X, y)
    assert model.solution_.converged
    mean = np.exp(model.intercept_ + X[:, 0] * model.coef_[0, 0])
    design = np.column_stack([np.ones(50), X])
    score = design.T @ (y - mean)
    information = design.T @ (design * mean[:, None])
    assert np.all(np.abs(np.linalg.solve(information, score)) < 1e-12)
    np.testing.assert_allclose(model.standard_errors(), np.sqrt(np.linalg.inv(information).diagonal()), rtol=1e-6)


@pytest.mark.parametrize("unit", [1e10, 1e12, 1e15])
@pytest.mark.parametrize("likelihood", [rp.Gaussian(), rp.Poisson(link="identity")], ids=repr)
def test_large_targets_on_their_own_scale(likelihood, unit):
    y = (unit * (3 + 0.3 * X[:, 0] + 0.1 * RNG.normal(size=50))).round()
    model = rp.VectorGLM(likelihood).fit(X, y)
    assert model.solution_.converged
    design = np.column_stack([np.ones(50), X])
    weight = 1 / (design @ [model.intercept_[0], model.coef_[0, 0]]) if isinstance(likelihood, rp.Poisson) else 1.0
    weighted = design * np.broadcast_to(weight, 50)[:, None]
    expected = np.linalg.solve(weighted.T @ design, weighted.T @ y)
    np.testing.assert_allclose([model.intercept_[0], model.coef_[0, 0]], expected, rtol=1e-7)
