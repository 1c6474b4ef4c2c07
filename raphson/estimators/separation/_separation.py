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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raphson.estimators._names import listed
from raphson.estimators.separation._classes import (
    Cut,
    class_problem,
    descend,
    exclude_absent,
    saturated,
    single_columns,
)
from raphson.estimators.separation._output_cone import output_cone
from raphson.estimators.separation._problem import (
    NUMBERS,
    TIE,
    VARIABLES,
    Cone,
    Problem,
    all_strict,
    join,
    margins,
    polish,
    sum_cones,
)
from raphson.estimators.separation._program import linear_program
from raphson.likelihoods import Categorical

Array = NDArray[Any]

SLOW = 200  # coefficients beyond which the linear program is slow enough to try a fit first
_SHARE = 0.3  # of the time that is left: for that fit, and for finding few columns to name


@dataclass(frozen=True)
class Finding:
    """One statement of what separates which classes.

    Attributes:
        left: Names of the classes on one side.
        right: Names of those on the other; empty where all classes in ``left`` are separated from each other.
        columns: Names of the columns that carry it, few where a small set was found.
        complete: Whether every row of these classes is on the right side, none on the boundary.
        n_rows: Rows strictly on the right side.
        detail: The rule in words for a single column, or the reason.
        others: Whether ``right`` is every other class.
        jointly: Whether it takes the columns together; otherwise each of them does it.
    """

    left: tuple[str, ...]
    right: tuple[str, ...]
    columns: tuple[str, ...]
    complete: bool
    n_rows: int
    detail: str
    others: bool
    jointly: bool = False

    def sentence(self) -> str:
        """Return the finding in words, without the remedy."""
        many = len(self.left) != 1
        subject = f"classes {listed(self.left)} are" if many else f"class {listed(self.left)} is"
        if not self.right:
            whom = " from each other" if many else ""
        else:
            whom = " from the others" if self.others else f" from {listed(self.right)}"
        how = "completely separated" if self.complete else "partly (quasi-completely) separated"
        by = ""
        if self.columns:
            means = "a combination of " if self.jointly else "each of " if len(self.columns) > 1 else ""
            by = f" by {means}{listed(self.columns)}"
        detail = f" ({self.detail})" if self.detail else ""
        return f"{subject[0].upper()}{subject[1:]} {how}{whom}{by}{detail}."


def explain(
    problem: Problem, known: Cone, cuts: list[Cut], columns: list[str], classes: list[str], deadline: float
) -> list[Finding]:
    """Say what separates which classes: single columns where they do, otherwise a small combination."""
    complete, touched = separated_pairs(problem, known.strict)
    counts = np.bincount(problem.cone.kinds, minlength=problem.cone.n_outputs)
    findings = [
        Finding((classes[k],), (), (), True, 0, "it has no rows of positive weight", True)
        for k in np.flatnonzero(counts == 0)
    ]
    present = counts > 0
    complete &= present[:, None] & present
    touched &= present[:, None] & present
    explained = np.zeros_like(complete)
    partial: dict[tuple[Any, ...], Finding] = {}
    for cut in cuts:
        fixed = present & ~cut.low & ~cut.high
        pairs = _between(cut.low, cut.high) | _between(cut.low | cut.high, fixed)
        if cut.complete and (pairs & complete & ~explained).any():  # else a column with a wider gap has said so
            findings.append(_cut_finding(problem, cut, counts, columns, classes))
            explained |= pairs
        elif not cut.complete and (pairs & touched & ~complete).any():
            new = _cut_finding(problem, cut, counts, columns, classes)
            same = partial.setdefault((new.left, new.right, new.detail), new)
            if same is not new:
                merged = replace(same, columns=same.columns + new.columns, n_rows=max(same.n_rows, new.n_rows))
                partial[new.left, new.right, new.detail] = merged
            explained |= pairs & ~complete
    findings += partial.values()
    for wanted, is_complete in ((complete, True), (touched & ~complete, False)):
        for left, right in _blocks(wanted & ~explained):
            block = (_between(left, right) if right.any() else np.outer(left, left)) & wanted
            findings.append(_combination(problem, known, left, right, block, is_complete, columns, classes, deadline))
    return sorted(findings, key=lambda f: (not f.complete, len(f.columns)))


def _between(left: Array, right: Array) -> Array:
    pairs: Array = np.outer(left, right)
    return pairs | pairs.T


