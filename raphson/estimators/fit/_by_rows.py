"""Penalized fits in a subspace of the slopes: that of a few gradients, that of all rows, and then all columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from raphson.estimators.fit._edge import fit_inside
from raphson.estimators.fit._options import FitOptions
from raphson.estimators.fit._solver import (
    FEW_ITERATIONS,
    PRECISE,
    continued,
    goes_by_products,
    solve_by_products,
)
from raphson.linear import GradientSpace, LinearObjective, RowSpace, has_row_space, row_space_cost
from raphson.solve import Callback, Solution, Status

_ATTEMPTS, _TIGHTER = 3, 0.1
"""How often a fit is made more exact until the gradient of all columns is small, and by how much each time."""

_ROUNDED = 2.0**-40
"""Share of the objective by which it must fall for the rounding of the row space to be what stopped a fit."""

_GRADIENTS = 8
"""Gradients after which a fit goes on otherwise, and that it may need by the rate at which they fall."""

_WORTH = 2.0
"""Price of the basis of the rows, in fits among gradients, below which these are not tried."""

_SHARE = 0.1
"""Share of the last gradient to which a fit among gradients is solved: the next gradient is of that size anyway."""

_ENTRIES = 10**5
"""Entries of a table from which a pass over it costs more than the calls of a fit among gradients."""


def solve_penalized(
    objective: LinearObjective,
    uncached: Callable[[], LinearObjective],
    start: Tensor,
    options: FitOptions,
    callback: Callback | None,
    *,
    warm: bool,
) -> tuple[Solution, LinearObjective, RowSpace | None]:
    """Minimize an objective with a ridge penalty where that pays in a subspace of the slopes.

    Args:
        objective: The objective.
        uncached: Makes the same that caches no standardized copy of the table.
        start: Parameters to start from, ``(P,)``.
        options: Solver, tolerance and iterations.
        callback: Called with a ``Step`` after every iteration.
        warm: Whether the start is an earlier fit.

    Returns:
        The solution, the objective that it is of, and the row space where it was reached there.
    """
    wide, by_gradients = has_row_space(objective), _goes_by_gradients(objective, options, warm=warm)
    if not wide and not by_gradients:
        return fit_inside(objective, start, options, callback, warm=warm), objective, None
    cached, objective, known = objective, uncached(), None
    if by_gradients:
        by_rows = row_space_cost(objective).rounds if _goes_by_rows(objective, options) else math.inf
        if by_rows >= _WORTH:
            known = _solve_by_gradients(objective, start, options, callback, math.ceil(min(by_rows + 2.0, _GRADIENTS)))
        if known is not None and known.converged:
            return known, objective, None
        start = start if known is None else known.theta
    space = RowSpace.of(objective) if _goes_by_rows(objective, options) else None
    warm = warm or known is not None
    if space is None:
        objective = objective if wide else cached
        found = fit_inside(objective, start, options, callback, warm=warm)
    else:
        found, space = _solve_by_rows(space, start, options, callback, warm=warm)
    return found if known is None else continued(known, found), objective, space


def _goes_by_gradients(objective: LinearObjective, options: FitOptions, *, warm: bool) -> bool:
    """Return whether to look first if a few gradients span the optimum: a Hessian would cost many of them."""
    if options.solver != "auto" or warm or options.tol <= PRECISE or options.max_iter < FEW_ITERATIONS:
        return False
    n, here = objective.n_rows, objective.output_map
    few = here.is_uniform and here.basis.shape[1] * _GRADIENTS <= min(n, here.n_columns)
    large = n * here.n_columns >= _ENTRIES
    return few and large and objective.likelihood.concave and goes_by_products(objective)


def _goes_by_rows(objective: LinearObjective, options: FitOptions) -> bool:
    """Return whether a fit is made in the span of the rows: where its few coordinates repay the products of all rows.

    Newton steps with a dense Hessian, if asked for, always are, since no D x D matrix is formed then.
    """
    if options.solver not in ("auto", "newton", "newton-cg") or not has_row_space(objective):
        return False
    return options.solver == "newton" or row_space_cost(objective).gain > 0.0


def _solve_by_gradients(
    objective: LinearObjective, start: Tensor, options: FitOptions, callback: Callback | None, rounds: int
) -> Solution | None:
    """Minimize in the span of the gradients met so far until that of all columns is small, or falls too slowly.

    Args:
        objective: The objective of all columns.
        start: Parameters to start from, ``(P,)``.
        options: Solver, tolerance and iterations.
        callback: Called with a ``Step`` after every iteration.
        rounds: So many gradients may be needed, by the mean rate at which they fall.

    Returns:
        The solution, with ``MAX_ITERATIONS`` where gradients promise no quick end; None where the first one is zero.
    """
    space = GradientSpace(objective)
    theta = space.of_intercepts(start)
    everywhere, gradient = space.gradient(theta)
    norm = first = objective.gradient_norm(gradient)
    solution: Solution | None = None
    for taken in range(1, rounds + 1):
        if not space.extend(gradient):
            break
        tol = max(0.3 * options.tol, _SHARE * norm)
        found = fit_inside(space.objective, space.into(theta), replace(options, tol=tol), callback, warm=True)
        solution = found if solution is None else continued(solution, found)
        theta, before = found.theta, norm
        everywhere, gradient = space.gradient(theta)
        norm = objective.gradient_norm(gradient)
        if norm <= options.tol or not found.converged or not norm < before:
            break
        if taken + taken * math.log(norm / options.tol) / math.log(first / norm) > rounds:
            break
    if solution is None:
        return None
    status = Status.CONVERGED if norm <= options.tol else Status.MAX_ITERATIONS
    return replace(
        solution,
        theta=everywhere,
        status=status,
        gradient_norm=norm,
        newton_decrement=math.nan,
        last_step=None,
        hessian=None,
        reason=(
            f"The span of {space.rank} gradients holds the optimum of all {objective.n_parameters} coefficients to the "
            "tolerance, so that no larger Hessian was needed."
        ),
    )


def _solve_by_rows(
    space: RowSpace, start: Tensor, options: FitOptions, callback: Callback | None, *, warm: bool
) -> tuple[Solution, RowSpace | None]:
    """Minimize in the span of the rows, and see that the gradient of all columns is below the tolerance.

    Returns:
        The solution in the parameters of all columns, and the row space, if it holds the solution. Where numbers of
        very different size lost digits of the span, Hessian products with all columns go on from there.
    """
    whole, theta, tol = space.whole, space.into(start), options.tol
    literal, solution = options.max_iter < FEW_ITERATIONS, None
    for _ in range(_ATTEMPTS):
        found = fit_inside(space.objective, theta, replace(options, tol=tol), callback, warm=warm)
        solution = found if solution is None else continued(solution, found)
        reached = space.back(found.theta)
        value, gradient = whole.value_and_gradient(reached)
        norm = whole.gradient_norm(gradient)
        if norm <= options.tol or literal or found.status is not Status.CONVERGED:
            break
        tol, theta, warm = _TIGHTER * tol, found.theta, True
    assert solution is not None
    small = space.objective.n_parameters
    # with a ridge the optimum of a concave log-likelihood is finite: nobody asks where the last step leads
    step = None if whole.likelihood.concave and solution.converged else solution.last_step
    made = replace(
        solution,
        theta=reached,
        value=value,
        gradient_norm=norm,
        last_step=None if step is None else space.back(step),
        hessian=None,
        reason=(
            f"In the span of the {whole.n_rows} rows there are {small} coefficients in place of {whole.n_parameters}. "
            + solution.reason
        ),
    )
    if not found.converged or norm <= options.tol or literal:
        return made, space
    more = solve_by_products(whole, reached, options, callback)
    if found.status is Status.PRECISION_REACHED and more.value > value - _ROUNDED * max(1.0, abs(value)):
        return made, space
    return continued(made, more), None
