from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from raphson.infer import _mean, mean_interval
from raphson.likelihoods import Bernoulli, Categorical, Gaussian
from raphson.linalg import Dense


def outputs(estimates, x, c):
    coef = estimates.values.reshape(c, -1)
    return coef[:, 0] + x @ coef[:, 1:].mT


def test_logit_intervals_against_statsmodels(spector):
    # On the logit scale the interval is that of the linear predictor: GLM's mean_ci.
    glm = sm.GLM(spector.fit.model.endog, spector.design, family=sm.families.Binomial()).fit(tol=1e-13)
    theirs = glm.get_prediction().summary_frame(alpha=0.1)
    for scale, rtol in (("logit", 1e-7), ("identity", None)):
        ours = mean_interval(
            Bernoulli(),
            outputs(spector.estimates, spector.x, 1),
            spector.x,
            spector.estimates.covariance,
            0.9,
            scale=scale,
        )
        np.testing.assert_allclose(ours.mean[:, 0], theirs["mean"], rtol=1e-7)
        np.testing.assert_allclose(ours.standard_errors[:, 0], theirs["mean_se"], rtol=1e-7)
        if rtol is None:
            half = stats.norm.ppf(0.95) * theirs["mean_se"]
            np.testing.assert_allclose(ours.upper[:, 0], theirs["mean"] + half, rtol=1e-7)
        else:
            np.testing.assert_allclose(ours.lower[:, 0], theirs["mean_ci_lower"], rtol=rtol)
            np.testing.assert_allclose(ours.upper[:, 0], theirs["mean_ci_upper"], rtol=rtol)


def test_least_squares_against_statsmodels(spector):
    ols = sm.OLS(spector.fit.model.endog, spector.design).fit()
    theirs = ols.get_prediction()
    f = torch.tensor(ols.fittedvalues).unsqueeze(-1)
    covariance = Dense(torch.tensor(ols.cov_params()))
    ours = mean_interval(Gaussian(), f, spector.x, covariance)
    half = stats.norm.ppf(0.975) * theirs.se_mean
    np.testing.assert_allclose(ours.lower[:, 0], theirs.predicted_mean - half, rtol=1e-8)
    np.testing.assert_allclose(ours.upper[:, 0], theirs.predicted_mean + half, rtol=1e-8)


def test_class_probabilities(anes, monkeypatch):
    monkeypatch.setattr(_mean, "CHUNK_ELEMENTS", 100 * 7 * 7 * 6)
    f = outputs(anes.full, anes.x, 7)
    interval = mean_interval(Categorical(), f, anes.x, anes.full.covariance, scale="simplex")
    p = torch.softmax(f, -1)
    xhat = torch.tensor(anes.design)
    for n in (0, 17, 943):
        jacobian = torch.einsum("mc,k->mck", torch.diag(p[n]) - torch.outer(p[n], p[n]), xhat[n]).reshape(7, -1)
        se = (jacobian @ anes.full.covariance.to_dense() @ jacobian.mT).diagonal().sqrt()
        torch.testing.assert_close(interval.standard_errors[n], se, rtol=1e-8, atol=0.0)
        half = stats.norm.ppf(0.975) * se / (p[n] * (1 - p[n]))
        expected = special.expit(special.logit(p[n].numpy()) + half.numpy())
        np.testing.assert_allclose(interval.upper[n], expected, rtol=1e-8)
    assert bool(((interval.lower > 0) & (interval.lower < p) & (p < interval.upper) & (interval.upper < 1)).all())


def test_two_classes_agree_with_one_probability(spector):
    one = mean_interval(
        Bernoulli(),
        outputs(spector.estimates, spector.x, 1),
        spector.x,
        spector.estimates.covariance,
        scale="logit",
    )
    two = mean_interval(
        Categorical(),
        outputs(spector.full, spector.x, 2),
        spector.x,
        spector.full.covariance,
        scale="simplex",
    )
    torch.testing.assert_close(two.lower[:, 1:], one.lower, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(two.upper[:, :1], 1 - one.lower, rtol=1e-9, atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(size=st.floats(-650, 650), spread=st.floats(1e-3, 3), classes=st.integers(2, 4))
def test_saturated_probabilities(size, spread, classes):
    """Far out, the logit of a class is f_0 less the log-sum of the others, and no bound is nan."""
    f = torch.zeros(1, classes, dtype=torch.float64)
    f[0, 0] = size
    x = torch.ones(1, 1, dtype=torch.float64)
    covariance = torch.zeros(2 * classes, 2 * classes, dtype=torch.float64)
    covariance[0, 0] = spread**2
    result = mean_interval(Categorical(), f, x, Dense(covariance), scale="simplex")
    reach = stats.norm.ppf(0.975) * spread
    logit = size - np.log(classes - 1)
    np.testing.assert_allclose(result.lower[0, 0], special.expit(logit - reach), rtol=1e-9)
    np.testing.assert_allclose(result.upper[0, 0], special.expit(logit + reach), rtol=1e-9)
    single = mean_interval(Bernoulli(), f[:, :1], x, Dense(covariance[:2, :2]), scale="logit")
    np.testing.assert_allclose(single.lower[0, 0], special.expit(size - reach), rtol=1e-9)
    np.testing.assert_allclose(single.upper[0, 0], special.expit(size + reach), rtol=1e-9)


def test_beyond_the_range_nothing_is_claimed():
    f = torch.tensor([[2000.0], [-2000.0]]).double()
    result = mean_interval(Bernoulli(), f, torch.ones(2, 1).double(), Dense(torch.eye(2).double()), scale="logit")
    assert result.lower.tolist() == [[0.0], [0.0]] and result.upper.tolist() == [[1.0], [1.0]]


def test_log_scale_stays_positive():
    f = torch.tensor([[0.1]]).double()
    ours = mean_interval(Gaussian(), f, torch.ones(1, 1).double(), Dense(torch.eye(2).double()), scale="log")
    reach = stats.norm.ppf(0.975) * 2**0.5 / 0.1
    assert float(ours.lower) == pytest.approx(0.1 * np.exp(-reach))
    assert float(ours.upper) == pytest.approx(0.1 * np.exp(reach))
