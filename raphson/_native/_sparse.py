"""The product of a sparse matrix with a dense one, as a thin call."""

from __future__ import annotations

import torch
from torch import Tensor

from raphson._native import _module
from raphson._native._module import memory

UNIT = 8
"""Rows of dense matrices are a multiple of this many numbers apart, whole vectors of every instruction set."""

_PART = 2.0**19
"""Multiplications that are worth a thread of their own: they wait for memory."""


def sparse_product(starts: Tensor, columns: Tensor, values: Tensor, dense: Tensor, out: Tensor) -> None:
    """Multiply a sparse matrix by rows with a dense one ``(m, c)``, into ``out`` ``(n, c)``.

    Rows begin at ``starts`` ``(n + 1,)`` among the nonzeros, whose columns are int32. Both dense matrices have the
    element type of ``values`` and rows as far apart as the multiple of ``UNIT`` from c on; what fills up those of
    ``out`` is overwritten.

    Raises:
        ValueError: If a matrix has another shape, or other strides, or a column is not from 0 to m - 1.
    """
    dtype, nonzeros, c = values.dtype, values.shape[0], dense.shape[1]
    width = -(-c // UNIT) * UNIT
    if out.shape != (starts.shape[0] - 1, c):
        raise ValueError(f"'out' is {tuple(out.shape)}, and the product is {(starts.shape[0] - 1, c)}.")
    if not out.numel():
        return
    _module.compiled().sparse(
        memory("starts", starts, *starts.shape[:1], dtype=torch.int64),
        memory("columns", columns, nonzeros, dtype=torch.int32),
        memory("values", values, nonzeros, dtype=dtype),
        width,
        memory("dense", _whole("dense", dense, width), dense.shape[0], width, dtype=dtype),
        memory("out", _whole("out", out, width), out.shape[0], width, dtype=dtype),
        _module.threads(nonzeros * width, _PART),
    )


def _whole(name: str, matrix: Tensor, width: int) -> Tensor:
    """Return a matrix with what fills up its rows."""
    size = matrix.storage_offset() + matrix.shape[0] * width
    if matrix.stride() != (width, 1) or matrix.untyped_storage().nbytes() < size * matrix.element_size():
        raise ValueError(f"'{name}' has strides {matrix.stride()}; rows of whole vectors, {width} apart, are needed.")
    return matrix.as_strided((matrix.shape[0], width), (width, 1))
