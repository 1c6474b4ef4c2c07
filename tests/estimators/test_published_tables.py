"""The attributes that maketables reads, by its plug-in format: columns b, se, t, p and a flat index of names."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

import raphson as rp

X = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [1.5]])


def attribute(model, name):
    return getattr(model, f"__maketables_{name}__")


def test_the_table_is_that_of_the_summary() -> None:
    model = rp.VectorGLM(rp.Poisson()).fit(X, [1, 2, 2, 5, 9, 1])
    table, frame = attribute(model, "coef_table"), model.summary().to_frame()
    assert list(table.columns) == ["b", "se", "t", "p", "ci95l", "ci95u"]
    assert list(table.index) == ["(intercept)", "x0"]
    assert np.array_equal(table.to_numpy(), frame.to_numpy(dtype=float))
    stat = attribute(model, "stat")
    assert stat("N") == 6 and stat("ll") == model.loglik_ and stat("aic") == model.aic_ and stat("r2") is None


def test_several_outputs_are_named_in_the_index() -> None:
    model = rp.MultinomialLogisticRegression().fit(X, ["a", "b", "c", "a", "b", "c"])
    assert list(attribute(model, "coef_table").index) == ["b: (intercept)", "b: x0", "c: (intercept)", "c: x0"]


def test_what_is_not_estimable_is_missing_and_what_is_not_fitted_says_so() -> None:
    with pytest.warns(rp.SeparationWarning):
        model = rp.MultinomialLogisticRegression().fit(X, X[:, 0] > 1.6)
    assert attribute(model, "coef_table")["se"].isna().all()
    assert not hasattr(rp.VectorGLM(rp.Poisson()), "__maketables_coef_table__")
    with pytest.raises(NotFittedError):
        attribute(rp.VectorGLM(rp.Poisson()), "coef_table")


def test_maketables_takes_the_models() -> None:
    maketables = pytest.importorskip("maketables", reason="maketables is not installed")
    models = [rp.VectorGLM(rp.Poisson()).fit(X, y) for y in ([1, 2, 2, 5, 9, 1], [2, 2, 1, 5, 7, 1])]
    text = maketables.ETable(models).make(type="tex")
    assert "x0" in text and f"{models[0].coef_[0, 0]:.3f}" in text
