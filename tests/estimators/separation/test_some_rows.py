"""Some of many rows prove that a penalty is not what keeps estimates finite; where they cannot, all rows are asked."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import raphson as rp
from raphson.estimators.fit import _examine


def many_rows(n=6000, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    return x, (x @ rng.normal(size=(3, 3)) + rng.gumbel(size=(n, 3))).argmax(1)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(_examine, "_SOME_ROWS", 300)
    asked = []
    inner = _examine.find_recession
    monkeypatch.setattr(_examine, "find_recession", lambda x, *a, **o: (asked.append(len(x)), inner(x, *a, **o))[1])
    return asked


@pytest.mark.parametrize("reference", ["first", None])
@pytest.mark.parametrize("weighted", [False, True])
def test_some_rows_are_enough_where_nothing_is_separated(few, reference, weighted):
    x, y = many_rows()
    weights = np.random.default_rng(1).uniform(0.5, 2.0, len(y)) if weighted else None
    model = rp.MultinomialLogisticRegression(l2=1e-2, reference=reference).fit(x, y, weights)
    few.clear()
    assert np.isfinite(model.standard_errors("sandwich").to_numpy(dtype=float)).all()
    assert few == [300]


@pytest.mark.parametrize("what", ["separated", "a rare column", "a rare column that separates"])
def test_all_rows_are_asked_where_some_do_not_tell(few, what):
    x, y = many_rows()
    if what == "separated":
        x[:, 0], y = x[:, 0] + 20.0 * (y == 2), y
    else:  # ones in two rows, which the sample lacks
        x = np.column_stack([x, np.isin(np.arange(len(y)), [7, 11])])
        y[[7, 11]] = [0, 1] if what == "a rare column" else [0, 0]
    model = rp.MultinomialLogisticRegression(l2=1e-2).fit(x, y)
    few.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        errors = model.standard_errors("sandwich").to_numpy(dtype=float, na_value=np.nan)
    assert few[-1] == len(y)
    assert np.isnan(errors).any()
