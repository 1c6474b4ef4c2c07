"""Centers and scales of columns: those of NumPy, by one pass or several, of wide tables and narrow ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raphson import _native
from raphson.data import DenseDesign, fused_sums


@pytest.mark.parametrize(("n", "d"), [(5, 3), (40, 70), (9000, 80), (3, 6000), (5000, 20)])
@pytest.mark.parametrize("intercept", [True, False])
def test_moments_are_those_of_numpy(n, d, intercept):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-8, 8, d) + rng.normal(size=d)
    table = torch.from_numpy(x)
    sums = fused_sums(table)
    assert sums is not None
    center = x.mean(0) if intercept else np.zeros(d)
    scale = np.sqrt(np.square(x - center).mean(0))
    for known in (None, sums):
        design = DenseDesign(table, intercept=intercept, standardize=True, sums=known)
        assert (np.abs(design.center.numpy() - center) <= 1e-12 * np.abs(x).max(0)).all()
        np.testing.assert_allclose(design.scale, scale, rtol=1e-7)
        assert design.is_centered == intercept
        assert design.without_copy().is_centered == intercept
    np.testing.assert_allclose(sums.squares, np.square(x).sum(0), rtol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(60, 300), (400, 300), (3000, 40)])
@pytest.mark.parametrize("intercept", [True, False])
def test_columns_that_lose_digits_take_two_passes_and_the_others_keep_theirs(n, d, intercept):
    """Constant ones, of zeros and others, means of 1e9 standard deviations, squares that overflow and that vanish."""
    rng = np.random.default_rng(1)
    usual = rng.normal(size=(n, d)) + 1.0
    x = usual.copy()
    x[:, [0, 7]], x[:, 3], x[:, 11] = 0.0, 3.0, 1e9 + rng.normal(size=n)
    x[:, 13] *= 1e130
    x[:, d - 1] *= 1e-130
    center = x.mean(0) if intercept else np.zeros(d)
    largest = np.abs(x).max(0) + (np.abs(x).max(0) == 0)
    scale = np.sqrt(np.square((x - center) / largest).mean(0)) * largest
    scale[[0, 7]] = 1.0
    if intercept:
        scale[3] = 3.0
    changed = [0, 3, 7, 11, 13, d - 1]
    for sums in (None, fused_sums(torch.from_numpy(x))):
        known = None if sums is None else fused_sums(torch.from_numpy(usual))
        with np.errstate(all="raise", under="ignore"):
            design = DenseDesign(torch.from_numpy(x), intercept=intercept, standardize=True, sums=sums)
        before = DenseDesign(torch.from_numpy(usual), intercept=intercept, standardize=True, sums=known)
        assert (np.abs(design.center.numpy() - center) <= 1e-12 * np.abs(x).max(0)).all()
        np.testing.assert_allclose(design.scale, scale, rtol=1e-7)
        others = np.delete(np.arange(d), changed)
        assert torch.equal(design.center[others], before.center[others])
        assert torch.equal(design.scale[others], before.scale[others])


@pytest.mark.parametrize(
    ("n", "d", "gap"), [(20_011, 7, 0), (4099, 50, 0), (4099, 50, 3), (300, 511, 0), (300, 513, 0)]
)
def test_sums_of_several_rows_taken_as_one_leave_none_out(n, d, gap):
    """Rows that are no multiple of those taken as one, and rows that do not lie next to each other."""
    x = np.random.default_rng(0).normal(size=(n, d + gap))[:, :d] + 1.0
    sums = fused_sums(torch.from_numpy(x))
    np.testing.assert_allclose(sums.total, x.sum(0), rtol=1e-12)
    np.testing.assert_allclose(sums.squares, np.square(x).sum(0), rtol=1e-12)


@pytest.mark.parametrize(("n", "d", "row"), [(50, 100, 31), (20_011, 7, 0), (20_011, 7, 20_010)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_sums_show_entries_that_cannot_be_computed_with(bad, n, d, row):
    x = np.ones((n, d))
    x[row, d // 2] = bad
    sums = fused_sums(torch.from_numpy(x))
    assert sums is not None and not float(sums.squares.sum()) < 1e300


def test_few_rows_have_no_sums_by_class():
    sums = fused_sums(torch.ones(250, 64, dtype=torch.float64), torch.zeros(250, dtype=torch.int64), 1)
    assert sums is not None and sums.by_class is None


@pytest.mark.parametrize(("n", "d", "k"), [(251, 64, 1), (277, 2501, 3), (9000, 67, 5), (300, 2500, 40)])
def test_sums_by_class_are_those_of_the_rows_of_each(n, d, k):
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(n, d + 3))[:, 1 : d + 1], rng.integers(0, k, n)
    sums = fused_sums(torch.from_numpy(x), torch.from_numpy(codes), k)
    np.testing.assert_allclose(sums.total, x.sum(0), atol=1e-11)
    np.testing.assert_allclose(sums.squares, np.square(x).sum(0), rtol=1e-12)
    if k * d > 2**16 and not _native.is_available():  # many sums repay a pass in compiled code only
        assert sums.by_class is None
        return
    for c in range(k):
        np.testing.assert_allclose(sums.by_class[c], x[codes == c].sum(0), atol=1e-11)
