"""Tests between fits and of hypotheses: what is not nested, or not what it seems by its order, is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import statsmodels.api as sm
from scipy import stats
from sklearn.exceptions import ConvergenceWarning

import raphson as rp

N = 200
RNG = np.random.default_rng(0)
X = pd.DataFrame(RNG.normal(size=(N, 3)), columns=list("abc"))
Y = RNG.poisson(np.exp(0.4 * X["a"] + 0.3))
LABELS = (Y > 1).astype(int)
T = RNG.normal(size=N)
FULL = rp.VectorGLM(rp.Poisson()).fit(X, Y, offset=T)
CLASSES = rp.MultinomialLogisticRegression().fit(X, LABELS)


def poisson(x: Any, offset: Any = T, **given: Any) -> Any:
    return rp.VectorGLM(rp.Poisson(), **given).fit(x, Y, offset=offset)


def classes(x: Any, offset: Any = None) -> Any:
    return rp.MultinomialLogisticRegression().fit(x, LABELS, offset=offset)


ORDER = np.argsort(Y, kind="stable")
OTHER = ORDER[np.lexsort((RNG.random(N), Y[ORDER]))]  # the same targets in place, rows exchanged among equal ones
NOT_NESTED = {
    "another offset": (FULL, lambda: poisson(X[["a"]], RNG.normal(size=N)), "difference of the models' offsets"),
    "no offset": (FULL, lambda: poisson(X[["a"]], None), "difference of the models' offsets"),
    "offsets of classes": (CLASSES, lambda: classes(X[["a"]], np.c_[T, -T]), "difference of the models' offsets"),
    "another column": (FULL, lambda: poisson(X[["a"]].assign(q=RNG.normal(size=N))), "column 'q'"),
    "a column changed": (FULL, lambda: poisson(X[["a"]] ** 2), "column 'a'"),
    "sparse": (FULL, lambda: poisson(sp.csr_matrix(RNG.normal(size=(N, 1)))), "column 'x0'"),
    "exchanged rows": (
        rp.VectorGLM(rp.Poisson()).fit(X.iloc[ORDER], Y[ORDER]),
        lambda: rp.VectorGLM(rp.Poisson()).fit(X[["a"]].iloc[OTHER], Y[OTHER]),
        "column 'a'.*same rows in the same order",
    ),
    "an intercept": (poisson(X, fit_intercept=False), lambda: poisson(X[["a"]]), r"column '\(intercept\)'"),
    "another estimator": (CLASSES, lambda: rp.VectorGLM(rp.Bernoulli()).fit(X[["a"]], LABELS), "VectorGLM"),
    "no model": (CLASSES, lambda: -3.0, "restricted model is -3.0"),
}


@pytest.mark.parametrize("kind", NOT_NESTED)
def test_fits_that_are_not_nested(kind: str) -> None:
    full, restricted, message = NOT_NESTED[kind]
    with pytest.raises(rp.InputError, match=message):
        full.likelihood_ratio_test(restricted())


def test_fits_that_are_nested_otherwise_than_by_name() -> None:
    sums = poisson(pd.DataFrame({"u": X["a"] - 2 * X["b"] + 5, "v": X["c"] / 1e6}))
    given = poisson(X[["b", "c"]], T + 0.4 * X["a"])  # the coefficient of 'a' is given
    for restricted in (sums, given):
        test = FULL.likelihood_ratio_test(restricted)
        assert test.df == 1 and test.statistic == pytest.approx(2 * (FULL.loglik_ - restricted.loglik_))
    oracle = [
        sm.GLM(Y, sm.add_constant(x), family=sm.families.Poisson(), offset=T).fit(tol=1e-12) for x in (X, X[["a"]])
    ]
    assert FULL.likelihood_ratio_test(poisson(X[["a"]])).statistic == pytest.approx(2 * (oracle[0].llf - oracle[1].llf))
    shifted = classes(X[["a"]], np.full((N, 2), 7.0))  # the same for all classes: nothing
    assert CLASSES.likelihood_ratio_test(shifted).df == 2
    wide = rp.VectorGLM(rp.Poisson()).fit(sp.csr_matrix(X), Y, offset=T)
    assert wide.likelihood_ratio_test(poisson(sp.csr_matrix(X.iloc[:, :1]))).df == 2


def test_a_hypothesis_in_another_order() -> None:
    index = FULL.estimates().to_frame().index
    eye = pd.DataFrame(np.eye(4), columns=index)
    assert FULL.wald_test(eye.iloc[[1]]).statistic == FULL.wald_test("a").statistic
    for names in (eye[index[::-1]], eye.set_axis(["c", "b", "a", "(intercept)"], axis=1)):
        with pytest.raises(rp.InputError, match="in another order: the first that differs"):
            FULL.wald_test(names)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_restrictions_of_a_size_that_overflows(factor: float) -> None:
    with pytest.raises(rp.InputError, match="divide the row"):
        FULL.wald_test(np.eye(4) * factor)


def test_options_of_estimates_are_looked_at() -> None:
    with pytest.raises(rp.InputError, match="'sampling' or 'frequency'"):
        FULL.covariance("sandwich", weights="counts")
    with pytest.raises(rp.InputError, match="between 0 and 1"):
        FULL.confint(level="0.95")
    assert FULL.estimates(columns="a").labels == FULL.estimates(columns=["a"]).labels
    assert FULL.confint(level=np.float32(0.5)).shape == (4, 2)


def test_values_to_compare_in_any_container() -> None:
    one = FULL.predictions({"a": [0.0, 1.0]}).to_frame()
    for values in (np.array([0.0, 1.0]), pd.Series([0.0, 1.0])):
        pd.testing.assert_frame_equal(FULL.predictions({"a": values}).to_frame(), one)
        assert FULL.contrasts("a", values).to_frame()["contrast"].iloc[0] == pytest.approx(one["mean"].diff().iloc[1])
        with pytest.raises(rp.InputError, match="one value here"):
            FULL.margins({"a": values})
    for bad in (5, "ab"):
        with pytest.raises(rp.InputError, match="values are those of 'a'"):
            FULL.contrasts("a", bad)


@pytest.mark.parametrize("size", [1e10, -1e10, 1e100])
def test_an_offset_that_all_rows_share_takes_the_digits(size: float) -> None:
    for likelihood in (rp.Poisson(), rp.Gaussian()):
        with pytest.raises(rp.InputError, match="or more in size in every row.*part of the intercept"):
            rp.VectorGLM(likelihood).fit(X, Y, offset=np.full(N, size))
    with pytest.raises(rp.InputError, match="offset of '1'"):
        classes(X, np.c_[np.zeros(N), np.full(N, size)])
    same = classes(X, np.full((N, 2), size))
    np.testing.assert_allclose(same.coef_, CLASSES.coef_, atol=1e-9)


@pytest.mark.parametrize("size", [1e10, -1e10])
def test_huge_offsets_that_mean_something(size: float) -> None:
    first = np.arange(N) < 20  # rows that cannot, or must, have a class
    closed = rp.MultinomialLogisticRegression().fit(
        X, np.where(first, size > 0, LABELS), offset=np.c_[np.zeros(N), np.where(first, size, 0.0)]
    )
    others = rp.MultinomialLogisticRegression().fit(X[20:], LABELS[20:])
    np.testing.assert_allclose(closed.coef_, others.coef_, atol=1e-6)
    large = rp.VectorGLM(rp.Gaussian()).fit(X, Y + size, offset=np.full(N, size))
    # of sixteen digits the size takes ten
    np.testing.assert_allclose(large.coef_, rp.VectorGLM(rp.Gaussian()).fit(X, Y).coef_, rtol=1e-3)


def test_a_mean_that_overflows_is_infinite() -> None:
    with pytest.warns(rp.RaphsonWarning, match="mean is infinite in row 1: beyond the largest number"):
        assert FULL.predict(pd.DataFrame({"a": [0.0, 1e6], "b": 0.0, "c": 0.0}))[1] == np.inf


def test_huge_statistics_are_written_with_an_exponent() -> None:
    text = str(rp.VectorGLM(rp.Poisson()).fit(X, Y, np.full(N, 1e60)).summary())
    assert max(map(len, text.splitlines())) < 130 and "e+6" in text
    test = rp.VectorGLM(rp.Poisson()).fit(X, Y, np.full(N, 1e6)).wald_test("a")
    assert test.p_value == 0.0 and str(test).endswith("p < 1e-300")


def test_a_fit_that_did_not_converge_is_not_compared() -> None:
    with pytest.warns(ConvergenceWarning):
        short = rp.VectorGLM(rp.Poisson(), max_iter=1).fit(X, Y, offset=T)
        narrow = rp.VectorGLM(rp.Poisson(), max_iter=1).fit(X[["a"]], Y, offset=T)
    for full, restricted in ((short, None), (short, poisson(X[["a"]])), (FULL, narrow)):
        with pytest.raises(rp.NotEstimableError, match="did not converge.*iteration limit"):
            full.likelihood_ratio_test(restricted)


@pytest.mark.parametrize("kind", ["as many columns as rows", "equal targets", "a function of the columns"])
def test_a_likelihood_without_a_bound_is_infinite(kind: str) -> None:
    x, y = RNG.normal(size=(20, 2)), RNG.normal(size=20)
    if kind == "equal targets":
        y = np.ones(20)
    elif kind == "a function of the columns":
        y = x @ [1.0, 2.0]
    else:
        x = RNG.normal(size=(20, 30))
    with pytest.warns(rp.SeparationWarning, match="fitted exactly"):
        model = rp.VectorGLM("gaussian").fit(x, y)
    assert model.loglik_ == np.inf and model.aic_ == -np.inf
    assert (model.loglik_null_ == np.inf) == (kind == "equal targets")
    assert [fact for fact in model.summary().facts if fact[0] == "Log-likelihood"] == [("Log-likelihood", "not finite")]
    with pytest.raises(rp.InputError, match="must be finite"):
        model.likelihood_ratio_test()


@pytest.mark.parametrize("name", ["poisson", "gaussian", "bernoulli", "negative-binomial"])
def test_the_null_model_is_within_one_without_intercepts(name: str) -> None:
    y = LABELS if name == "bernoulli" else Y
    one = rp.VectorGLM(name, fit_intercept=False).fit(X, y)
    other = rp.VectorGLM(name, formula="y ~ 0 + a + b + c").fit(X.assign(y=y))
    test = one.likelihood_ratio_test()
    assert test.df == 3 and test.statistic == pytest.approx(2 * (one.loglik_ - one.loglik_null_), rel=1e-9)
    assert other.loglik_null_ == pytest.approx(one.loglik_null_, rel=1e-9)
    if name == "poisson":  # R's null deviance of a model without an intercept
        assert one.loglik_null_ == pytest.approx(float(stats.poisson.logpmf(y, 1.0).sum()), rel=1e-12)


def test_few_clusters_are_said_to_be_few() -> None:
    few, many = np.arange(N) % 3, np.arange(N) % 50
    said = "There are 3 clusters.*Student's t with 2 degrees of freedom"
    assert re.search(said, str(FULL.summary(groups=few))) and "clusters:" not in str(FULL.summary(groups=many))
    assert "clusters:" not in str(FULL.summary())
    assert FULL.wald_test(["a", "b"], groups=few).df == 2
    with pytest.raises(rp.InputError, match="as many as clusters"):
        FULL.wald_test(["a", "b", "c"], groups=few)


def test_sampling_weights_make_no_likelihood_ratio() -> None:
    halves = rp.VectorGLM(rp.Poisson()).fit(X, Y, np.full(N, 1.5))
    narrow = rp.VectorGLM(rp.Poisson()).fit(X[["a"]], Y, np.full(N, 1.5))
    for restricted in (None, narrow):
        with pytest.raises(rp.InputError, match="counts of rows.*wald_test"):
            halves.likelihood_ratio_test(restricted)
    checks = {check.name: check.finding for check in halves.report(None).checks}
    assert checks["Rows per coefficient"].startswith(f"{N} observations")
    counts = rp.VectorGLM(rp.Poisson()).fit(X, Y, np.full(N, 2.0)).likelihood_ratio_test()
    once = rp.VectorGLM(rp.Poisson()).fit(X, Y).likelihood_ratio_test()
    assert counts.statistic == pytest.approx(2 * once.statistic)
