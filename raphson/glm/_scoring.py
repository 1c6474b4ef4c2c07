"""Fits of likelihoods that need not be concave: steps by the expected information first, by the observed at the end.

Fisher scoring descends from anywhere, because the expected information is never indefinite; near the optimum the
observed information makes the steps exact. On many rows the scoring steps run on random subsets, whose optimum is near
enough to that of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.curvature._constrained import ConstrainedObjective
from raphson.curvature._linear import LinearObjective
from raphson.glm._solvers import certified, is_dense, subset_sizes
from raphson.solve import Solution, Status, cholesky_inverse, newton, newton_cg, quasi_newton
from raphson.solve._problem import Callback, Evaluation

Objective = LinearObjective | ConstrainedObjective

_ACCURACY = 0.05
"""A first stage on n rows ends at this share of p / n, a fraction of the sampling error of its optimal value."""


@dataclass(frozen=True)
class Expected:
    """An objective whose Hessian is the expected information, whatever kind is asked for."""

    base: Objective

    @property
    def n_parameters(self) -> int:
        """Number of parameters."""
        return self.base.n_parameters

    def value(self, theta: Tensor) -> float:
        """Return the objective."""
        return self.base.value(theta)

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """Return the objective and its gradient."""
        return self.base.value_and_gradient(theta)

    def evaluate(self, theta: Tensor, hessian: Any = "observed") -> Evaluation:
        """Return objective, gradient and expected information."""
        return self.base.evaluate(theta, None if hessian is None else "expected")

    def gradient_norm(self, gradient: Tensor) -> float:
        """Return the infinity norm of the gradient in the units of the tolerance."""
        return self.base.gradient_norm(gradient)


def solve_scoring(
    objective: Objective, start: Tensor, *, solver: str, tol: float, max_iter: int, callback: Callback | None
) -> Solution:
    """Minimize a linear model's objective, concave or not.

    Args:
        objective: The objective.
        start: Free parameters to start from, ``(p,)``, where the objective is finite.
        solver: ``"auto"``, ``"newton"`` or ``"newton-cg"``.
        tol: Bound on the gradient norm.
        max_iter: Largest number of iterations.
        callback: Called with a ``Step`` after every iteration.

    Returns:
        The solution; its ``hessian``, where there is one, is the observed one.

    Raises:
        InputError: If the solver needs a bound on the curvature.
    """
    if solver not in ("auto", "newton", "newton-cg"):
        raise InputError(
            f"Solver '{solver}' needs a concave log-likelihood with a bound on its curvature, and outputs without "
            "constraints; use 'newton'."
        )
    concave = objective.likelihood.concave
    if solver == "newton-cg" or not is_dense(objective):
        problem = objective if concave else Expected(objective)
        return newton_cg(problem, start, tol=tol, max_iter=max_iter, callback=callback)
    kinds = ("observed",) if concave else ("expected", "observed")
    if solver == "newton":
        return _observed(objective, newton(objective, start, tol=tol, max_iter=max_iter, kinds=kinds, callback=callback))
    near = _first_stages(objective, start, tol, max_iter, concave)
    solution = quasi_newton(
        objective,
        near,
        factorize=cholesky_inverse,
        factor_cost=objective.dense_cost,
        tol=tol,
        max_iter=max_iter,
        callback=callback,
    )
    if not solution.converged:
        begin = start if solution.status is Status.NOT_FINITE else solution.theta
        solution = newton(objective, begin, tol=tol, max_iter=max_iter, kinds=kinds, callback=callback)
    return _observed(objective, solution)


def _first_stages(objective: Objective, start: Tensor, tol: float, max_iter: int, concave: bool) -> Tensor:
    """Return a point near the optimum, from random subsets of the rows or, if they are few, from all."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        objective.take(torch.randint(objective.n_rows, (rows,), generator=generator))
        for rows in subset_sizes(objective)
    ]
    if not parts and not concave:
        parts = [objective]
    theta = start
    for part in parts:
        found = quasi_newton(
            part if concave else Expected(part),
            theta,
            factorize=cholesky_inverse,
            factor_cost=0.0,
            tol=tol,
            max_iter=max_iter,
            value_tol=_ACCURACY * part.n_parameters / part.n_rows,
        )
        if found.status is not Status.NOT_FINITE:
            theta = found.theta
    return theta


def _observed(objective: Objective, solution: Solution) -> Solution:
    """Take one step by the observed information in double precision, which certifies the optimum."""
    return certified(objective, solution) if solution.converged else solution
