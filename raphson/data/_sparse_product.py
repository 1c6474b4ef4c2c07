"""Products of a sparse matrix with a dense one: compiled code (``_sparse.c``) where that was built, else PyTorch's."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

try:
    from raphson.data import _sparse
except ImportError:
    if not TYPE_CHECKING:
        _sparse = None

_WIDTH = 8
"""Rows of dense matrices are filled up to a multiple of this many numbers, whole vectors of every instruction set."""

_PART = 2.0**18
"""Multiplications that are worth a thread of their own: they wait for memory."""


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
        return SparseRows(self.starts, self.columns, self.values.square(), self.n_columns)

    def product(self, dense: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the product with a dense matrix.

        Args:
            dense: ``(m, c)`` of the values' element type, with any strides; those of ``padded`` need no copy.
            out: Where to put it: ``(n, c)`` with the strides of ``padded``; None for new memory.

        Returns:
            ``(n, c)`` with the strides of ``padded``.
        """
        if out is None:
            out = padded(self.shape[0], dense.shape[1], dense)
        if not is_built():
            return out.copy_(self._torch @ dense.contiguous())
        given = arranged(dense)
        width = given.stride(0)
        _sparse.product(
            self.starts.data_ptr(),
            self.columns.data_ptr(),
            self.values.data_ptr(),
            self.shape[0],
            width,
            given.data_ptr(),
            out.data_ptr(),
            dense.dtype == torch.float32,
            min(torch.get_num_threads(), 1 + int(self.values.shape[0] * width / _PART)),
        )
        return out


def is_built() -> bool:
    """Return whether the compiled code was built."""
    return _sparse is not None


def padded(n: int, c: int, like: Tensor) -> Tensor:
    """Return new memory for ``(n, c)`` numbers whose rows take whole vectors; what fills them up is zero."""
    width = -(-c // _WIDTH) * _WIDTH
    whole = like.new_empty(n, width)
    if width > c:
        whole[:, c:] = 0.0
    return whole[:, :c]


def arranged(dense: Tensor) -> Tensor:
    """Return a matrix ``(n, c)`` in the memory of ``padded``, copied only if it is not."""
    c = dense.shape[1]
    if dense.stride() == (-(-c // _WIDTH) * _WIDTH, 1):
        return dense
    return padded(dense.shape[0], c, dense).copy_(dense)
