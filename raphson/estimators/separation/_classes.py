r"""Every class has a coefficient of its own for every column: that problem, and directions of it found cheaply.

The likelihood never falls along a table :math:`B` with :math:`(b_{y_i} - b_k)^T \hat x_i \ge 0` for every row
:math:`i` and class :math:`k` (Albert and Anderson 1984). A single column separates classes by a value that no row of
some of them exceeds, nor others fall below.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raphson.estimators.separation._output_cone import OutputCone
from raphson.estimators.separation._problem import Cone, Problem, all_strict, certified, margins
from raphson.estimators.separation._standardize import Standardized

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


def class_problem(std: Standardized, live: Array, has_ones: bool, cone: OutputCone, z: Array | None = None) -> Problem:
    """Return the problem in which every class has a coefficient of its own for each of the columns."""
    import scipy.sparse

    n_classes, width = cone.n_outputs, len(live) + has_ones
    column = np.tile(np.arange(width), n_classes)
    of_class = np.repeat(np.arange(n_classes), width)
    loading = scipy.sparse.csr_array(
        (np.ones(len(column)), of_class, np.arange(len(column) + 1)), shape=(len(column), n_classes)
    )
    return Problem(std, live, has_ones, z, cone, column, loading, is_class_table=True)


def exclude_absent(problem: Problem, cone: Cone) -> Cone:
    """Add to a direction that classes without rows become impossible, where the intercept can do that."""
    missing = np.bincount(problem.cone.kinds, minlength=problem.cone.n_outputs) == 0
    if not missing.any() or not problem.has_ones:
        return cone
    # far enough below every other score, which the terms of the margins bound
    reach = float(margins(problem, cone.direction)[1].max())
    b = cone.direction.copy()
    b[missing] = 0.0
    b[missing, 0] = -1.0 - 2.0 * reach
    strict = certified(problem, b)
    return cone if strict is None else Cone(b, strict)


def saturated(problem: Problem) -> Cone | None:
    """Return a direction that fits every label, where rows are linearly independent."""
    n = len(problem.cone.kinds)
    if problem.width < n or problem.z is None:
        return None
    targets = np.eye(problem.cone.n_outputs)[problem.cone.kinds] - 1.0 / problem.cone.n_outputs
    solution, _, rank, _ = np.linalg.lstsq(problem.z @ problem.z.T, targets, rcond=1e-12)
    if rank < n:
        return None
    b = (problem.z.T @ solution).T
    strict = certified(problem, b)
    return Cone(b, strict) if strict is not None and all_strict(problem, Cone(b, strict)) else None


def descend(problem: Problem, deadline: float) -> Cone | None:
    """Return the coefficients of an unpenalized fit that was stopped early, if they classify every row.

    That is a direction of complete separation, and quasi-Newton steps reach it long before a linear program
    of many variables is solved.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    z = problem.z
    assert z is not None
    shape, each = (problem.cone.n_outputs, problem.width), np.arange(len(problem.cone.kinds))

    def loss(b: Array) -> tuple[float, Array]:
        logs = log_softmax(z @ b.reshape(shape).T, axis=1)
        residual = np.exp(logs)
        residual[each, problem.cone.kinds] -= 1.0
        return -float(logs[each, problem.cone.kinds].mean()), (residual.T @ z).ravel() / len(z)

    def stop(intermediate_result: Any) -> None:
        if time.monotonic() > deadline or intermediate_result.fun < 1e-3 / len(z):
            raise StopIteration

    fitted = minimize(
        loss,
        np.zeros(shape).ravel(),
        jac=True,
        method="L-BFGS-B",
        callback=stop,
        options={"maxiter": 500, "ftol": 0.0, "gtol": 0.0},
    )
    b = fitted.x.reshape(shape)
    strict = certified(problem, b)
    return None if strict is None else Cone(b, strict)
