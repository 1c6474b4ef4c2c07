"""Which solver fits a linear model: chosen by name, or from the shape of the problem; one call either way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.estimators.fit._jeffreys import JeffreysObjective
from raphson.estimators.fit._options import FitOptions
from raphson.estimators.fit._start import scoring_step
from raphson.linalg import cg
from raphson.linear import (
    LinearHessian,
    LinearObjective,
    OutputMap,
    block_jacobi_cost,
    block_jacobi_inverse,
    has_row_space,
    lipschitz_bound,
    row_lipschitz_bound,
)
from raphson.solve import (
    Callback,
    Evaluation,
    Finish,
    Solution,
    Stage,
    Status,
    gradient_descent,
    newton,
    newton_cg,
    stochastic_gradient_descent,
)

_FROZEN_COEFFICIENTS = 250
"""Up to this many coefficients ``auto`` takes dense Hessians; beyond, products preconditioned by blocks are cheaper."""

_DENSE_COEFFICIENTS = 2000
"""Up to this many coefficients the Hessian at the end is formed, for standard errors; beyond, only multiplied."""

FEW_ITERATIONS = 10
"""Fewer iterations than this are taken literally: as Newton steps, each alone, which a warm start continues exactly."""

PRECISE = 1e-8
"""A tolerance this small, and every fit without a penalty, ends with a Newton step in double precision."""

_SMALL, _SMALL_OF_SUBSET = 1e5, 1e6
"""Nanoseconds of a dense Hessian below which every step has its own: another step costs calls, a factor little more.

More of them for a subset of the rows, which is fitted from far off, where an old factor is soon worth nothing."""

_SINGLE_FROM_PAIRS = 10
"""Pairs of outputs from which the Hessians of dense fits are summed in single precision, in 0.5 to 0.6 of the time.

With fewer pairs, making the products of columns takes as long as summing them."""

_CHEAP = 1.5
"""A Hessian that costs less than this in evaluations is made at every step: Newton needs the fewest evaluations.

10000 x 10 counts, 1.2 evaluations, take 2.6 ms in place of 3.1 with factors that are kept, 100000 x 10 14 in place of
16; 40000 x 20, 1.6 evaluations, 9.3 in place of 8.5."""

_MISSING = 1e-2
"""How far below its optimum a log-likelihood may be: no test statistic shows it, and 0.01 is the tables' last digit."""

_STALE = 8.0
"""Times what the Hessian before the last steps predicts that may be missing: that at the end is smaller where
probabilities have gone to zero and one."""

_SEEN = 2.0**-50
"""Share of a log-likelihood that its rounding hides."""

_ROUGH = 0.05
"""Relative residual of a Newton step of which only the decrement is wanted."""

_TIGHTENINGS, _TIGHTER = 6, 1e-3
"""How often a fit goes on for that, each time to this share of the tolerance: down to the rounding of a double."""

_MOVED = 1e-5
"""How far the last step may move an output, in its units, for the Hessian before it to be kept."""

_ROUNDED = 2.0**-40
"""Share of the objective by which rounding may make the result seem worse than the start."""

_SUBSET_ROWS = 2000
_SUBSET_ROWS_PER_COEFFICIENT = 10
_SUBSET_GROWTH = 16.0

_SUBSETS_FROM = 5e5
"""Rows times coefficients from which subsets pay: below, a pass over all rows costs little more than its calls."""

_SUBSET_ACCURACY = 0.05
"""A subset of n rows is solved to this share of p / n, twice the expected sampling error of its optimal value."""


def solve(
    objective: LinearObjective, start: Tensor, options: FitOptions, callback: Callback | None, *, warm: bool = False
) -> Solution:
    """Minimize a linear model's objective from parameters ``(p,)`` where it is finite.

    ``"auto"`` goes by the number of coefficients: few are solved with dense Hessians, each kept over several steps
    where it is dear, after fits of growing subsets of the rows; many with Hessian products in single precision. Either
    way every gradient is in double precision, and an unpenalized or tight fit ends with a full Newton step in double
    precision. Where the log-likelihood is not concave, steps are by the expected information until the observed one is
    positive definite. From an earlier fit (``warm``) a subset of the rows would lead away.

    Returns:
        The solution. A solver that needs a bound on the curvature that the model does not have is an ``InputError``.
    """
    objective = objective.reduced
    return _completed(objective, _solve(objective, start, options, callback, warm=warm), options, callback)


