"""Penalized fits in a subspace of the slopes: that of a few gradients, that of all rows, and then all columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from raphson.data import SparseDesign
from raphson.estimators.fit._edge import bounds, fit_inside
from raphson.estimators.fit._options import FitOptions
from raphson.estimators.fit._solver import (
    FEW_ITERATIONS,
    PRECISE,
    continued,
    goes_by_products,
    has_stages,
    solve_by_products,
    symmetric,
)
from raphson.linear import GradientSpace, LinearObjective, RowSpace, has_row_space, row_space_cost
from raphson.solve import Callback, Finish, Solution, Status, newton, quasi_newton

_ATTEMPTS, _TIGHTER = 3, 0.1
"""How often a fit is made more exact until the gradient of all columns is small, and by how much each time."""

_ROUNDED = 2.0**-40
"""Share of the objective by which it must fall for the rounding of the row space to be what stopped a fit."""

_VECTORS = 24
"""Vectors that a fit among gradients may have: more make its own Newton steps cost as much as passes over the table."""

_COLUMNS = 500
"""Columns from which a fit among gradients costs less than the passes that it saves."""

_SHARE = 1e-4
"""Share of the last gradient to which a fit among gradients is solved: the next one is seldom smaller."""

_GAIN = 20.0
"""By what a gradient more must reduce the next one, for its span to be worth more than steps of L-BFGS."""

_MARGIN = 0.9
"""Share of the tolerance to which gradients in single precision fall, for those in double precision to be below it.

20000 x 50000, 0.2 % of entries, 20 classes: they differ by 0.3 % of a tolerance of 1e-6 there. Evaluations and steps
take half as long."""

_SINGLE = 2.0**-17
"""Share of the first gradient down to which single precision leads: a hundred times what its rounding makes of it."""

_ENTRIES = 10**5
"""Entries of a table from which a pass over it costs more than the calls of a fit among gradients."""

_OUTPUTS = 8
"""Columns for each output from which columns are many: with fewer, blocks of the Hessian cost little."""

_PRODUCTS = 60.0
"""Hessian products that a fit by them takes, about: gradients for the price of as many are tried first.

