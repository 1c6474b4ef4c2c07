"""Polynomials that the column cannot tell apart, and terms scaled by numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import raphson as rp


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "y": rng.normal(size=80),
        "x": rng.uniform(1.0, 5.0, 80),
        "z": rng.normal(size=80),
        "few": rng.integers(0, 4, 80),
        "one": 1.0,
    })


@pytest.mark.parametrize(
    ("column", "degree", "message"),
    [
        ("few", 4, "degree 4 needs 5 different values, and there are 4"),
        ("few", 10, "degree 10 needs 11 different values, and there are 4"),
        ("one", 1, "degree 1 needs 2 different values, and there is 1"),
        ("z", 40, "degree 40 cannot be told apart in double precision"),
        ("x", 79, "degree 79 cannot be told apart in double precision"),
    ],
)
def test_polynomials_that_rounding_would_make_are_refused(
    frame: pd.DataFrame, column: str, degree: int, message: str
) -> None:
    with pytest.raises(rp.InputError, match=message):
        rp.Design.fit(frame, formula=f"y ~ poly({column}, {degree})")


@pytest.mark.parametrize(("column", "degree"), [("few", 3), ("x", 20), ("z", 10)])
def test_polynomials_of_a_degree_that_the_column_has_are_orthogonal(
    frame: pd.DataFrame, column: str, degree: int
) -> None:
    design = rp.Design.fit(frame, formula=f"y ~ poly({column}, {degree})")
    basis = design.matrix(frame)[0]
    np.testing.assert_allclose(basis.T @ basis, np.eye(degree), atol=1e-10)
    one = frame.iloc[:1]  # what was learned is not asked for again
    np.testing.assert_allclose(design.matrix(one)[0], basis[:1], atol=1e-12)


@pytest.mark.parametrize(
    ("formula", "label", "values"),
    [
        ("2:x", "2:x", lambda f: 2 * f.x),
        ("x:2", "2:x", lambda f: 2 * f.x),
        ("3:x:z", "3:x:z", lambda f: 3 * f.x * f.z),
        ("0.5:C(few)", "0.5:C(few)[T.1]", lambda f: 0.5 * (f.few == 1)),
        ("2:x + x", "2:x", lambda f: 2 * f.x),
        ("x + 2:x", "x", lambda f: f.x),
    ],
)
def test_the_label_of_a_scaled_term_has_its_number(frame: pd.DataFrame, formula: str, label: str, values: Any) -> None:
    matrix, names = rp.Design.fit(frame, formula=f"y ~ {formula}").matrix(frame)
    assert names[0] == label
    np.testing.assert_allclose(matrix[:, 0], values(frame))
