"""Many more columns than rows, and numbers at the end of the range: an answer or one sentence, in bounded time."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import raphson as rp
from raphson.estimators.fit import _fit, _fitted
from raphson.estimators.fit._wide import nearest_excess, own_columns


def test_structured_null_spaces_are_solved_as_by_factorizations() -> None:
    rng = np.random.default_rng(0)
    null = torch.zeros(40, 33, dtype=torch.float64)
    order = torch.from_numpy(rng.permutation(40))
    null[order[:33], torch.arange(33)] = torch.from_numpy(rng.uniform(0.5, 2, 33))
    null[order[33:]] = torch.from_numpy(rng.normal(size=(7, 33)))
    table = torch.from_numpy(rng.normal(size=(40, 3)))
    own = own_columns(null, 0)
    assert own is not None and torch.equal(own, order[:33])
    expected = torch.linalg.lstsq(null, table).solution
    torch.testing.assert_close(nearest_excess(null, table, own), expected, rtol=1e-10, atol=1e-12)
    null[order[33:]] = 1.0
    null[order[0]] = 1.0
    assert own_columns(null, 0) is None


def test_a_wide_fit_is_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many parameters as rows: every row is fitted exactly, by the smallest slopes."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(12, 700)), rng.normal(size=12)
    fits = []
    for many in (500, 10**6):
        for module in (_fit, _fitted):
            monkeypatch.setattr(module, "MANY", many)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fits.append(rp.VectorGLM(rp.Gaussian()).fit(x, y))
    np.testing.assert_allclose(fits[0].coef_, fits[1].coef_, rtol=1e-6, atol=1e-10)
    centered = x - x.mean(0)
    smallest = np.linalg.pinv(centered) @ (y - y.mean())
    np.testing.assert_allclose(fits[0].coef_[0], smallest, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(fits[0].predict(x), y, atol=1e-8)


@pytest.mark.parametrize("size", [1e300, 1e308])
def test_columns_at_the_end_of_the_range_are_refused_in_a_sentence(size: float) -> None:
    rng = np.random.default_rng(0)
    x, y = np.where(rng.random((40, 2)) < 0.5, size, -size), rng.integers(0, 2, 40)
    for model in (rp.MultinomialLogisticRegression(), rp.VectorGLM(rp.Poisson())):
        with pytest.raises(rp.InputError, match="column 'x0'.*too large to compute with; change the unit"):
            model.fit(x, y)


@pytest.mark.parametrize(
    "likelihood",
    [rp.Gaussian(), rp.HeteroscedasticGaussian(), rp.Gamma(), rp.StudentT(), rp.Poisson(), rp.NegativeBinomial()],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_targets_at_the_end_of_the_range_are_refused_in_a_sentence(likelihood: Any) -> None:
    x = np.random.default_rng(0).normal(size=(40, 1))
    y = np.round(np.linspace(1, 1e200, 40))
    with pytest.raises(rp.InputError, match="target in row 1 is .* too large to compute with; change its unit"):
        rp.VectorGLM(likelihood).fit(x, y)
