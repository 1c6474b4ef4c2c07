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
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson.estimators.separation._classes import (
    descend,
    exclude_absent,
    original_direction,
    prepare,
    saturated,
    standard_direction,
)
from raphson.estimators.separation._cone import Cone, all_strict, join, polish, sum_cones
from raphson.estimators.separation._cuts import single_columns
from raphson.estimators.separation._finding import Finding, explain, separated_pairs
from raphson.estimators.separation._problem import (
    FLAT,
    NUMBERS,
    PROJECTED,
    ROUNDING,
    VARIABLES,
    Problem,
    certified,
    flat_space,
)
from raphson.estimators.separation._program import linear_program
from raphson.estimators.separation._remedy import remedy

Array = NDArray[Any]

SLOW = 200  # coefficients beyond which the linear program is slow enough to try a fit first


@dataclass(frozen=True)
class Separation:
    """What separates the classes, and which coefficients are infinite for it.

    Attributes:
        kind: ``"complete"`` if every row is strictly on the right side of every comparison, else ``"quasi"``.
        direction: ``(K, D + has_intercept)`` recession direction in units of ``X``, sums zero over classes.
        pairs: ``(N, K)`` boolean, the rows and classes with a positive margin between them.
        complete_pairs: ``(K, K)`` boolean, symmetric: every row of either class is separated from the other.
        touched_pairs: ``(K, K)`` boolean and symmetric: some row is.
        findings: What separates which classes, most telling first.
        exact: Whether the linear program decided that nothing else is separated; otherwise there may be more.
        generic: ``(K, D + has_intercept)`` generic element of the span of all recession directions, less what
            leaves every prediction unchanged; zero where an estimate stays finite.
    """

    kind: Literal["complete", "quasi"]
    direction: Tensor
    pairs: Tensor
    complete_pairs: Tensor
    touched_pairs: Tensor
    findings: tuple[Finding, ...]
    exact: bool
    generic: Tensor

    @property
    def rows(self) -> Tensor:
        """``(N,)`` boolean, the rows with a positive margin against some class."""
        return self.pairs.any(1)

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
        return (self.generic - base).abs() > ROUNDING * (self.generic.abs() + base.abs())

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
        found.append(f"The coefficients concerned have no finite maximum likelihood estimate. Remedy: {self.remedy()}.")
        return found

    def remedy(self) -> str:
        """Return what to do about it, as it follows "Remedy: "."""
        absent = bool(self.findings) and all(not f.columns and "no rows" in f.detail for f in self.findings)
        return remedy("absent" if absent else "classes")

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
    problem, keep = prepare(x, y, n_classes, weights, has_intercept)
    n, d = problem.std.x.shape
    if n_classes < 2 or n == 0:
        return Search(None, True)
    columns = [str(name) for name in names] if names is not None else [f"x{j}" for j in range(d)]
    classes = [str(c) for c in class_names] if class_names is not None else [str(k) for k in range(n_classes)]
    if n * n_classes > 10 * NUMBERS:
        return Search(None, False)
    by_rank = saturated(problem)
    if by_rank is not None:
        reason = f"any labels could be fitted: {d + has_intercept} coefficients per class for {n} rows"
        finding = Finding(tuple(classes), (), (), True, n, reason, True)
        return Search(_report(problem, keep, by_rank, [finding], True), True)
    cuts = single_columns(problem)
    known = sum_cones(problem, [cut.direction for cut in cuts])
    known = exclude_absent(problem, known)
    if candidate is not None and len(problem.live):
        known = join(problem, known, polish(problem, standard_direction(problem, candidate)))
    if not all_strict(problem, known) and problem.z is not None and n_classes * problem.width > SLOW:
        known = join(problem, known, descend(problem, min(deadline, time.monotonic() + 0.3 * time_limit)))
    decided = all_strict(problem, known)
    if not decided and problem.z is not None and (n_classes - 1) * problem.width <= VARIABLES:
        known, decided = linear_program(problem, known, deadline)
    if not known.strict.any():
        return Search(None, decided)
    explanation_end = min(deadline, time.monotonic() + 0.3 * time_limit)
    findings = explain(problem, known, cuts, columns, classes, explanation_end)
    return Search(_report(problem, keep, known, findings, decided), decided)


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
    problem, keep = prepare(x, y, len(direction), weights, has_intercept)
    strict = certified(problem, standard_direction(problem, direction))
    if strict is None:
        return None
    everywhere = np.zeros((len(keep), len(direction)), dtype=bool)
    everywhere[keep] = strict
    return torch.from_numpy(everywhere)


def _report(problem: Problem, keep: Array, cone: Cone, findings: list[Finding], exact: bool) -> Separation:
    """Assemble the result in the units and the rows that were given."""
    complete, touched = separated_pairs(problem, cone.strict)
    everything = all_strict(problem, cone)
    pairs = np.zeros((len(keep), problem.cone.n_outputs), dtype=bool)
    pairs[keep] = cone.strict
    direction = cone.direction - cone.direction.mean(0)
    direction = direction / np.abs(direction).max()
    generic = _generic(problem, cone.strict, direction, everything)
    return Separation(
        kind="complete" if everything else "quasi",
        direction=torch.from_numpy(original_direction(problem, direction)),
        pairs=torch.from_numpy(pairs),
        complete_pairs=torch.from_numpy(complete),
        touched_pairs=torch.from_numpy(touched),
        findings=tuple(findings),
        exact=exact,
        generic=torch.from_numpy(original_direction(problem, generic)),
    )


def _generic(problem: Problem, strict: Array, direction: Array, everything: bool) -> Array:
    """Return a generic element of the span of all directions, orthogonal to what changes no prediction.

    At a relative interior point of the cone exactly the pairs never separated have margin zero, so that the
    span is the space where those margins vanish. A random vector projected on it is nonzero wherever some
    direction is.

    Returns:
        ``(K, width)``.
    """
    if problem.z is None or (not everything and problem.cone.n_outputs * problem.width > PROJECTED):
        return direction
    table = np.random.default_rng(0).standard_normal(direction.shape)
    table -= table.mean(0)
    if problem.width > PROJECTED:
        return table
    values, vectors = np.linalg.eigh(problem.z.T @ problem.z)
    seen = vectors[:, values > FLAT * values[-1] * problem.width]
    table = np.asarray(table @ seen @ seen.T)
    if everything:
        return table
    flat = flat_space(problem, ~strict)
    projected: Array = flat @ (flat.T @ table.ravel())
    return projected.reshape(table.shape)
