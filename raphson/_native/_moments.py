"""Sums of the rows of a table by class, and of their squares, in one pass."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raphson._native import _module
from raphson._native._module import memory

_PART = 2.0**20
"""Entries that are worth a thread of their own."""

_LONG = 256
"""Columns from which rows are read class by class: four of a class then need their sums once. 500 x 7000, two classes,
1.6 and 0.7 ms, 5000 x 7000 16 and 9.5, 5000 x 2000, ten, 4.8 and 2.9."""


def class_sums(x: Tensor, codes: Tensor | None, n_classes: int, sums: Tensor, squares: Tensor) -> None:
    """Add rows to the sums of their classes, and their squares to those of all.

    Args:
        x: Table ``(N, D)`` in double precision, each row contiguous, rows perhaps apart.
        codes: The class of each row ``(N,)`` int64; None for one class.
        n_classes: K.
        sums: ``(K, D)``, to which rows are added.
        squares: ``(D,)``, to which squares are added.

    Raises:
        ValueError: If a tensor is of another kind, or a class is not there.
    """
    n, d = x.shape
    if x.dtype != torch.float64 or not x.is_cpu or (d > 1 and x.stride(1) != 1):
        raise ValueError(f"'x' is a tensor {tuple(x.shape)} of {x.dtype} with strides {x.stride()} on {x.device}.")
    extent = x.untyped_storage().nbytes() // x.itemsize - x.storage_offset() if x.numel() else 0
    order = None if codes is None or d < _LONG else torch.from_numpy(np.argsort(codes.numpy(), kind="stable"))
    _module.compiled().moments(
        n,
        d,
        x.stride(0),
        (x.data_ptr(), extent, "d"),
        None if codes is None else memory("codes", codes, n, dtype=torch.int64),
        None if order is None else memory("order", order, n, dtype=torch.int64),
        n_classes,
        memory("sums", sums, n_classes, d),
        memory("squares", squares, d),
        _module.threads(float(x.numel()), _PART),
    )