def _reason(objective: LinearObjective, options: FitOptions) -> str:
    """Return why a fit is solved as it is, in a sentence."""
    if options.solver != "auto":
        return f"The solver is the one asked for, '{options.solver}'."
    p, cost = objective.n_parameters, objective.cost
    dense = f"a Hessian of {p} coefficients costs as much as {cost.dense / cost.evaluation:.1f} gradients"
    if goes_by_products(objective):
        return f"Hessian products: {dense}, or {cost.dense / cost.product:.0f} products."
    kept = "so that each is kept over several steps" if _factor_cost(objective) else "so that every step has its own"
    return f"Dense Hessians: {dense}, {kept}."


def _completed(
    objective: LinearObjective, solution: Solution, options: FitOptions, callback: Callback | None
) -> Solution:
    """Go on where the log-likelihood is not at its optimum yet; a result worse than the start is none.

    The tolerance is on the gradient of a mean. Where a few rows have nearly all the weight, what the others say is
    below it: the predicted distance of the log-likelihood from its optimum, half the squared Newton decrement times
    the total weight, says so.

    Returns:
        A solution, with the reason for its solver.
    """
    tol = options.tol
    for _ in range(_TIGHTENINGS):
        enough = max(_MISSING, objective.total_weight * _SEEN * abs(solution.value))
        by_products = solution.method == "newton-cg"
        missing = 0.5 * (1.0 if by_products else _STALE) * objective.total_weight * solution.newton_decrement**2
        literal = options.max_iter < FEW_ITERATIONS or options.solver not in ("auto", "newton")
        if not solution.converged or not missing > enough or literal or not is_dense(objective):
            break
        if by_products:
            # its decrement is that before the last step, which may have been all it took
            solution = replace(solution, newton_decrement=_decrement(objective, solution.theta))
            if not 0.5 * objective.total_weight * solution.newton_decrement**2 > enough:
                break
        tol = _TIGHTER * min(tol, max(solution.gradient_norm, tol**2))
        concave = objective.likelihood.concave
        more = newton(
            objective, solution.theta, tol=tol, max_iter=options.max_iter, scoring=not concave, callback=callback
        )
        solution = continued(solution, more)
    step, moved = solution.last_step, math.sqrt(objective.total_weight) * solution.newton_decrement > _MOVED
    if moved and solution.hessian is not None and step is not None:
        # no row moves by more than all together, and most by far less
        moved = objective.moves_more(step, _MOVED)
    first = solution.history[0].value
    worse = solution.converged and solution.value > first + _ROUNDED * max(1.0, abs(first))
    return replace(
        solution,
        hessian=None if moved else solution.hessian,
        status=Status.STALLED if worse else solution.status,
        reason=_reason(objective, options),
    )


def _decrement(objective: LinearObjective, theta: Tensor) -> float:
    """Return the Newton decrement at parameters ``(P,)`` by some Hessian products, which cost less than a Hessian."""
    at = objective.evaluate(theta)
    assert at.hessian is not None
    diagonal = at.hessian.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
    found = cg(at.hessian, at.gradient, preconditioner=lambda v: v / diagonal, tol=_ROUGH, max_iter=500)
    return math.sqrt(max(float(torch.dot(at.gradient, found.x)), 0.0))


def continued(solution: Solution, more: Solution) -> Solution:
    """Return what a solver found that went on from a solution, with the history of both."""
    steps = enumerate(more.history[1:], start=len(solution.history))
    history = (*solution.history, *(step._replace(iteration=i) for i, step in steps))
    return replace(more, history=history, iterations=len(history) - 1)


