"""Penalized fits by a few gradients, in the span of all rows, and then with all columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from raphson.data import DenseDesign
from raphson.estimators.fit._edge import fit_inside
from raphson.estimators.fit._few_rows import solve_few_rows, takes_few_rows
from raphson.estimators.fit._first_step import RoughInverse, first_length, rough_inverse
from raphson.estimators.fit._options import FitOptions
from raphson.estimators.fit._patience import STRONG, TOLD, gradients_to_try
from raphson.estimators.fit._solver import (
    FEW_ITERATIONS,
    continued,
    solve_by_products,
    symmetric,
)
from raphson.linear import (
    CompiledStepper,
    LinearObjective,
    MixedStepper,
    RowSpace,
    has_row_space,
    is_large_sparse,
    row_space_cost,
    start_condition,
)
from raphson.solve import Callback, InversePairs, PairsStepper, Solution, Status, quasi_newton

_ATTEMPTS, _TIGHTER = 3, 0.1
"""How often a fit is made more exact until the gradient of all columns is small, and by how much each time."""

_ROUNDED = 2.0**-40
"""Share of the objective by which it must fall for the rounding of the row space to be what stopped a fit."""

_COPIED = 4e5
"""Nanoseconds of an evaluation from which steps by gradients make no standardized copy of the table, for two passes.

Each pass is a third faster with it, where compiled code does not read the table in place."""

_DEAR = 1.5e5
"""Nanoseconds of an evaluation from which the length of the first step is worked out, in 100 us, for dense tables of
fewer columns, too. Evaluations without and with: 50000 x 300, two classes, separable, l2 = 1e-6, 16 and 14, l2 = 1e-3,
13 and 8, noisy 7 and 6; 50000 x 50, three, 13 and 10, noisy 9 and 8; of columns that depend on each other as many."""

_PRICE, _SAVED = (2.5e5, 2e4), (3.0, 10.0)
"""Nanoseconds of that work, and for each output, and the evaluations that it saves where there are no more columns than
rows, and where there are. 60 x 50, ten classes, 1.65 ms with it and 1.26 without, 50, l2 = 1, 2.1 and 1.4; 500 x 300,
three, sparse, 1.8 and 1.5, ten, dense, l2 = 1e-6, 2.9 and 3.4; 500 x 7000, two, separable, l2 = 1, 11 and 19."""

_MARGIN = 0.9
"""Share of the tolerance to which gradients in single precision fall, for those in double precision to be below it.

20000 x 50000, 0.2 % of entries, 20 classes: they differ by 0.3 % of a tolerance of 1e-6 there. Evaluations and steps
take half as long."""

_SINGLE = 2.0**-18
"""Share of the first gradient down to which single precision leads: fifty times what its rounding makes of it.

500 x 7000, 50 classes, l2 = 1: 144 ms without, 120 with it; l2 = 1e-3, where the last steps are in double, 187, 198."""

_ROUNDED_SINGLE = 2.0**-10
"""Share of the first gradient from which on its rounding may stall it: 500 x 2000, 50 classes, noisy, has none smaller
in six steps long before."""

_NEARLY = 6.0
"""Steps that end a fit sooner in double precision than single precision repays its copy and what has to follow."""

_SINGLE_DENSE = 2**22
"""Entries times outputs of a dense table from which it pays, where evaluations are matrix products."""

_AT_ONCE, _FEW_COORDINATES = (16.0, 10.5), 250
"""Steps by gradients that a fit in the span of the rows must cost for these to be tried first: with so few coefficients
there that it goes by dense Hessians, and with more, which gradients are tried for there.

