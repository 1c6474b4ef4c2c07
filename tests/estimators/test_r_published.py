"""Regressions that R 4.2 computes (MASS, ordinal, survival, betareg, brglm2), to the digits its convergence leaves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import raphson as rp
from tests.published import r_tables


def columns(model: rp.VectorGLM, kind: str = "observed") -> dict[str, tuple[float, float]]:
    """Return coefficient and standard error by name of output and column."""
    frame = model.estimates(kind).to_frame()[["coef", "std_err"]]
    return {f"{output}: {name}": (float(row.iloc[0]), float(row.iloc[1])) for (output, name), row in frame.iterrows()}


def test_quine_negative_binomial() -> None:
    model = rp.VectorGLM("negative-binomial", formula="Days ~ Eth + Sex + Age + Lrn").fit(r_tables.quine())
    assert model.loglik_ == pytest.approx(-546.575509145, abs=1e-8)
    found = columns(model)
    assert np.exp(-found["log_dispersion: (intercept)"][0]) == pytest.approx(1.274892646, abs=2e-8)
    assert found["log_mean: (intercept)"][0] == pytest.approx(2.89458001692, abs=1e-7)
    assert found["log_mean: Eth[T.N]"][0] == pytest.approx(-0.56937170340, abs=1e-7)
    assert found["log_mean: Sex[T.M]"][0] == pytest.approx(0.08232026410, abs=1e-7)


def test_wine_proportional_odds() -> None:
    table = r_tables.wine()
    model = rp.VectorGLM(rp.Ordinal(5), formula="rating ~ contact + temp").fit(table, sample_weight=table["n"])
    assert model.loglik_ == pytest.approx(-86.49192337, abs=5e-9)
    found = columns(model)
    cuts = [found[f"{k}|{k + 1}: (intercept)"][0] for k in range(1, 5)]
    np.testing.assert_allclose(cuts, [-1.344383411, 1.250808798, 3.466886926, 5.006404204], atol=5e-8)
    np.testing.assert_allclose(found["shared: contact[T.yes]"], [1.527797658, 0.4766226296], atol=2e-8)
    np.testing.assert_allclose(found["shared: temp[T.warm]"], [2.503102008, 0.5286801008], atol=2e-8)


def test_ships_poisson_with_exposure() -> None:
    formula = "incidents ~ type + C(year) + C(period) + offset(log(service))"
    model = rp.VectorGLM("poisson", formula=formula).fit(r_tables.ships())
    assert model.loglik_ == pytest.approx(-68.28077143, abs=5e-9)
    found = columns(model)
    assert found["log_mean: (intercept)"][0] == pytest.approx(-6.40590156105, abs=1e-9)
    assert found["log_mean: type[T.B]"][0] == pytest.approx(-0.54334430119, abs=1e-9)


def test_lung_weibull_survival() -> None:
    model = rp.VectorGLM("weibull", formula="Surv(time, dead) ~ age + sex + karno").fit(r_tables.lung())
    assert model.loglik_ == pytest.approx(-1138.691784, abs=1e-6)
    assert model.loglik_null_ == pytest.approx(-1147.488982, abs=1e-6)


def test_gas_beta_regression() -> None:
    batch = "C(batch, contr.treatment('10'))"
    formula = {"logit_mean": f"share ~ {batch} + temp", "log_precision": f"~ {batch} + temp"}
    model = rp.VectorGLM(rp.Beta(), formula=formula).fit(r_tables.gas())
    found = columns(model, "expected")
    np.testing.assert_allclose(found["logit_mean: (intercept)"], [-6.4978463, 0.0846003], atol=5e-7)
    np.testing.assert_allclose(found[f"logit_mean: {batch}[T.1]"], [1.5845437, 0.0693063], atol=5e-7)


ENDOMETRIAL = pd.DataFrame(r_tables.ENDOMETRIAL, columns=["NV", "PI", "EH", "HG"])


@pytest.mark.parametrize(
    ("link", "coef", "errors"),
    [
        (
            "logit",
            [3.77455971365, 2.92927335320, -0.03475175987, -2.60416392529],
            [1.48869166344, 1.55076372945, 0.03957814735, 0.77601764250],
        ),
        (
            "probit",
            [1.95825562217, 1.74258263886, -0.01573743426, -1.40489143960],
            [0.79827932286, 0.79087275475, 0.02123256521, 0.40807109746],
        ),
    ],
)
def test_endometrial_with_jeffreys_prior(link: str, coef: list[float], errors: list[float]) -> None:
    model = rp.VectorGLM(rp.Bernoulli(link=link), penalty="jeffreys", formula="HG ~ NV + PI + EH").fit(ENDOMETRIAL)
    found = model.estimates().to_frame()[["coef", "std_err"]].to_numpy(float)
    np.testing.assert_allclose(found, np.column_stack([coef, errors]), atol=2e-7)
    if link == "logit":
        assert model.loglik_ == pytest.approx(-28.2876973255, abs=1e-7)
        classes = rp.MultinomialLogisticRegression(penalty="jeffreys", formula="HG ~ NV + PI + EH").fit(ENDOMETRIAL)
        same = classes.estimates().to_frame()[["coef", "std_err"]].to_numpy(float)
        np.testing.assert_allclose(same, found, atol=1e-8)


URINARY_SUMMARY = [
    (0.12025405, -0.6673577, 0.9177303, 0.06286298, 8.020268e-01),
    (-1.10598131, -1.8277045, -0.4328451, 7.50773092, 6.143472e-03),
    (-0.06881673, -0.7986318, 0.6507581, 0.02467044, 8.751911e-01),
    (2.26887464, 1.4248338, 3.2325326, 22.93139022, 1.678877e-06),
    (-2.11140817, -3.0613215, -1.2704704, 19.10407252, 1.237805e-05),
    (-0.78831694, -1.4743338, -0.1137542, 3.69740975, 5.449701e-02),
    (3.09601166, 1.0835108, 6.8752016, 7.89693139, 4.951873e-03),
]
"""Coefficients, 90 % profile intervals, chi-square and p-values as R prints ``summary(logistf(case ~ age + oc + vic +
vicl + vis + dia, data = sex2, alpha = 0.1))``, in the manual page of ``logistfPrint`` (Leung and Chiu); logistf stops
at changes of 1e-5."""


@pytest.mark.parametrize("kind", ["rows", "counts"])
def test_urinary_tract_infections_with_jeffreys_prior(kind: str) -> None:
    table = np.array(r_tables.URINARY)
    x, cases, others = table[:, :6].astype(float), table[:, 6], table[:, 7]
    assert (cases.sum(), others.sum()) == (130, 109)  # as the manual of logistf says of them
    if kind == "counts":
        model = rp.VectorGLM(rp.Binomial(), penalty="jeffreys").fit(x, np.column_stack([cases, others]))
    else:
        y = np.concatenate([np.ones(cases.sum()), np.zeros(others.sum())])
        x = np.concatenate([np.repeat(x, cases, 0), np.repeat(x, others, 0)])
        model = rp.VectorGLM(rp.Bernoulli(), penalty="jeffreys").fit(x, y)
    expected = np.array(URINARY_SUMMARY)
    coef = np.concatenate([model.intercept_, model.coef_[0]])
    np.testing.assert_allclose(coef, expected[:, 0], rtol=2e-5)
    intervals = model.confint(level=0.9, method="profile").to_numpy(float)
    np.testing.assert_allclose(intervals, expected[:, 1:3], rtol=2e-5)
    np.testing.assert_allclose(model.profile_test().to_numpy(float), expected[:, 3:], rtol=2e-5)


@pytest.mark.filterwarnings("ignore")
def test_endometrial_without_a_penalty() -> None:
    model = rp.VectorGLM(rp.Bernoulli(), formula="HG ~ NV + PI + EH").fit(ENDOMETRIAL)
    found = model.estimates().to_frame()
    assert found["coef"].isna().tolist() == [False, True, False, False]
    assert found["coef"].iloc[2:].tolist() == [pytest.approx(-0.04218, abs=5e-6), pytest.approx(-2.90261, abs=5e-6)]
    # coef_ holds the same, and for what is infinite how far the fit got
    assert model.coef_[0, 1:].tolist() == [pytest.approx(v, abs=1e-9) for v in found["coef"].iloc[2:]]
    assert 10 < model.coef_[0, 0] < 1e3
    rows = model.predict_interval(ENDOMETRIAL)
    np.testing.assert_array_equal(np.isnan(rows.standard_errors[:, 0]), ENDOMETRIAL["NV"] == 1)
    assert model.margins(at={"NV": 0}).to_frame()["effect"].isna().tolist() == [True, False, False]
