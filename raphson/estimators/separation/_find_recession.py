r"""Whether coefficients have no finite maximum likelihood estimate, for every likelihood whose cones are known.

A linear program decides whether the log-likelihood of a linear model has a direction of recession; penalties and
offsets play no part.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson.estimators._names import INTERCEPT
from raphson.estimators.separation._limit import find_ways, limiting_model, recession_span
from raphson.estimators.separation._output_cone import EQUAL, GAIN, output_cone
from raphson.estimators.separation._parameters import Parameters
from raphson.estimators.separation._problem import (
    NUMBERS,
    Cone,
    Problem,
    all_strict,
    certified,
    join,
    polish,
    sum_cones,
)
from raphson.estimators.separation._program import linear_program
from raphson.estimators.separation._recession import Recession
from raphson.estimators.separation._remedy import REMEDIES
from raphson.estimators.separation._separation import search_separation
from raphson.estimators.separation._single_parameter import single_directions, statements
from raphson.estimators.separation._standardize import as_numpy, as_rows
from raphson.likelihoods import Likelihood
from raphson.linear import OutputMap

Array = NDArray[Any]


class RecessionSearch(NamedTuple):
    """Outcome of looking for directions of recession.

    Attributes:
        status: ``"found"``; ``"none"``: proved that every estimate is finite (with collinear columns, every estimable
            one); ``"undecided"``: the likelihood's cones are not known, the problem is too large or time ran out.
        recession: What was found, or None.
    """

    status: Literal["found", "none", "undecided"]
    recession: Recession | None


class _Question(NamedTuple):
    """What ``find_recession`` was asked; ``varying`` are the parameters of columns that vary, which the problem has."""

    problem: Problem
    parameters: Parameters
    varying: Array
    names: tuple[tuple[str, str], ...]
    target_names: Sequence[str] | None
    candidate: Array | None
    deadline: float


_Evidence = tuple[Cone, bool, list[str], str]
"""A certified direction, whether nothing else is separated, what to say, and the remedy."""


def find_recession(
    x: Any,
    y: Tensor,
    likelihood: Likelihood,
    output_map: OutputMap,
    weights: Any = None,
    labels: Sequence[tuple[str, str]] | None = None,
    target_names: Sequence[str] | None = None,
    *,
    candidate: Any = None,
    time_limit: float = 10.0,
) -> RecessionSearch:
    """Decide whether the log-likelihood of a linear model rises for ever, and which coefficients diverge with it.

    In turn: single columns, the candidate, and a linear program whose rows are added as they are violated. Counts
    first restrict directions to those that leave rows with positive counts as they are, at the cost of one Gram
    matrix, ``N p^2``; mostly that leaves none. The linear program is tried up to 2e7 entries of the design, and up to
    3000 free coefficients, 1200 where some rows ask for equality. What is found is certified on the rows themselves.

    Only the mean's part of a model is decided: a dispersion at the edge of its range is another matter.

    Args:
        x: ``(N, D)`` finite tensor, array or CSR matrix, without the column of ones.
        y: Targets as the likelihood takes them.
        likelihood: The likelihood.
        output_map: Which of its p parameters enter which outputs.
        weights: ``(N,)`` or None; rows of weight zero do not count.
        labels: ``(output, column)`` of the parameters, in the map's order.
        target_names: Names of classes or levels.
        candidate: ``(p,)`` direction in which a fit diverges, say its last Newton step.
        time_limit: Seconds after which the search stops with what it has.

    Returns:
        The outcome.

    Examples:
        Where x is 1 all counts are zero: its coefficient is infinite, the intercept is not.

        >>> import torch
        >>> from raphson.likelihoods import Poisson
        >>> from raphson.linear import OutputMap
        >>> own = torch.eye(1, dtype=torch.float64)
        >>> x, y = torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.tensor([2, 3, 0, 0])
        >>> find_recession(x, y, Poisson(), OutputMap.of_columns(own, [own])).recession.names
        (('log_mean', 'x0'),)
    """
    deadline = time.monotonic() + time_limit
    rows, keep = as_rows(x, weights)
    if not keep.any():
        return RecessionSearch("none", None)
    parameters = Parameters.of(output_map)
    cone = output_cone(likelihood, y[torch.from_numpy(keep).to(y.device)], parameters.n_outputs)
    if cone is None or parameters.loading.size > NUMBERS:
        return RecessionSearch("undecided", None)
    names = tuple(labels) if labels is not None else _default_labels(parameters, likelihood)
    problem, varying = parameters.problem(rows, cone)
    problem = problem.with_design()
    theta = None
    if candidate is not None:
        given = as_numpy(candidate).astype(np.float64).reshape(-1, 1)
        theta = parameters.to_standardized(problem.std, varying, given)[:, 0]
    question = _Question(problem, parameters, varying, names, target_names, theta, deadline)
    by_class = cone.is_label and parameters.is_class_table
    known, decided, text, remedy = _search_classes(question) if by_class else _search(question)
    gains = known.strict & cone.has_role(GAIN)
    if not gains.any():
        return RecessionSearch("none" if decided else "undecided", None)
    separated = np.zeros(len(keep), dtype=bool)
    separated[keep] = gains.any(1)
    span, flat = recession_span(problem, known)
    table = parameters.to_table(problem.std, varying, np.column_stack([known.direction, span]))
    ways = find_ways(problem, span, table[:, 1:], table[:, 0], deadline)
    limit = None
    if flat is not None:
        unchanged = parameters.to_table(problem.std, varying, flat)
        limit = limiting_model(cone, known, keep, parameters, problem.std, table[:, 1:], unchanged)
    complete = all_strict(problem, known) and not cone.has_role(EQUAL).any()
    recession = Recession(
        kind="complete" if complete else "quasi-complete",
        rows=torch.from_numpy(separated),
        labels=names,
        diverging=torch.from_numpy((table[:, 1:] != 0).any(1)),
        direction=torch.from_numpy(table[:, 0] / np.abs(table[:, 0]).max()),
        span=torch.from_numpy(table[:, 1:]),
        ways=torch.from_numpy(ways),
        limit=limit,
        is_exact=decided,
        statements=tuple(text),
        remedy=remedy,
    )
    return RecessionSearch("found", recession)


def _search(question: _Question) -> _Evidence:
    """Look along single parameters, then along the candidate, then by the linear program."""
    problem, parameters, varying, names, target_names, candidate, deadline = question
    known = sum_cones(problem, [])
    if problem.z is None:
        return known, False, [], REMEDIES["rows"]
    of_ones = np.flatnonzero(np.isin(varying, parameters.of_ones))
    shares = None if parameters.shares is None else parameters.shares[varying]
    singles = [s for s in single_directions(problem, of_ones, shares) if certified(problem, s.direction) is not None]
    known = sum_cones(problem, [s.direction for s in singles])
    if candidate is not None:
        known = join(problem, known, polish(problem, candidate))
    # repeated rows would crowd out others among the most violated conditions
    distinct, row = problem.distinct()
    first = np.unique(row, return_index=True)[1]
    known, decided = linear_program(distinct, Cone(known.direction, known.strict[first]), deadline)
    known = Cone(known.direction, known.strict[row])
    text = statements(problem, known, singles, [names[q] for q in varying], target_names)
    return known, decided, text, REMEDIES["rows"]


def _search_classes(question: _Question) -> _Evidence:
    """Look for what separates classes, each of which has a coefficient of its own for every column."""
    problem, parameters, varying, names, target_names, candidate, deadline = question
    cone, first = problem.cone, int(parameters.has_ones)
    n_classes = max(parameters.n_outputs, 2)
    codes = cone.kinds if parameters.n_outputs > 1 else (cone.targets[cone.kinds, 0] == "1")
    column_names = {int(j): name for j, (_, name) in zip(parameters.column, names, strict=True)}
    live = np.concatenate([np.arange(first), problem.live + first])  # places of the problem's columns among all
    table = None
    if candidate is not None:
        theta = np.zeros(len(names))
        theta[varying] = candidate
        table = parameters.to_classes(theta)[:, live]
    known, findings, decided = search_separation(
        problem,
        codes.astype(np.int64),
        [column_names[j + first] for j in range(problem.std.x.shape[1])],
        [str(k) for k in (range(n_classes) if target_names is None else target_names)],
        table,
        deadline,
    )
    if not known.strict.any():
        return sum_cones(problem, []), decided, [], REMEDIES["classes"]
    whole = np.zeros((n_classes, first + problem.std.x.shape[1]))
    whole[:, live] = known.direction - known.direction.mean(0)
    own = polish(problem, parameters.from_classes(whole)[varying])
    if own is None:
        return sum_cones(problem, []), False, [], REMEDIES["classes"]
    pairs = known.strict if parameters.n_outputs > 1 else known.strict.any(1, keepdims=True)
    absent = all(not finding.columns and "no rows" in finding.detail for finding in findings)
    text = [finding.sentence() for finding in findings]
    remedy = REMEDIES["absent" if absent and findings else "classes"]
    return Cone(own.direction, own.strict | pairs), decided, text, remedy


def _default_labels(parameters: Parameters, likelihood: Likelihood) -> tuple[tuple[str, str], ...]:
    """Return labels where none were given: the likelihood's outputs, and columns by number."""
    outputs = likelihood.output_names(parameters.n_outputs)
    found = []
    for j, loading in zip(parameters.column, parameters.loading, strict=True):
        output = outputs[int(np.flatnonzero(loading)[0])] if np.count_nonzero(loading) == 1 else "shared"
        column = int(j) - int(parameters.has_ones)
        found.append((output, INTERCEPT if column < 0 else f"x{column}"))
    return tuple(found)
