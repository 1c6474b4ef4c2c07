"""Fits where numbers are extreme: weights, units, columns; what is not usable says so."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import raphson as rp

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 2))
Y = X @ [1, 2] + np.exp(0.3 * X[:, 0]) * RNG.normal(size=200)


def fitted(model, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(*arguments, **options)


def test_one_weight_of_1e12_leaves_no_fit_worse_than_the_null():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x, y, weights = rng.normal(size=(20, 2)), rng.integers(0, 6, 20), np.ones(20)
        weights[0] = 1e12
        model = fitted(rp.MultinomialLogisticRegression(), x, y, sample_weight=weights)
        assert not model.solution_.converged or model.loglik_ >= model.loglik_null_


@pytest.mark.parametrize("unit", [1e15, 1e-9, 1e100])
@pytest.mark.parametrize("likelihood", [rp.HeteroscedasticGaussian(), rp.StudentT(df=4.0), rp.MultivariateGaussian(1)])
def test_a_fit_does_not_depend_on_the_unit_of_the_targets(likelihood, unit):
    one, other = (rp.VectorGLM(likelihood, constraints="own").fit(X, Y * scale) for scale in (1.0, unit))
    assert other.solution_.converged and other.n_iter_ == one.n_iter_
    np.testing.assert_allclose(other.coef_[0] / unit, one.coef_[0], rtol=1e-8)
    np.testing.assert_allclose(other.coef_[1], one.coef_[1], rtol=1e-6, atol=1e-9)
    ratio = other.standard_errors().to_numpy(dtype=float) / one.standard_errors().to_numpy(dtype=float)
    np.testing.assert_allclose(ratio, [unit] * 3 + [1.0] * 3, rtol=1e-6)


@pytest.mark.parametrize("size", [1e300, 1e160])
def test_columns_too_large_to_compute_with_are_refused_by_name(size):
    with pytest.raises(rp.InputError, match="'x0'.*too large"):
        rp.VectorGLM(rp.HeteroscedasticGaussian()).fit(X * [size, 1.0], Y)


@pytest.mark.parametrize("size", [1e-300, 1e-160])
def test_a_variance_without_a_number_is_no_standard_error(size):
    x = X * [size, 1.0]
    model = rp.VectorGLM(rp.HeteroscedasticGaussian()).fit(x, Y)
    with pytest.warns(rp.RaphsonWarning, match="beyond the range of double precision"):
        errors = model.standard_errors().to_numpy(dtype=float)
    assert np.isnan(errors[1]) and np.isfinite(errors[[0, 2, 3]]).all() and (errors[[0, 2, 3]] > 0).all()


def test_one_row_of_positive_weight():
    model = fitted(rp.VectorGLM(rp.Poisson()), np.arange(8).reshape(4, 2), [0, 1, 2, 0], sample_weight=[0, 1, 0, 0])
    assert "1 rows, so at most 1 combinations" in str(model.summary())


def test_two_equal_columns_and_three_classes():
    x = np.repeat(X[:, :1], 2, axis=1)
    model = fitted(rp.MultinomialLogisticRegression(), x, RNG.integers(0, 3, 200))
    assert "duplicates 'x0' exactly" in str(model.summary())


def test_targets_of_one_class_are_named():
    with pytest.raises(rp.InputError, match="all targets are in one class"):
        rp.VectorGLM(rp.Categorical()).fit(X[:5], np.zeros(5, dtype=int))


@pytest.mark.parametrize(("unit", "mean"), [(1e-8, 0.0), (1e-100, 0.0), (1e-7, 3.0)])
@pytest.mark.parametrize(
    "likelihood", [rp.Gamma(dispersion=0.3), rp.Gaussian(), rp.Poisson(), rp.NegativeBinomial()], ids=repr
)
def test_a_weak_effect_is_fitted_in_any_unit(likelihood, unit, mean):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(80, 1))
    y = rng.negative_binomial(2, 0.1, 80) + 1.0
    one, other = (rp.VectorGLM(likelihood).fit(table, y) for table in (x, mean + x * unit))
    np.testing.assert_allclose(other.coef_ * unit, one.coef_, rtol=1e-6)
