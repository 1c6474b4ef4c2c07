from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import torch

import raphson as rp
from raphson import InputError
from raphson.infer import Estimates, wald_test
from raphson.infer._hypotheses import read_hypothesis
from raphson.linalg import Dense

LABELS = [("b", "(intercept)"), ("b", "x"), ("b", "z"), ("c", "(intercept)"), ("c", "x"), ("c", "C(g)[T.low=1]")]


def estimates() -> Estimates:
    generator = np.random.default_rng(3)
    root = generator.normal(size=(6, 6))
    covariance = Dense(torch.from_numpy(root @ root.T))
    return Estimates(torch.from_numpy(generator.normal(size=6)), covariance, tuple(LABELS), "")


@pytest.mark.parametrize(
    ("text", "rows", "values"),
    [
        ("x = z", [[0, 1, -1, 0, 0, 0]], [0]),
        ("x = 0", [[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]], [0, 0]),
        ("2*x of b - z/4 + 1 = 3.5", [[0, 2, -0.25, 0, 0, 0]], [2.5]),
        ("x of b = x of c", [[0, 1, 0, 0, -1, 0]], [0]),
        ("x = z = .5", [[0, 1, -1, 0, 0, 0], [0, 0, 1, 0, 0, 0]], [0, 0.5]),
        ("`C(g)[T.low=1]` == -x", [[0, 0, 0, 0, 1, 1]], [0]),
        ("C(g)[T.low=1] = 2 * 3e0", [[0, 0, 0, 0, 0, 1]], [6]),
        (
            "x of b = 0, C(g)[T.low=1]=x of c = 2",
            [[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, -1, 1], [0, 0, 0, 0, 1, 0]],
            [0, 0, 2],
        ),
        ("x * 2 + x = (intercept)", [[-1, 3, 0, 0, 0, 0], [0, 0, 0, -1, 3, 0]], [0, 0]),
    ],
)
def test_equations(text: str, rows: list[list[float]], values: list[float]) -> None:
    matrix, q = read_hypothesis(text, LABELS)
    np.testing.assert_array_equal(matrix, rows)
    np.testing.assert_array_equal(q, values)
    one, other = wald_test(estimates(), text), wald_test(estimates(), np.array(rows, dtype=float), np.array(values))
    assert one.statistic == other.statistic and one.df == other.df


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = y", "'y'"),
        ("x == ", "known name or a number"),
        ("x z = 1", "operator or a known name"),
        ("x / 0 = 1", "division by zero"),
        ("1 = 2", "no coefficient"),
        ("x - x = 0", "no coefficient"),
        ("x = 1e999", "too large"),
        ("`q` = 1", "no coefficient called `q`"),
        ("xx = 1", "'xx = 1'"),
        ("x = 1, z", "an equation has no '='"),
        ("x = 1,", "known name or a number"),
        ("z = C(g)[T.low=1]", "different outputs"),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wald_test(estimates(), text)


def test_a_label_that_holds_an_equals_sign_is_a_name() -> None:
    assert wald_test(estimates(), "C(g)[T.low=1]").df == 1


def test_against_statsmodels() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(200, 3)), columns=["x", "z", "u"])
    frame["y"] = rng.poisson(np.exp(0.3 * frame["x"] + 0.2 * frame["z"]))
    oracle = smf.poisson("y ~ x + z + u", frame).fit(disp=0, method="newton", tol=1e-12)
    model = rp.VectorGLM("poisson", formula="y ~ x + z + u").fit(frame)
    for ours, theirs in (("x = z", "x = z"), (["x = z", "2*u = 0.1"], "x = z, 2*u = 0.1"), *[("x = z, u = 1",) * 2]):
        test = oracle.wald_test(theirs, use_f=False, scalar=True)
        assert model.wald_test(ours).statistic == pytest.approx(float(test.statistic), rel=1e-7)
    both = model.wald_test(["u", "x = z"])
    assert both.df == 2 and both.rows.labels[1] == ("", "+1 x of log_mean -1 z of log_mean")
    with pytest.raises(InputError, match="leave out q"):
        model.wald_test("x = z", 1.0)
