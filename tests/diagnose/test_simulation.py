"""Tests by simulation reject at their level, find what is there, and read weights, offsets and formulas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import raphson as rp
from raphson.diagnose import dispersion_test, zero_inflation_test
from raphson.likelihoods import catalogue

MEMBERS = [member for kind in catalogue().values() for member in kind.examples()]


@pytest.mark.parametrize("likelihood", MEMBERS, ids=repr)
def test_simulated_targets_have_the_moments_of_the_likelihood(likelihood):
    definition = likelihood.definition()
    likelihood, (outputs, target) = definition.likelihood, definition.example
    f = torch.tensor(outputs, dtype=torch.float64).expand(4000, -1)
    y = torch.tensor(target, dtype=torch.long if isinstance(target, int) else torch.float64)
    predicted = likelihood.distribution(f, y.expand(4000, *y.shape))
    if getattr(likelihood, "censored", False):
        with pytest.raises(rp.InputError, match="censored"):
            likelihood.distribution(f, torch.tensor([1.0, 0.0]).expand(4000, 2)).simulate(np.random.default_rng(0))
        predicted = likelihood.distribution(f, torch.ones(4000, 2))
    mean, variance = (part(f).numpy().reshape(4000, -1)[0] for part in (likelihood.mean, likelihood.variance))
    np.testing.assert_allclose(predicted.mean.reshape(4000, -1)[0], mean, rtol=1e-10)
    if not isinstance(likelihood, rp.Multinomial) and getattr(likelihood, "trials", 1) is not None:  # of one trial
        np.testing.assert_allclose(predicted.variance.reshape(4000, -1)[0], variance, rtol=1e-8)
    seen = predicted.simulate(np.random.default_rng(0)).observed.reshape(4000, -1)
    error = (seen.mean(0) - mean) / np.sqrt(predicted.variance.reshape(4000, -1)[0] / 4000)
    assert np.abs(error).max() < 4.5
    if np.isfinite(variance).all():
        test = dispersion_test(predicted.simulate(np.random.default_rng(1)), simulations=40)
        assert test.p_value > 0.02 and 0.5 < test.ratio < 2


def counts(seed, n=300):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 1))
    return rng, x, np.exp(0.4 * x[:, 0] + 0.7)


def test_level_and_power():
    p_values = []
    for seed in range(20):
        rng, x, mean = counts(seed)
        model = rp.VectorGLM(rp.Poisson()).fit(x, rng.poisson(mean))
        p_values += [model.dispersion_test(60).p_value, model.zero_inflation_test(60).p_value]
    assert (np.array(p_values) < 0.05).sum() <= stats.binom.ppf(1 - 1e-4, 40, 0.05)

    rng, x, mean = counts(0)
    over = rp.VectorGLM(rp.Poisson()).fit(x, rng.poisson(mean * rng.gamma(1.5, 1 / 1.5, len(mean))))
    test = over.dispersion_test()
    assert test.p_value < 0.01 and test.ratio > 1.5
    assert "Mean squared Pearson residual" in str(test)
    assert stats.kstest(over.residuals().to_numpy()[:, 0], "norm").pvalue < 1e-3
    zeros = rp.VectorGLM(rp.Poisson()).fit(x, rng.poisson(mean) * (rng.random(len(mean)) > 0.3))
    assert zeros.zero_inflation_test().p_value < 0.01 and zeros.zero_inflation_test().ratio > 1.3


def test_weights_offsets_and_rows_of_the_table():
    rng, x, mean = counts(1, 40)
    exposure = rng.uniform(1, 3, 40)
    y, weights = rng.poisson(mean * exposure).astype(float), rng.integers(0, 3, 40)
    frame = pd.DataFrame({"x": x[:, 0], "y": y, "t": exposure}, index=[f"r{i}" for i in range(40)])
    frame.loc["r5", "x"] = np.nan
    weights[5] = 1
    one = rp.VectorGLM(rp.Poisson(), formula="y ~ x + offset(log(t))").fit(frame, sample_weight=weights)
    found = one.residuals("pearson")
    kept = [i for i in range(40) if weights[i] > 0 and i != 5]
    assert list(found.index) == [f"r{i}" for i in kept]
    fitted = one.predict(frame.iloc[kept])
    np.testing.assert_allclose(found["mean"], (y[kept] - fitted) / np.sqrt(fitted))

    twice = rp.VectorGLM(rp.Poisson()).fit(
        np.repeat(x[kept], weights[kept], 0),
        np.repeat(y[kept], weights[kept]),
        offset=np.log(np.repeat(exposure[kept], weights[kept])),
    )
    assert np.isclose(one.dispersion_test(20).statistic, twice.dispersion_test(20).statistic, rtol=1e-6)
    plain = rp.VectorGLM(rp.Poisson()).fit(x, y, sample_weight=weights, offset=np.log(exposure))
    assert list(plain.residuals().index) == np.flatnonzero(weights > 0).tolist()


def test_columns_of_classes_and_what_is_refused():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 2)), np.array(["a", "b", "c"])[rng.integers(0, 3, 50)]
    model = rp.MultinomialLogisticRegression().fit(x, y)
    assert list(model.residuals("response").columns) == ["a", "b", "c"]
    assert list(model.residuals("deviance").columns) == ["deviance"]
    # the first-order conditions: residuals are orthogonal to the columns
    assert np.abs(x.T @ model.residuals("response").to_numpy()).max() < 1e-5
    with pytest.raises(rp.InputError, match="no counts"):
        model.zero_inflation_test()
    with pytest.raises(rp.InputError, match="at least 20"):
        model.dispersion_test(simulations=5)
    predicted = rp.Poisson().distribution(torch.zeros(30, 1), torch.zeros(30))
    assert zero_inflation_test(predicted, simulations=20).p_value < 0.1
