"""Targets that leave nothing to estimate, or so large that no gradient is small: the right answer, or why not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import gammaln
from sklearn.exceptions import ConvergenceWarning

import raphson as rp

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 1))
PENALTIES = [{}, {"l2": 0.1}, pytest.param({"penalty": "jeffreys"}, marks=pytest.mark.nightly)]


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


IN_UNITS = [
    (rp.InverseGaussian(), 0.0),
    (rp.InverseGaussian(dispersion=1.0), 0.0),
    (rp.InverseGaussian(link="identity"), 1.0),
    (rp.InverseGaussian(dispersion=1.0, link="identity"), 1.0),
    (rp.InverseGaussian(link="inverse"), -1.0),
    (rp.InverseGaussian(dispersion=0.3, link="inverse_squared"), -2.0),
    (rp.Gamma(), 0.0),
    (rp.Gamma(dispersion=0.3), 0.0),
    (rp.Gamma(link="identity"), 1.0),
    (rp.Gamma(dispersion=0.3, link="inverse"), -1.0),
    (rp.Weibull(), 0.0),
    (rp.Weibull(shape=1.5), 0.0),
    (rp.StudentT(), 1.0),
    (rp.StudentT(df=4.0), 1.0),
    (rp.Gaussian(), 1.0),
    (rp.Gaussian(link="log"), 0.0),
    (rp.HeteroscedasticGaussian(), 1.0),
    (rp.HeteroscedasticGaussian("mean_variance"), 1.0),
    (rp.HeteroscedasticGaussian(link="log"), 0.0),
    (rp.HeteroscedasticGaussian(link="inverse"), -1.0),
    (rp.MultivariateGaussian(1), 1.0),
]


@pytest.mark.parametrize("unit", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize(("likelihood", "power"), IN_UNITS, ids=repr)
def test_units_of_targets_are_units_of_coefficients(likelihood, power, unit):
    # of a given dispersion or scale too: it weights all rows alike
    y = np.random.default_rng(3).gamma(4.0, 1.0, 50) * np.exp(0.3 * X[:, 0])
    y[::10] *= 5.0
    usual, other = (rp.VectorGLM(likelihood, tol=1e-10).fit(X, scale * y) for scale in (1.0, unit))
    assert other.solution_.converged
    expected = usual.coef_[0] * unit**power
    np.testing.assert_allclose(other.coef_[0], expected, rtol=1e-5, atol=1e-7 * abs(usual.intercept_[0]) * unit**power)
    if "dispersion" not in repr(likelihood) or likelihood.dispersion is None:
        return
    assert np.isfinite(other.standard_errors()).to_numpy().all()


@pytest.mark.parametrize("logit", [-300.0, -20.0, 20.0, 30.0])
@pytest.mark.parametrize("precision", [5.0, 1e4])
def test_shares_beside_zero_and_one(logit, precision):
    # there the distribution is a gamma one of a common rate, the precision
    y = np.exp(-abs(logit)) * np.random.default_rng(3).gamma(precision * np.exp(0.3 * X[:, 0]), 1 / precision)
    model = rp.VectorGLM(rp.Beta()).fit(X, y if logit < 0 else 1 - y)
    assert model.solution_.converged and model.n_iter_ < 20
    share = (y if logit < 0 else 1 - (1 - y)) * np.exp(abs(logit))

    def loss(theta: np.ndarray) -> float:
        shape, rate = np.exp(theta[0] + theta[1] * X[:, 0] + theta[2]), np.exp(theta[2])
        return -np.mean(shape * theta[2] - gammaln(shape) + shape * np.log(share) - rate * share)

    intercept, slope, _ = minimize(loss, [0.0, 0.0, np.log(precision)], options={"gtol": 1e-8}).x
    sign = -np.sign(logit)
    np.testing.assert_allclose(sign * model.coef_[0], slope, atol=1e-4 / np.sqrt(precision))
    np.testing.assert_allclose(sign * model.intercept_[0], intercept - abs(logit), atol=1e-4 / np.sqrt(precision))


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


@pytest.mark.parametrize("penalty", ["ridge", "jeffreys"])
@pytest.mark.parametrize("name", ["gamma", "inverse-gaussian", "student-t", "gaussian", "beta"])
@pytest.mark.parametrize("rows", [60, 5])
def test_targets_that_are_fitted_exactly_are_said_at_once(name, penalty, rows):
    """As many columns as rows, or targets that are a function of the columns: a scale goes to zero step by step."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(rows, 4))
    predictor = 0.5 + 0.3 * x.sum(1) + (rng.normal(size=rows) if rows == 5 else 0.0)
    y = {"beta": 1 / (1 + np.exp(-predictor)), "student-t": predictor, "gaussian": predictor}.get(
        name, np.exp(predictor)
    )
    with pytest.warns(rp.SeparationWarning, match="fitted exactly"):
        model = rp.VectorGLM(name, penalty=penalty).fit(x, y)
    assert model.solution_.status.name == "DIVERGING" and model.n_iter_ < 10
    with pytest.raises(rp.NotEstimableError, match="fitted exactly"):
        model.standard_errors()


@pytest.mark.parametrize("likelihood", [rp.Weibull(), rp.StudentT()], ids=repr)
def test_a_ridge_does_not_keep_the_scale_of_wide_tables_from_zero(likelihood):
    """As many columns as rows fit every target, whatever the penalty on the slopes: no more steps help."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 15)), rng.weibull(1.5, 12) + 0.01
    with pytest.warns(rp.SeparationWarning, match="fitted exactly") as told:
        model = rp.VectorGLM(likelihood, l2=1e-2).fit(x, y)
    assert not any("max_iter" in str(one.message) for one in told)
    with pytest.raises(rp.NotEstimableError, match="fitted exactly"):
        model.standard_errors()
    with pytest.warns(ConvergenceWarning, match="Raise max_iter"):  # so few steps tell nothing
        rp.VectorGLM(likelihood, l2=10.0, max_iter=1).fit(x[:, :3], y)
