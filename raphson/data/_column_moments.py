"""Centers and scales of the columns of a dense table, in as few passes over it as keep their digits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson import _native

_SAFE_VARIANCE = 1e-6
"""Share of the mean square above which a variance is the difference of the mean square and the squared mean."""

_LEAST, _LARGEST = 1e-200, 1e200
"""Mean squares below and above which squares lose digits or overflow."""

_CACHED_ROWS = 4096
"""Rows that pass through several operations while they are in the cache."""

_CACHED_ELEMENTS = 2**16
"""Numbers that do so in tables of many columns."""

_FUSED_ELEMENTS = 2**19
"""Numbers whose columns are added up at a time: with fewer the calls take longer than reading them twice."""

_FUSED_COLUMNS = 64
"""Columns from which there are sums by class."""

_FOLDED_COLUMNS, _FOLDED_ELEMENTS = 512, 2**18
"""Columns that NumPy adds up side by side, several rows of few as one, and numbers at a time.

Microseconds without and with: 50000 x 50, 1990 and 1190; 50000 x 5, 182 and 100; 5000 x 50, 131 and 102."""

_FOLDED_FROM = 2**16
"""Numbers of a table for which that is done: 500 x 5 takes 19 us with it and 9 without."""

_CLASS_ELEMENTS, _COMPILED_CLASS_ELEMENTS = 2**16, 2**20
"""Sums by class up to which they repay a pass, by PyTorch and in compiled code, beside the matrix product that makes
them otherwise: 500 x 2000, 50 classes, 0.7 ms and 3.2, 500 x 7000, ten, 2.6 and 7.0, 50, 2.7 and 12.7, 5000 x 7000, 50,
22 and 121; the pass without classes takes 0.25, 2.7, 2.7 and 25."""

_SUMMED_ROWS = 2**14
"""Rows that compiled code adds up one after another."""

_CLASS_ROWS = 250
"""Rows up to which sums by class are left to those who need them: a fit in combinations of few rows does not."""


class ColumnSums(NamedTuple):
    """Sums over the rows of a table.

    Attributes:
        total: Of the columns, ``(D,)``.
        squares: Of their squares, ``(D,)``.
        by_class: Of the columns over the rows of each class, ``(K, D)``, or None.
    """

    total: Tensor
    squares: Tensor
    by_class: Tensor | None = None


def fused_sums(x: Tensor, codes: Tensor | None = None, n_classes: int = 0) -> ColumnSums | None:
    """Return the sums of a table ``(N, D)`` in one pass; None where it is not in double precision, or rows are apart.

    That pass also tells whether all entries are finite numbers whose squares do not overflow.

    Args:
        x: The table.
        codes: The class of each row, ``(N,)`` int64, for sums by class; None for none. Few rows, few columns and many
            classes have none either.
        n_classes: K.
    """
    n, d = x.shape
    if x.dtype != torch.float64 or not x.is_cpu or not x.numel() or x.stride(1) != 1 or x.stride(0) < d:
        return None
    compiled = _native.is_available(2.0 * n * d) and n * d >= _FOLDED_FROM
    most = _COMPILED_CLASS_ELEMENTS if compiled else _CLASS_ELEMENTS
    codes = None if d < _FUSED_COLUMNS or n_classes * d > most or n <= _CLASS_ROWS else codes
    if compiled:
        return _compiled_sums(x, codes, n_classes)
    with np.errstate(all="ignore"):
        if codes is not None:
            return _sums_by_class(x, codes, n_classes)
        if n * d < _FOLDED_FROM:
            return ColumnSums(x.sum(0), x.square().sum(0))
        total, squares = _folded_sums(x)
    return ColumnSums(torch.from_numpy(total), torch.from_numpy(squares))


def _compiled_sums(x: Tensor, codes: Tensor | None, n_classes: int) -> ColumnSums:
    """Return the sums that compiled code makes: each number is read once."""
    n, d = x.shape
    k, fold = (1, max(1, _FOLDED_COLUMNS // d) if x.stride(0) == d else 1) if codes is None else (n_classes, 1)
    whole = n // fold
    wide = x[: whole * fold].reshape(whole, fold * d)  # several narrow rows as one
    by_class, squares = torch.zeros(k, fold * d, dtype=torch.float64), torch.zeros(fold * d, dtype=torch.float64)
    for start in range(0, whole, _SUMMED_ROWS):  # a sum of sums rounds less than one long sum
        rows = slice(start, start + _SUMMED_ROWS)
        part, own = (torch.zeros_like(by_class), torch.zeros_like(squares)) if start else (by_class, squares)
        _native.class_sums(wide[rows], None if codes is None else codes[rows].contiguous(), k, part, own)
        if start:
            by_class += part
            squares += own
    if codes is not None:
        return ColumnSums(by_class.sum(0), squares, by_class)
    rest = x[whole * fold :]
    total, squares = by_class.view(fold, d).sum(0), squares.view(fold, d).sum(0)
    return ColumnSums(total + rest.sum(0), squares + rest.square().sum(0))


def _sums_by_class(x: Tensor, codes: Tensor, n_classes: int) -> ColumnSums:
    n, d = x.shape
    step = min(_CACHED_ROWS, max(32, _FUSED_ELEMENTS // d))
    by_class, squares = torch.zeros(n_classes, d, dtype=torch.float64), np.zeros(d)
    for start in range(0, n, step):
        block = x[start : start + step]
        by_class += torch.zeros(n_classes, d, dtype=torch.float64).index_add_(0, codes[start : start + step], block)
        squares += _squares(block.numpy())
    return ColumnSums(by_class.sum(0), torch.from_numpy(squares), by_class)


def _folded_sums(x: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sums of columns ``(N, D)`` and of their squares, ``(D,)`` each, several rows taken as one."""
    n, d = x.shape
    fold = max(1, _FOLDED_COLUMNS // d) if x.stride(0) == d else 1
    whole, rows = n // fold, x.numpy()
    wide = rows[: whole * fold].reshape(whole, fold * d)
    total, squares = np.zeros(fold * d), np.zeros(fold * d)
    step = min(_CACHED_ROWS, max(32, _FOLDED_ELEMENTS // (fold * d)))
    for start in range(0, whole, step):  # a sum of sums rounds less than one long sum
        block = wide[start : start + step]
        total += block.sum(0)
        squares += _squares(block)
    total, squares, rest = total.reshape(fold, d).sum(0), squares.reshape(fold, d).sum(0), rows[whole * fold :]
    return (total + rest.sum(0), squares + _squares(rest)) if len(rest) else (total, squares)


def _squares(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.einsum("ij,ij->j", rows, rows)
    return found


def _sums(x: Tensor) -> ColumnSums:
    """Return the sums of any table ``(N, D)``."""
    found = fused_sums(x)
    if found is not None:
        return found
    n, d = x.shape
    total, squares = torch.zeros(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    step = min(_CACHED_ROWS, max(8, _CACHED_ELEMENTS // max(d, 1)))
    buffer = torch.empty(min(n, step), d, dtype=torch.float64)
    for start in range(0, n, step):
        block = x[start : start + step]
        total += block.sum(0)
        squares += torch.mul(block, block, out=buffer[: block.shape[0]]).sum(0)
    return ColumnSums(total, squares)


def _of_sums(sums: ColumnSums, n: int, *, centered: bool) -> tuple[Tensor, Tensor, NDArray[np.bool_]]:
    """Return center and scale of the columns from sums of values and squares, and which of these kept their digits."""
    with np.errstate(all="ignore"):  # NumPy's calls take half of the time of PyTorch's
        center, square = sums.total.numpy() / n, sums.squares.numpy() / n
        variance = square - center * center if centered else square
        # what is not a number is in neither range
        safe = (variance > np.maximum(_SAFE_VARIANCE * square, _LEAST)) & (square < _LARGEST)
        scale = np.sqrt(variance)
    return torch.from_numpy(center if centered else np.zeros_like(center)), torch.from_numpy(scale), safe


def _of_few(x: Tensor, *, centered: bool) -> tuple[Tensor, Tensor, NDArray[np.bool_]]:
    """Return the same for rows that fit the cache, in few calls."""
    if x.dtype != torch.float64 or not x.numel():
        return _of_sums(_sums(x), x.shape[0], centered=centered)
    rows = x.numpy()
    with np.errstate(all="ignore"):
        center = rows.sum(0) / len(rows) if centered else np.zeros(rows.shape[1])
        variance = _squares(rows - center) / len(rows)
        safe = (variance > _SAFE_VARIANCE * center * center + _LEAST) & (variance < _LARGEST)
        return torch.from_numpy(center), torch.from_numpy(np.sqrt(variance)), safe


def column_moments(x: Tensor, *, centered: bool, sums: ColumnSums | None = None) -> tuple[Tensor, Tensor]:
    """Return center and scale of the columns, safe for entries of 1e24 and 1e-24 and for large means.

    Args:
        x: The table, ``(N, D)``.
        centered: Whether the center is the mean, else zero.
        sums: The sums of the table, where they are known.

    Returns:
        Center and scale, ``(D,)`` each.
    """
    n, d = x.shape
    if sums is None and n * d <= _CACHED_ELEMENTS:
        center, scale, safe = _of_few(x, centered=centered)
    else:
        center, scale, safe = _of_sums(_sums(x) if sums is None else sums, n, centered=centered)
    if not safe.all():
        with np.errstate(all="ignore"):
            center.numpy()[~safe], scale.numpy()[~safe] = _in_two_passes(x, ~safe, centered=centered)
    return center, scale


def _in_two_passes(
    x: Tensor, columns: NDArray[np.bool_], *, centered: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return center and scale of some of the columns, bool ``(D,)``, whatever their size and mean."""
    n, every, own = x.shape[0], bool(columns.all()), torch.from_numpy(columns)
    largest, total, second = np.zeros((3, np.count_nonzero(columns)))
    size = max(1024, 2**20 // max(len(total), 1))

    def blocks() -> Iterator[NDArray[np.float64]]:
        for start in range(0, n, size):
            rows = x[start : start + size]
            yield (rows if every else rows[:, own]).to(torch.float64).numpy()

    for block in blocks():
        np.maximum(largest, np.abs(block).max(0), out=largest)
        total += block.sum(0)
    center = total / n if centered else np.zeros_like(total)
    largest[largest == 0.0] = 1.0
    for block in blocks():
        second += _squares((block - center) / largest)
    scale = np.sqrt(second / n) * largest
    # a constant column keeps a scale at which rounding noise is not blown up to look like variation
    return center, np.where(scale > 1e-13 * largest, scale, largest)
