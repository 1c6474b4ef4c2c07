r"""Separation of classes by the columns of a linear categorical model, by name.

The maximum likelihood estimate of a multinomial logit is infinite along every recession direction: a table
:math:`B` with :math:`(b_{y_i} - b_k)^T \hat x_i \ge 0` for every row :math:`i` and class :math:`k`, not all
zero (Albert and Anderson 1984). A pair :math:`(i, k)` whose margin is positive for some such :math:`B` is
separated; all pairs positive at once is complete separation, anything less quasi-complete. Whether there is
such a direction is a linear program (Konis 2007).

A direction counts only once it is certified: its margins are recomputed from the rows, and none may be
negative beyond rounding. Everything runs on standardized columns and answers in the original ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson.estimators._names import listed
from raphson.estimators.separation._recession import (
    FLAT,
    NUMBERS,
    PROJECTED,
    SLOW,
    TIE,
    VARIABLES,
    Cone,
    Data,
    all_strict,
    certified,
    descend,
    exclude_absent,
    flat_space,
    join,
    linear_program,
    margins,
    original_direction,
    polish,
    prepare,
    saturated,
    standard_direction,
    sum_cones,
)

Array = NDArray[Any]


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
        return f"{subject} {how}{whom}{by}{detail}"


@dataclass(frozen=True)
class Separation:
    """What separates the classes, and which coefficients are infinite for it.

    Attributes:
        kind: ``"complete"`` if every row is strictly on the right side of every comparison, else ``"quasi"``.
        direction: ``(K, D + has_intercept)`` recession direction in units of ``X``, sums zero over classes.
        rows: ``(N,)`` boolean, the rows with a positive margin against some class.
        complete_pairs: ``(K, K)`` boolean, symmetric: every row of either class is separated from the other.
        touched_pairs: ``(K, K)`` boolean and symmetric: some row is.
        findings: What separates which classes, most telling first.
        exact: Whether the linear program decided that nothing else is separated; otherwise there may be more.
        generic: ``(K, D + has_intercept)`` generic element of the span of all recession directions, less what
            leaves every prediction unchanged; zero where an estimate stays finite.
    """

    kind: Literal["complete", "quasi"]
    direction: Tensor
    rows: Tensor
    complete_pairs: Tensor
    touched_pairs: Tensor
    findings: tuple[Finding, ...]
    exact: bool
    generic: Tensor

    @property
    def n_rows(self) -> int:
        """Number of separated rows."""
        return int(self.rows.sum())

    def diverging(self, reference: int | None = None) -> Tensor:
        """Return which coefficients have no finite maximum likelihood estimate.

        Certain when ``exact`` is True and the table has at most 1200 entries; a larger table marks what the
        direction found happens to use, which may be too few. With collinear columns this speaks of the
        minimum-norm estimate in standardized columns.

        Args:
            reference: Class that coefficients are relative to; None where they sum to zero over classes.

        Returns:
            Boolean ``(K, D + has_intercept)``.
        """
        if reference is None:
            return self.generic != 0
        base = self.generic[reference]
        return (self.generic - base).abs() > 1e-7 * (self.generic.abs() + base.abs())

    def sentences(self, limit: int = 5) -> list[str]:
        """Return one message per finding, the consequence and the remedy in the last.

        Args:
            limit: Most findings to describe.

        Returns:
            The messages.
        """
        found = [finding.sentence() for finding in self.findings[:limit]]
        found = [text[0].upper() + text[1:] + "." for text in found]
        if len(self.findings) > limit:
            found.append(f"{len(self.findings) - limit} more such statements are not listed.")
        absent = self.findings and all(not f.columns and "no rows" in f.detail for f in self.findings)
        remedy = "drop the class" if absent else "add a penalty (l2=1e-3), merge the class or drop the column"
        found.append(f"The coefficients concerned have no finite maximum likelihood estimate. Remedy: {remedy}.")
        return found

    def sentence(self) -> str:
        """Return ``sentences()`` as one text."""
        return " ".join(self.sentences())


class Search(NamedTuple):
    """Outcome of looking for separation.

    Attributes:
        separation: What was found, or None.
        decided: Whether the answer is certain: with None, that a finite estimate exists; otherwise, that
            nothing else is separated. False where the problem is too large for the linear program or time
            ran out.
    """

    separation: Separation | None
    decided: bool


def find_separation(
    x: Any,
    y: Any,
    n_classes: int,
    weights: Any = None,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    has_intercept: bool = True,
    *,
    candidate: Any = None,
    time_limit: float = 10.0,
) -> Separation | None:
    """Return what separates the classes, or None if nothing was found; see ``search_separation``.

    Args:
        x: ``(N, D)`` finite tensor, array or CSR matrix, without the column of ones.
        y: ``(N,)`` class codes in ``0 .. n_classes - 1``.
        n_classes: K, at least 2 for anything to be separated.
        weights: ``(N,)`` or None; rows of weight zero do not count.
        names: ``D`` column names.
        class_names: K class names.
        has_intercept: Whether the model adds a column of ones.
        candidate: ``(K, D + has_intercept)`` direction in which a fit diverges, say its last Newton step.
        time_limit: Seconds after which the search stops with what it has.

    Returns:
        The separation or None.
    """
    arguments = (x, y, n_classes, weights, names, class_names, has_intercept)
    return search_separation(*arguments, candidate=candidate, time_limit=time_limit).separation


def search_separation(
    x: Any,
    y: Any,
    n_classes: int,
    weights: Any = None,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    has_intercept: bool = True,
    *,
    candidate: Any = None,
    time_limit: float = 10.0,
) -> Search:
    """Look for separation, cheap tests first, and say whether the answer is certain.

    In turn: classes without rows; as many independent columns as rows; single columns that order the classes
    (one pass over the data, every size); the candidate; the linear program, where the design and the margins
    have at most 2e7 entries each and there are at most 3000 free coefficients.

    Args:
        x: ``(N, D)`` finite tensor, array or CSR matrix, without the column of ones.
        y: ``(N,)`` class codes in ``0 .. n_classes - 1``.
        n_classes: K.
        weights: ``(N,)`` or None; rows of weight zero do not count.
        names: ``D`` column names.
        class_names: K class names.
        has_intercept: Whether the model adds a column of ones.
        candidate: ``(K, D + has_intercept)`` direction in which a fit diverges, say its last Newton step.
        time_limit: Seconds after which the search stops with what it has.

    Returns:
        The separation, if any, and whether that is certain.
    """
    deadline = time.monotonic() + time_limit
    data, keep = prepare(x, y, n_classes, weights, has_intercept)
    n, d = data.std.x.shape
    if n_classes < 2 or n == 0:
        return Search(None, True)
    columns = [str(name) for name in names] if names is not None else [f"x{j}" for j in range(d)]
    classes = [str(c) for c in class_names] if class_names is not None else [str(k) for k in range(n_classes)]
    if n * n_classes > 10 * NUMBERS:
        return Search(None, False)
    by_rank = saturated(data)
    if by_rank is not None:
        reason = f"any labels could be fitted: {d + has_intercept} coefficients per class for {n} rows"
        finding = Finding(tuple(classes), (), (), True, n, reason, True)
        return Search(_report(data, keep, by_rank, [finding], True), True)
    cuts = _single_columns(data)
    known = sum_cones(data, [cut.direction for cut in cuts])
    known = exclude_absent(data, known)
    if candidate is not None and len(data.live):
        known = join(data, known, polish(data, standard_direction(data, candidate)))
    if not all_strict(known) and data.z is not None and n_classes * data.width > SLOW:
        known = join(data, known, descend(data, min(deadline, time.monotonic() + 0.3 * time_limit)))
    decided = all_strict(known)
    if not decided and data.z is not None and (n_classes - 1) * data.width <= VARIABLES:
        known, decided = linear_program(data, known, deadline)
    if not known.strict.any():
        return Search(None, decided)
    explanation_end = min(deadline, time.monotonic() + 0.3 * time_limit)
    findings = _explain(data, known, cuts, columns, classes, explanation_end)
    return Search(_report(data, keep, known, findings, decided), decided)


def certify(direction: Any, x: Any, y: Any, weights: Any = None, has_intercept: bool = True) -> Tensor | None:
    """Check a direction of recession on the rows themselves.

    Margins are computed on standardized columns and compared with 1e-9 times the sum of their absolute terms.

    Args:
        direction: ``(K, D + has_intercept)`` in the units of ``X``, intercept first.
        x: ``(N, D)`` tensor, array or CSR matrix.
        y: ``(N,)`` class codes.
        weights: ``(N,)`` or None; rows of weight zero do not count.
        has_intercept: Whether the first column of ``direction`` is the intercept.

    Returns:
        ``(N, K)`` boolean: the pairs of row and class with a positive margin; None if a margin is negative or
        none is positive.
    """
    data, keep = prepare(x, y, len(direction), weights, has_intercept)
    strict = certified(data, standard_direction(data, direction))
    if strict is None:
        return None
    everywhere = np.zeros((len(keep), len(direction)), dtype=bool)
    everywhere[keep] = strict
    return torch.from_numpy(everywhere)


class _Cut(NamedTuple):
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


def _ranges(data: Data) -> tuple[Array, Array]:
    """Return the least and greatest value of each column in each class, ``(K, D)`` each; NaN without rows."""
    x, d = data.std.x, data.std.x.shape[1]
    low, high = np.full((2, data.n_classes, d), np.nan)
    for k in np.unique(data.y):
        rows = x[data.y == k]
        least, most = rows.min(axis=0), rows.max(axis=0)
        sparse = hasattr(rows, "tocsr")
        low[k] = least.toarray().ravel() if sparse else least
        high[k] = most.toarray().ravel() if sparse else most
    return low, high


def _single_columns(data: Data) -> list[_Cut]:
    """Find every column that on its own puts some classes at or below a value and the others at or above it.

    With one column and an intercept the scores are lines, and their upper envelope gives each group of
    classes an interval: this finds all separation there is by a single column.

    Returns:
        The cuts, complete ones with the widest gap first.
    """
    least, most = _ranges(data)
    present = np.bincount(data.y, minlength=data.n_classes) > 0
    cuts = []
    for position, j in enumerate(data.live):
        low, high = least[:, j], most[:, j]
        order = np.flatnonzero(present)[np.lexsort((high[present], low[present]))]
        tops, bottoms = np.maximum.accumulate(high[order])[:-1], low[order][1:]
        if data.std.has_intercept:
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
            b = _cut_direction(data, position, below, above, float(value))
            cuts.append(_Cut(int(j), below, above, complete, gap / data.std.scale[j], float(value), b))
    return sorted(cuts, key=lambda c: (not c.complete, -c.gap))


def _cut_direction(data: Data, position: int, below: Array, above: Array, value: float) -> Array:
    """Return the direction of one cut: scores that fall, stay and rise, and meet at the value."""
    first, j = int(data.std.has_intercept), int(data.live[position])
    b = np.zeros((data.n_classes, data.width))
    b[:, first + position] = 0.5 * above - 0.5 * below
    if first:
        boundary = (value - data.std.reference[j]) / data.std.scale[j] - data.std.shift[j]
        b[:, 0] = -b[:, first + position] * boundary
    return b


def _pairs(data: Data, strict: Array) -> tuple[Array, Array]:
    """Return which pairs of classes are separated completely and at all, both symmetric."""
    k = data.n_classes
    every, some = np.zeros((k, k), dtype=bool), np.zeros((k, k), dtype=bool)
    for a in range(k):
        rows = strict[data.y == a]
        every[a], some[a] = rows.all(0), rows.any(0)
    np.fill_diagonal(every, False)
    return every & every.T, some | some.T


def _explain(
    data: Data, known: Cone, cuts: list[_Cut], columns: list[str], classes: list[str], deadline: float
) -> list[Finding]:
    """Say what separates which classes: single columns where they do, otherwise a small combination."""
    complete, touched = _pairs(data, known.strict)
    counts = np.bincount(data.y, minlength=data.n_classes)
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
            findings.append(_cut_finding(data, cut, counts, columns, classes))
            explained |= pairs
        elif not cut.complete and (pairs & touched & ~complete).any():
            new = _cut_finding(data, cut, counts, columns, classes)
            same = partial.setdefault((new.left, new.right, new.detail), new)
            if same is not new:
                merged = replace(same, columns=same.columns + new.columns, n_rows=max(same.n_rows, new.n_rows))
                partial[new.left, new.right, new.detail] = merged
            explained |= pairs & ~complete
    findings += partial.values()
    for wanted, is_complete in ((complete, True), (touched & ~complete, False)):
        for left, right in _blocks(wanted & ~explained):
            block = (_between(left, right) if right.any() else np.outer(left, left)) & wanted
            findings.append(_combination(data, known, left, right, block, is_complete, columns, classes, deadline))
    return sorted(findings, key=lambda f: (not f.complete, len(f.columns)))


def _between(left: Array, right: Array) -> Array:
    pairs: Array = np.outer(left, right)
    return pairs | pairs.T


def _cut_finding(data: Data, cut: _Cut, counts: Array, columns: list[str], classes: list[str]) -> Finding:
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
    margin, size = margins(data, cut.direction)
    n_rows = int((margin > TIE * size)[:, counts > 0].any(1).sum())
    names = tuple(classes[k] for k in left), tuple(classes[k] for k in right)
    others = len(left) + len(right) == len(classes)
    return Finding(*names, (columns[cut.column],), cut.complete, n_rows, detail, others)


def _blocks(pairs: Array) -> list[tuple[Array, Array]]:
    """Split a symmetric relation between classes into statements "each of these with each of those".

    Returns:
        Masks of the two sides; an empty second one means all of the first with each other.
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
    data: Data,
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
    n_rows = int((known.strict & wanted[data.y]).any(1).sum())
    kept = _few_columns(data, known, wanted, complete, deadline)
    names = tuple(classes[k] for k in np.flatnonzero(left)), tuple(classes[k] for k in np.flatnonzero(right))
    others = bool(left.sum() + right.sum() == len(classes))
    used = tuple(columns[data.live[c]] for c in kept)
    return Finding(*names, used, complete, n_rows, "", others, jointly=len(used) > 1)


