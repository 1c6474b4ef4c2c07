from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.othermod.betareg import BetaModel

import raphson as rp


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    n = 240
    g = rng.choice(["a", "b", "c"], n)
    x = rng.normal(size=n)
    place = {"a": 0, "b": 1, "c": 2}
    index = np.array([place[level] for level in g])
    y = rng.normal(np.array([1.0, -2.0, 0.5])[index], np.array([0.5, 1.0, 3.0])[index])
    return pd.DataFrame({"y": y, "x": x, "g": g, "p": rng.beta(2 + index, 3 + x**2)})


BOTH = {"mean": "y ~ C(g)", "log_scale": "~ C(g)"}


def gaussian(formula: Any, **options: Any) -> rp.VectorGLM:
    return rp.VectorGLM(rp.HeteroscedasticGaussian(), formula=formula, **options)


def test_saturated_gaussian_is_the_closed_form(frame: pd.DataFrame) -> None:
    """A mean and a scale for each group: its mean and standard deviation, s / sqrt(n) and 1 / sqrt(2 n)."""
    own = {"mean": "y ~ C(g) - 1", "log_scale": "~ C(g) - 1"}
    groups = frame.groupby("g")["y"]
    mean, scale, n = groups.mean(), groups.std(ddof=0), groups.count()
    model = gaussian(own).fit(frame)
    values = np.r_[mean, np.log(scale)]
    errors = np.r_[scale / np.sqrt(n), 1 / np.sqrt(2 * n)]
    for kind in ("observed", "expected"):
        table = model.estimates(kind).to_frame()
        np.testing.assert_allclose(table["coef"].astype(float), values, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(table["std_err"].astype(float), errors, rtol=1e-8)
    assert model.loglik_ == pytest.approx(
        -float((n * (np.log(scale) + 0.5 + 0.5 * np.log(2 * np.pi))).sum()), rel=1e-12
    )
    coded = gaussian(BOTH).fit(frame)
    np.testing.assert_allclose(coded.predict(frame), mean[frame["g"]], rtol=1e-10)
    difference = ("log_scale", "C(g)[T.c]")
    assert coded.estimates().to_frame()["coef"][difference] == pytest.approx(np.log(scale["c"] / scale["a"]), rel=1e-9)
    error = coded.standard_errors()[difference]
    assert error == pytest.approx((1 / (2 * n["a"]) + 1 / (2 * n["c"])) ** 0.5, rel=1e-8)


def test_beta_regression_with_its_own_columns_for_the_precision(frame: pd.DataFrame) -> None:
    model = rp.VectorGLM(rp.Beta(), formula={"logit_mean": "p ~ x + C(g)", "log_precision": "~ x"}).fit(frame)
    oracle = BetaModel.from_formula("p ~ x + C(g)", frame, exog_precision_formula="~ x").fit(
        disp=0, method="newton", tol=1e-10
    )
    ours = model.estimates().to_frame()
    mean = [("logit_mean", name) for name in ("(intercept)", "C(g)[T.b]", "C(g)[T.c]", "x")]
    order = [*mean, ("log_precision", "(intercept)"), ("log_precision", "x")]
    assert set(ours.index) == set(order)
    np.testing.assert_allclose(ours["coef"][order].astype(float), oracle.params, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ours["std_err"][order].astype(float), oracle.bse, rtol=1e-4)


def test_formulas_are_the_tables_they_make(frame: pd.DataFrame) -> None:
    indicators = pd.get_dummies(frame["g"], dtype=float)[["b", "c"]]
    tables = {"mean": frame[["x"]].assign(**indicators), "log_scale": frame[["x"]]}
    given = rp.VectorGLM(rp.HeteroscedasticGaussian()).fit(tables, frame["y"])
    model = gaussian({"mean": "y ~ x + g", "log_scale": "~ x"}).fit(frame)
    np.testing.assert_allclose(model.coef_, given.coef_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(model.standard_errors(), given.standard_errors(), rtol=1e-9)
    single = gaussian("y ~ x + g").fit(frame)
    constant = gaussian({"mean": "y ~ x + g", "log_scale": "~ 1"}).fit(frame)
    np.testing.assert_allclose(single.coef_, constant.coef_, rtol=1e-8, atol=1e-12)
    assert single.df_model_ == constant.df_model_ == 5
    nothing = gaussian({"mean": "y ~ 1", "log_scale": "~ 1"}).fit(frame)
    assert nothing.coef_.shape == (2, 0) and nothing.loglik_ == pytest.approx(nothing.loglik_null_)
    np.testing.assert_allclose(nothing.predict(frame.head(2)), frame["y"].mean())
    assert model.likelihood_ratio_test(nothing).df == 4


def test_intercepts_go_where_the_formula_says(frame: pd.DataFrame) -> None:
    model = gaussian({"mean": "y ~ x - 1", "log_scale": "~ x"}).fit(frame)
    labels = list(model.estimates().labels)
    assert labels == [("mean", "x"), ("log_scale", "(intercept)"), ("log_scale", "x")]
    assert model.intercept_[0] == 0.0 and model.intercept_[1] != 0.0


def test_new_data_are_coded_as_at_the_fit_also_after_saving(frame: pd.DataFrame, tmp_path: Path) -> None:
    model = gaussian({"mean": "y ~ poly(x, 2) + C(g)", "log_scale": "~ center(x)"}).fit(frame)
    few = frame.drop(columns="y").iloc[[5, 17]]
    np.testing.assert_allclose(model.predict(few), model.predict(frame)[[5, 17]], rtol=1e-12)
    rp.save(model, tmp_path / "m")
    back = rp.load(tmp_path / "m").model
    assert np.array_equal(back.predict(frame), model.predict(frame))
    assert back.score(frame) == model.score(frame, None)
    assert str(back.summary()) == str(model.summary())
    pd.testing.assert_frame_equal(back.covariance(), model.covariance())
    with pytest.raises(rp.NotEstimableError, match="training rows"):
        back.estimates("sandwich")


@pytest.mark.parametrize(
    "likelihood",
    [rp.Ordinal(3, link="probit"), rp.Gamma(dispersion=0.5), rp.Linked(rp.Gaussian(2.0), "exp"), rp.StudentT(df=4.0)],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_saved_models_of_every_kind_of_likelihood(likelihood: Any, frame: pd.DataFrame, tmp_path: Path) -> None:
    y = np.digitize(frame["y"], [-1, 1]) if isinstance(likelihood, rp.Ordinal) else np.exp(frame["y"] / 4)
    x = frame[["x"]]
    model = rp.VectorGLM(likelihood, constraints="parallel").fit(x, y)
    rp.save(model, tmp_path / "m")
    back = rp.load(tmp_path / "m").model
    assert repr(back.likelihood) == repr(likelihood) and back.constraints == "parallel"
    assert np.array_equal(back.predict(x), model.predict(x)) and str(back.summary()) == str(model.summary())
    interval = back.predict_interval(x.head(3))
    np.testing.assert_array_equal(interval.lower, model.predict_interval(x.head(3)).lower)


def test_a_likelihood_of_ones_own_code_is_not_saved(frame: pd.DataFrame, tmp_path: Path) -> None:
    own = rp.Linked(rp.Gaussian(), rp.Link("shifted", lambda f: f + 1.0, lambda t: t - 1.0, "unshifted"))
    model = rp.VectorGLM(own).fit(frame[["x"]], frame["y"])
    with pytest.raises(rp.InputError, match="code of your own"):
        rp.save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_ordered_categories_keep_their_names(frame: pd.DataFrame) -> None:
    grades = pd.Series(pd.Categorical(frame["g"], categories=["c", "a", "b"], ordered=True))
    model = rp.VectorGLM(rp.Ordinal(3)).fit(frame[["x"]], grades)
    assert model.levels_ == ("c", "a", "b")
    assert [label[0] for label in model.margins().to_frame().index] == ["P[c]", "P[a]", "P[b]"]


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ({"mean": "y ~ z"}, "In the formula of 'mean': there is no column 'z'"),
        ({"mean": "y ~ x", "sigma": "~ x"}, "no parameter called 'sigma'; it has 'mean' and 'log_scale'"),
        ({"mean": "y ~ x", "log_scale": "x ~ g"}, "name it once"),
        ({"mean": "~ x"}, "No formula names the target"),
        ({"mean": "y ~ x", "log_scale": "~ open('f')"}, "In the formula of 'log_scale': .* is not allowed"),
        ({"mean": "y ~ empty"}, "In the formula of 'mean': every row has a missing value"),
        ({}, "formula must be a text"),
        (3, "formula must be a text"),
    ],
)
def test_a_formula_that_cannot_be_used_names_parameter_and_column(
    frame: pd.DataFrame, formula: Any, message: str
) -> None:
    frame["empty"] = np.nan
    with pytest.raises(rp.InputError, match=message):
        gaussian(formula).fit(frame)


def test_what_else_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(rp.InputError, match="y was passed too"):
        gaussian(BOTH).fit(frame, frame["y"])
    with pytest.raises(rp.InputError, match="named columns"):
        gaussian(BOTH).fit(frame[["x"]].to_numpy(), frame["y"])
    with pytest.raises(rp.InputError, match="leave out constraints"):
        gaussian(BOTH, constraints="own").fit(frame)
    model = gaussian(BOTH).fit(frame)
    with pytest.raises(rp.InputError, match="In the formula of 'mean': column 'g', row 0: the level 'z'"):
        model.predict(frame.assign(g="z"))


def test_rows_with_missing_values_are_left_out_and_counted(frame: pd.DataFrame) -> None:
    frame["holes"] = frame["x"].where(~frame.index.isin([2, 5]))
    frame.loc[7, "g"] = None
    formula = {"mean": "y ~ holes", "log_scale": "~ g"}
    weights, offset = np.arange(1.0, len(frame) + 1), np.linspace(0, 1, len(frame))
    model = gaussian(formula).fit(frame, sample_weight=weights, offset=offset)
    kept = frame.drop(index=[2, 5, 7])
    at = kept.index.to_numpy()
    whole = gaussian(formula).fit(kept, sample_weight=weights[at], offset=offset[at])
    assert np.array_equal(model.coef_, whole.coef_) and model.n_rows_ == len(frame) - 3
    note = "3 of 240 rows left out for missing values (holes 2, g 1)."
    assert note in model.summary().notes and not any("left out" in note for note in whole.summary().notes)
    clusters = frame.index.to_numpy() // 4
    errors = model.standard_errors("sandwich", clusters)
    np.testing.assert_allclose(errors, whole.standard_errors("sandwich", clusters[at]))
    with pytest.raises(rp.InputError, match="column 'holes', row 2: the value is missing"):
        model.predict(frame)
    with pytest.raises(rp.InputError, match="sample_weight has 3 rows"):
        gaussian(formula).fit(frame, sample_weight=[1.0, 2.0, 3.0])


def test_groups_by_name(frame: pd.DataFrame) -> None:
    frame["village"] = frame.index.to_numpy() // 6
    model = gaussian(BOTH).fit(frame)
    by_array = model.standard_errors("sandwich", frame["village"])
    np.testing.assert_array_equal(model.standard_errors(groups="village"), by_array)
    clustered = model.summary(groups="village", correction="CR1")
    assert dict(clustered.facts)["Covariance"] == "sandwich clustered in 40 groups (CR1)"
    with pytest.raises(rp.InputError, match="no column 'town'"):
        model.standard_errors(groups="town")
    plain = rp.VectorGLM(rp.HeteroscedasticGaussian()).fit(frame[["x"]], frame["y"])
    with pytest.raises(rp.InputError, match=r"fitted without a formula.*groups=frame\['village'\]"):
        plain.standard_errors(groups="village")
    with pytest.raises(rp.InputError, match="pass groups=, one label for each row"):
        plain.standard_errors(correction="CR1")
    with pytest.raises(rp.InputError, match="factor of the sandwich"):
        plain.standard_errors("observed", correction="HC1")
    with pytest.raises(rp.InputError, match="1 missing labels"):
        model.standard_errors(groups=frame["village"].where(frame.index != 3))


@pytest.mark.parametrize("right", ["0", "-1", "0 + offset(x)"])
@pytest.mark.parametrize("make", [rp.MultinomialLogisticRegression, lambda **o: rp.VectorGLM("bernoulli", **o)])
def test_a_formula_without_a_column_or_an_intercept_is_refused(frame: pd.DataFrame, right: str, make: Any) -> None:
    table = frame.assign(y=(frame["y"] > 0).astype(int))
    with pytest.raises(rp.InputError, match="There is no coefficient to fit"):
        make(formula=f"y ~ {right}").fit(table)


@pytest.mark.parametrize(
    ("bad", "arguments", "message"),
    [
        ({"y": [1.0, 2.0, 0.0, -3.0, 1.0]}, {}, "target in row 3 is -3"),
        ({"y": [1, 2, 0, "a", 1]}, {}, "target in row 3 is 'a'"),
        ({"y": [1.0, 2.0, 0.0, 1e200, 1.0]}, {}, r"target in row 3 is 1e\+200"),
        ({}, {"sample_weight": [1.0, 1.0, 1.0, -1.0, 1.0]}, "sample_weight is -1 in row 3"),
        ({}, {"offset": [0.0, 0.0, 0.0, np.inf, 0.0]}, "not finite in row 3"),
        ({}, {"offset": [0.0, 0.0, 0.0, 1e4, 0.0]}, "offset is 10000 in row 3"),
    ],
)
def test_rows_are_named_as_given_where_some_are_left_out(bad: Any, arguments: Any, message: str) -> None:
    table = pd.DataFrame({"y": [1.0, 2.0, 0.0, 3.0, 1.0], "x": [0.5, np.nan, 0.3, 1.2, 0.1]} | bad)
    with pytest.raises(rp.InputError, match=message):
        rp.VectorGLM("poisson", formula="y ~ x").fit(table, **arguments)


def test_columns_and_target_name_the_same_row() -> None:
    good = pd.DataFrame({
        "y": [1.0, 2.0, 0.0, 3.0, 1.0],
        "x": [0.5, np.nan, 0.3, 1.2, 0.1],
        "t": [1.0, 2.0, 1.0, 3.0, 2.0],
        "g": list("abaab"),
    })
    model = rp.VectorGLM("poisson", formula="y ~ x + g + log(t)", l2=0.1)
    for bad in ({"y": [1.0, 2.0, 0.0, -3.0, 1.0]}, {"t": [1.0, 2.0, 1.0, 0.0, 2.0]}):
        with pytest.raises(rp.InputError, match=r"\brow 3\b"):
            model.fit(good.assign(**bad))
    model.fit(good)
    with pytest.raises(rp.InputError, match="column 'g', row 3: the level 'z'"):
        model.predict(good.assign(x=1.0, g=list("abazb")))


def test_rows_of_classes_are_named_as_given_where_some_are_left_out() -> None:
    table = pd.DataFrame({"y": ["a", "b", "a", "c", "b"], "x": [0.5, np.nan, 0.3, 1.2, 0.1]})
    with pytest.raises(rp.InputError, match="first in row 3"):
        rp.MultinomialLogisticRegression(formula="y ~ x").fit(table, sample_weight=[1.0, 1.0, 1.0, 0.0, 1.0])
