"""Which solver fits a linear model: chosen by name, or from the shape of the problem."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.curvature._khatri_rao import HALF_FROM_PAIRS
from raphson.curvature._linear import LinearObjective
from raphson.curvature._precondition import class_block_cost, class_block_inverse
from raphson.solve import (
    Solution,
    Status,
    cholesky_inverse,
    gradient_descent,
    newton,
    newton_cg,
    quasi_newton,
    stochastic_gradient_descent,
)
from raphson.solve._newton import newton_direction
from raphson.solve._problem import Callback

SOLVERS = ("auto", "newton", "newton-cg", "gradient-descent", "sgd")

_SUBSET_ROWS = 2000
_SUBSET_GROWTH = 16.0
_SUBSET_ACCURACY = 0.05

_FEW_ITERATIONS = 10

_DENSE_PARAMETERS = 500
"""Up to this many coefficients the Hessian is formed and factorized; beyond, only multiplied."""


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
    # a handful of iterations is meant as that many Newton steps, each alike, so that they can be continued later
    few = max_iter < _FEW_ITERATIONS
    if solver == "auto" and objective.n_parameters <= _DENSE_PARAMETERS and not few:
        return _automatic(objective, start, tol, max_iter, callback)
    if solver == "newton" or (few and objective.n_parameters <= _DENSE_PARAMETERS and solver == "auto"):
        return newton(objective, start, tol=tol, max_iter=max_iter, callback=callback)
    if solver in ("auto", "newton-cg"):
        return _iterative(objective, start, tol, max_iter, callback, hold=not few)
    bound = objective.lipschitz_bound()
    if bound is None:
        raise InputError(
            f"Solver '{solver}' needs a bound on the output Hessian, which {type(objective.likelihood).__name__} does not "
            "have; use 'newton'."
        )
    if solver == "gradient-descent":
        return gradient_descent(
            objective, start, lipschitz=bound, tol=tol, max_iter=max_iter, callback=callback
        )
    return stochastic_gradient_descent(
        objective,
        start,
        lipschitz=objective.row_lipschitz_bound(),
        strong_convexity=float(objective.column_penalty.min()),
        tol=tol,
        max_iter=max_iter,
        generator=torch.Generator().manual_seed(0),
        callback=callback,
    )


def _automatic(
    objective: LinearObjective, start: Tensor, tol: float, max_iter: int, callback: Callback | None
) -> Solution:
    """Fit with few dense Hessians; without a penalty, end with a Newton step in full precision that certifies the fit."""
    exact = objective.with_curvature(torch.float64)
    many_pairs = objective.n_free * (objective.n_free + 1) // 2 >= HALF_FROM_PAIRS
    working = objective.with_curvature(torch.float32) if many_pairs else exact
    solution = _growing(working, start, tol, max_iter, callback)
    if not solution.converged and solution.status is not Status.NOT_FINITE and max_iter > 1:
        solution = newton(exact, solution.theta, tol=tol, max_iter=max_iter, callback=callback)
    if objective.l2 == 0 and solution.converged:
        solution = _certified(exact, solution)
    return solution


def _certified(objective: LinearObjective, solution: Solution) -> Solution:
    """Take one full Newton step from a converged point; its length tells an optimum from a limit at infinity."""
    at = objective.evaluate(solution.theta)
    assert at.hessian is not None
    direction = newton_direction(at.hessian.to_dense(), at.gradient)
    theta = solution.theta + direction.step
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
        hessian=at.hessian,
    )


def _growing(
    objective: LinearObjective, start: Tensor, tol: float, max_iter: int, callback: Callback | None
) -> Solution:
    """Fit growing random subsets of the rows, each from the one before, then all of them.

    A subset of n rows puts the optimum within its sampling error, ``p / 2n`` in value, at n / N of the price, and its
    Hessian is good enough to begin the next one with.
    """
    inverse = None
    generator = torch.Generator().manual_seed(0)
    for rows in _subset_sizes(objective):
        part = objective.take(torch.randint(objective.n_rows, (rows,), generator=generator))
        solution = quasi_newton(
            part,
            start,
            factorize=cholesky_inverse,
            factor_cost=part.dense_cost,
            tol=tol,
            max_iter=max_iter,
            value_tol=_SUBSET_ACCURACY * objective.n_parameters / rows,
            inverse=inverse,
        )
        start = solution.theta
        inverse = cholesky_inverse(part.evaluate(start))
    return quasi_newton(
        objective,
        start,
        factorize=cholesky_inverse,
        factor_cost=objective.dense_cost,
        tol=tol,
        max_iter=max_iter,
        inverse=inverse,
        callback=callback,
    )


def _subset_sizes(objective: LinearObjective) -> list[int]:
    smallest = max(_SUBSET_ROWS, 10 * objective.n_parameters)
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
    problem = (objective.symmetric() if relative else objective).with_curvature(torch.float32)
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