def _few_columns(data: Data, known: Cone, wanted: Array, complete: bool, deadline: float) -> list[int]:
    """Drop columns, the least weighty first and in shrinking groups, while the pairs stay separated."""
    first = int(data.std.has_intercept)
    weight = np.abs(known.direction - known.direction.mean(0)).max(0)[first:]
    kept = [int(c) for c in np.argsort(-weight) if weight[c] > 0]
    if data.z is None or (data.n_classes - 1) * data.width > VARIABLES:
        return kept
    chunk = max(1, len(kept) // 2)
    end = len(kept)
    while chunk and time.monotonic() < deadline:
        start = max(0, end - chunk)
        trial = kept[:start] + kept[end:]
        if trial and _still_separates(data, trial, wanted, complete, deadline):
            kept, end = trial, start
        else:
            end = start
        if end <= 0:
            end, chunk = len(kept), chunk // 2
    return kept


def _still_separates(data: Data, columns: list[int], wanted: Array, complete: bool, deadline: float) -> bool:
    """Return whether the given columns alone separate the wanted pairs of classes, as completely as asked."""
    assert data.z is not None
    first = int(data.std.has_intercept)
    chosen = np.concatenate([np.arange(first), np.array(columns) + first])
    small = data._replace(live=data.live[columns], z=data.z[:, chosen])
    found, _ = linear_program(small, exclude_absent(small, sum_cones(small, [])), deadline)
    every, some = _pairs(small, found.strict)
    return bool((every if complete else some)[wanted].all())


def _report(data: Data, keep: Array, cone: Cone, findings: list[Finding], exact: bool) -> Separation:
    """Assemble the result in the units and the rows that were given."""
    complete, touched = _pairs(data, cone.strict)
    everything = all_strict(cone)
    rows = np.zeros(len(keep), dtype=bool)
    rows[keep] = cone.strict.any(1)
    direction = cone.direction - cone.direction.mean(0)
    direction = direction / np.abs(direction).max()
    generic = _generic(data, cone.strict, direction, everything)
    return Separation(
        kind="complete" if everything else "quasi",
        direction=torch.from_numpy(original_direction(data, direction)),
        rows=torch.from_numpy(rows),
        complete_pairs=torch.from_numpy(complete),
        touched_pairs=torch.from_numpy(touched),
        findings=tuple(findings),
        exact=exact,
        generic=torch.from_numpy(original_direction(data, generic)),
    )


def _generic(data: Data, strict: Array, direction: Array, everything: bool) -> Array:
    """Return a generic element of the span of all directions, orthogonal to what changes no prediction.

    At a relative interior point of the cone exactly the pairs never separated have margin zero, so that the
    span is the space where those margins vanish. A random vector projected on it is nonzero wherever some
    direction is.

    Returns:
        ``(K, width)``.
    """
    if data.z is None or (not everything and data.n_classes * data.width > PROJECTED):
        return direction
    table = np.random.default_rng(0).standard_normal(direction.shape)
    table -= table.mean(0)
    if data.width > PROJECTED:
        return table
    values, vectors = np.linalg.eigh(data.z.T @ data.z)
    seen = vectors[:, values > FLAT * values[-1] * data.width]
    table = np.asarray(table @ seen @ seen.T)
    if everything:
        return table
    flat = flat_space(data, ~strict)
    projected: Array = flat @ (flat.T @ table.ravel())
    return projected.reshape(table.shape)
