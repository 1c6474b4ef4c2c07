"""Centers and scales of sparse columns of any size, beside those of the same dense table."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from raphson.data import DenseDesign, SparseDesign


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