def _solve(
    objective: LinearObjective, start: Tensor, options: FitOptions, callback: Callback | None, *, warm: bool
) -> Solution:
    if options.jeffreys:
        return _jeffreys(objective, start, options, callback)
    solver, tol, max_iter = options.solver, options.tol, options.max_iter
    concave = objective.likelihood.concave
    if solver in ("gradient-descent", "sgd"):
        return _first_order(objective, start, options, callback)
    if solver == "newton-cg":
        return solve_by_products(objective, start, options, callback)
    literal = max_iter < FEW_ITERATIONS
    if is_dense(objective) and (solver == "newton" or literal):
        return newton(objective, start, tol=tol, max_iter=max_iter, scoring=not concave, callback=callback)
    step = objective.l2 == 0 or tol <= PRECISE or not concave
    if goes_by_products(objective):
        return _by_products(objective, start, tol, max_iter, callback, step=step)
    # the Newton step at the end squares the error: what a single output costs makes that worth waiting for
    coarse = max(tol, 0.1 * math.sqrt(tol)) if step and concave and objective.n_outputs == 1 else None
    working = _working(objective)
    return newton(
        working,
        start,
        tol=tol,
        max_iter=max_iter,
        factor_cost=_factor_cost(working),
        scoring=not concave,
        extended=True,
        stages=() if warm else _stages(working),
        propose=scoring_step,
        finish=Finish(objective, step=step),
        coarse=coarse,
        callback=callback,
    )


def _working(objective: LinearObjective) -> LinearObjective:
    """Return the objective that dense steps are taken with: in single precision where many entries make its Hessian."""
    q = objective.output_map.basis.shape[1]
    many = objective.likelihood.partition == "softmax" and q * (q + 1) // 2 >= _SINGLE_FROM_PAIRS
    return objective.with_curvature(torch.float32) if many else objective


def _jeffreys(objective: LinearObjective, start: Tensor, options: FitOptions, callback: Callback | None) -> Solution:
    """Fit with Jeffreys' prior: steps by a matrix that is kept and corrected as a dear Hessian is."""
    if options.solver not in ("auto", "newton"):
        raise InputError(f"penalty='jeffreys' is fitted by Newton steps, not by solver '{options.solver}'.")
    problem = JeffreysObjective(objective)
    found = newton(
        problem,
        start,
        tol=options.tol,
        max_iter=options.max_iter,
        factor_cost=problem.factor_cost,
        scoring=problem.differenced,
        callback=callback,
    )
    return replace(found, hessian=None)


def solve_by_products(
    objective: LinearObjective, start: Tensor, options: FitOptions, callback: Callback | None
) -> Solution:
    """Minimize with Hessian products alone, to the tolerance and no further."""
    return _by_products(objective, start, options.tol, options.max_iter, callback, step=False)


def is_dense(objective: LinearObjective) -> bool:
    """Return whether the Hessian of an objective is small enough to be formed, and does not grow with wide tables."""
    return objective.n_parameters <= _DENSE_COEFFICIENTS and not has_row_space(objective)


def goes_by_products(objective: LinearObjective) -> bool:
    """Return whether ``"auto"`` takes Hessian products, since blocks for each output cost less than a whole Hessian."""
    many = objective.n_parameters > _FROZEN_COEFFICIENTS and objective.likelihood.concave and _has_own(objective)
    return many or not is_dense(objective)


def _has_own(objective: LinearObjective) -> bool:
    return objective.output_map.is_uniform and objective.output_map.selected is not None


def _factor_cost(objective: LinearObjective, small: float = _SMALL) -> float:
    """Return what a factor costs in evaluations, zero where one for every step is cheaper than keeping it."""
    cost = objective.cost
    exact = objective.likelihood.partition is not None and cost.dense <= small
    return 0.0 if exact or cost.dense_in_evaluations <= _CHEAP else cost.dense_in_evaluations


def _first_order(objective: LinearObjective, start: Tensor, options: FitOptions, callback: Callback | None) -> Solution:
    bound, row_bound = lipschitz_bound(objective), row_lipschitz_bound(objective)
    if bound is None or row_bound is None or not objective.likelihood.concave:
        raise InputError(
            f"Solver '{options.solver}' needs a concave log-likelihood with a bound on its curvature, which "
            f"{type(objective.likelihood).__name__} does not have, and outputs without constraints; use 'newton'."
        )
    if options.solver == "gradient-descent":
        return gradient_descent(
            objective, start, lipschitz=bound, tol=options.tol, max_iter=options.max_iter, callback=callback
        )
    return stochastic_gradient_descent(
        objective,
        start,
        lipschitz=row_bound,
        strong_convexity=float(objective.ridge.columns.min()),
        tol=options.tol,
        max_iter=options.max_iter,
        generator=torch.Generator().manual_seed(0),
        callback=callback,
    )


