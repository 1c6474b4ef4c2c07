"""Linear models for every likelihood against statsmodels, scikit-learn and automatic differentiation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import statsmodels.api as sm
import torch
from sklearn.base import clone
from sklearn.linear_model import GammaRegressor, PoissonRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks
from statsmodels.miscmodels.ordinal_model import OrderedModel
from statsmodels.othermod.betareg import BetaModel

from raphson import (
    Bernoulli,
    Beta,
    Binomial,
    Gamma,
    Gaussian,
    HeteroscedasticGaussian,
    InputError,
    InverseGaussian,
    Linked,
    Multinomial,
    MultinomialLogisticRegression,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
    VectorGLM,
    Weibull,
    load,
    save,
)

from .vector_tables import COUNTS, ETA, LEVELS, OVER, POSITIVE, REAL, RNG, SHARE, XC, YES, N, X, coef, errors

# peers ---------------------------------------------------------------------------------------------------------------


def glm(family, y=None):
    return lambda y: sm.GLM(y, XC, family=family).fit(tol=1e-13)


LOG = sm.families.links.Log()


@pytest.mark.parametrize(
    ("family", "likelihood", "y"),
    [
        (sm.families.Poisson(), lambda scale: Poisson(), COUNTS),
        (sm.families.Gamma(LOG), lambda scale: Gamma(dispersion=scale), POSITIVE),
        (sm.families.InverseGaussian(LOG), lambda scale: InverseGaussian(dispersion=scale), POSITIVE),
        (sm.families.Gaussian(), lambda scale: Gaussian(scale=scale**0.5), REAL),
        (sm.families.Binomial(), lambda scale: Bernoulli(), YES),
        (sm.families.Binomial(sm.families.links.Probit()), lambda scale: Linked(_probability(), "normal_cdf"), YES),
        (sm.families.NegativeBinomial(alpha=0.5), lambda scale: NegativeBinomial(dispersion=0.5), OVER),
    ],
    ids=["poisson", "gamma", "inverse gaussian", "gaussian", "logit", "probit", "negative binomial"],
)
def test_same_as_statsmodels_glm_with_its_dispersion(family, likelihood, y):
    peer = sm.GLM(y, XC, family=family).fit(tol=1e-13, maxiter=200)
    model = VectorGLM(likelihood(peer.scale)).fit(X, y)
    np.testing.assert_allclose(coef(model), peer.params, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(errors(model, "expected"), peer.bse, rtol=1e-5)
    np.testing.assert_allclose(model.predict(X), peer.fittedvalues, rtol=1e-6)


def _probability():
    from raphson import as_likelihood

    return as_likelihood(torch.distributions.Bernoulli, links={"probs": "identity"})


def test_same_as_statsmodels_negative_binomial():
    peer = sm.NegativeBinomial(OVER, XC).fit(disp=0, maxiter=200, gtol=1e-10, start_params=[0, 0, 0, 0, 1.0])
    model = VectorGLM(NegativeBinomial()).fit(X, OVER)
    np.testing.assert_allclose(coef(model)[:4], peer.params[:4], atol=1e-5)
    assert np.exp(coef(model)[4]) == pytest.approx(peer.params.iloc[4], rel=1e-5)
    np.testing.assert_allclose(errors(model)[:4], peer.bse[:4], rtol=1e-4)
    assert model.loglik_ == pytest.approx(peer.llf, abs=1e-6)
    assert model.loglik_null_ == pytest.approx(peer.llnull, abs=1e-3)


@pytest.mark.parametrize("link", ["logit", "probit"])
def test_same_as_statsmodels_ordered_model(link):
    peer = OrderedModel(LEVELS, X, distr=link).fit(disp=0, method="newton", maxiter=100)
    model = VectorGLM(Ordinal(4, link=link)).fit(X, LEVELS)
    np.testing.assert_allclose(coef(model)[3:], peer.params[:3], rtol=1e-5)
    np.testing.assert_allclose(errors(model)[3:], peer.bse[:3], rtol=1e-4)
    np.testing.assert_allclose(coef(model)[:3], peer.model.transform_threshold_params(peer.params)[1:-1], rtol=1e-5)
    assert model.loglik_ == pytest.approx(peer.llf, abs=1e-8)
    np.testing.assert_allclose(model.predict(X), peer.predict(), atol=1e-6)


def test_same_as_statsmodels_beta_model():
    peer = BetaModel(SHARE, XC, exog_precision=XC[["const", "a"]]).fit(disp=0, method="newton", tol=1e-12)
    model = VectorGLM(Beta()).fit({"logit_mean": X, "log_precision": X[["a"]]}, SHARE)
    np.testing.assert_allclose(coef(model), peer.params, rtol=1e-5)
    np.testing.assert_allclose(errors(model), peer.bse, rtol=1e-5)
    assert model.loglik_ == pytest.approx(peer.llf, abs=1e-8)


@pytest.mark.parametrize(
    ("peer", "likelihood", "y"),
    [(PoissonRegressor, Poisson(), COUNTS), (GammaRegressor, Gamma(dispersion=1.0), POSITIVE)],
)
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_same_as_scikit_learn(peer, likelihood, y, l2):
    theirs = peer(alpha=l2, solver="newton-cholesky", tol=1e-12).fit(X, y)
    ours = VectorGLM(likelihood, l2=l2).fit(X, y)
    np.testing.assert_allclose(ours.coef_[0], theirs.coef_, rtol=1e-6, atol=1e-9)
    assert ours.intercept_[0] == pytest.approx(theirs.intercept_, rel=1e-6)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-6)


def test_least_squares_standard_errors():
    """The Gaussian with a constant unknown scale: classical errors but for the n - p of the scale."""
    peer = sm.OLS(REAL, XC).fit()
    model = VectorGLM(HeteroscedasticGaussian()).fit(X, REAL)
    np.testing.assert_allclose(coef(model)[:4], peer.params, rtol=1e-8)
    np.testing.assert_allclose(errors(model)[:4], peer.bse * ((N - 4) / N) ** 0.5, rtol=1e-8)
    assert np.exp(coef(model)[4]) == pytest.approx((peer.ssr / N) ** 0.5, rel=1e-10)
    assert errors(model)[4] == pytest.approx((1 / (2 * N)) ** 0.5, rel=1e-8)
    assert model.loglik_ == pytest.approx(peer.llf, abs=1e-9)


def test_marginal_effects_are_those_of_statsmodels():
    peer = sm.Poisson(COUNTS, XC).fit(disp=0, tol=1e-12).get_margeff()
    frame = VectorGLM(Poisson()).fit(X, COUNTS).margins().to_frame()
    np.testing.assert_allclose(frame["effect"].to_numpy(dtype=float), peer.margeff, rtol=1e-6)
    np.testing.assert_allclose(frame["std_err"].to_numpy(dtype=float), peer.margeff_se, rtol=1e-5)


# definitions ---------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "own": (HeteroscedasticGaussian(), REAL, "own"),
    "columns": (HeteroscedasticGaussian(), REAL, {"a": "own", "b": "log_scale"}),
    "matrix": (HeteroscedasticGaussian(), REAL, {"a": [[1.0], [0.5]], "c": "parallel"}),
    "constant mean": (HeteroscedasticGaussian(), REAL, "log_scale"),
    "student": (StudentT(), REAL, None),
    "student scale": (StudentT(df=5.0), REAL, {"a": "own"}),
    "weibull": (Weibull(), POSITIVE, None),
    "gamma": (Gamma(), POSITIVE, {"b": "own"}),
    "inverse gaussian": (InverseGaussian(), POSITIVE, {"b": "own"}),
    "partial odds": (Ordinal(4), LEVELS, {"c": "own"}),
    "negative binomial": (NegativeBinomial(), OVER, {"a": "own"}),
    "no common intercept": (HeteroscedasticGaussian(), REAL, {"(intercept)": "mean", "b": "own"}),
}


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_optimum_and_information_by_automatic_differentiation(layout, fit_intercept):
    likelihood, y, constraints = LAYOUTS[layout]
    model = VectorGLM(likelihood, constraints=constraints, fit_intercept=fit_intercept, tol=1e-10).fit(X, y)
    assert model.solution_.converged
    target = torch.as_tensor(np.asarray(y, dtype=float))
    xhat = torch.cat([torch.ones(N, 1), torch.from_numpy(X.to_numpy())], 1).double()
    # the map from reported parameters to all coefficients, from the labels alone
    names, labels = ["(intercept)", *X.columns], list(model.summary().to_frame().index)
    shared = {"matrix": {"a": [1.0, 0.5], "c": [1.0, 1.0]}}.get(layout, {})
    outputs = list(likelihood.output_names(len(model.intercept_)))
    design = torch.zeros(len(outputs), len(names), len(labels), dtype=torch.float64)
    for i, (output, column) in enumerate(labels):
        if output in outputs:
            design[outputs.index(output), names.index(column), i] = 1.0
        else:
            factors = shared.get(column, [-1.0] * len(outputs))
            design[:, names.index(column), i] = torch.tensor(factors, dtype=torch.float64)

    def total(beta):
        return likelihood.nll(xhat @ (design @ beta).mT, target).sum()

    beta = torch.from_numpy(coef(model))
    np.testing.assert_allclose((design @ beta)[:, 1:], model.coef_, rtol=1e-12, atol=1e-14)
    assert float(total(beta)) == pytest.approx(-model.loglik_, rel=1e-12)
    scale = torch.from_numpy(errors(model))
    gradient = torch.func.grad(total)(beta)
    assert float((gradient * scale).abs().max()) < 1e-5
    information = torch.autograd.functional.hessian(total, beta)
    np.testing.assert_allclose(
        model.covariance().to_numpy(dtype=float), torch.linalg.inv(information), rtol=2e-6, atol=1e-10
    )


def test_weights_are_copies_of_rows():
    weights = RNG.integers(0, 4, N)
    copies = np.repeat(np.arange(N), weights)
    for likelihood, y in ((NegativeBinomial(), OVER), (Poisson(), COUNTS), (Ordinal(4), LEVELS)):
        one = VectorGLM(likelihood).fit(X, y, sample_weight=weights)
        many = VectorGLM(likelihood).fit(X.iloc[copies], y[copies])
        np.testing.assert_allclose(coef(one), coef(many), rtol=1e-6, atol=1e-8)
        for kind, options in (("observed", {}), ("expected", {}), ("sandwich", {"weights": "frequency"})):
            np.testing.assert_allclose(errors(one, kind, **options), errors(many, kind), rtol=1e-5)
        assert one.loglik_ == pytest.approx(many.loglik_, rel=1e-12)


def test_an_offset_is_a_column_with_coefficient_one():
    shift = 0.3 * RNG.normal(size=N)
    for likelihood, y in ((Poisson(), COUNTS), (NegativeBinomial(), OVER), (Ordinal(4), LEVELS)):
        model = VectorGLM(likelihood).fit(X, y, offset=shift)
        wider = VectorGLM(likelihood).fit(X.assign(shift=shift), y)
        f = model.linear_predictors(X, offset=shift) - model.linear_predictors(X)
        sign = -1.0 if isinstance(likelihood, Ordinal) else 1.0
        np.testing.assert_allclose(f[:, 0], sign * shift, atol=1e-12)
        assert model.loglik_ <= wider.loglik_
        full = (
            np.column_stack([sign * shift] * f.shape[1])
            if sign < 0
            else np.column_stack([shift, *[0 * shift] * (f.shape[1] - 1)])
        )
        again = VectorGLM(likelihood).fit(X, y, offset=full)
        np.testing.assert_allclose(coef(again), coef(model), rtol=1e-12)


def test_classes_are_a_constraint():
    """The softmax relative to the first class is the multinomial model."""
    counts = np.eye(3)[np.minimum(LEVELS, 2)]
    ours = VectorGLM(Multinomial()).fit(X, counts)
    reference = MultinomialLogisticRegression().fit(X, np.minimum(LEVELS, 2))
    np.testing.assert_allclose(ours.coef_, reference.coef_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(errors(ours), reference.standard_errors().to_numpy(dtype=float), rtol=1e-6)


def test_many_rows_of_one_binomial():
    successes = RNG.binomial(10, 1 / (1 + np.exp(-ETA)))
    grouped = VectorGLM(Binomial()).fit(X, np.column_stack([successes, 10 - successes]))
    long = VectorGLM(Bernoulli()).fit(
        pd.concat([X, X]), np.repeat([1.0, 0.0], N), sample_weight=np.concatenate([successes, 10 - successes])
    )
    np.testing.assert_allclose(coef(grouped), coef(long), rtol=1e-7)
    np.testing.assert_allclose(errors(grouped), errors(long), rtol=1e-7)


def test_a_large_sample_takes_the_way_over_subsets():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40_000, 3))
    y = x[:, 0] + rng.normal(size=len(x)) * np.exp(0.5 * x[:, 1])
    model = VectorGLM(HeteroscedasticGaussian(), constraints="own").fit(x, y)
    assert model.solution_.converged and model.solution_.gradient_norm < 1e-8
    # weighted least squares at the fitted scales gives the mean
    w = np.exp(-2 * (model.intercept_[1] + x @ model.coef_[1]))
    peer = sm.WLS(y, sm.add_constant(x), weights=w).fit()
    np.testing.assert_allclose(np.r_[model.intercept_[0], model.coef_[0]], peer.params, rtol=1e-6, atol=1e-8)


# scikit-learn and files -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([VectorGLM(Gaussian(), l2=1e-2)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_clone_grid_search_and_the_same_fit_from_every_form():
    search = GridSearchCV(VectorGLM(Poisson()), {"l2": [0.0, 1e-2, 10.0]}, cv=3).fit(X, COUNTS)
    assert search.best_params_["l2"] < 10.0
    assert clone(search.best_estimator_).get_params()["l2"] == search.best_params_["l2"]
    frame = VectorGLM(Poisson()).fit(X, COUNTS)
    for form in (X.to_numpy(), sp.csr_array(X.to_numpy()), torch.from_numpy(X.to_numpy().copy())):
        other = VectorGLM(Poisson()).fit(form, COUNTS)
        np.testing.assert_allclose(other.coef_, frame.coef_, rtol=1e-6)
    np.testing.assert_allclose(
        VectorGLM(NegativeBinomial()).fit(sp.csr_array(X.to_numpy()), OVER).coef_,
        VectorGLM(NegativeBinomial()).fit(X, OVER).coef_,
        rtol=1e-5,
        atol=1e-7,
    )


@pytest.mark.parametrize(
    ("likelihood", "y", "how"),
    [
        (Poisson(), COUNTS, X),
        (Linked(Gaussian(0.5), "exp"), POSITIVE, X),
        (Ordinal(4), LEVELS, X),
        (HeteroscedasticGaussian(), REAL, {"mean": X, "log_scale": X[["a"]]}),
    ],
    ids=["poisson", "linked", "ordinal", "tables"],
)
def test_saved_and_loaded(tmp_path, likelihood, y, how):
    model = VectorGLM(likelihood).fit(how, y)
    save(model, tmp_path / "model")
    again = load(tmp_path / "model").model
    np.testing.assert_array_equal(again.predict(how), model.predict(how))
    assert again.loglik_ == model.loglik_ and again.loglik_null_ == model.loglik_null_
    assert str(again.summary()) == str(model.summary())
    assert again.predict_interval(how).lower.equal(model.predict_interval(how).lower)
    assert type(again.likelihood) is type(likelihood)


def test_intervals_of_the_mean_stay_in_range_and_cover_the_delta_method():
    model = VectorGLM(Poisson()).fit(X, COUNTS)
    found = model.predict_interval(X)
    peer = sm.GLM(COUNTS, XC, family=sm.families.Poisson()).fit(tol=1e-12).get_prediction(XC).summary_frame()
    np.testing.assert_allclose(found.mean[:, 0], peer["mean"], rtol=1e-6)
    np.testing.assert_allclose(found.lower[:, 0], peer["mean_ci_lower"], rtol=1e-6)
    np.testing.assert_allclose(found.upper[:, 0], peer["mean_ci_upper"], rtol=1e-6)
    # a proportion of ten trials, and one between 0 and 1: on the logit scale, by the delta method
    for likelihood, y in ((Binomial(trials=10), 5 + LEVELS), (Beta(), SHARE)):
        model = VectorGLM(likelihood).fit(X, y)
        found, v = model.predict_interval(X), model.covariance().to_numpy(dtype=float)[:4, :4]
        f, se = model.linear_predictors(X)[:, 0], np.sqrt(np.einsum("ni,ij,nj->n", XC, v, XC))
        np.testing.assert_allclose(found.upper[:, 0], 1 / (1 + np.exp(-f - 1.959963984540054 * se)), rtol=1e-9)
    probabilities = VectorGLM(Ordinal(4)).fit(X, LEVELS).predict_interval(X)
    assert bool((probabilities.lower > 0).all() & (probabilities.upper < 1).all())


def test_nested_models_and_other_targets():
    full = VectorGLM(NegativeBinomial()).fit(X, OVER)
    part = VectorGLM(NegativeBinomial()).fit(X[["a"]], OVER)
    test = full.likelihood_ratio_test(part)
    assert test.df == 2 and test.statistic == pytest.approx(2 * (full.loglik_ - part.loglik_))
    with pytest.raises(InputError, match="same targets"):
        full.likelihood_ratio_test(VectorGLM(NegativeBinomial()).fit(X[["a"]], COUNTS))
