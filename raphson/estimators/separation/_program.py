"""The linear program that finds every direction of recession, or shows that there is none (Konis 2007)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raphson.estimators.separation._output_cone import EQUAL, GAIN, GUARD, HELD
from raphson.estimators.separation._problem import (
    FLAT,
    PROJECTED,
    TIE,
    VARIABLES,
    Cone,
    Problem,
    join,
    margins,
    margins_of,
    null_space,
    polish,
)

Array = NDArray[Any]


def linear_program(problem: Problem, known: Cone, deadline: float) -> tuple[Cone, bool]:
    r"""Return the maximal set of strict conditions that extends what is known, and whether that is proved.

    One round maximizes the mean margin of the conditions that are not strict yet plus, for each kind of target, the
    least margin of each condition, over :math:`|\theta| \le 1` with all margins nonnegative. A round whose optimum
    is zero proves that the rest overlaps. Sums of directions are directions: a few rounds find everything.
    """
    movable = problem.cone.has_role(GAIN, GUARD)
    if not (movable & ~known.strict).any():
        return known, True
    free = _free_directions(problem)
    if free is None or problem.z is None:
        return known, False
    if not free.shape[1]:
        return known, True
    active = np.zeros_like(movable)
    while True:
        remaining = movable & ~known.strict
        if not remaining.any():
            return known, True
        outcome, b = _round(problem, free, remaining, active, deadline)
        if outcome != "found" or b is None:
            return known, outcome == "none"
        cone = polish(problem, b.reshape(known.direction.shape))
        if cone is None or not (cone.strict & remaining).any():
            # an optimum that does not survive the certificate is rounding if it is tiny: the data overlap
            return known, False
        known = join(problem, known, cone)


def _free_directions(problem: Problem) -> Any:
    """Return sparse ``(p, r)`` whose columns span all directions that equalities allow; None if there are too many."""
    import scipy.sparse

    p = problem.n_parameters
    if problem.is_class_table:
        r = p - problem.width  # the last class can be held
        return scipy.sparse.eye_array(p, r, format="csr") if r <= VARIABLES else None
    equal = problem.cone.has_role(EQUAL, HELD)
    if not equal.any():
        return scipy.sparse.eye_array(p, format="csr") if p <= VARIABLES else None
    if p > PROJECTED or problem.z is None:
        return None
    return scipy.sparse.csr_array(null_space(problem, equal))


def _round(problem: Problem, free: Any, remaining: Array, active: Array, deadline: float) -> tuple[str, Array | None]:
    """Return ``"found"`` and a direction, ``"none"`` (the optimum is zero) or ``"undecided"``, adding violated rows."""
    assert problem.z is not None
    cone, z = problem.cone, problem.z
    weight = _sum_of_conditions(problem, remaining)
    parameter, _, factor, place = problem.entries
    gain = free.T @ np.bincount(parameter, factor * (z.T @ weight).ravel()[place], problem.n_parameters)
    peak = float(np.abs(gain).max(initial=0.0))
    if peak <= FLAT * float((np.abs(weight).T @ np.abs(z)).max(initial=0.0)):
        return "none", None  # nonnegative margins whose sum is zero for every direction
    groups = np.full(cone.roles.shape, -1)
    pending = [
        (kind, condition)
        for kind in np.unique(cone.kinds)
        for condition in np.flatnonzero(cone.roles[kind] == GAIN)
        if remaining[cone.kinds == kind, condition].all()
    ]
    for g, (kind, condition) in enumerate(pending):
        groups[kind, condition] = g
    batch = max(500, problem.n_parameters)
    # a least-squares direction, to guess which conditions matter
    ridge = z.T @ z + 1e-6 * problem.n_rows * np.eye(problem.width)
    guess = np.linalg.solve(ridge, z.T @ _sum_of_conditions(problem, cone.has_role(GAIN)))
    _add(problem, active, *margins_of(problem, guess, np.abs(guess)), batch, groups)
    while time.monotonic() < deadline:
        value, solution = _solve(problem, free, active, gain / peak, groups, len(pending), deadline)
        if solution is None:
            return "undecided", None
        if value <= 1e-9:
            return "none", None
        b = np.asarray(free @ solution[: free.shape[1]])
        scores = solution[free.shape[1] :]
        margin, size = margins(problem, b)
        slack = margin
        if len(pending):
            slack = margin - np.where(groups >= 0, scores[np.maximum(groups, 0)], 0.0)[cone.kinds]
        slack[active | ~cone.has_role(GAIN, GUARD)] = 0.0
        if not (slack < -TIE * np.maximum(size, 1.0)).any():
            return "found", b
        _add(problem, active, slack, size, batch, groups)
    return "undecided", None


def _sum_of_conditions(problem: Problem, chosen: Array) -> Array:
    """Return for each row the sum of the chosen conditions on its outputs, ``(N, C)``."""
    cone = problem.cone
    total = np.zeros((problem.n_rows, cone.n_outputs))
    for kind in np.unique(cone.kinds):
        rows = cone.kinds == kind
        total[rows] = (cone.matrices[kind].T @ chosen[rows].T.astype(np.float64)).T
    return total


def _add(problem: Problem, active: Array, slack: Array, size: Array, batch: int, groups: Array) -> None:
    """Mark the most violated conditions, and the worst of each group, as active."""
    relative = slack / np.maximum(size, np.finfo(np.float64).tiny)
    relative[active | ~problem.cone.has_role(GAIN, GUARD)] = np.inf
    flat = relative.ravel()
    chosen = np.argpartition(flat, min(batch, flat.size - 1))[:batch]
    active.ravel()[chosen[flat[chosen] < np.inf]] = True
    for kind, condition in zip(*np.nonzero(groups >= 0), strict=True):
        rows = np.flatnonzero(problem.cone.kinds == kind)
        active[rows[int(slack[rows, condition].argmin())], condition] = True


def _solve(
    problem: Problem, free: Any, active: Array, gain: Array, groups: Array, n_groups: int, deadline: float
) -> tuple[float, Array | None]:
    """Solve the linear program over the active conditions; return its value and solution."""
    import scipy.sparse
    from scipy.optimize import linprog

    assert problem.z is not None
    values, columns, lengths, least = [], [], [], []
    for kind, condition, rows in problem.conditions(active):
        index, factor = problem.on_parameters(kind, condition)
        values.append((-factor * problem.z[rows][:, problem.column[index]]).ravel())
        columns.append(np.tile(index, len(rows)))
        lengths.append(np.full(len(rows), len(index)))
        least.append(np.full(len(rows), groups[kind, condition]))
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    group = np.concatenate(least)
    matrix = scipy.sparse.csr_array(
        (np.concatenate(values), np.concatenate(columns), starts), shape=(len(group), problem.n_parameters)
    )
    grouped = np.flatnonzero(group >= 0)
    minus_least = scipy.sparse.csr_array(
        (np.ones(len(grouped)), (grouped, group[grouped])), shape=(len(group), n_groups)
    )
    matrix = scipy.sparse.hstack([matrix @ free, minus_least], format="csr")
    bounds = np.concatenate([np.tile([-1.0, 1.0], (free.shape[1], 1)), np.tile([0.0, 1.0], (n_groups, 1))])
    result = linprog(
        -np.concatenate([gain, np.full(n_groups, 1.0 / max(n_groups, 1))]),
        A_ub=matrix,
        b_ub=np.zeros(len(group)),
        bounds=bounds,
        method="highs",
        options={
            "time_limit": max(0.05, deadline - time.monotonic()),
            "primal_feasibility_tolerance": 1e-10,
            "dual_feasibility_tolerance": 1e-10,
        },
    )
    return (0.0, None) if result.status != 0 else (-float(result.fun), result.x)
