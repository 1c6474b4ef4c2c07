"""Many more columns than rows, and numbers at the end of the range: an answer or one sentence, in bounded time."""

from __future__ import annotations

import re
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

import raphson as rp
from raphson.estimators.fit import _wide
from raphson.estimators.fit._wide import OwnColumns
from raphson.estimators.separation import _collinear


def test_structured_null_spaces_are_solved_as_by_factorizations() -> None:
    rng = np.random.default_rng(0)
    null = torch.zeros(40, 33, dtype=torch.float64)
    order = torch.from_numpy(1 + rng.permutation(39))
    null[order[:33], torch.arange(33)] = torch.from_numpy(rng.uniform(0.5, 2, 33))
    null[order[33:]] = torch.from_numpy(rng.normal(size=(6, 33)))
    null[0] = 1.0
    table = torch.from_numpy(rng.normal(size=(40, 3)))
    found = OwnColumns.of(scipy.sparse.csc_array(null.numpy()), 1)
    assert found is not None and torch.equal(found.own, order[:33]) and found.shape == (40, 33)
    assert torch.equal(found.to_dense(), null) and bool(found.involved.all())
    slopes = torch.arange(40) > 0
    expected = torch.linalg.lstsq(null[1:], table[1:]).solution
    torch.testing.assert_close(found.excess(table, slopes), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.times(expected), null @ expected, rtol=1e-12, atol=1e-12)
    null[order[0], 1] = 1.0
    assert OwnColumns.of(scipy.sparse.csc_array(null.numpy()), 1) is None


LIKELIHOODS = [rp.Gaussian(), rp.HeteroscedasticGaussian(), rp.Poisson(), rp.StudentT(df=4.0)]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda likelihood: type(likelihood).__name__)
def test_a_wide_fit_is_the_same_either_way(monkeypatch: pytest.MonkeyPatch, likelihood: Any) -> None:
    """As many parameters as rows but three copies: the smallest slopes, by rows or by columns."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(12, 100)), rng.poisson(5, 15).astype(float)
    x = np.concatenate([x, x[:3]])
    fits = []
    for many in (20, 10**6):
        monkeypatch.setattr(_collinear, "_WIDE", many)
        monkeypatch.setattr(_wide, "MANY", many)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fits.append(rp.VectorGLM(likelihood).fit(x, y))
    # one eigenvalue of Student t's Hessian is 5e-10 there: how far along it a fit ends is rounding
    atol = 3e-7 if isinstance(likelihood, rp.StudentT) else 1e-8
    np.testing.assert_allclose(fits[0].coef_, fits[1].coef_, rtol=1e-5, atol=atol)
    if isinstance(likelihood, rp.Gaussian):
        centered = x - x.mean(0)
        smallest = np.linalg.pinv(centered, rcond=1e-10) @ (y - y.mean())
        np.testing.assert_allclose(fits[0].coef_[0], smallest, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("likelihood", [*LIKELIHOODS, None], ids=lambda v: type(v).__name__)
def test_nothing_of_the_size_of_columns_squared_is_made(likelihood: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 10_000)), np.arange(12) % 3
    model = rp.MultinomialLogisticRegression() if likelihood is None else rp.VectorGLM(likelihood)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start, before = time.monotonic(), _memory("VmRSS", forget_peak=True)
        model.fit(x, y)
        assert "not estimable" in str(model.summary())
        taken, peak = time.monotonic() - start, _memory("VmHWM")
    assert np.isfinite(model.predict(x)).all()
    assert peak - before < 400e6  # a matrix of 10,000 x 10,000 takes 800 MB
    assert taken < 30  # a second or two, on a machine with nothing else to do


def _memory(which: str, *, forget_peak: bool = False) -> float:
    """Return bytes in use (VmRSS) or their peak (VmHWM); zero where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    if forget_peak:
        Path("/proc/self/clear_refs").write_text("5")
    return 1024.0 * float(re.search(rf"{which}:\s+(\d+)", status.read_text())[1])


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


@pytest.mark.parametrize("size", [1e-200, 5e-324])
def test_targets_too_small_to_square_are_refused_in_a_sentence(size: float) -> None:
    x = np.random.default_rng(0).normal(size=(40, 1))
    for likelihood in (rp.Gaussian(), rp.HeteroscedasticGaussian(), rp.StudentT()):
        with pytest.raises(rp.InputError, match="at most .* in size, too small to compute with.*Change their unit"):
            rp.VectorGLM(likelihood).fit(x, size * np.arange(1.0, 41.0))


@pytest.mark.parametrize("size", [1e-306, 5e-324])
@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_matrix])
def test_a_column_so_small_that_its_coefficient_overflows_is_refused_by_name(size: float, kind: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = np.stack([rng.normal(size=40), size * np.arange(1.0, 41.0)], 1), rng.integers(0, 2, 40)
    for model in (rp.MultinomialLogisticRegression(), rp.VectorGLM(rp.Poisson())):
        with pytest.raises(rp.InputError, match="The coefficient of 'x1', .* too large to compute with; change"):
            model.fit(kind(x), y)


@pytest.mark.parametrize("size", [1e-300, 5e-324])
def test_a_penalty_on_a_column_too_small_to_square_is_refused_by_name(size: float) -> None:
    rng = np.random.default_rng(0)
    x, y = np.stack([rng.normal(size=40), size * np.arange(1.0, 41.0)], 1), rng.integers(0, 2, 40)
    for model in (rp.MultinomialLogisticRegression(l2=0.1), rp.VectorGLM(rp.Poisson(), l2=0.1)):
        with pytest.raises(rp.InputError, match="coefficient of 'x1', .* too large to compute with; change the unit"):
            model.fit(x, y)