60 x 2000, noisy, sparse, l2 = 1e-3: two classes, where a fit costs 15 steps, 4 ms at once, 8 after some steps; three,
nine, 5 and 8. 200 x 5000, noisy, dense, two classes, 18: 13 steps end it. 500 x 7000, ten, dense, 10.7: separable, l2 =
1e-3, 74 ms and 37, noisy 60 and 73, l2 = 1 as long, noisy 64 and 58."""

_OF_SPARSE = 10.0, 20.0
"""The same of sparse tables of several classes in compiled code, where the penalty is above the mean eigenvalue of the
Hessian at the start, and where it is below: 500 x 2000, 50 classes, a fit costs 12 steps: 9 ms by 2 steps, 31 in the
span, for l2 = 1, 82 and 46 for 1e-3; 500 x 7000, ten, 12 to 15, 24 and 37, 58 and 41."""

_WEAK = 1.5
"""The same where the penalty is weak, so that a first step of known length ends many fits: 500 x 7000, 50 classes, l2 =
1e-6, noisy, sparse, where a fit in the span of the rows costs 3 steps: 1 step in 23 ms, 57 there."""


def solve_penalized(
    objective: LinearObjective,
    start: Tensor,
    options: FitOptions,
    callback: Callback | None,
    *,
    warm: bool,
) -> tuple[Solution, LinearObjective, RowSpace | None]:
    """Minimize an objective with a ridge penalty where that pays in a subspace of the slopes.

    Args:
        objective: The objective.
        start: Parameters to start from, ``(P,)``.
        options: Solver, tolerance and iterations.
        callback: Called with a ``Step`` after every iteration.
        warm: Whether the start is an earlier fit.

    Returns:
        The solution, the objective that it is of, and the row space where it was reached there.
    """
    if not warm and takes_few_rows(objective, options):
        with np.errstate(all="ignore"):  # of numbers that are not finite nothing is taken
            found = solve_few_rows(objective, options, callback)
        if found.converged:
            return found, objective, None
        if math.isfinite(found.value) and math.isfinite(found.gradient_norm):
            more, tried, space = solve_penalized(objective, found.theta, options, callback, warm=True)
            return continued(found, more), tried, space
    # a standardized copy costs two passes and saves a third of each: not where few are made
    objective = objective.without_copy() if has_row_space(objective) else objective
    by_rows = _cost_by_rows(objective, options)
    if by_rows == math.inf:
        return *_solve_by_columns(objective, start, options, callback, warm=warm), None
    tried, known = objective, None
    if by_rows > _at_once(objective) * objective.reduced.cost.step:
        known, tried = _try_gradients(objective, start, options, callback, warm=warm, by_rows=by_rows)
    if known is not None and known.converged:
        return known, tried, None
    begin, space = start if known is None else known.theta, RowSpace.of(objective)
    if space is None:
        found = fit_inside(objective, begin, options, callback, warm=warm or known is not None)
    else:
        found, space = _solve_by_rows(space, begin, options, callback, warm=warm)
    return found if known is None else continued(known, found), objective, space


def _at_once(objective: LinearObjective) -> float:
    """Return how many steps by gradients a fit in the span of the rows must cost for these to be tried first."""
    if objective.l2 < STRONG:
        return _WEAK
    q = objective.output_map.basis.shape[1]
    if q > 1 and objective.nonzeros is not None:
        return _OF_SPARSE[start_condition(objective) > 1.0]
    return _AT_ONCE[objective.n_rows * q > _FEW_COORDINATES]


def _solve_by_columns(
    objective: LinearObjective, start: Tensor, options: FitOptions, callback: Callback | None, *, warm: bool
) -> tuple[Solution, LinearObjective]:
    """Minimize by a few gradients or, where these promise no quick end, by what goes on from there."""
    known, tried = _try_gradients(objective, start, options, callback, warm=warm)
    if known is None:
        return fit_inside(objective, start, options, callback, warm=warm), objective
    if known.converged:
        return known, tried
    return continued(known, fit_inside(objective, known.theta, options, callback, warm=True)), objective


def _try_gradients(
    objective: LinearObjective,
    start: Tensor,
    options: FitOptions,
    callback: Callback | None,
    *,
    warm: bool,
    by_rows: float = math.inf,
) -> tuple[Solution | None, LinearObjective]:
    """Return what gradients reach that cost less than the other way, None where they are not tried, and of what."""
    most = 0.0 if warm else gradients_to_try(objective, options, by_rows)
    if not most:
        return None, objective
    without = objective.reduced.cost.evaluation >= _COPIED and not objective.reduced.is_in_place
    tried = objective.without_copy() if without else objective
    return _solve_by_gradients(tried, start, options, callback, most), tried


def _cost_by_rows(objective: LinearObjective, options: FitOptions) -> float:
    """Return what a fit in the span of the rows costs; infinity where its few coordinates do not repay their products.

    Newton steps with a dense Hessian, if asked for, are made there always, since no D x D matrix is formed then.
    """
    if options.solver not in ("auto", "newton", "newton-cg") or not has_row_space(objective):
        return math.inf
    cost = row_space_cost(objective)
    return cost.fit if options.solver == "newton" or cost.gain > 0.0 else math.inf


def _solve_by_gradients(
    objective: LinearObjective, start: Tensor, options: FitOptions, callback: Callback | None, patience: float
) -> Solution:
    """Minimize by L-BFGS, as long as that promises a quick end.

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
    own, begin, back = symmetric(objective, start, summing_to_zero=True)
    at = own.evaluate_constant(begin) or own.evaluate(begin, None)
    inverse, within, length = rough_inverse(own, begin), _MARGIN * options.tol, None
    wide = own.output_map.n_columns > TOLD * own.n_rows
    # an exponential of outputs follows from more than their variance
    dense = isinstance(own.design, DenseDesign) and own.likelihood.partition != "exponential"
    if (_length_pays(own) if wide else dense and own.cost.evaluation >= _DEAR) and own.has_constant_outputs(begin):
        with np.errstate(all="ignore"):  # long steps overflow
            length = first_length(own, begin, at.gradient, -inverse(at.gradient), options.tol)
    descend = partial(quasi_newton, inverse=inverse, tol=options.tol, callback=callback)
    begun = inverse.diagonal, inverse.means, length
    mixed = MixedStepper.suits(own)
    stepper = MixedStepper(own, *begun, at.norm, options.tol) if mixed else CompiledStepper.of(own, *begun)
    if stepper is not None:
        known = descend(own, begin, patience=patience, at=at, stepper=stepper)
    elif not _gains_in_single_precision(own) or within < _SINGLE * at.norm:
        known = descend(own, begin, patience=patience, at=at, length=length)
    else:
        narrow = inverse.astype(torch.float32)
        mixed_run = partial(_solve_in_single_precision, own, descend, narrow, length, first=at.norm, tol=within)
        if length is None or not wide:
            known = mixed_run(begin, patience=patience)
        else:  # a first step of known length may be all it takes
            first = _stepper(own, at.gradient, narrow, length)
            known = descend(own, begin, patience=min(_NEARLY, patience), at=at, stepper=first)
            del first  # its pairs
            if not known.converged and patience > known.iterations:
                known = continued(known, mixed_run(known.theta, patience=patience - known.iterations))
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
            f"{objective.n_parameters} coefficients; some {patience:.0f} are tried before "
            + ("the span of the rows." if has_row_space(objective) else "a Hessian.")
        ),
    )


