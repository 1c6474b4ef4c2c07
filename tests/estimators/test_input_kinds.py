"""Targets, weights, offsets and likelihoods as people write them: by name, by level, fractional, censored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from statsmodels.miscmodels.ordinal_model import OrderedModel

import raphson as rp
from raphson.likelihoods import commands


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(2)
    n = 250
    x, t = rng.normal(size=n), rng.uniform(1, 60, n)
    eta = 0.6 * x
    frame = pd.DataFrame({
        "x": x,
        "t": t,
        "y": rng.poisson(0.1 * t * np.exp(eta)),
        "stars": np.digitize(eta + rng.logistic(size=n), [-2, -0.5, 0.5, 2]) + 1,
        "time": rng.weibull(1.5, n) * np.exp(eta),
        "seen": (rng.random(n) < 0.7).astype(int),
        "party": np.array(["left", "mid", "right"])[np.digitize(eta + rng.logistic(size=n), [-1, 1])],
        "w": rng.uniform(0.3, 3, n),
    })
    frame["k"] = frame["y"] > frame["y"].median()
    return frame


def test_an_offset_in_a_formula(frame: pd.DataFrame, tmp_path: Path) -> None:
    model = rp.VectorGLM(rp.Poisson(), formula="y ~ x + offset(log(t))").fit(frame)
    oracle = smf.glm("y ~ x", frame, family=sm.families.Poisson(), offset=np.log(frame["t"])).fit(tol=1e-12)
    table = model.estimates().to_frame()
    np.testing.assert_allclose(table[["coef", "std_err"]].astype(float), np.c_[oracle.params, oracle.bse], rtol=1e-7)
    plain = rp.VectorGLM(rp.Poisson()).fit(frame[["x"]], frame["y"], offset=np.log(frame["t"]))
    assert model.loglik_null_ == pytest.approx(plain.loglik_null_, rel=1e-12)
    np.testing.assert_allclose(model.predict(frame), plain.predict(frame[["x"]], np.log(frame["t"])), rtol=1e-10)
    # a rate is the prediction for an exposure of one
    rate = float(model.predictions({"t": 1.0}).to_frame()["mean"].iloc[0])
    assert rate == pytest.approx(float((model.predict(frame) / frame["t"]).mean()), rel=1e-12)
    assert float(model.margins().to_frame()["effect"].iloc[0]) == pytest.approx(
        float(plain.margins().to_frame()["effect"].iloc[0]), rel=1e-9
    )
    rp.save(model, tmp_path / "m")
    assert np.array_equal(rp.load(tmp_path / "m").model.predict(frame), model.predict(frame))
    twice = rp.VectorGLM(rp.Poisson(), formula="y ~ x + offset(log(t))").fit(frame, offset=np.full(len(frame), 0.5))
    assert float(twice.intercept_[0]) == pytest.approx(float(model.intercept_[0]) - 0.5)
    two = {"mean": "time ~ x + offset(t / 10)", "log_scale": "~ x + offset(x)"}
    gaussian = rp.VectorGLM(rp.HeteroscedasticGaussian(), formula=two).fit(frame)
    moved = rp.VectorGLM(rp.HeteroscedasticGaussian(), constraints="own").fit(
        frame[["x"]], frame["time"], offset=np.c_[frame["t"] / 10, frame["x"]]
    )
    np.testing.assert_allclose(gaussian.coef_, moved.coef_, rtol=1e-7)


def test_an_exposure_that_is_no_logarithm_is_named(frame: pd.DataFrame) -> None:
    far = frame.assign(t=1000 * frame["t"])
    for model in (rp.VectorGLM(rp.Poisson(), formula="y ~ x + offset(t)"), rp.VectorGLM(rp.Poisson())):
        with pytest.raises(rp.InputError, match=r"offset is \S+ in row \d+.*Is it an exposure\? Give its logarithm"):
            model.fit(far) if model.formula else model.fit(far[["x"]], far["y"], offset=far["t"])
    with pytest.raises(rp.InputError, match=r"offset\(log\(t\)\)', row 3: the value is -inf, because t = 0"):
        rp.VectorGLM(rp.Poisson(), formula="y ~ x + offset(log(t))").fit(
            frame.assign(t=frame["t"].where(frame.index != 3, 0))
        )
    large = rp.VectorGLM(rp.Gaussian()).fit(frame[["x"]], 1e4 * frame["t"], offset=1e4 * frame["t"])
    np.testing.assert_allclose(large.coef_, 0.0, atol=1e-9)


@pytest.mark.parametrize(
    "right", ["x:offset(t)", "x - offset(t)", "offset()", "x + offset(center(t))", "(x + offset(t))"]
)
def test_offsets_that_cannot_be_read(frame: pd.DataFrame, right: str) -> None:
    with pytest.raises(rp.InputError, match="offset"):
        rp.VectorGLM(rp.Poisson(), formula=f"y ~ {right}").fit(frame)


def test_censored_times(frame: pd.DataFrame, tmp_path: Path) -> None:
    model = rp.VectorGLM("weibull", formula="Surv(time, seen) ~ x").fit(frame)
    plain = rp.VectorGLM(rp.Weibull(censored=True)).fit(frame[["x"]], frame[["time", "seen"]])
    np.testing.assert_allclose(model.coef_, plain.coef_, rtol=1e-10)
    # an exponential of one group: the rate is events over time
    one = rp.VectorGLM(rp.Weibull(shape=1.0, censored=True), formula="Surv(time, seen) ~ 1").fit(frame)
    assert float(one.intercept_[0]) == pytest.approx(np.log(frame["time"].sum() / frame["seen"].sum()), rel=1e-10)
    assert dict(one.summary().facts)["Shape"] == "1 (given)"
    assert model.score(frame) == pytest.approx(plain.score(frame[["x"]], frame[["time", "seen"]]), rel=1e-12)
    rp.save(model, tmp_path / "m")
    assert rp.load(tmp_path / "m").model.score(frame) == model.score(frame)
    for likelihood in (rp.Weibull(), rp.Poisson(), "gamma"):
        with pytest.raises(rp.InputError, match=r"Weibull\(censored=True\)"):
            rp.VectorGLM(likelihood, formula="Surv(time, seen) ~ x").fit(frame)
    with pytest.raises(rp.InputError, match=r"column 'seen', row 1: an event is 1 \(seen\) or 0"):
        rp.VectorGLM("weibull", formula="Surv(time, seen) ~ x").fit(
            frame.assign(seen=frame["seen"].where(frame.index != 1, 2))
        )
    with pytest.raises(rp.InputError, match="Surv takes two columns"):
        rp.VectorGLM("weibull", formula="Surv(time) ~ x").fit(frame)


def test_levels_that_are_whole_numbers(frame: pd.DataFrame, tmp_path: Path) -> None:
    model = rp.VectorGLM(rp.Ordinal(5)).fit(frame[["x"]], frame["stars"])
    zero = rp.VectorGLM(rp.Ordinal(5)).fit(frame[["x"]], frame["stars"] - 1)
    assert np.array_equal(model.coef_, zero.coef_) and model.levels_ == ("1", "2", "3", "4", "5")
    assert zero.levels_ is None and model.output_names_ == ["1|2", "2|3", "3|4", "4|5"]
    assert model.score(frame[["x"]], frame["stars"]) == zero.score(frame[["x"]], frame["stars"] - 1)
    oracle = OrderedModel(frame["stars"], frame[["x"]], distr="logit").fit(method="newton", disp=0)
    assert float(model.estimates().values[-1]) == pytest.approx(float(oracle.params["x"]), rel=1e-6)
    named = rp.VectorGLM("ordinal").fit(frame[["x"]], frame["stars"])
    assert np.array_equal(named.coef_, model.coef_)
    rp.save(model, tmp_path / "m")
    assert rp.load(tmp_path / "m").model.score(frame[["x"]], frame["stars"]) == model.score(
        frame[["x"]], frame["stars"]
    )
    few = frame[frame["stars"] != 3]
    assert rp.VectorGLM(rp.Ordinal(5), l2=1e-3).fit(few[["x"]], few["stars"]).levels_ == model.levels_
    with pytest.raises(rp.InputError, match="row 0 is '9'; the levels of the fit are 1, 2, 3, 4, 5"):
        model.score(frame[["x"]].head(1), [9])
    with pytest.raises(rp.InputError):
        rp.VectorGLM(rp.Ordinal(3)).fit(frame[["x"]], frame["stars"])


def test_cuts_have_the_names_of_levels(frame: pd.DataFrame) -> None:
    levels = ["Low", "Medium", "High"]
    grades = pd.Series(pd.Categorical(np.array(levels)[(frame["stars"] - 1) // 2], categories=levels, ordered=True))
    model = rp.VectorGLM("ordinal").fit(frame[["x"]], grades)
    assert model.output_names_ == ["Low|Medium", "Medium|High"]
    assert ("Low|Medium", "(intercept)") in model.estimates().labels
    shuffled = pd.Series(pd.Categorical(grades.astype(str), categories=levels[::-1], ordered=True))
    assert model.score(frame[["x"]], shuffled) == model.score(frame[["x"]], grades)


def test_the_order_of_a_categorical_decides_the_reference(frame: pd.DataFrame, tmp_path: Path) -> None:
    order = ["right", "left", "unused", "mid"]
    party = pd.Series(pd.Categorical(frame["party"], categories=order))
    for reference, expected in (("first", "right"), ("last", "mid"), ("left", "left")):
        model = rp.MultinomialLogisticRegression(reference=reference).fit(frame[["x"]], party)
        given = rp.MultinomialLogisticRegression(reference=expected).fit(frame[["x"]], frame["party"])
        assert np.array_equal(model.coef_, given.coef_) and f"relative to class {expected}" in model.summary().title
        assert list(model.classes_) == ["left", "mid", "right"]  # sorted, as scikit-learn's metrics expect
        assert not model.coef_[list(model.classes_).index(expected)].any()
    model = rp.MultinomialLogisticRegression(formula="party ~ x").fit(frame.assign(party=party))
    rp.save(model, tmp_path / "m")
    back = rp.load(tmp_path / "m").model
    assert str(back.summary()) == str(model.summary()) and "class right" in back.summary().title


def test_a_formula_for_classes(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.loc[4, "x"] = np.nan
    model = rp.MultinomialLogisticRegression(formula="party ~ x + I(x**2)").fit(frame)
    kept = frame.drop(index=4)
    x = kept[["x"]].assign(square=kept["x"] ** 2)
    plain = rp.MultinomialLogisticRegression().fit(x, kept["party"])
    np.testing.assert_allclose(model.coef_, plain.coef_, rtol=1e-8, atol=1e-10)
    assert "1 of 250 rows left out for missing values (x 1)." in model.summary().notes
    assert np.array_equal(model.predict(kept), plain.predict(x))
    np.testing.assert_allclose(model.predict_proba(kept), plain.predict_proba(x), rtol=1e-8)
    model.standard_errors(groups="stars")
    rp.save(model, tmp_path / "m")
    assert np.array_equal(rp.load(tmp_path / "m").model.predict_proba(kept), model.predict_proba(kept))
    bare = rp.MultinomialLogisticRegression(formula="party ~ x - 1").fit(frame)
    assert not bare.intercept_.any()
    rp.save(bare, tmp_path / "bare")
    assert str(rp.load(tmp_path / "bare").model.summary()) == str(bare.summary())
    two = rp.MultinomialLogisticRegression(formula="k ~ x + offset(t / 9)").fit(frame)
    logit = sm.GLM(
        kept["k"].astype(float), sm.add_constant(kept[["x"]]), family=sm.families.Binomial(), offset=kept["t"] / 9
    )
    np.testing.assert_allclose(two.coef_[1], logit.fit(tol=1e-12).params["x"], rtol=1e-7)
    with pytest.raises(rp.InputError, match="3 classes"):
        rp.MultinomialLogisticRegression(formula="party ~ x + offset(t)").fit(frame)
    with pytest.raises(rp.InputError, match="censored"):
        rp.MultinomialLogisticRegression(formula="Surv(time, seen) ~ x").fit(frame)


def test_fractional_weights_say_what_they_are(frame: pd.DataFrame, tmp_path: Path) -> None:
    """The weighted mean of a Poisson: its sandwich is sum w^2 (y - m)^2 / (sum w m)^2 times n / (n - 1), in the log."""
    w, y, n = frame["w"].to_numpy(), frame["y"].to_numpy(), len(frame)
    model = rp.VectorGLM(rp.Poisson(), formula="y ~ 1").fit(frame, sample_weight=w)
    m = np.average(y, weights=w)
    expected = np.sqrt((w**2 * (y - m) ** 2).sum() * n / (n - 1)) / (w.sum() * m)
    assert float(model.standard_errors().iloc[0]) == pytest.approx(expected, rel=1e-9)
    for found in (model.confint(), model.estimates().to_frame()[["lower", "upper"]]):
        np.testing.assert_allclose(found.astype(float).diff(axis=1).iloc[:, 1] / 2 / 1.959963984540054, expected)
    facts = dict(model.summary().facts)
    assert facts["Covariance"] == "sandwich (stata)" and facts["Observations"].startswith("250 rows, weight ")
    assert sum("not whole numbers" in note for note in model.summary().notes) == 1
    observed = model.standard_errors("observed").iloc[0]
    assert float(observed) == pytest.approx(1 / np.sqrt(w.sum() * m), rel=1e-9)
    rp.save(model, tmp_path / "m")
    back = rp.load(tmp_path / "m").model
    assert str(back.summary()) == str(model.summary())
    whole = rp.VectorGLM(rp.Poisson()).fit(frame[["x"]], y, np.round(w) + 1)
    assert dict(whole.summary().facts)["Covariance"] == "observed information"


def test_given_parameters_are_said() -> None:
    x, y = np.arange(6.0)[:, None], np.array([1.0, 3, 2, 5, 4, 6])
    facts = dict(rp.VectorGLM(rp.Gaussian()).fit(x, y).summary().facts)
    assert facts["Scale"] == "1 (given)"
    assert "Scale" not in dict(rp.VectorGLM(rp.HeteroscedasticGaussian()).fit(x, y).summary().facts)
    facts = dict(rp.VectorGLM(rp.NegativeBinomial(dispersion=0.5)).fit(x, y).summary().facts)
    assert facts["Dispersion"] == "0.5 (given)"


@pytest.mark.parametrize("name", sorted(commands()))
def test_likelihoods_by_name(name: str, frame: pd.DataFrame) -> None:
    kind, command = commands()[name]
    targets: dict[str, Any] = {
        "ordered": frame["stars"],
        "two": frame["seen"],
        "successes": np.c_[frame["stars"], 6 - frame["stars"]],
        "numbers": frame["y"] + 1 if name in ("poisson", "negative-binomial") else frame["time"] / 9,
    }
    y = targets[command.target]
    if name == "beta":
        y = 1 / (1 + frame["time"])
    model = rp.VectorGLM(name.replace("-", "_"), l2=1e-6).fit(frame[["x"]], y)
    assert isinstance(model._likelihood(), kind) and model.solution_.converged
    assert clone(model).likelihood == model.likelihood


def test_names_that_are_no_likelihood(frame: pd.DataFrame) -> None:
    with pytest.raises(rp.InputError, match="no likelihood called 'poison'; did you mean 'poisson'"):
        rp.VectorGLM("poison").fit(frame[["x"]], frame["y"])
    with pytest.raises(rp.InputError, match=r"rp.Binomial\(trials=N\)"):
        rp.VectorGLM("binomial").fit(frame[["x"]], frame["y"])
    with pytest.raises(NotFittedError):
        rp.VectorGLM("poisson").predict(frame[["x"]])
    classes = rp.VectorGLM("categorical").fit(frame[["x"]], frame["seen"])
    assert isinstance(classes._likelihood(), rp.Categorical)


def test_ratios(frame: pd.DataFrame) -> None:
    model = rp.VectorGLM("bernoulli", formula="seen ~ x").fit(frame)
    plain, ratios = model.summary().to_frame(), model.summary(exp=True).to_frame()
    oracle = smf.logit("seen ~ x", frame).fit(disp=0, method="newton", tol=1e-12)
    np.testing.assert_allclose(ratios["exp(coef)"].astype(float), np.exp(oracle.params), rtol=1e-7)
    np.testing.assert_allclose(ratios[["lower", "upper"]].astype(float), np.exp(oracle.conf_int()), rtol=1e-6)
    np.testing.assert_allclose(ratios["std_err"].astype(float), np.exp(oracle.params) * oracle.bse, rtol=1e-6)
    pd.testing.assert_frame_equal(ratios[["z", "p_value"]], plain[["z", "p_value"]])
    assert "exp(coef)" in str(model.summary(exp=True))
