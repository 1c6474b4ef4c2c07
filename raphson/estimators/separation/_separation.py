r"""Separation of classes by the columns of a linear categorical model, by name.

The maximum likelihood estimate of a multinomial logit is infinite along every recession direction: a table
:math:`B` with :math:`(b_{y_i} - b_k)^T \hat x_i \ge 0` for every row :math:`i` and class :math:`k`, not all
zero (Albert and Anderson 1984). A pair :math:`(i, k)` whose margin is positive for some such :math:`B` is
separated; all pairs positive at once is complete separation, anything less quasi-complete. Whether there is
such a direction is a linear program (Konis 2007).

A direction counts only once it is certified: its margins are recomputed from the rows, and none may be
negative beyond rounding. Everything runs on standardized columns, whatever the units.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from raphson.estimators.separation._classes import class_problem, descend, exclude_absent, saturated
from raphson.estimators.separation._cone import Cone, all_strict, join, polish, sum_cones
from raphson.estimators.separation._cuts import single_columns
from raphson.estimators.separation._finding import Finding, explain
from raphson.estimators.separation._output_cone import output_cone
from raphson.estimators.separation._problem import NUMBERS, VARIABLES, Problem
from raphson.estimators.separation._program import linear_program
from raphson.likelihoods import Categorical

Array = NDArray[Any]

SLOW = 200  # coefficients beyond which the linear program is slow enough to try a fit first
_SHARE = 0.3  # of the time that is left: for that fit, and for finding few columns to name


def search_separation(
    rows: Problem,
    codes: Array,
    columns: Sequence[str],
    classes: Sequence[str],
    candidate: Array | None,
    deadline: float,
) -> tuple[Cone, list[Finding], bool]:
    """Return what separates the classes of rows, in words, and whether nothing else does; cheap tests first.

    In turn: classes without rows; as many independent columns as rows; single columns that order the classes
    (one pass over the data, every size); the candidate, a direction ``(K, width)`` in which a fit diverges; the
    linear program, where the design and the margins have at most 2e7 entries each and there are at most 3000 free
    coefficients. Only the columns of ``rows`` count, not its conditions. The direction found is ``(K, width)``.
    """
    k, (n, d) = len(classes), rows.std.x.shape
    cone = output_cone(Categorical(), torch.from_numpy(codes), k)
    assert cone is not None
    problem = class_problem(rows.std, rows.live, rows.has_ones, cone, rows.z)
    known = sum_cones(problem, [])
    if n * k > 10 * NUMBERS:
        return known, [], False
    by_rank = saturated(problem)
    if by_rank is not None:
        reason = f"any labels could be fitted: {d + rows.has_ones} coefficients per class for {n} rows"
        return by_rank, [Finding(tuple(classes), (), (), True, n, reason, True)], True
    cuts = single_columns(problem)
    known = exclude_absent(problem, sum_cones(problem, [cut.direction for cut in cuts]))
    if candidate is not None and len(problem.live):
        known = join(problem, known, polish(problem, candidate))
    if not all_strict(problem, known) and problem.z is not None and k * problem.width > SLOW:
        known = join(problem, known, descend(problem, _part_of(deadline)))
    decided = all_strict(problem, known)
    if not decided and problem.z is not None and (k - 1) * problem.width <= VARIABLES:
        known, decided = linear_program(problem, known, deadline)
    some = known.strict.any()
    findings = explain(problem, known, cuts, list(columns), list(classes), _part_of(deadline)) if some else []
    return known, findings, decided


def _part_of(deadline: float) -> float:
    """Return an earlier deadline, after a share of the time that is left."""
    now = time.monotonic()
    return now + _SHARE * max(0.0, deadline - now)
