"""Which solver fits a linear model: chosen by name, or from the shape of the problem."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg import cg
from raphson.linear import ConstrainedObjective, LinearObjective, class_block_cost, class_block_inverse
from raphson.solve import (
    Callback,
    Direction,
    Solution,
    Status,
    cholesky_inverse,
    gradient_descent,
    newton,
    newton_cg,
    newton_direction,
    quasi_newton,
    stochastic_gradient_descent,
)

SOLVERS = ("auto", "newton", "newton-cg", "gradient-descent", "sgd")

_HELD_COEFFICIENTS = 250
"""Up to this many coefficients ``auto`` holds dense Hessians; beyond, preconditioned products are cheaper."""

_SINGLE_FROM_PAIRS = 10
"""Pairs of outputs from which held Hessians are summed in single precision; with fewer they are cheap anyway."""

_DENSE_COEFFICIENTS = 2000
"""Up to this many coefficients the Hessian at the end is formed, for standard errors; beyond, only multiplied."""

_FEW_ITERATIONS = 10
"""Fewer iterations than this are taken literally: as Newton steps, each alike, which a warm start continues exactly."""

_PRECISE = 1e-8
"""A tolerance this small, and every fit without a penalty, ends with a Newton step in double precision."""

_STILL = 1e-8
"""Newton decrement up to which a Hessian before the last step is as good as the one after it."""

_SHORT = 1e-6
"""Newton decrement up to which a step leaves an error of 1e-12: where it leads need not be seen."""

_SUBSET_ROWS = 2000
_SUBSET_ROWS_PER_COEFFICIENT = 10
_SUBSET_GROWTH = 16.0

_SUBSETS_FROM = 5e5
"""Rows times coefficients from which subsets pay: below, a pass over all rows costs little more than its calls."""

_SUBSET_ACCURACY = 0.05
"""A subset of n rows is solved to this share of p / n, twice the expected sampling error of its optimal value."""


def solve(
    objective: LinearObjective,
    start: Tensor,
    *,
    solver: str,
    tol: float,
    max_iter: int,
    callback: Callback | None,
) -> Solution:
    """Minimize a linear model's objective.

    ``"auto"`` goes by the number of coefficients: few are solved with dense Hessians, each held over many steps, after
    fits of growing subsets of the rows; many with Hessian products in single precision. Either way every gradient is in
    double precision, and an unpenalized or tight fit ends with a full Newton step in double precision.

    Args:
        objective: The objective.
        start: Free coefficients to start from, ``(p,)``.
        solver: One of ``SOLVERS``.
        tol: Bound on the gradient norm.
        max_iter: Largest number of iterations.
        callback: Called with a ``Step`` after every iteration.

    Returns:
        The solution.

    Raises:
        InputError: If the solver needs a bound on the curvature that the likelihood does not have.
    """
    objective = _one_output(objective) or objective
    if solver == "newton-cg":
        return _iterative(objective, start, tol, max_iter, callback, hold=max_iter >= _FEW_ITERATIONS)
    if solver == "newton" or (solver == "auto" and max_iter < _FEW_ITERATIONS and is_dense(objective)):
        return newton(objective, start, tol=tol, max_iter=max_iter, callback=callback)
    if solver == "auto":
        return _automatic(objective, start, tol, max_iter, callback)
    bound, row_bound = objective.lipschitz_bound(), objective.row_lipschitz_bound()
    if bound is None or row_bound is None:
        raise InputError(
            f"Solver '{solver}' needs a bound on the output Hessian, which {type(objective.likelihood).__name__} does "
            "not have; use 'newton'."
        )
    if solver == "gradient-descent":
        return gradient_descent(objective, start, lipschitz=bound, tol=tol, max_iter=max_iter, callback=callback)
    return stochastic_gradient_descent(
        objective,
        start,
        lipschitz=row_bound,
        strong_convexity=float(objective.column_penalty.min()),
        tol=tol,
        max_iter=max_iter,
        generator=torch.Generator().manual_seed(0),
        callback=callback,
    )


def _one_output(objective: LinearObjective) -> LinearObjective | None:
    """Return a two-class objective as that of one logit, in the same free coefficients: half the exponentials."""
    if objective.n_outputs != 2 or objective.reference != 1 or objective.y.ndim != 1:
        return None
    likelihood = objective.likelihood.of_difference()
    if likelihood is None:
        return None
    offset = objective.offset
    return LinearObjective(
        objective.design,
        likelihood,
        (objective.y == 0).double()[:, None],
        n_outputs=1,
        weights=objective.weights,
        offset=None if offset is None else offset[:, :1] - offset[:, 1:],
        l2=objective.l2 / 2.0,  # sum-to-zero coefficients b / 2 and -b / 2 have the squared norm b^2 / 2
        curvature_dtype=objective.curvature_dtype,
    )


def is_dense(objective: LinearObjective | ConstrainedObjective) -> bool:
    """Return whether the Hessian of an objective is small enough to be formed."""
    return objective.n_parameters <= _DENSE_COEFFICIENTS


def _automatic(
    objective: LinearObjective, start: Tensor, tol: float, max_iter: int, callback: Callback | None
) -> Solution:
    finishes, coarse = objective.l2 == 0 or tol <= _PRECISE, tol
    if objective.n_parameters <= _HELD_COEFFICIENTS:
        # the Newton step at the end squares the error: what a single output costs makes that worth waiting for
        if finishes and objective.n_free == 1:
            coarse = max(tol, 0.1 * math.sqrt(tol))
        solution = _held(objective, start, coarse, max_iter, callback)
    else:
        solution = _iterative(objective, start, tol, max_iter, callback, hold=max_iter >= _FEW_ITERATIONS)
    stopped = not solution.converged and solution.status is not Status.NOT_FINITE
    if stopped and is_dense(objective) and max_iter >= _FEW_ITERATIONS:
        solution = newton(objective, solution.theta, tol=tol, max_iter=max_iter, callback=callback)
    if solution.converged and finishes:
        solution = certified(objective, solution, solution.last_step if solution.method == "newton" else None)
        if solution.gradient_norm > tol and solution.status is Status.CONVERGED:
            solution = newton(objective, solution.theta, tol=tol, max_iter=max_iter, callback=callback)
        elif coarse > tol and solution.newton_decrement > _STILL:
            solution = replace(solution, hessian=None)
    return solution


def certified(
    objective: LinearObjective | ConstrainedObjective,
    solution: Solution,
    step: Tensor | None = None,
    *,
    look: bool = True,
) -> Solution:
    """Take one full Newton step in double precision from a converged point.

    It squares what error is left, and its length tells an optimum from a limit at infinity.

    Args:
        objective: The objective, with Hessians in double precision.
        solution: A converged solution.
        step: The Newton step at it, if its observed Hessian in double precision is at hand; None to compute both.
        look: False takes a short step without a pass to see where it leads: the gradient norm is then that before it.

    Returns:
        The solution after the step, with the Hessian where that is formed.
    """
    hessian = solution.hessian
    if step is not None:
        direction = Direction(step, solution.newton_decrement**2)
    else:
        at = objective.evaluate(solution.theta)
        hessian = at.hessian
        assert hessian is not None
        if is_dense(objective):
            direction = newton_direction(hessian.to_dense(), at.gradient)
        else:
            inverse = class_block_inverse(at)
            found = cg(hessian, -at.gradient, preconditioner=inverse, tol=1e-4, max_iter=500).x
            direction = Direction(found, -float(at.gradient @ found))
    theta = solution.theta + direction.step
    value, norm = solution.value, solution.gradient_norm
    if look or not 0.0 <= direction.decrement_squared <= _SHORT**2:
        value, gradient = objective.value_and_gradient(theta)
        norm = objective.gradient_norm(gradient)
        if not norm <= solution.gradient_norm:  # rounding has the last word
            theta, value, norm = solution.theta, solution.value, solution.gradient_norm
    return replace(
        solution,
        theta=theta,
        value=value,
        gradient_norm=norm,
        newton_decrement=math.sqrt(max(direction.decrement_squared, 0.0)),
        last_step=direction.step,
        hessian=hessian if is_dense(objective) else None,
    )


def _held(objective: LinearObjective, start: Tensor, tol: float, max_iter: int, callback: Callback | None) -> Solution:
    """Fit growing random subsets of the rows, each from the one before, then all of them, with held dense factors.

    A subset of n rows puts the optimum within its sampling error, about ``p / 2n`` in value, at n / N of the price, and
    its Hessian is good enough to begin the next one with.

    Args:
        objective: The objective.
        start: Free coefficients to start from.
        tol: Bound on the gradient norm.
        max_iter: Largest number of factorizations at each level.
        callback: Called with every ``Step`` of the last level.

    Returns:
        The solution on all the rows.
    """
    pairs = objective.n_free * (objective.n_free + 1) // 2
    working = objective.with_curvature(torch.float32 if pairs >= _SINGLE_FROM_PAIRS else torch.float64)
    inverse = None
    generator = torch.Generator().manual_seed(0)
    # where something is known already, of the data or from an earlier fit, a subset would lead away from it
    for rows in () if bool(start.any()) else subset_sizes(working):
        part = working.take(torch.randint(working.n_rows, (rows,), generator=generator))
        start = quasi_newton(
            part,
            start,
            factorize=cholesky_inverse,
            factor_cost=part.dense_cost,
            tol=tol,
            max_iter=max_iter,
            value_tol=_SUBSET_ACCURACY * working.n_parameters / rows,
            inverse=inverse,
        ).theta
        inverse = cholesky_inverse(part.evaluate(start))
    return quasi_newton(
        working,
        start,
        factorize=cholesky_inverse,
        factor_cost=working.dense_cost,
        tol=tol,
        max_iter=max_iter,
        inverse=inverse,
        callback=callback,
    )


def subset_sizes(objective: LinearObjective | ConstrainedObjective) -> list[int]:
    """Return the numbers of rows of growing random subsets to fit before all rows; none where passes are cheap."""
    if objective.n_rows * objective.n_parameters < _SUBSETS_FROM:
        return []
    smallest = max(_SUBSET_ROWS, _SUBSET_ROWS_PER_COEFFICIENT * objective.n_parameters)
    ratio = objective.n_rows / smallest
    if ratio < 3.0:
        return []
    levels = max(1, round(math.log(ratio, _SUBSET_GROWTH)))
    return [int(smallest * ratio ** (i / levels)) for i in range(levels)]


def _iterative(
    objective: LinearObjective,
    start: Tensor,
    tol: float,
    max_iter: int,
    callback: Callback | None,
    *,
    hold: bool,
) -> Solution:
    """Fit without a dense Hessian, in symmetric coordinates where there is a reference to do without."""
    relative = objective.reference is not None
    problem = (objective.symmetric() if relative else objective).with_curvature(torch.float32, products=True)
    coef = objective.coefficients(start)
    if relative:
        coef = coef - coef.mean(0)
    solution = newton_cg(
        problem,
        coef.reshape(-1),
        tol=tol,
        max_iter=max_iter,
        precondition=class_block_inverse,
        refresh_cost=class_block_cost(problem) if hold else 0.0,
        callback=callback,
    )
    if not relative:
        return solution

    def back(theta: Tensor) -> Tensor:
        return objective.free(problem.coefficients(theta))

    last = solution.last_step
    return replace(solution, theta=back(solution.theta), last_step=None if last is None else back(last))
