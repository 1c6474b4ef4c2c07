"""Margins, predictions and contrasts through a formula, against closed forms and statsmodels' coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import torch
from scipy.special import expit

import raphson as rp

LEVELS = {"u": 1.5, "v": 4.5, "w": 20.5}


@pytest.fixture
def counts() -> pd.DataFrame:
    """Means 1.5, 4.5 and 20.5 in three groups of 4, 2 and 6."""
    y = {"u": [1, 2, 0, 3], "v": [4, 5], "w": [20, 21, 19, 22, 18, 23]}
    return pd.DataFrame([(name, value) for name, values in y.items() for value in values], columns=["f", "y"])


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    n = 300
    x, z = rng.normal(size=n), rng.uniform(0.5, 4, n)
    g = rng.choice(["a", "b", "c"], n)
    eta = 0.3 + 0.8 * x - 0.5 * x**2 + np.log(z) * (g == "b") - 0.7 * (g == "c")
    return pd.DataFrame({"x": x, "z": z, "g": g, "y": (rng.random(n) < expit(eta)).astype(float), "w": 1 + (x > 0)})


def logit(formula: str, frame: pd.DataFrame, **options: Any) -> rp.VectorGLM:
    return rp.VectorGLM(rp.Bernoulli(), formula=formula).fit(frame, **options)


def by_autograd(model: rp.VectorGLM, average: Any) -> tuple[float, float]:
    """Value of a function of the coefficients and its standard error by automatic differentiation."""
    found = model.estimates()
    theta = found.values.clone().requires_grad_()
    value = average(theta)
    (gradient,) = torch.autograd.grad(value, theta)
    return float(value.detach()), float((gradient @ found.covariance.to_dense() @ gradient) ** 0.5)


@pytest.mark.parametrize("text", ["y ~ f", "y ~ C(f)", "y ~ C(f, contr.treatment('u'))", "y ~ C(f, contr.sum)"])
def test_a_factor_is_its_contrast(counts: pd.DataFrame, text: str) -> None:
    if "sum" in text:
        text = "y ~ C(f, contr.sum())"
    model = rp.VectorGLM(rp.Poisson(), formula=text).fit(counts)
    table = model.margins().to_frame()
    assert list(table.index) == [("mean", "f[v]"), ("mean", "f[w]")] and list(table["kind"]) == ["v vs u", "w vs u"]
    np.testing.assert_allclose(table["effect"].astype(float), [3.0, 19.0], rtol=1e-9)
    # the mean of a Poisson group of size n has variance mean / n
    errors = [(1.5 / 4 + 4.5 / 2) ** 0.5, (1.5 / 4 + 20.5 / 6) ** 0.5]
    np.testing.assert_allclose(table["std_err"].astype(float), errors, rtol=1e-8)
    pairs = model.contrasts("f").to_frame()
    assert [label[1] for label in pairs.index] == ["v - u", "w - u", "w - v"]
    np.testing.assert_allclose(pairs["contrast"].astype(float), [3.0, 19.0, 16.0], rtol=1e-9)
    np.testing.assert_allclose(pairs["std_err"].astype(float), [*errors, (4.5 / 2 + 20.5 / 6) ** 0.5], rtol=1e-8)
    means = model.predictions({"f": ["u", "v", "w"]}).to_frame()
    np.testing.assert_allclose(means["mean"].astype(float), list(LEVELS.values()), rtol=1e-9)
    np.testing.assert_allclose(means["std_err"].astype(float), np.sqrt([1.5 / 4, 4.5 / 2, 20.5 / 6]), rtol=1e-8)
    average = model.predictions().to_frame()["mean"].iloc[0]
    assert average == pytest.approx(counts["y"].mean(), rel=1e-9)


def test_another_base(counts: pd.DataFrame) -> None:
    model = rp.VectorGLM(rp.Poisson(), formula="y ~ C(f, contr.treatment('v'))").fit(counts)
    table = model.margins().to_frame()
    assert list(table["kind"]) == ["u vs v", "w vs v"]
    np.testing.assert_allclose(table["effect"].astype(float), [-3.0, 16.0], rtol=1e-9)


@pytest.mark.parametrize(
    ("right", "slope"),
    [
        ("x + I(x**2)", lambda x, z, b: b["x"] + 2 * x * b["I(x ** 2)"]),
        ("x * z", lambda x, z, b: b["x"] + z * b["x:z"]),
        ("np.exp(x / 2) + z", lambda x, z, b: np.exp(x / 2) / 2 * b["np.exp(x / 2)"]),
        ("x + x:I(z**2)", lambda x, z, b: b["x"] + z**2 * b["x:I(z ** 2)"]),
    ],
)
def test_derivatives_go_through_the_formula(frame: pd.DataFrame, right: str, slope: Any) -> None:
    model = logit(f"y ~ {right}", frame)
    b = dict(zip((label[1] for label in model.estimates().labels), model.estimates().values.tolist(), strict=True))
    p = model.predict(frame)
    x, z = frame["x"].to_numpy(), frame["z"].to_numpy()
    effect = model.margins().to_frame().loc[("mean", "x")]
    assert effect["kind"] == "dy/dx"
    assert effect["effect"] == pytest.approx(float((p * (1 - p) * slope(x, z, b)).mean()), rel=1e-9)
    # the error of the effect by differentiating the average in the coefficients
    matrix, _ = model._formulas.designs[""].matrix(frame)
    high, low = (torch.from_numpy(np.c_[np.ones(len(x)), matrix]) for _ in range(2))
    del low
    rate = np.zeros(matrix.shape[1] + 1)
    names = [label[1] for label in model.estimates().labels]
    rates = []
    for name in names:
        rate = slope(x, z, dict.fromkeys(names, 0.0) | {name: 1.0})
        rates.append(np.broadcast_to(rate, x.shape))
    dx = torch.from_numpy(np.stack(rates, 1).copy())

    def average(theta: torch.Tensor) -> torch.Tensor:
        q = torch.sigmoid(high @ theta)
        return (q * (1 - q) * (dx @ theta)).mean()

    value, error = by_autograd(model, average)
    assert effect["effect"] == pytest.approx(value, rel=1e-9) and effect["std_err"] == pytest.approx(error, rel=1e-8)


def test_splines_and_polynomials_against_small_steps(frame: pd.DataFrame) -> None:
    for right in ("bs(x, df=5)", "poly(x, 3)", "cr(x, df=4)", "center(x) + I(np.abs(z) ** 1.5)"):
        model = logit(f"y ~ {right}", frame)
        effect = float(model.margins().to_frame()["effect"].iloc[0])
        h = 1e-5
        inner = frame[(frame["x"] < frame["x"].max() - h) & (frame["x"] > frame["x"].min() + h)]
        rest = 2 / len(frame)
        step = (model.predict(inner.assign(x=inner["x"] + h)) - model.predict(inner.assign(x=inner["x"] - h))) / (2 * h)
        assert abs(effect - step.sum() / len(frame)) < 5 * rest and np.isfinite(effect)


def test_logarithms_over_many_decades(frame: pd.DataFrame) -> None:
    frame["s"] = 10 ** np.linspace(-6, 6, len(frame))
    model = logit("y ~ np.log(s)", frame)
    p, b = model.predict(frame), float(model.coef_[0, 0])
    expected = (p * (1 - p) * b / frame["s"]).mean()
    assert float(model.margins().to_frame()["effect"].iloc[0]) == pytest.approx(expected, rel=1e-8)


def test_a_jump_has_no_derivative(frame: pd.DataFrame) -> None:
    frame.loc[0, "x"] = 0.0
    model = logit("y ~ x + I(x > 0)", frame)
    with pytest.raises(rp.NotEstimableError, match=r"jump in 'x' at 0, so .*contrasts\('x'"):
        model.margins()
    kink = logit("y ~ I(np.abs(x))", frame)
    p, b = kink.predict(frame), float(kink.coef_[0, 0])
    expected = (p * (1 - p) * b * np.sign(frame["x"])).mean()
    assert float(kink.margins().to_frame()["effect"].iloc[0]) == pytest.approx(expected, rel=1e-9)


def test_values_can_be_set(frame: pd.DataFrame) -> None:
    model = logit("y ~ x * g + np.log(z)", frame)
    weights = frame["w"].to_numpy(float)
    weighted = logit("y ~ x * g + np.log(z)", frame, sample_weight=weights)
    for at in ({"x": 1.0}, {"g": "b", "z": 2.0}):
        moved = frame.assign(**at)
        expected = np.average(weighted.predict(moved), weights=weights)
        assert float(weighted.predictions(at).to_frame()["mean"].iloc[0]) == pytest.approx(expected, rel=1e-12)
        change = (model.predict(moved.assign(g="c")) - model.predict(moved.assign(g="a"))).mean()
        if "g" not in at:
            assert float(model.margins(at).to_frame().loc[("mean", "g[c]"), "effect"]) == pytest.approx(change)
    effect = float(model.margins({"x": 1.0}).to_frame().loc[("mean", "x"), "effect"])
    up, down = (model.predict(frame.assign(x=value)) for value in (1 + 1e-6, 1 - 1e-6))
    assert effect == pytest.approx(float(((up - down) / 2e-6).mean()), rel=1e-6)
    table = model.predictions({"x": [0.0, 1.0], "g": ["a", "b"]})
    assert [label[1] for label in table.to_frame().index] == ["x=0, g=a", "x=0, g=b", "x=1, g=a", "x=1, g=b"]
    assert "Predicted means" in str(table) and "x=1, g=b" in str(table)
    assert "vs a" in str(model.margins()) and "<table>" in table._repr_html_()
    two = model.contrasts("x", [0.0, 1.0], at={"g": "b"}).to_frame()
    difference = (model.predict(frame.assign(x=1.0, g="b")) - model.predict(frame.assign(x=0.0, g="b"))).mean()
    assert float(two["contrast"].iloc[0]) == pytest.approx(difference, rel=1e-10)
    mean_row = model.predict(frame.head(1).assign(x=frame["x"].mean(), z=frame["z"].mean(), g="b"))[0]
    at_mean = model.predictions({"x": frame["x"].mean(), "z": frame["z"].mean(), "g": "b"}).to_frame()
    assert float(at_mean["mean"].iloc[0]) == pytest.approx(mean_row, rel=1e-12)


def test_the_mean_row(frame: pd.DataFrame) -> None:
    """As without a formula: derivatives at the mean row of the columns, indicators at their shares."""
    model = logit("y ~ x + z", frame)
    plain = rp.VectorGLM(rp.Bernoulli()).fit(frame[["x", "z"]], frame["y"])
    for at in ("overall", "mean"):
        one, other = model.margins(at).to_frame(), plain.margins(at).to_frame()
        np.testing.assert_allclose(one["effect"].astype(float), other["effect"].astype(float), rtol=1e-9)
        np.testing.assert_allclose(one["std_err"].astype(float), other["std_err"].astype(float), rtol=1e-8)
    oracle = smf.logit("y ~ x + z", frame).fit(disp=0, method="newton", tol=1e-12)
    np.testing.assert_allclose(
        model.margins("mean").to_frame()["std_err"].astype(float), oracle.get_margeff(at="mean").margeff_se, rtol=1e-6
    )


def test_columns_of_a_plain_table_can_be_set(frame: pd.DataFrame) -> None:
    x = frame[["x", "z"]].assign(b=(frame["g"] == "b").astype(float))
    model = rp.VectorGLM(rp.Bernoulli()).fit(x, frame["y"])
    expected = model.predict(x.assign(x=1.0)).mean()
    assert float(model.predictions({"x": 1.0}).to_frame()["mean"].iloc[0]) == pytest.approx(expected, rel=1e-12)
    change = (model.predict(x.assign(b=1.0)) - model.predict(x.assign(b=0.0))).mean()
    assert float(model.contrasts("b").to_frame()["contrast"].iloc[0]) == pytest.approx(change, rel=1e-10)
    effect = float(model.margins({"x": 1.0}).to_frame().loc[("mean", "b"), "effect"])
    moved = x.assign(x=1.0)
    assert effect == pytest.approx((model.predict(moved.assign(b=1.0)) - model.predict(moved.assign(b=0.0))).mean())


def test_classes_and_several_parameters(frame: pd.DataFrame) -> None:
    classes = rp.MultinomialLogisticRegression(formula="g ~ x + I(x**2)").fit(frame)
    table = classes.margins().to_frame()
    assert [label[0] for label in table.index] == ["a", "b", "c"]
    assert float(table["effect"].sum()) == pytest.approx(0.0, abs=1e-12)
    gaussian = rp.VectorGLM(rp.HeteroscedasticGaussian(), formula={"mean": "z ~ x + g", "log_scale": "~ g"}).fit(frame)
    effects = gaussian.margins().to_frame()
    assert [label[1] for label in effects.index] == ["x", "g[b]", "g[c]"]
    named = {
        label: value for label, value in zip(gaussian.estimates().labels, gaussian.estimates().values, strict=True)
    }
    assert float(effects["effect"].iloc[1]) == pytest.approx(float(named["mean", "g[T.b]"]), rel=1e-9)


@pytest.mark.parametrize("kind", ["text", "category", "bool", "whole"])
def test_factors_of_every_type(counts: pd.DataFrame, kind: str) -> None:
    held: dict[str, Any] = {
        "text": counts["f"],
        "category": counts["f"].astype("category"),
        "bool": counts["f"] == "w",
        "whole": counts["f"].map({"u": 3, "v": 7, "w": 9}),
    }
    counts["f"] = held[kind]
    model = rp.VectorGLM(rp.Poisson(), formula="y ~ C(f)" if kind == "whole" else "y ~ f").fit(counts)
    table = model.margins().to_frame()
    means = counts.groupby("f", observed=True)["y"].mean()
    np.testing.assert_allclose(table["effect"].astype(float), means.iloc[1:] - means.iloc[0], rtol=1e-9)
    assert [label[1] for label in table.index] == [f"f[{level}]" for level in means.index[1:]]


def test_refusals(counts: pd.DataFrame, frame: pd.DataFrame) -> None:
    model = rp.VectorGLM(rp.Poisson(), formula="y ~ f").fit(counts)
    with pytest.raises(rp.InputError, match="no variable 'h'; its variables are 'f'"):
        model.predictions({"h": 1})
    with pytest.raises(rp.InputError, match="level 'q'"):
        model.predictions({"f": "q"})
    with pytest.raises(rp.InputError, match="say what to compare"):
        logit("y ~ x", frame).contrasts("x")
    with pytest.raises(rp.InputError, match="no variables"):
        rp.VectorGLM(rp.Poisson(), formula="y ~ 1").fit(counts).margins()
    with pytest.raises(rp.InputError, match="one value here"):
        model.margins({"f": ["u", "v"]})
    with pytest.raises(rp.InputError, match="'overall', 'mean' or a dictionary"):
        model.predictions("median")


def test_a_table_is_no_point_of_predictions() -> None:
    table = pd.DataFrame({"y": [1, 2, 0, 3], "x": [0.0, 1.0, 0.5, 2.0]})
    model = rp.VectorGLM("poisson", formula="y ~ x").fit(table)
    for ask in (model.predictions, model.margins):
        with pytest.raises(rp.InputError, match=r"at must be .* predict\(X\)"):
            ask(table)
