"""Masked arrays: what a mask hides is missing, not a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import raphson as rp

N = 60


def arguments() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"X": rng.normal(size=(N, 2)), "y": rng.integers(0, 2, N), "sample_weight": np.ones(N), "offset": np.ones(N)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("X", "NaN .* in row 3, column 'x1'"),
        ("y", "target is missing in row 3"),
        ("sample_weight", "sample_weight is nan in row 3"),
        ("offset", "offset is not finite in row 3"),
    ],
)
def test_what_a_mask_hides_is_missing(name: str, message: str) -> None:
    given = arguments()
    mask = np.zeros(given[name].shape, dtype=bool)
    mask[3, ...] = [False, True] if name == "X" else True
    given[name] = np.ma.masked_array(given[name], mask)
    with pytest.raises(rp.InputError, match=message):
        rp.VectorGLM(rp.Bernoulli()).fit(**given)
    if name != "offset":
        del given["offset"]
        for model in (rp.MultinomialLogisticRegression(), rp.BayesianMLP(rp.Bernoulli(), (2,))):
            with pytest.raises(rp.InputError, match=message):
                model.fit(**given)


def test_a_mask_that_hides_nothing_changes_nothing() -> None:
    given = arguments()
    plain = rp.VectorGLM(rp.Bernoulli()).fit(**given)
    masked = rp.VectorGLM(rp.Bernoulli()).fit(**{name: np.ma.masked_array(v) for name, v in given.items()})
    np.testing.assert_array_equal(masked.coef_, plain.coef_)
    labels = np.ma.masked_array(np.where(given["y"] == 1, "yes", "no"))
    classes = rp.MultinomialLogisticRegression().fit(given["X"], labels)
    assert classes.classes_.tolist() == ["no", "yes"]


def test_prediction_of_a_masked_row_is_refused() -> None:
    given = arguments()
    model = rp.MultinomialLogisticRegression().fit(given["X"], given["y"])
    rows = np.ma.masked_array(given["X"][:4], mask=np.eye(4, 2, dtype=bool))
    with pytest.raises(rp.InputError, match="NaN .* in row 0, column 'x0'"):
        model.predict(rows)