def has_stages(objective: LinearObjective) -> bool:
    """Return whether a dense fit begins with subsets of the rows."""
    p = objective.n_parameters
    smallest = max(_SUBSET_ROWS, _SUBSET_ROWS_PER_COEFFICIENT * p)
    return objective.n_rows * p >= _SUBSETS_FROM and objective.n_rows >= 3.0 * smallest


def _stages(objective: LinearObjective) -> tuple[Stage, ...]:
    """Return growing random subsets of the rows to fit first; none where passes are cheap.

    A subset of n rows puts the optimum within its sampling error, about ``p / 2n`` in value, at n / N of the price, and
    its Hessian is good enough to begin the next one with.
    """
    if not has_stages(objective):
        return ()
    p = objective.n_parameters
    smallest = max(_SUBSET_ROWS, _SUBSET_ROWS_PER_COEFFICIENT * p)
    ratio = objective.n_rows / smallest
    levels = max(1, round(math.log(ratio, _SUBSET_GROWTH)))
    generator = torch.Generator().manual_seed(0)
    found = []
    for level in range(levels):
        rows = int(smallest * ratio ** (level / levels))
        part = objective.take(torch.randint(objective.n_rows, (rows,), generator=generator))
        found.append(Stage(part, _SUBSET_ACCURACY * p / rows, _factor_cost(part, _SMALL_OF_SUBSET)))
    return tuple(found)


def _by_products(
    objective: LinearObjective, start: Tensor, tol: float, max_iter: int, callback: Callback | None, *, step: bool
) -> Solution:
    """Fit without a dense Hessian, in symmetric coordinates where there is a reference to do without."""
    concave = objective.likelihood.concave
    dense = step and is_dense(objective)
    if not _has_own(objective) or not concave:
        return newton_cg(
            objective,
            start,
            tol=tol,
            max_iter=max_iter,
            kind="observed" if concave else "expected",
            finish=Finish(objective, step=dense, dense=dense),
            callback=callback,
        )
    problem, start, back = symmetric(objective, start)
    problem, blocks = problem.with_curvature(torch.float32, products=True), not has_row_space(objective)

    def precondition(at: Evaluation) -> Callable[[Tensor], Tensor]:
        assert isinstance(at.hessian, LinearHessian)
        return block_jacobi_inverse(at.hessian, blocks=blocks)

    def direction(at: Evaluation) -> Tensor:
        assert at.hessian is not None
        return cg(at.hessian, -at.gradient, preconditioner=precondition(at), tol=1e-4, max_iter=500).x

    return newton_cg(
        problem,
        start,
        tol=tol,
        max_iter=max_iter,
        precondition=precondition,
        refresh_cost=block_jacobi_cost(problem) if max_iter >= FEW_ITERATIONS else 0.0,
        finish=Finish(objective, step=step, dense=dense, direction=None if dense else direction, back=back),
        callback=callback,
    )


def symmetric(
    objective: LinearObjective, start: Tensor, *, summing_to_zero: bool = False
) -> tuple[LinearObjective, Tensor, Callable[[Tensor], Tensor] | None]:
    """Return an objective relative to one of several outputs in coordinates that sum to zero: as it is otherwise.

    Args:
        objective: The objective.
        start: Parameters ``(P,)``.
        summing_to_zero: Whether the parameters will always do so, as gradients do: see ``LinearObjective.with_map``.

    Returns:
        The objective, the parameters in its coordinates, and the map from there back; None for the identity.
    """
    here = objective.output_map
    if here.left_out is None or not objective.likelihood.differences_only:
        return objective, start, None
    wider = OutputMap.own(objective.n_outputs, here.n_columns, here.intercept)
    own = objective.with_map(wider, summing_to_zero=summing_to_zero)
    if not start.any():
        return own, start.new_zeros(own.n_parameters), _relative(here)
    coef = here.expand(start)
    return own, (coef - coef.mean(0)).reshape(-1), _relative(here)


def _relative(here: OutputMap) -> Callable[[Tensor], Tensor]:
    """Return the map from coefficients of all outputs ``(C D',)`` to those relative to the output left out."""

    def back(theta: Tensor) -> Tensor:
        coef = theta.view(here.n_outputs, here.n_columns)
        return here.relative_to_left_out(coef).view(-1)

    return back
