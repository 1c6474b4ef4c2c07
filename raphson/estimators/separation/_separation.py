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
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from raphson.estimators.separation._classes import class_problem, descend, exclude_absent, saturated
from raphson.estimators.separation._cone import Cone, all_strict, join, polish, sum_cones
from raphson.estimators.separation._cuts import single_columns
from raphson.estimators.separation._finding import Finding, explain
from raphson.estimators.separation._output_cone import output_cone
from raphson.estimators.separation._problem import NUMBERS, VARIABLES, Problem
from raphson.estimators.separation._program import linear_program
from raphson.estimators.separation._remedy import remedy
from raphson.likelihoods import Categorical

Array = NDArray[Any]

SLOW = 200  # coefficients beyond which the linear program is slow enough to try a fit first
_SHARE = 0.3  # of the time that is left: for that fit, and for finding few columns to name


class Separation(NamedTuple):
    """What separates the classes.

    Attributes:
        direction: ``(K, width)`` recession direction of the standardized columns, sums zero over classes; None if
            nothing was found.
        pairs: ``(N, K)`` boolean, the rows and classes with a positive margin between them.
        findings: What separates which classes, most telling first.
        decided: Whether the answer is certain: that a finite estimate exists, or that nothing else is separated.
            False where the problem is too large for the linear program or time ran out.
    """

    direction: Array | None
    pairs: Array
    findings: tuple[Finding, ...]
    decided: bool

    def statements(self) -> list[str]:
        """Return a sentence for each finding."""
        found = [finding.sentence() for finding in self.findings]
        return [text[0].upper() + text[1:] + "." for text in found]

    def remedy(self) -> str:
        """Return what to do about it, as it follows "Remedy: "."""
        absent = bool(self.findings) and all(not f.columns and "no rows" in f.detail for f in self.findings)
        return remedy("absent" if absent else "classes")


def search_separation(
    rows: Problem,
    codes: Array,
    columns: Sequence[str],
    classes: Sequence[str],
    candidate: Array | None,
    deadline: float,
) -> Separation:
    """Return what separates the classes of rows, cheap tests first.

    In turn: classes without rows; as many independent columns as rows; single columns that order the classes
    (one pass over the data, every size); the candidate, a direction ``(K, width)`` in which a fit diverges; the
    linear program, where the design and the margins have at most 2e7 entries each and there are at most 3000 free
    coefficients. Only the columns of ``rows`` count, not its conditions.
    """
    k, (n, d) = len(classes), rows.std.x.shape
    cone = output_cone(Categorical(), torch.from_numpy(codes), k)
    assert cone is not None
    problem = class_problem(rows.std, rows.live, rows.has_ones, cone, rows.z)
    known = sum_cones(problem, [])
    if n * k > 10 * NUMBERS:
        return _report(known, [], False)
    by_rank = saturated(problem)
    if by_rank is not None:
        reason = f"any labels could be fitted: {d + rows.has_ones} coefficients per class for {n} rows"
        return _report(by_rank, [Finding(tuple(classes), (), (), True, n, reason, True)], True)
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
    return _report(known, findings, decided)


def _part_of(deadline: float) -> float:
    """Return an earlier deadline, after a share of the time that is left."""
    now = time.monotonic()
    return now + _SHARE * max(0.0, deadline - now)


def _report(cone: Cone, findings: list[Finding], decided: bool) -> Separation:
    """Return the result with a direction whose coefficients sum to zero over classes."""
    if not cone.strict.any():
        return Separation(None, cone.strict, (), decided)
    direction = cone.direction - cone.direction.mean(0)
    return Separation(direction / np.abs(direction).max(), cone.strict, tuple(findings), decided)
