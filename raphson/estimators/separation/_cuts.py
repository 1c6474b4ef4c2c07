"""Separation of classes by a single column: values that no row of some classes exceeds, nor others fall below."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raphson.estimators.separation._problem import Problem

Array = NDArray[Any]


class Cut(NamedTuple):
    """One column with a value that no class in ``low`` exceeds and none in ``high`` falls below.

    Classes in neither have that value in every row; ``complete`` means that no row has it.
    """

    column: int
    low: Array
    high: Array
    complete: bool
    gap: float
    value: float
    direction: Array


def _ranges(problem: Problem) -> tuple[Array, Array]:
    """Return the least and greatest value of each column in each class, ``(K, D)`` each; NaN without rows."""
    x, d = problem.std.x, problem.std.x.shape[1]
    low, high = np.full((2, problem.cone.n_outputs, d), np.nan)
    for k in np.unique(problem.cone.kinds):
        rows = x[problem.cone.kinds == k]
        least, most = rows.min(axis=0), rows.max(axis=0)
        sparse = hasattr(rows, "tocsr")
        low[k] = least.toarray().ravel() if sparse else least
        high[k] = most.toarray().ravel() if sparse else most
    return low, high


def single_columns(problem: Problem) -> list[Cut]:
    """Return every column that on its own puts some classes at or below a value and the others at or above it.

    With one column and an intercept the scores are lines, and their upper envelope gives each group of
    classes an interval: this finds all separation there is by a single column. Complete cuts come first, by their gap.
    """
    least, most = _ranges(problem)
    present = np.bincount(problem.cone.kinds, minlength=problem.cone.n_outputs) > 0
    cuts = []
    for position, j in enumerate(problem.live):
        low, high = least[:, j], most[:, j]
        order = np.flatnonzero(present)[np.lexsort((high[present], low[present]))]
        tops, bottoms = np.maximum.accumulate(high[order])[:-1], low[order][1:]
        if problem.has_ones:
            values = tops[tops <= bottoms] / 2 + bottoms[tops <= bottoms] / 2
            gaps = (bottoms - tops)[tops <= bottoms]
            values, first = np.unique(values, return_index=True)
            gaps = gaps[first]
        else:
            values, gaps = (
                np.zeros(1),
                np.array([min(low[low >= 0].min(initial=np.inf), -high[high <= 0].max(initial=-np.inf))]),
            )
        for value, gap in zip(values, gaps, strict=True):
            fixed = (low == value) & (high == value)
            below, above = (high <= value) & ~fixed, (low >= value) & ~fixed
            if not (below | above | fixed)[present].all() or not (below | above).any():
                continue
            complete = bool(gap > 0 and below.any() and above.any())
            if not complete and not ((below & (low < value)) | (above & (high > value))).any():
                continue
            b = _cut_direction(problem, position, below, above, float(value))
            cuts.append(Cut(int(j), below, above, complete, gap / problem.std.scale[j], float(value), b))
    return sorted(cuts, key=lambda c: (not c.complete, -c.gap))


def _cut_direction(problem: Problem, position: int, below: Array, above: Array, value: float) -> Array:
    """Return the direction of one cut: scores that fall, stay and rise, and meet at the value."""
    first, j = int(problem.has_ones), int(problem.live[position])
    b = np.zeros((problem.cone.n_outputs, problem.width))
    b[:, first + position] = 0.5 * above - 0.5 * below
    if first:
        boundary = (value - problem.std.reference[j]) / problem.std.scale[j] - problem.std.shift[j]
        b[:, 0] = -b[:, first + position] * boundary
    return b
