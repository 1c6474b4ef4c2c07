"""Products of a sparse matrix with a dense one: compiled code where that is available, else PyTorch's."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from raphson import _native

_VECTOR_NONZEROS = 2**23
"""Nonzeros up to which SciPy multiplies a single vector: 0.6 ns each on one thread, where compiled code, which fills
whole vectors, takes 1.6 divided by the number of threads. That number does not decide: bits would depend on it."""

_ROWS = 16
"""Rows made dense at a time for the inner products of all rows: their columns stay in the cache.

Milliseconds, and those of a product of sparse matrices: 250 x 2000 with 5 % of the entries 0.95, 2.1, 500 x 2000 2.8,
7.5, 500 x 7000 8.9, 16; of 8 rows at a time 1.3, 3.3, 8.3."""


@dataclass(frozen=True, eq=False)
class SparseRows:
    """A sparse matrix by rows (CSR).

    Attributes:
        starts: Where the rows begin among the nonzeros, ``(n + 1,)``, int64.
        columns: Of the nonzeros, int32.
        values: Of the nonzeros, in double or single precision.
        n_columns: Number of columns.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    n_columns: int

    @classmethod
    def of(cls, x: Any) -> SparseRows:
        """Take a SciPy CSR matrix; its values are not copied."""
        starts = torch.from_numpy(x.indptr.astype(np.int64))
        columns = torch.from_numpy(x.indices.astype(np.int32, copy=False))
        return cls(starts, columns, torch.from_numpy(x.data), x.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return self.starts.shape[0] - 1, self.n_columns

    @cached_property
    def _scipy(self) -> Any:
        starts = self.starts.numpy()
        starts = starts.astype(np.int32) if len(self.values) < 2**31 else starts
        return sp.csr_matrix((self.values.numpy(), self.columns.numpy(), starts), shape=self.shape)

    @cached_property
    def _scipy_transposed(self) -> Any:
        return self._scipy.T

    @cached_property
    def transposed(self) -> SparseRows:
        """The transpose, by rows as well."""
        return SparseRows.of(self._scipy_transposed.tocsr())

    @property
    def takes_vectors(self) -> bool:
        """Whether single vectors are best multiplied by ``vector_product``."""
        return len(self.values) <= _VECTOR_NONZEROS

    def vector_product(self, v: Tensor, *, transposed: bool = False) -> Tensor:
        """Return the product ``(n,)`` with a vector ``(m,)`` of the values' type, or that of the transpose."""
        found: Tensor = torch.from_numpy((self._scipy_transposed if transposed else self._scipy) @ v.numpy())
        return found

    @cached_property
    def _torch(self) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse", UserWarning)  # torch calls its CSR tensors beta
            return torch.sparse_csr_tensor(
                self.starts, self.columns.long(), self.values, self.shape, check_invariants=False
            )

    def to_dense(self) -> Tensor:
        """Return the dense matrix ``(n, m)``."""
        return self._torch.to_dense()

    def square(self) -> SparseRows:
        """Return the matrix of squared entries."""
        return replace(self, values=self.values.square())

    def astype(self, dtype: torch.dtype) -> SparseRows:
        """Return the matrix with entries of another type."""
        found = replace(self, values=self.values.to(dtype))
        if "transposed" in self.__dict__:  # made once for both
            found.__dict__["transposed"] = replace(self.transposed, values=self.transposed.values.to(dtype))
        return found

    def product(self, dense: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the product ``(n, c)`` with a dense ``(m, c)`` of the values' type, with the strides of ``padded``.

        The matrix may have any strides, those of ``padded`` need no copy; ``out`` is where to put it.
        """
        if out is None:
            out = padded(self.shape[0], dense.shape[1], dense)
        if not _native.is_available(self.values.shape[0] * dense.shape[1]):
            return out.copy_(self._torch @ dense.contiguous())
        _native.sparse_product(self.starts, self.columns, self.values, arranged(dense), out)
        return out


def padded(n: int, c: int, like: Tensor) -> Tensor:
    """Return new memory for ``(n, c)`` numbers whose rows take whole vectors; what fills them up is zero."""
    width = -(-c // _native.UNIT) * _native.UNIT
    whole = like.new_empty(n, width)
    if width > c:
        whole[:, c:] = 0.0
    return whole[:, :c]


def filled(dense: Tensor) -> Tensor:
    """Return the numbers of a matrix in the memory of ``padded`` as they lie there, the zeros that fill up rows too.

    Sums and extremes of ``(2000, 50)`` take a third of the time that those of its transpose do.
    """
    return dense.as_strided((dense.shape[0] * dense.stride(0),), (1,))


def arranged(dense: Tensor) -> Tensor:
    """Return a matrix ``(n, c)`` in the memory of ``padded``, copied only if it is not."""
    c = dense.shape[1]
    if dense.stride() == (-(-c // _native.UNIT) * _native.UNIT, 1):
        return dense
    return padded(dense.shape[0], c, dense).copy_(dense)


def row_products(x: Any) -> Tensor:
    """Return the inner products ``(n, n)`` of the rows of a SciPy CSR matrix, in double precision."""
    x, (n, d) = x.astype(np.float64, copy=False), x.shape
    if not _native.is_available() or not n or not d:
        return torch.from_numpy((x @ x.T).toarray())
    if not x.has_canonical_format:  # several entries in one place add up
        x = x.copy()
        x.sum_duplicates()
    rows = SparseRows.of(x)
    places = x.indices[: x.indptr[-1]].astype(np.int64) * _ROWS + np.repeat(np.arange(n) % _ROWS, np.diff(x.indptr))
    entries, total = np.zeros(d * _ROWS), torch.empty(n, n, dtype=torch.float64)
    some = torch.from_numpy(entries.reshape(d, _ROWS))
    for first in range(0, n, _ROWS):
        last = min(first + _ROWS, n)
        own = slice(x.indptr[first], x.indptr[last])
        entries[places[own]] = x.data[own]
        found = torch.empty(n - first, _ROWS, dtype=torch.float64)
        _native.sparse_product(rows.starts[first:], rows.columns, rows.values, some, found)
        total[first:, first:last] = found[:, : last - first]  # of a symmetric matrix one triangle is enough
        entries[places[own]] = 0.0
    return total.tril() + total.tril(-1).mT
