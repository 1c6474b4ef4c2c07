"""The estimator's inference end to end, against statsmodels' fits and the numbers published with its data."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import statsmodels.api as sm
import torch
from scipy import stats
from statsmodels.discrete.tests.results.results_discrete import Anes, Spector

import raphson as rp
from raphson import InputError, NotEstimableError
from raphson.estimators import MultinomialLogisticRegression

COLUMNS = ["logpopul", "selfLR", "age", "educ", "income"]


@pytest.fixture(scope="module")
def anes() -> tuple[pd.DataFrame, np.ndarray]:
    data = sm.datasets.anes96.load_pandas()
    # Stata stored log population in single precision, and the published digits show it
    return data.exog[COLUMNS].astype(np.float32).astype(float), data.endog.to_numpy().astype(int)


@pytest.fixture(scope="module")
def spector() -> tuple[pd.DataFrame, np.ndarray]:
    data = sm.datasets.spector.load_pandas()
    return data.exog.astype(float), data.endog.to_numpy().astype(int)


@pytest.fixture(scope="module")
def anes_fit(anes) -> MultinomialLogisticRegression:
    return MultinomialLogisticRegression().fit(*anes)


def logit(x, y, **kwargs):
    return sm.Logit(np.asarray(y), sm.add_constant(np.asarray(x))).fit(disp=0, method="newton", tol=1e-12, **kwargs)


def numbers(frame) -> np.ndarray:
    return frame.to_numpy(dtype=float)


def close(covariance: pd.DataFrame, expected: np.ndarray) -> None:
    """Compare covariances in units of the standard errors, in which entries near zero count as zero."""
    se = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(numbers(covariance) / np.outer(se, se), expected / np.outer(se, se), atol=1e-7)


def softmax_scores(x, y, k) -> tuple[np.ndarray, np.ndarray]:
    """Return scores ``(N, (K-1) D')`` and the inverse information of an MNLogit fit, in raphson's order."""
    design = sm.add_constant(np.asarray(x))
    beta = np.asarray(sm.MNLogit(y, design).fit(disp=0, method="newton", tol=1e-12).params).T
    f = np.column_stack([np.zeros(len(y)), design @ beta.T])
    p = np.exp(f - f.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    residual = (np.eye(k)[y] - p)[:, 1:]
    scores = (residual[:, :, None] * design[:, None, :]).reshape(len(y), -1)
    p = p[:, 1:]
    blocks = np.einsum("nk,kl->nkl", p, np.eye(k - 1)) - p[:, :, None] * p[:, None, :]
    d = design.shape[1]
    information = np.einsum("nkl,ni,nj->kilj", blocks, design, design).reshape((k - 1) * d, (k - 1) * d)
    return scores, np.linalg.inv(information)


# covariance ------------------------------------------------------------------------------------------------


def test_covariance_kinds_of_a_binary_fit(spector):
    x, y = spector
    model = MultinomialLogisticRegression().fit(x, y)
    oracle = logit(x, y)
    for kind in ("observed", "expected"):  # the two agree under the canonical link
        np.testing.assert_allclose(numbers(model.covariance(kind)), oracle.cov_params(), rtol=1e-7)
    robust = logit(x, y, cov_type="HC0").bse
    for correction, factor in (("HC0", 1.0), ("HC1", 32 / (32 - 4)), ("stata", 32 / 31), (None, 32 / 31)):
        se = numbers(model.standard_errors("sandwich", correction=correction))
        np.testing.assert_allclose(se, robust * np.sqrt(factor), rtol=1e-7)


def test_clustered_covariance(spector):
    x, y = spector
    groups = np.array(list("abcdefgh") * 4)
    theirs = logit(
        x, y, cov_type="cluster", cov_kwds={"groups": np.unique(groups, return_inverse=True)[1],
                                            "use_correction": False}
    )  # fmt: skip
    model = MultinomialLogisticRegression().fit(x, y)
    ours = model.standard_errors("sandwich", groups, correction="CR0")
    np.testing.assert_allclose(numbers(ours), theirs.bse, rtol=1e-7)
    default = numbers(model.standard_errors("sandwich", groups))
    np.testing.assert_allclose(default, theirs.bse * np.sqrt(8 / 7), rtol=1e-7)
    assert ("Covariance", "sandwich clustered in 8 groups (stata)") in model.summary(groups=groups).facts
    with pytest.raises(InputError, match="kind='sandwich'"):
        model.covariance("observed", groups)
    with pytest.raises(InputError, match="31 rows, X has 32 rows"):
        model.covariance("sandwich", groups[1:])
    with pytest.raises(InputError, match="single cluster"):
        model.covariance("sandwich", np.ones(32))


def test_sandwich_of_seven_classes_is_the_formula(anes, anes_fit):
    x, y = anes
    scores, inverse = softmax_scores(x, y, 7)
    close(anes_fit.covariance("sandwich", correction="HC0"), inverse @ (scores.T @ scores) @ inverse)
    groups = np.arange(len(y)) % 50
    sums = np.stack([scores[groups == g].sum(0) for g in range(50)])
    clustered = anes_fit.covariance("sandwich", groups, correction="CR0")
    close(clustered, inverse @ (sums.T @ sums) @ inverse)


def test_weights_as_copies_and_as_sampling_weights(spector):
    x, y = spector
    w = 1.0 + np.arange(32) % 3
    model = MultinomialLogisticRegression().fit(x, y, sample_weight=w)
    copies = np.repeat(np.arange(32), w.astype(int))
    repeated = MultinomialLogisticRegression().fit(x.iloc[copies], y[copies])
    np.testing.assert_allclose(
        numbers(model.covariance("sandwich", weights="frequency")),
        numbers(repeated.covariance("sandwich")),
        rtol=1e-8,
    )
    # sampling weights: scores are w_n g_n, so the meat has their squares
    design = sm.add_constant(x.to_numpy())
    p = model.predict_proba(x)[:, 1]
    inverse = np.linalg.inv((design * (w * p * (1 - p))[:, None]).T @ design)
    scores = design * (w * (y - p))[:, None]
    np.testing.assert_allclose(
        numbers(model.covariance("sandwich", correction="HC0")),
        inverse @ (scores.T @ scores) @ inverse,
        rtol=1e-6,
    )
    scaled = MultinomialLogisticRegression().fit(x, y, sample_weight=w / 100)
    np.testing.assert_allclose(
        numbers(scaled.standard_errors("sandwich")), numbers(model.standard_errors("sandwich")), rtol=1e-7
    )


def test_confidence_intervals(spector):
    x, y = spector
    for level in (0.95, 0.5):
        ours = numbers(MultinomialLogisticRegression().fit(x, y).confint(level))
        np.testing.assert_allclose(ours, logit(x, y).conf_int(1 - level), rtol=1e-6)


# tests and measures ----------------------------------------------------------------------------------------


def test_likelihood_ratio_test_of_nested_fits(anes, anes_fit):
    x, y = anes
    smaller = MultinomialLogisticRegression(reference="last").fit(x[["age", "educ"]], y)
    test = anes_fit.likelihood_ratio_test(smaller)
    llf = [sm.MNLogit(y, sm.add_constant(x[names])).fit(disp=0, tol=1e-10).llf for names in (COLUMNS, ["age", "educ"])]
    assert test.statistic == pytest.approx(2 * (llf[0] - llf[1]), rel=1e-8) and test.df == 18
    assert test.p_value == pytest.approx(stats.chi2.sf(test.statistic, 18), rel=1e-8)
    with pytest.raises(InputError, match="944 rows and the restricted one to 900"):
        anes_fit.likelihood_ratio_test(MultinomialLogisticRegression().fit(x[["age"]][:900], y[:900]))
    with pytest.raises(InputError, match="l2=0"):
        anes_fit.likelihood_ratio_test(MultinomialLogisticRegression(l2=0.1).fit(x[["age"]], y))


def test_pseudo_r2_and_criteria(spector):
    x, y = spector
    model, oracle = MultinomialLogisticRegression().fit(x, y), logit(x, y)
    assert model.pseudo_r2_.mcfadden == pytest.approx(oracle.prsquared, rel=1e-9)
    cox_snell = 1 - np.exp(2 * (oracle.llnull - oracle.llf) / 32)
    assert model.pseudo_r2_.cox_snell == pytest.approx(cox_snell, rel=1e-9)
    largest = 1 - np.exp(2 * oracle.llnull / 32)
    assert model.pseudo_r2_.nagelkerke == pytest.approx(cox_snell / largest, rel=1e-9)
    assert (model.aic_, model.bic_) == (pytest.approx(oracle.aic), pytest.approx(oracle.bic))


# margins ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "name"), [("overall", "margeff_dydx_overall"), ("mean", "margeff_dydx_mean")])
def test_published_margins_of_seven_classes(anes_fit, at, name):
    frame = anes_fit.margins(at).to_frame()
    published = Anes.mnlogit_basezero
    assert list(frame.index[:2]) == [("0", "logpopul"), ("0", "selfLR")]
    for column, suffix in (("effect", ""), ("std_err", "_se")):
        expected = np.asarray(getattr(published, name + suffix)).T
        np.testing.assert_allclose(numbers(frame[column]).reshape(7, 5), expected, rtol=1e-4, atol=1e-7)


def test_published_margins_of_a_switch(spector):
    x, y = spector
    x = x.astype(np.float32).astype(float)
    model = MultinomialLogisticRegression().fit(x, y)
    for discrete, at, name in (
        (True, "overall", "margeff_dummy_dydx"),
        (True, "mean", "margeff_dummy_dydxmean"),
        (False, "overall", "margeff_nodummy_dydx"),
        (False, "mean", "margeff_nodummy_dydxmean"),
    ):
        frame = model.margins(at, discrete=discrete).to_frame().loc["1"]
        np.testing.assert_allclose(numbers(frame["effect"]), getattr(Spector.logit, name), rtol=1e-4)
        np.testing.assert_allclose(numbers(frame["std_err"]), getattr(Spector.logit, name + "_se"), rtol=1e-4)
        assert list(frame["kind"]) == ["dy/dx", "dy/dx", "1 vs 0" if discrete else "dy/dx"]


# intervals of predictions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [True, False])
def test_predicted_intervals_are_the_delta_method_within_0_and_1(anes, intercept):
    x, y = anes
    model = MultinomialLogisticRegression(fit_intercept=intercept).fit(x, y)
    rows = x.iloc[:20].copy()
    rows.iloc[0] *= 3.0  # far out, where a symmetric interval would leave [0, 1]
    found = model.predict_interval(rows, 0.9)
    np.testing.assert_allclose(found.mean, model.predict_proba(rows), rtol=1e-12)
    v = torch.tensor(numbers(model.covariance()))
    beta = model._reported().view(len(model.classes_) - 1, -1)
    design = torch.tensor(np.column_stack([np.ones(20), rows]) if intercept else rows.to_numpy())

    def proba(b: torch.Tensor) -> torch.Tensor:
        return torch.softmax(torch.cat([torch.zeros(20, 1).double(), design @ b.view(6, -1).T], 1), 1)

    jacobian = torch.func.jacrev(proba)(beta.flatten())
    variance = torch.einsum("nkp,pq,nkq->nk", jacobian, v, jacobian)
    np.testing.assert_allclose(found.standard_errors, variance.sqrt(), rtol=1e-6, atol=1e-14)
    p = found.mean.clamp(1e-300, 1 - 1e-16)
    half = stats.norm.ppf(0.95) * found.standard_errors / (p * (1 - p))
    np.testing.assert_allclose(found.lower, torch.sigmoid(torch.logit(found.mean) - half), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.upper, torch.sigmoid(torch.logit(found.mean) + half), rtol=1e-6, atol=1e-12)
    assert bool((found.lower >= 0).all()) and bool((found.upper <= 1).all())
    assert bool(((found.lower <= found.mean) & (found.mean <= found.upper)).all())


# tables ----------------------------------------------------------------------------------------------------


def test_summary_text_and_html(spector):
    x, y = spector
    x = x.rename(columns={"GPA": "<b>GPA</b> & more"})
    labels = np.array(["no", "<script>yes"])[y]
    summary = MultinomialLogisticRegression(reference="no").fit(x, labels).summary()
    text, page = str(summary), summary._repr_html_()
    for part in ("2 classes", "relative to class no", "-12.88963", "observed information", "[0.025", "TUCE"):
        assert part in text
    assert "<script>" in text and "<script>" not in page and "&lt;script&gt;yes" in page
    assert "<b>GPA" not in page and "&lt;b&gt;GPA&lt;/b&gt; &amp; more" in page
    oracle = logit(x, y)
    frame = summary.to_frame()
    assert list(frame.index.names) == ["class", "feature"]
    np.testing.assert_allclose(numbers(frame["z"]), oracle.tvalues, rtol=1e-6)
    np.testing.assert_allclose(numbers(frame["p_value"]), oracle.pvalues, rtol=1e-5)


def test_a_penalized_fit_refuses_classical_errors(spector):
    x, y = spector
    model = MultinomialLogisticRegression(l2=0.01).fit(x, y)
    for ask in (model.standard_errors, model.covariance, model.confint, model.margins):
        with pytest.raises(NotEstimableError, match=r"penalized \(l2=0.01\).*kind='sandwich'"):
            ask()
    summary = model.summary()
    kind = dict(summary.facts)["Covariance"]
    assert kind.startswith("sandwich") and kind.endswith("of the penalized estimates")
    assert "AIC" not in dict(summary.facts) and dict(summary.facts)["Penalty l2"] == "0.01"
    # bread: inverse Hessian of the penalized sum; half the penalty, as it is shared by the two classes
    design = sm.add_constant(x.to_numpy())
    p = model.predict_proba(x)[:, 1]
    hessian = (design * (p * (1 - p))[:, None]).T @ design + 32 * 0.01 / 2 * np.diag([0.0, 1, 1, 1])
    scores = design * (y - p)[:, None]
    bread = np.linalg.inv(hessian)
    meat = scores.T @ scores
    np.testing.assert_allclose(numbers(model.covariance("sandwich", correction="HC0")), bread @ meat @ bread, rtol=1e-6)
    assert "sandwich" in str(summary) and "of the penalized estimates" in str(summary)


# offsets, sparse rows --------------------------------------------------------------------------------------


def test_an_offset_equal_to_a_fitted_effect_reproduces_the_fit(anes, anes_fit):
    x, y = anes
    effect = np.outer(x["age"], anes_fit.coef_[:, COLUMNS.index("age")])
    rest = x.drop(columns="age")
    model = MultinomialLogisticRegression().fit(rest, y, offset=effect)
    assert model.loglik_ == pytest.approx(anes_fit.loglik_, abs=1e-9)
    others = [i for i, name in enumerate(COLUMNS) if name != "age"]
    np.testing.assert_allclose(model.coef_, anes_fit.coef_[:, others], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        model.predict_proba(rest, offset=effect), anes_fit.predict_proba(x), rtol=1e-7, atol=1e-12
    )


def test_binary_offset_against_statsmodels(spector):
    x, y = spector
    o = np.linspace(-1, 1, 32)
    oracle = sm.GLM(y, sm.add_constant(x), family=sm.families.Binomial(), offset=o).fit(tol=1e-13)
    model = MultinomialLogisticRegression().fit(x, y, offset=np.column_stack([np.zeros(32), o]))
    np.testing.assert_allclose(numbers(model.standard_errors()), oracle.bse, rtol=1e-6)
    null = sm.GLM(y, np.ones(32), family=sm.families.Binomial(), offset=o).fit(tol=1e-13)
    assert model.loglik_null_ == pytest.approx(null.llf, abs=1e-9)
    assert model.loglik_ == pytest.approx(oracle.llf, abs=1e-9)


def test_sparse_rows_give_the_same_inference(anes):
    x, y = anes
    dense = np.where(x > x.median(), x, 0.0)
    one, other = (MultinomialLogisticRegression().fit(m, y) for m in (dense, sp.csr_matrix(dense)))
    for kind in ("observed", "expected", "sandwich"):
        np.testing.assert_allclose(
            numbers(other.covariance(kind)), numbers(one.covariance(kind)), rtol=1e-6, atol=1e-11
        )
    np.testing.assert_allclose(
        numbers(other.margins().to_frame()["std_err"]),
        numbers(one.margins().to_frame()["std_err"]),
        rtol=1e-6,
    )
    interval, expected = other.predict_interval(sp.csr_matrix(dense[:9])), one.predict_interval(dense[:9])
    np.testing.assert_allclose(interval.upper, expected.upper, rtol=1e-7)


# kept models -----------------------------------------------------------------------------------------------


def test_an_unpickled_model_predicts_and_says_what_it_lacks(anes, anes_fit):
    x, _ = anes
    anes_fit.standard_errors()
    back = pickle.loads(pickle.dumps(anes_fit))
    np.testing.assert_array_equal(back.predict_proba(x), anes_fit.predict_proba(x))
    pd.testing.assert_series_equal(back.standard_errors(), anes_fit.standard_errors())
    assert len(pickle.dumps(anes_fit)) < x.to_numpy().nbytes  # the rows stay at home
    np.testing.assert_array_equal(back.predict_interval(x).lower, anes_fit.predict_interval(x).lower)
    for ask in (lambda: back.margins(), lambda: back.covariance("sandwich")):
        with pytest.raises(NotEstimableError, match=r"training rows are not part of a saved .* attach"):
            ask()


def test_state_dict_round_trip(anes, anes_fit):
    x, _ = anes
    back = MultinomialLogisticRegression.from_state(anes_fit.get_params(), anes_fit.state_dict(), anes_fit.metadata())
    np.testing.assert_array_equal(back.predict_proba(x), anes_fit.predict_proba(x))
    assert str(back.summary()) == str(anes_fit.summary())
    pd.testing.assert_frame_equal(back.confint(0.9), anes_fit.confint(0.9))
    names = [("6", "age"), ("6", "educ")]
    assert back.wald_test(names).statistic == pytest.approx(anes_fit.wald_test(names).statistic, rel=1e-12)
    state = anes_fit.state_dict()
    with pytest.raises(InputError, match="do not belong together"):
        MultinomialLogisticRegression.from_state(
            anes_fit.get_params(), {**state, "coef": state["coef"][:3]}, anes_fit.metadata()
        )


def test_a_refused_model_is_saved_with_its_reason(tmp_path: Path):
    x, y = np.arange(8.0)[:, None], np.repeat(["n", "y"], 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MultinomialLogisticRegression().fit(x, y)
    rp.save(model, tmp_path / "m")
    back = rp.load(tmp_path / "m").model
    assert str(back.summary()) == str(model.summary()) and "separated" in str(back.summary())
    with pytest.raises(NotEstimableError, match="separated"):
        back.standard_errors()


def test_another_process_predicts_the_same_bits(anes, anes_fit, tmp_path: Path):
    x, _ = anes
    rp.save(anes_fit, tmp_path / "m")
    np.save(tmp_path / "x.npy", x.to_numpy())
    code = (
        "import sys, numpy as np, pandas as pd, raphson as rp; m = rp.load(sys.argv[1] + '/m').model; "
        "x = pd.DataFrame(np.load(sys.argv[1] + '/x.npy'), columns=m.feature_names_in_); "
        "np.save(sys.argv[1] + '/p.npy', m.predict_proba(x))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert np.load(tmp_path / "p.npy").tobytes() == anes_fit.predict_proba(x).tobytes()


def test_hypotheses_name_classes_that_are_numbers_and_what_cannot_be_read() -> None:
    rng = np.random.default_rng(0)
    x, y = pd.DataFrame(rng.normal(size=(60, 2)), columns=["a", "b"]), np.arange(60) % 3
    model = rp.MultinomialLogisticRegression().fit(x, y)
    expected = model.wald_test([("1", "a")]).statistic
    place = list(model.standard_errors().index).index(("1", "a"))
    row = np.eye(6)[place]
    for restriction in ((1, "a"), [(1, "a")], row, pd.DataFrame(row[None])):
        assert model.wald_test(restriction).statistic == expected
    for restriction, message in (
        ([(7, "a")], r"No coefficient is called \(7, 'a'\)"),
        ([("7", "a")], r"No coefficient is called \('7', 'a'\)"),
        (object(), "neither numbers, with 6 in each row, nor names"),
        ([*[0.0] * 5, np.nan], "R holds numbers that are not finite"),
    ):
        with pytest.raises(rp.InputError, match=message):
            model.wald_test(restriction)
    for value in ("a", np.nan, [np.inf]):
        with pytest.raises(rp.InputError, match="give a finite number, or one for each of 1 rows"):
            model.wald_test((1, "a"), q=value)


@pytest.mark.parametrize("make", [rp.MultinomialLogisticRegression, lambda: rp.VectorGLM("poisson")])
def test_likelihoods_of_other_targets_weights_or_rows_are_not_compared(make) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2)), rng.integers(0, 3, 60)
    full, weights = make().fit(x, y), np.ones(60)
    assert full.likelihood_ratio_test(make().fit(x[:, :1], y, sample_weight=weights)).df in (1, 2)
    weights[:2] = 0.5, 1.5
    for restricted, message in (
        (make().fit(x[:, :1], np.roll(y, 1)), "not fitted to the same targets"),
        (make().fit(x[:, :1], y, sample_weight=weights), "not fitted with the same weights"),
        (make().fit(x[1:, :1], y[1:]), "fitted to 60 rows and the restricted one to 59"),
    ):
        with pytest.raises(InputError, match=message):
            full.likelihood_ratio_test(restricted)


def test_likelihoods_of_other_families_or_links_are_not_compared() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2)), rng.poisson(2.0, 60) + 1.0
    for full, restricted, names in (
        (rp.Gamma(), rp.Gaussian(), r"Gamma \(log\) and the restricted one Gaussian \(identity\)"),
        (rp.NegativeBinomial(), rp.Poisson(), r"NegativeBinomial \(log\) and the restricted one Poisson"),
        (rp.Poisson(), rp.Poisson(link="sqrt"), r"Poisson \(log\) and the restricted one Poisson \(sqrt\)"),
    ):
        with pytest.raises(InputError, match=names):
            rp.VectorGLM(full).fit(x, y).likelihood_ratio_test(rp.VectorGLM(restricted).fit(x[:, :1], y))
    given = rp.VectorGLM(rp.Gamma(dispersion=0.5)).fit(x, y)  # of the same family
    assert rp.VectorGLM(rp.Gamma()).fit(x, y).likelihood_ratio_test(given).df == 1
