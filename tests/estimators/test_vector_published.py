"""Published ordinal, count and beta regressions, and distributional closed forms, to the digits given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.discrete.tests.results.results_count_robust_cluster as stata
import statsmodels.miscmodels.tests.results.results_ordinal_model as polr
import statsmodels.othermod.tests.results.results_betareg as betareg
from statsmodels.discrete.tests.results.results_discrete import RandHIE, Spector
from statsmodels.othermod.betareg import BetaModel

from raphson import (
    Bernoulli,
    Beta,
    HeteroscedasticGaussian,
    NegativeBinomial,
    Ordinal,
    Poisson,
    VectorGLM,
)
from tests.estimators.test_vector import coef, errors
from tests.published import housing


def test_housing_proportional_odds_observed_and_expected():
    x, y, counts = housing()
    model = VectorGLM(Ordinal(3)).fit(x, y, sample_weight=counts)
    assert model.solution_.converged
    assert -2 * model.loglik_ == pytest.approx(3479.149299, abs=1e-6)
    thresholds = [-0.49613514, 0.69070826]
    slopes = [0.56639374, 1.28881911, -0.57235, -0.36618637, -1.09101466, 0.360284]
    np.testing.assert_allclose(coef(model), thresholds + slopes, rtol=2e-6)
    np.testing.assert_allclose(model.intercept_, thresholds, rtol=2e-6)
    np.testing.assert_allclose(model.coef_, [[-b for b in slopes]] * 2, rtol=2e-6)
    place = list(model.summary().to_frame().index).index(("shared", "infl_medium"))
    assert errors(model)[place] == pytest.approx(0.10465278, abs=5e-9)
    assert errors(model, "expected")[place] == pytest.approx(0.104963, abs=5e-7)
    without = VectorGLM(Ordinal(3)).fit(x.drop(columns=["infl_medium", "infl_high"]), y, sample_weight=counts)
    test = model.likelihood_ratio_test(without)
    assert (test.statistic, test.df) == (pytest.approx(108.2392, abs=5e-5), 2)
    # the intercepts alone fit the shares of the levels
    shares = np.bincount(y, weights=counts)
    assert model.loglik_null_ == pytest.approx((shares * np.log(shares / shares.sum())).sum(), rel=1e-12)


@pytest.mark.parametrize("link", ["logit", "probit", "cloglog"])
def test_ologit_ucla(link):
    published = getattr(polr, f"res_ord_{link}")
    frame = polr.data_store.df
    x = frame[["pared", "public", "gpa"]]
    model = VectorGLM(Ordinal(3, link=link)).fit(x, frame["apply"])
    # the published digits are those of an optimizer that stopped early
    np.testing.assert_allclose(coef(model)[2:], published.coefficients_val, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(coef(model)[:2], published.thresholds, rtol=1e-3)
    np.testing.assert_allclose(errors(model)[2:], published.coefficients_stdE, rtol=2e-3)
    np.testing.assert_allclose(model.predict(x)[:7], published.prob_pred, atol=1e-4)
    z = model.summary().to_frame()["z"].to_numpy(dtype=float)[2:]
    np.testing.assert_allclose(z, published.coefficients_tval, rtol=2e-2, atol=5e-4)


def test_spector():
    data = sm.datasets.spector.load_pandas()
    # stored in single precision
    model = VectorGLM(Bernoulli()).fit(data.exog.astype(np.float32), data.endog)
    published = Spector.logit
    order = [3, 0, 1, 2]
    assert model.loglik_ == pytest.approx(-12.8896334653, abs=1e-9)
    np.testing.assert_allclose(coef(model), np.asarray(published.params)[order], rtol=1e-6)
    np.testing.assert_allclose(errors(model), np.asarray(published.bse)[order], rtol=1e-6)
    covariance = np.asarray(published.cov_params)[np.ix_(order, order)]
    np.testing.assert_allclose(model.covariance().to_numpy(dtype=float), covariance, rtol=1e-5, atol=1e-7)


def ships():
    file = Path(stata.__file__).parent / "ships.csv"
    return pd.read_csv(file, index_col=False).dropna()


@pytest.mark.parametrize(
    ("likelihood", "offset", "suffix"),
    [
        (Poisson(), False, "poisson"),
        (Poisson(), True, "poisson_exposure"),
        (NegativeBinomial(), False, "negbin"),
        (NegativeBinomial(), True, "negbin_exposure"),
    ],
    ids=["poisson", "poisson exposure", "negbin", "negbin exposure"],
)
def test_robust_and_clustered_counts(likelihood, offset, suffix):
    data = ships()
    exposure = np.log(data["service"]) if offset else None
    model = VectorGLM(likelihood).fit(data[["yr_con", "op_75_79"]], data["accident"], offset=exposure)
    checked = 0
    for name, options in {
        f"results_{suffix}_nonrobust": {},
        f"results_{suffix}_hc1": {"kind": "sandwich"},
        f"results_{suffix}_clu": {"kind": "sandwich", "groups": data["ship"]},
    }.items():
        published = getattr(stata, name, None)
        if published is None:
            continue
        checked += 1
        order = [2, 0, 1, *([3] if "negbin" in suffix else [])]  # Stata's last rows: _cons, lnalpha, alpha
        np.testing.assert_allclose(coef(model), np.asarray(published.params)[order], rtol=1e-5, atol=1e-7)
        # Stata's negative binomial keeps the cross terms of the Hessian that vanish at its optimum only
        np.testing.assert_allclose(errors(model, **options), np.asarray(published.bse)[order], rtol=2e-5)
        assert model.loglik_ == pytest.approx(published.ll, abs=1e-6)
    assert checked >= 2


def test_clustered_poisson_digits():
    data = ships()
    model = VectorGLM(Poisson()).fit(data[["yr_con", "op_75_79"]], data["accident"])
    clustered = errors(model, "sandwich", groups=data["ship"])
    np.testing.assert_allclose(clustered[[1, 2, 0]], [0.199337, 0.110936, 1.104857], atol=5e-7)


def test_health_insurance_counts():
    data = sm.datasets.randhie.load_pandas()
    order = [9, *range(9)]
    poisson = VectorGLM(Poisson()).fit(data.exog, data.endog)
    np.testing.assert_allclose(coef(poisson), np.asarray(RandHIE.poisson.params)[order], rtol=1e-7)
    np.testing.assert_allclose(errors(poisson), np.asarray(RandHIE.poisson.bse)[order], rtol=1e-7)
    assert poisson.loglik_ == pytest.approx(RandHIE.poisson.llf, rel=1e-9)
    negbin = VectorGLM(NegativeBinomial()).fit(data.exog, data.endog)
    published = RandHIE.negativebinomial_nb2_bfgs
    np.testing.assert_allclose(coef(negbin)[:-1], np.asarray(published.params)[order], rtol=2e-4)
    # R holds the dispersion fixed in the standard errors of the slopes, which is the expected information
    np.testing.assert_allclose(errors(negbin, "expected")[:-1], np.asarray(published.bse)[order], rtol=2e-4)
    # Stata's, of the logarithm of the dispersion
    assert coef(negbin)[-1] == pytest.approx(published.lnalpha, abs=1e-6)
    assert errors(negbin)[-1] == pytest.approx(published.lnalpha_std_err, abs=1e-6)
    assert negbin.loglik_ == pytest.approx(published.llf, abs=1e-3)


def test_beta_regression_with_precision_covariates():
    published = betareg.results_meth
    file = Path(betareg.__file__).parent / "methylation-test.csv"
    data = pd.read_csv(file)
    levels = pd.get_dummies(data["CpG"], drop_first=True).astype(float)
    mean = pd.concat([(data["gender"] == "M").rename("genderM").astype(float), levels], axis=1)
    tables = {"logit_mean": mean, "log_precision": data[["age"]].astype(float)}
    model = VectorGLM(Beta()).fit(tables, data["methylation"])
    assert model.loglik_ == pytest.approx(published.loglik, abs=1e-8)
    both = [*published.table_mean[:, 0], *published.table_precision[:, 0]]
    np.testing.assert_allclose(coef(model), both, rtol=2e-6)
    expected = [*published.table_mean[:, 1], *published.table_precision[:, 1]]
    np.testing.assert_allclose(errors(model, "expected"), expected, rtol=2e-6)
    vcov = model.covariance("expected").to_numpy(dtype=float)
    np.testing.assert_allclose(vcov, published.vcov, rtol=2e-4, atol=1e-8)
    observed = [*published.table_mean_oim[:, 1], *published.table_precision_oim[:, 1]]
    # R differentiates numerically for these: the precision's are good to three digits
    np.testing.assert_allclose(errors(model)[:4], observed[:4], rtol=2e-5)
    np.testing.assert_allclose(errors(model)[4:], observed[4:], rtol=1e-3)
    peer = BetaModel(data["methylation"], sm.add_constant(mean), exog_precision=sm.add_constant(data[["age"]])).fit(
        disp=0
    )
    np.testing.assert_allclose(errors(model), peer.bse, rtol=1e-4)


def test_distributional_regression_equals_the_saturated_closed_form():
    rng = np.random.default_rng(0)
    sizes = [7, 12, 30]
    group = np.repeat(np.arange(3), sizes)
    y = rng.normal(np.array([1.0, -2.0, 5.0])[group], np.array([0.5, 2.0, 1.0])[group])
    dummies = pd.DataFrame(np.eye(3)[group], columns=["a", "b", "c"])
    model = VectorGLM(HeteroscedasticGaussian("mean_log_scale"), fit_intercept=False, tol=1e-12)
    model.fit({"mean": dummies, "log_scale": dummies}, y)
    means = np.array([y[group == g].mean() for g in range(3)])
    scales = np.array([y[group == g].std() for g in range(3)])
    np.testing.assert_allclose(model.coef_, [means, np.log(scales)], rtol=1e-9)
    # information of a group of n: n / s^2 for the mean, 2 n for the log scale, observed and expected alike
    n = np.array(sizes)
    both = np.concatenate([scales / np.sqrt(n), 1 / np.sqrt(2 * n)])
    for kind in ("observed", "expected"):
        np.testing.assert_allclose(errors(model, kind), both, rtol=1e-8)
    # in the scale itself: n / s^2 and 2 n / s^2
    direct = VectorGLM(HeteroscedasticGaussian("mean_scale"), fit_intercept=False, tol=1e-12)
    direct.fit({"mean": dummies, "scale": dummies}, y)
    np.testing.assert_allclose(direct.coef_, [means, scales], rtol=1e-8)
    both = np.concatenate([scales / np.sqrt(n), scales / np.sqrt(2 * n)])
    np.testing.assert_allclose(errors(direct), both, rtol=1e-7)