def _length_pays(objective: LinearObjective) -> bool:
    """Return whether the length of the first step of a table of many columns is worth working out."""
    saved = _SAVED[objective.output_map.n_columns > objective.n_rows]
    price, each = _PRICE
    return saved * objective.cost.evaluation >= price + each * objective.n_outputs


def _gains_in_single_precision(objective: LinearObjective) -> bool:
    """Return whether evaluations in single precision repay a copy of the table and what has to follow in double."""
    design = objective.design
    if objective.compiled is not None and not objective.compiled.table.is_large:
        return False
    if not isinstance(design, DenseDesign):
        return is_large_sparse(design, objective.n_outputs)
    large = objective.n_rows * objective.output_map.n_columns * objective.n_outputs >= _SINGLE_DENSE
    return large and design.astype(torch.float32).is_cached


def _stepper(objective: LinearObjective, gradient: Tensor, narrow: RoughInverse, length: float | None) -> PairsStepper:
    """Return what makes steps in double precision whose pairs, the largest part of the memory, are held in single."""
    pairs = InversePairs(narrow, gradient.float(), scaled=True, length=length)
    return PairsStepper(partial(objective.evaluate, hessian=None), pairs)


def _solve_in_single_precision(
    objective: LinearObjective,
    descend: Callable[..., Solution],
    narrow: RoughInverse,
    length: float | None,
    start: Tensor,
    *,
    first: float,
    tol: float,
    patience: float,
) -> Solution:
    """Minimize by L-BFGS in single precision, and go on in double precision where its gradient is not small yet.

    Args:
        objective: The objective.
        descend: L-BFGS from a problem and a start.
        narrow: About the product with the inverse Hessian, in single precision.
        length: Of the first step, where it is known.
        start: Parameters ``(P,)``.
        first: Norm of the gradient where the whole fit began.
        tol: Bound on the norm in single precision.
        patience: So many gradients may be needed.

    Returns:
        The solution, with values of double precision where it ended.
    """
    found = descend(
        objective.with_curvature(torch.float32),
        start.float(),
        tol=tol,
        patience=patience,
        length=length,
        rounded=_ROUNDED_SINGLE * first,
        inverse=narrow,
    )
    reached = found.theta.double()
    at = objective.evaluate(reached, None)
    last = found.history[-1]._replace(value=at.value, gradient_norm=at.norm)
    known = replace(found, theta=reached, value=at.value, gradient_norm=at.norm, history=(*found.history[:-1], last))
    if found.status is Status.MAX_ITERATIONS:
        return known
    stepper = _stepper(objective, at.gradient, narrow, 1.0)
    return continued(known, descend(objective, reached, patience=patience - found.iterations, at=at, stepper=stepper))


def _solve_by_rows(
    space: RowSpace, start: Tensor, options: FitOptions, callback: Callback | None, *, warm: bool
) -> tuple[Solution, RowSpace | None]:
    """Minimize in the span of the rows, and see that the gradient of all columns is below the tolerance.

    Returns:
        The solution in the parameters of all columns, and the row space, if it holds the solution. Where numbers of
        very different size lost digits of the span, Hessian products with all columns go on from there.
    """
    whole, theta, tol = space.whole.reduced, space.into(start), options.tol
    literal, solution = options.max_iter < FEW_ITERATIONS, None
    for _ in range(_ATTEMPTS):
        found, _ = _solve_by_columns(space.objective, theta, replace(options, tol=tol), callback, warm=warm)
        solution = found if solution is None else continued(solution, found)
        reached = space.back(found.theta)
        value, gradient = whole.once().value_and_gradient(reached)
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