def _cut_finding(problem: Problem, cut: Cut, counts: Array, columns: list[str], classes: list[str]) -> Finding:
    """Describe a cut from the side with fewer classes, the rarer one if they are as many."""
    sides = [np.flatnonzero(cut.low), np.flatnonzero(cut.high)]
    fixed = np.flatnonzero(~cut.low & ~cut.high & (counts > 0))
    lower = len(sides[0]) > 0 and (
        not len(sides[1]) or (len(sides[0]), counts[sides[0]].sum()) <= (len(sides[1]), counts[sides[1]].sum())
    )
    left, right = sides if lower else sides[::-1]
    value = f"{cut.value:.6g}"
    here, there = ("below", "above") if lower else ("above", "below")
    if cut.complete:
        detail = f"every value {here} {value}, the others {there}"
    elif len(right):
        detail = f"no value {there} {value}, the others none {here}"
    elif len(left) <= len(fixed):
        detail = f"values {here} {value} occur in no other class"
    else:
        left, right, fixed = fixed, left, right
        detail = f"always {value}, never {there} in the others"
    right = np.sort(np.concatenate([right, fixed]))
    margin, size = margins(problem, cut.direction)
    n_rows = int((margin > TIE * size)[:, counts > 0].any(1).sum())
    names = tuple(classes[k] for k in left), tuple(classes[k] for k in right)
    others = len(left) + len(right) == len(classes)
    return Finding(*names, (columns[cut.column],), cut.complete, n_rows, detail, others)


def _blocks(pairs: Array) -> list[tuple[Array, Array]]:
    """Return a symmetric relation of classes as pairs of masks, each of the first with each of the second.

    Where the second mask is empty it is each of the first with every other of them.
    """
    rest = pairs.copy()
    blocks: list[tuple[Array, Array]] = []
    while rest.any():
        involved = rest.any(0)
        if involved.sum() > 2 and rest.sum() == involved.sum() * (involved.sum() - 1):
            blocks.append((np.asarray(involved), np.zeros_like(involved)))
            break
        right: Array = rest[int(rest.sum(1).argmax())].copy()
        left: Array = np.all(rest == right, axis=1)
        blocks.append((left, right) if left.sum() <= right.sum() else (right, left))
        rest &= ~_between(*blocks[-1])
    return blocks


def _combination(
    problem: Problem,
    known: Cone,
    left: Array,
    right: Array,
    wanted: Array,
    complete: bool,
    columns: list[str],
    classes: list[str],
    deadline: float,
) -> Finding:
    """Describe pairs of classes that only several columns together separate, by few if time allows."""
    n_rows = int((known.strict & wanted[problem.cone.kinds]).any(1).sum())
    kept = _few_columns(problem, known, wanted, complete, deadline)
    names = tuple(classes[k] for k in np.flatnonzero(left)), tuple(classes[k] for k in np.flatnonzero(right))
    others = bool(left.sum() + right.sum() == len(classes))
    used = tuple(columns[problem.live[c]] for c in kept)
    return Finding(*names, used, complete, n_rows, "", others, jointly=len(used) > 1)


def _few_columns(problem: Problem, known: Cone, wanted: Array, complete: bool, deadline: float) -> list[int]:
    """Drop columns, the least weighty first and in shrinking groups, while the pairs stay separated."""
    first = int(problem.has_ones)
    weight = np.abs(known.direction - known.direction.mean(0)).max(0)[first:]
    kept = [int(c) for c in np.argsort(-weight) if weight[c] > 0]
    if problem.z is None or (problem.cone.n_outputs - 1) * problem.width > VARIABLES:
        return kept
    chunk = max(1, len(kept) // 2)
    end = len(kept)
    while chunk and time.monotonic() < deadline:
        start = max(0, end - chunk)
        trial = kept[:start] + kept[end:]
        if trial and _still_separates(problem, trial, wanted, complete, deadline):
            kept, end = trial, start
        else:
            end = start
        if end <= 0:
            end, chunk = len(kept), chunk // 2
    return kept


def _still_separates(problem: Problem, columns: list[int], wanted: Array, complete: bool, deadline: float) -> bool:
    """Return whether the given columns alone separate the wanted pairs of classes, as completely as asked."""
    assert problem.z is not None
    first = int(problem.has_ones)
    chosen = np.concatenate([np.arange(first), np.array(columns) + first])
    live, z = problem.live[columns], problem.z[:, chosen]
    small = class_problem(problem.std, live, problem.has_ones, problem.cone, z)
    found, _ = linear_program(small, exclude_absent(small, sum_cones(small, [])), deadline)
    every, some = separated_pairs(small, found.strict)
    return bool((every if complete else some)[wanted].all())


def separated_pairs(problem: Problem, strict: Array) -> tuple[Array, Array]:
    """Return which pairs of classes are separated completely and at all, both symmetric."""
    k = problem.cone.n_outputs
    every, some = np.zeros((k, k), dtype=bool), np.zeros((k, k), dtype=bool)
    for a in range(k):
        rows = strict[problem.cone.kinds == a]
        every[a], some[a] = rows.all(0), rows.any(0)
    np.fill_diagonal(every, False)
    return every & every.T, some | some.T


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
