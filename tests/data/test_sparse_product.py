"""Sparse products, compiled and by PyTorch, against SciPy."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raphson._native import _module, _sparse
from raphson.data import SparseDesign, row_products
from raphson.data._sparse_product import SparseRows, arranged, padded


def matrix(n, m, density, seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return sp.random(n, m, density=density, format="csr", random_state=rng, data_rvs=rng.standard_normal, dtype=dtype)


@pytest.mark.parametrize("compiled", [True, False])
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 70), st.integers(1, 40), st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 10**6)
)
def test_products_of_any_shape(compiled, n, m, c, density, seed):
    """Empty rows, empty matrices and widths that fill no vector agree with SciPy in both precisions."""
    if compiled and _module.kernels is None:
        pytest.skip(_module.reason)
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(_module, "kernels", None)
        for dtype, rtol in ((np.float64, 1e-12), (np.float32, 1e-4)):
            x = matrix(n, m, density, seed, dtype)
            dense = torch.randn(c, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mT
            dense = dense.to(torch.from_numpy(x.data).dtype)
            expected = torch.from_numpy(x.toarray()) @ dense
            rows = SparseRows.of(x)
            assert torch.equal(rows.to_dense(), torch.from_numpy(x.toarray()))
            torch.testing.assert_close(rows.product(dense), expected, rtol=rtol, atol=rtol)
            into = padded(n, c, dense)
            assert rows.product(arranged(dense), into) is into
            torch.testing.assert_close(into, expected, rtol=rtol, atol=rtol)
            torch.testing.assert_close(rows.vector_product(dense[:, 0]), expected[:, 0], rtol=rtol, atol=rtol)
            back = rows.vector_product(expected[:, 0], transposed=True)
            torch.testing.assert_close(back, torch.from_numpy(x.toarray().T) @ expected[:, 0], rtol=rtol, atol=rtol)
            squares = torch.from_numpy(x.power(2).toarray()) @ dense
            torch.testing.assert_close(rows.square().product(dense), squares, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_bits_do_not_depend_on_threads(monkeypatch, threads):
    """Rows are summed whole: how they are shared out changes nothing, however unequal they are."""
    x = sp.vstack([matrix(3000, 400, 0.02, 0), matrix(1, 400, 1.0, 1), matrix(500, 400, 0.0, 2)]).tocsr()
    dense = torch.randn(400, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = SparseRows.of(x).product(dense)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(_sparse, "_PART", 1.0)
    assert torch.equal(SparseRows.of(x).product(dense), one)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("c", [1, 3])
def test_blocks_of_a_sparse_design(intercept, c):
    """Linear predictors, sums over rows and their squares are those of the scaled dense table."""
    x = matrix(300, 50, 0.1, 3)
    design = SparseDesign(x, intercept=intercept, standardize=True)
    table = torch.from_numpy(x.toarray()) / design.scale
    if intercept:
        table = torch.cat([torch.ones(300, 1, dtype=torch.float64), table], 1)
    (block,) = design.blocks(c)
    coef, r = torch.randn(c, table.shape[1], dtype=torch.float64), torch.randn(c, 300, dtype=torch.float64)
    torch.testing.assert_close(block.features(), table.mT)
    torch.testing.assert_close(block.predict(coef), coef @ table.mT, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(block.predict(block.arrange(coef)), coef @ table.mT, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(block.adjoint(r), r @ table, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(block.adjoint_squared(r), r @ table.square(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    ("n", "m", "density"), [(1, 1, 1.0), (15, 40, 0.2), (16, 3, 1.0), (50, 700, 0.05), (33, 20, 0.0)]
)
def test_inner_products_of_all_rows(monkeypatch, compiled, n, m, density):
    """Rows that fill no block, several entries in one place, more memory than entries, entries in single precision."""
    if not compiled:
        monkeypatch.setattr(_module, "kernels", None)
    elif _module.kernels is None:
        pytest.skip(_module.reason)
    x = matrix(n, m, density, n)
    twice = sp.csr_matrix((np.repeat(x.data, 2), np.repeat(x.indices, 2), 2 * x.indptr), shape=x.shape)
    longer = sp.csr_matrix((n, m))
    longer.data, longer.indices, longer.indptr = np.append(x.data, 7.0), np.append(x.indices, 0), x.indptr
    dense = x.toarray()
    for given_, expected in ((x, dense), (twice, 2.0 * dense), (longer, dense), (x.astype(np.float32), dense)):
        before = given_.data.copy()
        exact = 1e-5 if given_.dtype == np.float32 else 1e-12
        np.testing.assert_allclose(row_products(given_), expected @ expected.T, rtol=exact, atol=exact)
        assert np.array_equal(given_.data, before)
