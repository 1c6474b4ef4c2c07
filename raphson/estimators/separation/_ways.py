"""Where coefficients without a finite estimate go: to plus or minus infinity, or either way."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raphson.estimators.separation._output_cone import GAIN, GUARD
from raphson.estimators.separation._problem import ROUNDING, Problem, margins

Array = NDArray[Any]

_NUMBERS = 10**6  # conditions times directions up to which the programs are solved: milliseconds each
_COEFFICIENTS = 200  # and up to so many coefficients, with two programs each


def find_ways(problem: Problem, span: Array, table: Array, direction: Array, deadline: float) -> Array:
    """Return the sign ``(p,)`` that each coefficient has along every direction of recession, 0 for none or unknown.

    Along the directions of recession, a cone in their span, a coefficient may take either sign: that of a class for a
    column on which a second class is perfectly predicted, say. A linear program for each end tells. The directions have
    the basis ``span`` ``(p', r)`` in standardized columns, ``table`` ``(p, r)`` in the table's, in which ``direction``
    ``(p,)`` is one of them.
    """
    ways = np.zeros(len(table), dtype=np.int8)
    far = np.flatnonzero((table != 0).any(1))
    if span.shape[1] == 1:
        ways[far] = np.sign(direction[far])
        return ways
    conditions = problem.cone.has_role(GAIN, GUARD)
    if len(far) > _COEFFICIENTS or conditions.sum() * span.shape[1] > _NUMBERS:
        return ways
    shape = problem.no_direction().shape
    rows = np.stack([margins(problem, column.reshape(shape))[0][conditions] for column in span.T], 1)
    size = np.abs(rows).max(1, initial=0.0)
    rows = np.unique(np.round(rows[size > ROUNDING] / size[size > ROUNDING, None], 12), axis=0)
    for q in far:
        low, high = (_least(rows, sign * table[q], deadline) for sign in (1.0, -1.0))
        if low is None or high is None:
            break
        ways[q] = int(low) - int(high)
    return ways


def _least(rows: Array, form: Array, deadline: float) -> bool | None:
    """Return whether a linear form is nowhere negative where ``rows @ w >= 0``; None if that is not known."""
    from scipy.optimize import linprog

    if time.monotonic() > deadline:
        return None
    found = linprog(form / np.abs(form).max(), A_ub=-rows, b_ub=np.zeros(len(rows)), bounds=(-1.0, 1.0), method="highs")
    return None if found.status else bool(found.fun >= -ROUNDING)
