"""Centers and scales of sparse columns of any size, beside those of the same dense table."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from raphson.data import DenseDesign, SparseDesign, full_columns


@pytest.mark.parametrize("size", [1e-322, 1e-315, 1e-309, 1e-200, 1e-24, 1.0, 1e24, 1e150, 1e300])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_scales_are_those_of_the_dense_table(size: float, dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4)) * (rng.random((30, 4)) < 0.4)
    x[:, 1] = (x[:, 1] * size).clip(-1e30, 1e30) if dtype is np.float32 else x[:, 1] * size
    x = x.astype(dtype)
    with np.errstate(all="raise", under="ignore"):
        sparse = SparseDesign(sp.csr_matrix(x), intercept=False, standardize=True)
    dense = DenseDesign(torch.from_numpy(x), intercept=False, standardize=True)
    assert torch.isfinite(sparse.scale).all()
    np.testing.assert_allclose(sparse.scale, dense.scale, rtol=1e-6, atol=5e-324)
    ours = torch.cat([block.features() for block in sparse.blocks(1)], 1)
    theirs = torch.cat([block.features() for block in dense.blocks(1)], 1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("last", [1.0, 0.0, 1e200, 1e-200])
def test_columns_of_many_nonzeros_are_added_up_part_by_part(last: float) -> None:
    """Three parts, the last of one number: an ordinary one, a zero that is stored, and those whose squares are none."""
    rng = np.random.default_rng(1)
    x = sp.csr_matrix(rng.normal(size=(2**16, 4)))
    whole = sp.vstack([x, sp.csr_matrix(([last], ([0], [2])), shape=(1, 4))]).tocsr()
    assert whole.nnz == 2**18 + 1
    found = SparseDesign(whole, intercept=False, standardize=True).scale
    expected = np.sqrt(np.square(x.toarray()).sum(0) / (2**16 + 1))
    if last == 1e200:
        expected[2] = 1e200 / np.sqrt(2**16 + 1)
    elif last == 1.0:
        expected[2] = np.sqrt(expected[2] ** 2 + 1 / (2**16 + 1))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 5, 16, 33, 400])
def test_columns_with_an_entry_in_every_row_are_found(n: int) -> None:
    """One that lacks an entry only in a row that the first look leaves out is none of them."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, 5)) * (rng.random((n, 5)) < 0.5)
    x[:, 1] = x[:, 3] = 2.0
    if n > 16:
        x[n - 2, 3] = 0.0
    expected = (x != 0).all(0) if n else np.zeros(5, dtype=bool)
    np.testing.assert_array_equal(full_columns(sp.csr_matrix(x)), expected)
    np.testing.assert_array_equal(full_columns(sp.csr_matrix(x[:, [0]] * 0.0)), np.zeros(1, dtype=bool))