500 x 300, two classes: 70 gradients in 13.6 ms, products 15.9."""

_FACTORS, _STEPS = 2.0, 8.0
"""Factorizations and evaluations that a fit with dense Hessians takes, about."""

_LEAST_VARIANCE = 1e-3
"""Of a sparse column with a mean square of one: a column that hardly varies tells little."""

_PATIENCE = 12.0
"""Evaluations that the other way must cost for a few gradients to be tried first."""


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
    wide, patience = has_row_space(objective), _patience(objective, options, warm=warm)
    if not wide and not patience:
        return fit_inside(objective, start, options, callback, warm=warm), objective, None
    cached, known = objective, None
    if patience:
        # a standardized copy costs two passes and saves a third of each: not where one or two steps may do
        without = objective.output_map.n_columns >= _COLUMNS and not objective.reduced.is_in_place
        objective = uncached() if without else objective
        known = _solve_by_gradients(objective, start, options, callback, patience)
        if known.converged:
            return known, objective, None
        start, warm = known.theta, True
    objective = uncached() if wide and objective is cached else objective
    space = RowSpace.of(objective) if _goes_by_rows(objective, options) else None
    if space is None:
        objective = objective if wide else cached
        found = fit_inside(objective, start, options, callback, warm=warm)
    else:
        found, space = _solve_by_rows(space, start, options, callback, warm=warm)
    return found if known is None else continued(known, found), objective, space


def _patience(objective: LinearObjective, options: FitOptions, *, warm: bool) -> float:
    """Return how many gradients to try before a Hessian or the span of the rows: about what these cost; 0 for none."""
    if options.solver != "auto" or warm or options.jeffreys or options.tol <= PRECISE:
        return 0.0
    n, here, likelihood = objective.n_rows, objective.output_map, objective.likelihood
    few = here.is_uniform and here.basis.shape[1] * _OUTPUTS <= min(n, here.n_columns)
    if not few or n * here.n_columns < _ENTRIES or options.max_iter < FEW_ITERATIONS or not likelihood.concave:
        return 0.0
    if bounds(likelihood, objective.n_outputs) is not None:
        return 0.0
    cost = objective.reduced.cost
    if goes_by_products(objective):
        rounds = row_space_cost(objective).rounds if _goes_by_rows(objective, options) else math.inf
        return min(rounds + _STEPS, _PRODUCTS * max(cost.product / cost.evaluation, 1.0))
    patience = min(_FACTORS * cost.dense_in_evaluations + _STEPS, _PRODUCTS)
    return patience if patience >= _PATIENCE and not has_stages(objective) else 0.0


def _goes_by_rows(objective: LinearObjective, options: FitOptions) -> bool:
    """Return whether a fit is made in the span of the rows: where its few coordinates repay the products of all rows.

    Newton steps with a dense Hessian, if asked for, always are, since no D x D matrix is formed then.
    """
    if options.solver not in ("auto", "newton", "newton-cg") or not has_row_space(objective):
        return False
    return options.solver == "newton" or row_space_cost(objective).gain > 0.0


def _solve_by_gradients(
    objective: LinearObjective, start: Tensor, options: FitOptions, callback: Callback | None, patience: float
) -> Solution:
    """Minimize in the span of the gradients met so far, then by L-BFGS, as long as they promise a quick end.

    Args:
        objective: The objective of all columns.
        start: Parameters to start from, ``(P,)``.
        options: Solver, tolerance and iterations.
        callback: Called with a ``Step`` after every iteration.
        patience: So many gradients may be needed, by the mean rate at which they fall.

    Returns:
        The solution, with ``MAX_ITERATIONS`` where gradients promise no quick end.
    """
    objective = objective.reduced
    here = objective.output_map
    outputs = here.basis.shape[1]
    own, begin, back = symmetric(objective, start)
    at, met = own.evaluate_constant(begin) or own.evaluate(begin, None), list[Tensor]()
    descend = partial(quasi_newton, tol=options.tol, inverse=_rough_inverse(own, begin), callback=callback)
    spanned = here.n_columns >= _COLUMNS and 2 * outputs <= _VECTORS and not here.has_slopes(start)
    within = _MARGIN * options.tol
    if isinstance(objective.design, SparseDesign) and not spanned and within >= _SINGLE * at.norm:
        known = _solve_in_single_precision(own, begin, within, patience, descend)
    else:
        known = descend(own, begin, patience=1.0 if spanned else patience, at=at, met=met)
    if spanned and not known.converged:
        gradients = [here.reduce(g.view(own.output_map.shapes[0])).reshape(-1) for g in met]
        found = _in_their_span(objective, start, gradients, options, callback)
        known, begin = continued(known, found), symmetric(objective, found.theta)[1]
        if not found.converged:
            known = continued(known, descend(own, begin, patience=patience))
        else:
            back = None
    theta = known.theta if back is None else back(known.theta)
    return replace(
        known,
        theta=theta,
        status=known.status if known.converged else Status.MAX_ITERATIONS,
        newton_decrement=math.nan,
        last_step=None,
        hessian=None,
        reason=(
            f"Gradients alone: {known.iterations} steps by them reached the tolerance for all "
            f"{objective.n_parameters} coefficients, where "
            + ("the span of the rows" if has_row_space(objective) else "a Hessian")
            + f" would cost as much as {patience:.0f} of them."
        ),
    )


def _solve_in_single_precision(
    objective: LinearObjective, start: Tensor, tol: float, patience: float, descend: Callable[..., Solution]
) -> Solution:
    """Minimize by L-BFGS in single precision, and go on in double precision where its gradient is not small yet."""
    inverse = _rough_inverse(objective, start)
    found = descend(
        objective.with_curvature(torch.float32),
        start.float(),
        tol=tol,
        patience=patience,
        inverse=lambda v: inverse(v.double()).float(),
    )
    reached = found.theta.double()
    at = objective.evaluate(reached, None)
    last = found.history[-1]._replace(value=at.value, gradient_norm=at.norm)
    known = replace(found, theta=reached, value=at.value, gradient_norm=at.norm, history=(*found.history[:-1], last))
    if found.status is Status.MAX_ITERATIONS:
        return known
    return continued(known, descend(objective, reached, patience=patience - found.iterations, at=at, near=True))


def _rough_inverse(objective: LinearObjective, theta: Tensor) -> Callable[[Tensor], Tensor]:
    """Return about the product with the inverse Hessian: columns have a mean square of one, slopes their penalties.

    Columns of a sparse table are not centered. Their means are: of the slopes of centered columns and the intercept
    that belongs to them, the intercept of the columns as they are is a combination.
    """
    here, design, likelihood = objective.output_map, objective.design, objective.likelihood
    shape = here.shapes[0]
    f = theta.view(shape)[:, 0] if here.intercept else theta.new_zeros(shape[0])
    curvature = likelihood.fisher(here.outputs(f[:, None], None).mT, objective.y[:1]).diagonal().mean()
    diagonal = objective.ridge.diagonal + curvature
    if not (isinstance(design, SparseDesign) and here.intercept):
        return lambda v: v / diagonal
    mean = (torch.from_numpy(np.asarray(design.x.mean(0)).reshape(-1)) - design.center) / design.scale
    variance = torch.cat([mean.new_ones(1), (1.0 - mean.square()).clamp_min(_LEAST_VARIANCE)])
    diagonal = (objective.ridge.diagonal.view(shape) + curvature * variance).view(-1)

    def product(v: Tensor) -> Tensor:
        table = v.clone().view(shape)
        table[:, 1:].addmm_(table[:, :1], mean[None], alpha=-1.0)
        table /= diagonal.view(shape)
        table[:, 0] -= table[:, 1:] @ mean
        return table.view(-1)

    return product


def _in_their_span(
    objective: LinearObjective, start: Tensor, gradients: list[Tensor], options: FitOptions, callback: Callback | None
) -> Solution:
    """Minimize in the span of gradients until that of all columns is small, or falls slowly.

    Args:
        objective: The objective of all columns.
        start: Parameters to start from, ``(P,)``, without slopes.
        gradients: Those known, ``(P,)`` each.
        options: Solver, tolerance and iterations.
        callback: Called with a ``Step`` after every iteration.

    Returns:
        The solution in the parameters of all columns; ``MAX_ITERATIONS`` where gradients fall slowly.
    """
    space, outputs = GradientSpace(objective), objective.output_map.basis.shape[1]
    theta, norm = space.of_intercepts(start), objective.gradient_norm(gradients[0])
    found, everywhere = None, start
    while space.extend(*gradients):
        small = space.objective
        more = newton(
            small,
            space.into(theta),
            tol=max(0.3 * options.tol, _SHARE * norm),
            finish=Finish(small, step=False),
            callback=callback,
        )
        found = more if found is None else continued(found, more)
        theta, before = more.theta, norm
        everywhere, gradient = space.gradient(theta)
        norm, gradients = objective.gradient_norm(gradient), [gradient]
        if norm <= options.tol or not norm * _GAIN < before or space.rank + outputs > _VECTORS:
            break
    assert found is not None
    status = Status.CONVERGED if norm <= options.tol else Status.MAX_ITERATIONS
    return replace(found, theta=everywhere, status=status, gradient_norm=norm)


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
