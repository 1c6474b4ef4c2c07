"""Sparse tables that may be trusted: SciPy and compiled loops read memory wherever the indices point."""

from __future__ import annotations

from typing import Any

import numpy as np

from raphson._errors import InputError

_DAMAGED = "The sparse table is damaged: {}. Build it again, or pass a dense one."


def sound_sparse(x: Any) -> Any:
    """Return a SciPy sparse matrix as CSR, each place once, with its own arrays where they had to be changed.

    Raises:
        InputError: If its parts do not fit together: other lengths, or indices beyond its shape.
    """
    if x.ndim != 2:
        raise InputError(f"The sparse table has shape {x.shape}; a table has rows and columns.")
    if x.format == "coo":
        _refuse_outside("row", x.row, x.shape[0])
        _refuse_outside("column", x.col, x.shape[1])
        if not len(x.row) == len(x.col) == len(x.data):
            raise InputError(
                _DAMAGED.format(f"there are {len(x.row)} rows, {len(x.col)} columns and {len(x.data)} values")
            )
    elif x.format in ("csr", "csc", "bsr"):
        _check_compressed(x)
    if x.format != "csr":
        x = x.tocsr()
        _check_compressed(x)
    if not x.has_canonical_format:  # SciPy would add up the values of a place in the caller's arrays
        x = x.copy()
        x.sum_duplicates()
    if len(x.indices) > x.indptr[-1]:  # room that SciPy left for more
        x = x.copy()
        x.prune()
    return x


def _check_compressed(x: Any) -> None:
    """Raise ``InputError`` where a CSR, CSC or BSR matrix does not hold what its shape says."""
    block = x.blocksize if x.format == "bsr" else (1, 1)
    major, minor = x.shape[0] // block[0], x.shape[1] // block[1]
    if x.format == "csc":
        major, minor = minor, major
    starts = x.indptr
    if starts.ndim != 1 or len(starts) != major + 1:
        raise InputError(_DAMAGED.format(f"indptr has {starts.size} entries in place of {major + 1}"))
    if starts[0] != 0 or (starts[1:] < starts[:-1]).any():
        raise InputError(_DAMAGED.format("indptr does not begin at 0 and grow"))
    if not int(starts[-1]) <= len(x.indices) == len(x.data):
        raise InputError(
            _DAMAGED.format(f"indptr ends at {starts[-1]}, with {len(x.indices)} indices and {len(x.data)} values")
        )
    _refuse_outside("row" if x.format == "csc" else "column", x.indices[: int(starts[-1])], minor)


def _refuse_outside(what: str, index: Any, size: int) -> None:
    if index.size and not (index.min() >= 0 and index.max() < size):
        bad = np.flatnonzero((index < 0) | (index >= size))
        raise InputError(
            _DAMAGED.format(f"entry {int(bad[0])} is in {what} {int(index[bad[0]])}, and there are {size}")
        )
