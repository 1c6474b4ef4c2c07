"""Sums of the columns of a table, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from raphson._native import _module
from raphson._native._module import memory

_PART = 2.0**22
"""Entries that are worth a thread of their own: about a millisecond, as in evaluations of tables read in place."""


def add_column_sums(x: Tensor, codes: Tensor | None, sums: Tensor, squares: Tensor) -> None:
    """Add the rows of a table to sums, those of each class to its own, and their squares to others.

    Args:
        x: ``(n, D)``, float64 on the processor, each row contiguous; rows may be apart.
        codes: The class of each row, ``(n,)`` int64; None for a single class.
        sums: ``(K, D)``.
        squares: ``(D,)``.

    Raises:
        ValueError: If they do not fit together.
    """
    (n, d), k = x.shape, sums.shape[0]
    if x.dtype != torch.float64 or not x.is_cpu or (d > 1 and x.stride(1) != 1):
        raise ValueError("'x' must be a matrix of torch.float64 on the processor, each row contiguous.")
    if codes is None and k != 1:
        raise ValueError("Sums of several classes need the class of each row.")
    extent = x.untyped_storage().nbytes() // 8 - x.storage_offset() if x.numel() else 0
    _module.compiled().column_sums(
        n,
        d,
        x.stride(0),
        (x.data_ptr(), extent, "d"),
        None if codes is None else memory("codes", codes, n, dtype=torch.int64),
        memory("sums", sums, k, d),
        memory("squares", squares, d),
        _module.threads(float(n) * d, _PART),
    )
