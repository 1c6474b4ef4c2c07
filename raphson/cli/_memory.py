"""``raphson fit --memory 2GB``: the memory that a fit takes, said before it starts; what is too much is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NoReturn

import pandas as pd

import raphson as rp
from raphson.linalg import MAX_DENSE_ELEMENTS
from raphson.table import least_bytes

_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_UNITS |= {"ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)

_COPIES = 3
"""Of the matrix of a fit, at most: as coded, standardized, and as an estimator holds it. From 200 to 10^6 rows and 5
to 600 columns the estimate is 1.1 to 2.3 times the peak that was measured."""

_OUTPUT_ARRAYS = 8
"""Arrays of the size of the outputs: targets, predictors, their derivatives, and those of the tables and residuals."""

_SQUARES = 4
"""Arrays of the size of the Hessian: itself, its factor, the covariance and a product."""

_VECTORS = 12
"""Arrays of the size of the coefficients, of a fit by products with the Hessian."""

_BESIDE = 64 * 10**6
"""Of what else a fit takes: blocks, buffers of readers, functions that are imported late."""


def parse_memory(text: str | None) -> int | None:
    """Return the bytes of ``"2GB"``, ``"512 MiB"`` or ``"800m"``; None stays None, what is no size is refused."""
    if text is None:
        return None
    found = _SIZE.fullmatch(text)
    size = int(float(found[1]) * _UNITS[(found[2] or "").lower()]) if found else 0
    if not size:
        raise rp.InputError(f"--memory is a size such as 2GB or 500MB, not '{text}'.")
    return size


def check_reading(data: Path, limit: int) -> None:
    """Raise ``InputError`` where the table alone cannot be in memory; nothing is read."""
    least = held_now() + least_bytes(data)
    if least > limit:
        _refuse(f"the program with the table {data} takes at least {shown(least)}", limit)


def check_fit(frame: pd.DataFrame, design: rp.Design, formulas: int, limit: int) -> str:
    """Return a sentence on the memory that a fit of a table takes at most; ``InputError`` where that is too much.

    Args:
        frame: The table, which is in memory.
        design: How its matrix is made.
        formulas: How many matrices there are.
        limit: Bytes.

    Returns:
        The sentence.
    """
    n, d = len(frame), len(design.names)
    target = None if design.target is None else frame[design.target]
    outputs = 2 if target is None or target.dtype.kind == "f" else max(2, int(target.nunique()))
    matrix, free = 8 * n * d * formulas, outputs * (d + 1)
    square = free * free if free * free <= MAX_DENSE_ELEMENTS else _VECTORS * free  # larger ones are not formed
    most = held_now() + _COPIES * matrix + 8 * n * outputs * _OUTPUT_ARRAYS + 8 * _SQUARES * square + _BESIDE
    if most > limit:
        sizes = f"{n} rows, {d} columns of the matrix ({shown(matrix)}), up to {outputs} outputs"
        _refuse(f"this fit takes up to about {shown(most)} ({sizes})", limit)
    return f"memory: at most about {shown(most)} of {shown(limit)}"


def held_now() -> int:
    """Return the most bytes that this process has held so far; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def shown(size: int) -> str:
    """Return a number of bytes for people."""
    unit, name = next(((u, n) for u, n in ((10**12, "TB"), (10**9, "GB")) if size >= u), (10**6, "MB"))
    return f"{size / unit:.3g} {name}"


def _refuse(what: str, limit: int) -> NoReturn:
    raise rp.InputError(
        f"--memory {shown(limit)}: {what}; allow more, leave out columns or rows, or count equal rows and give "
        "--weights."
    )
