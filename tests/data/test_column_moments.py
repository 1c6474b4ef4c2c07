"""Centers and scales of columns: those of NumPy, by one pass or several, of wide tables and narrow ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raphson import _native
from raphson._native import _module
from raphson.data import DenseDesign, fused_sums


@pytest.mark.parametrize(("n", "d"), [(5, 3), (40, 70), (9000, 80), (3, 6000), (5000, 20)])
@pytest.mark.parametrize("intercept", [True, False])
def test_moments_are_those_of_numpy(n, d, intercept):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-8, 8, d) + rng.normal(size=d)
    table = torch.from_numpy(x)
    sums = fused_sums(table)
    assert (sums is None) == (d < 64 and not _native.is_available())
    center = x.mean(0) if intercept else np.zeros(d)
    scale = np.sqrt(np.square(x - center).mean(0))
    for known in (None, sums):
        design = DenseDesign(table, intercept=intercept, standardize=True, sums=known)
        assert (np.abs(design.center.numpy() - center) <= 1e-12 * np.abs(x).max(0)).all()
        np.testing.assert_allclose(design.scale, scale, rtol=1e-7)
        assert design.is_centered == intercept
        assert design.without_copy().is_centered == intercept
    if sums is not None:
        np.testing.assert_allclose(sums.squares, np.square(x).sum(0), rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_sums_show_entries_that_cannot_be_computed_with(bad):
    x = np.ones((50, 100))
    x[31, 77] = bad
    sums = fused_sums(torch.from_numpy(x))
    assert sums is not None and not float(sums.squares.sum()) < 1e300


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("n", "d", "k"), [(1, 64, 1), (77, 2501, 3), (9000, 67, 5)])
def test_sums_by_class_are_those_of_the_rows_of_each(monkeypatch, compiled, n, d, k):
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(n, d + 3))[:, 1 : d + 1], rng.integers(0, k, n)
    if not compiled:
        monkeypatch.setattr(_module, "kernels", None)
    elif _module.kernels is None:
        pytest.skip(_module.reason)
    sums = fused_sums(torch.from_numpy(x), torch.from_numpy(codes), k)
    np.testing.assert_allclose(sums.total, x.sum(0), atol=1e-11)
    np.testing.assert_allclose(sums.squares, np.square(x).sum(0), rtol=1e-12)
    assert (sums.by_class is not None) == compiled
    for c in range(k if compiled else 0):
        np.testing.assert_allclose(sums.by_class[c], x[codes == c].sum(0), atol=1e-11)


def test_sums_that_do_not_fit_together_are_refused():
    if _module.kernels is None:
        pytest.skip(_module.reason)
    x, squares, sums = (torch.zeros(*shape, dtype=torch.float64) for shape in ((6, 5), (5,), (2, 5)))
    codes = torch.tensor([0, 1, 0, 1, 0, 1])
    _native.add_column_sums(x, codes, sums, squares)
    for wrong in (
        (x.mT, codes, sums, squares),
        (x.float(), codes, sums, squares),
        (x, codes + 1, sums, squares),
        (x, codes - 1, sums, squares),
        (x, codes[1:], sums, squares),
        (x, codes.int(), sums, squares),
        (x, None, sums, squares),
        (x, codes, sums[:, 1:].contiguous(), squares),
        (x, codes, sums, squares[1:]),
    ):
        with pytest.raises(ValueError, match="must be|need|elements|is a tensor|fit together"):
            _native.add_column_sums(*wrong)
