"""Fits of likelihoods that need not be concave: steps by the expected information first, by the observed at the end.

Fisher scoring descends from anywhere, because the expected information is never indefinite; near the optimum, where the
observed information is positive definite, it makes the steps exact. On many rows the first steps run on a random
subset, whose optimum is near enough to that of all rows.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.estimators.fit._first_step import first_step
from raphson.estimators.fit._solvers import certified, is_dense, subset_sizes
from raphson.linalg import SymmetricOperator
from raphson.linear import ConstrainedObjective, LinearObjective
from raphson.solve import (
    Callback,
    Evaluation,
    Problem,
    Solution,
    Status,
    cholesky_inverse,
    newton,
    newton_cg,
    quasi_newton,
)

Objective = LinearObjective | ConstrainedObjective

_ACCURACY = 0.05
"""A first stage on n rows ends at this share of p / n, a fraction of the sampling error of its optimal value."""

_SCORING_COST = 2.0
"""Price of the expected information in evaluations: some of it is quadrature, so that it is held over a few steps."""

_CHEAP = 0.5
"""A Hessian that costs less than this in evaluations is made at every step: Newton needs the fewest evaluations."""


class AtExpected:
    """Objective and gradient at one point; the expected information is made when it is asked for."""

    def __init__(self, base: Objective, theta: Tensor) -> None:
        self._base, self._theta = base, theta
        self.value, self.gradient = base.value_and_gradient(theta)

    @cached_property
    def hessian(self) -> SymmetricOperator | None:
        """The expected information of the objective, ``(p, p)``."""
        return self._base.hessian(self._theta, "expected")


class Expected:
    """An objective whose Hessian is the expected information, whatever kind is asked for."""

    def __init__(self, base: Objective) -> None:
        self.base = base
        self.n_parameters = base.n_parameters

    def value(self, theta: Tensor) -> float:
        """Return the objective."""
        return self.base.value(theta)

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """Return the objective and its gradient."""
        return self.base.value_and_gradient(theta)

    def evaluate(self, theta: Tensor, hessian: Any = "observed") -> Evaluation:
        """Return objective, gradient and expected information."""
        return AtExpected(self.base, theta)

    def gradient_norm(self, gradient: Tensor) -> float:
        """Return the infinity norm of the gradient in the units of the tolerance."""
        return self.base.gradient_norm(gradient)


class Remembered:
    """An objective that remembers its last evaluation: where a solver stops, another one goes on without a new pass."""

    def __init__(self, base: Objective) -> None:
        self.base = base
        self.n_parameters = base.n_parameters
        self._last: tuple[Tensor, Any, Evaluation] | None = None

    def value(self, theta: Tensor) -> float:
        """Return the objective."""
        return self.base.value(theta)

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """Return the objective and its gradient."""
        return self.base.value_and_gradient(theta)

    def evaluate(self, theta: Tensor, hessian: Any = "observed") -> Evaluation:
        """Return objective, gradient and Hessian."""
        if self._last is None or self._last[0] is not theta or self._last[1] != hessian:
            self._last = theta, hessian, self.base.evaluate(theta, hessian)
        return self._last[2]

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
        problem: Problem = objective if concave else Expected(objective)
        return newton_cg(problem, start, tol=tol, max_iter=max_iter, callback=callback)
    kinds = ("observed",) if concave else ("expected", "observed")
    if solver == "newton":
        solution = newton(objective, start, tol=tol, max_iter=max_iter, kinds=kinds, callback=callback)
        return certified(objective, solution) if solution.converged else solution
    remembered = Remembered(objective)
    near = _near(objective, remembered, start, tol, max_iter)
    cost = objective.dense_cost
    solution = quasi_newton(
        remembered,
        near,
        factorize=cholesky_inverse,
        factor_cost=cost if cost > _CHEAP else 0.0,
        tol=tol,
        max_iter=max_iter,
        callback=callback,
    )
    if not solution.converged:
        begin = start if solution.status is Status.NOT_FINITE else solution.theta
        solution = newton(remembered, begin, tol=tol, max_iter=max_iter, kinds=kinds, callback=callback)
    return certified(cast(Any, remembered), solution, look=False) if solution.converged else solution


def _near(objective: Objective, remembered: Remembered, start: Tensor, tol: float, max_iter: int) -> Tensor:
    """Return a point near the optimum, from where Newton steps on all rows by the observed information lead to it."""
    theta = start
    generator = torch.Generator().manual_seed(0)
    for rows in subset_sizes(objective):
        part = objective.take(torch.randint(objective.n_rows, (rows,), generator=generator))
        begun = Remembered(part)
        theta = _begin(part, begun, theta)
        if theta is not start and part.gradient_norm(begun.evaluate(theta).gradient) <= tol:
            theta = start  # the first step is all it takes, on all rows too
            break
        theta = _stage(begun, theta, tol, max_iter)
    if theta is not start:
        return theta
    theta = _begin(objective, remembered, start)
    return theta if _descends(remembered, theta) else _stage(remembered, theta, tol, max_iter)


def _begin(objective: Objective, remembered: Remembered, start: Tensor) -> Tensor:
    """Return the point that a first step leads to, or the start if that is no worse."""
    found = first_step(objective, start) if isinstance(objective, ConstrainedObjective) else None
    return start if found is None or not remembered.evaluate(found[0]).value <= found[1] else found[0]


def _descends(remembered: Remembered, theta: Tensor) -> bool:
    """Return whether the observed information is positive definite."""
    if remembered.base.likelihood.concave:
        return True
    hessian = remembered.evaluate(theta).hessian
    return hessian is not None and int(torch.linalg.cholesky_ex(hessian.to_dense())[1]) == 0


def _stage(part: Remembered, start: Tensor, tol: float, max_iter: int) -> Tensor:
    """Return a point within a fraction of the sampling error of the optimum on some rows.

    Steps are by the observed information where it is positive definite at the start, else by the expected.
    """
    observed = _descends(part, start)
    found = quasi_newton(
        part if observed else Expected(part.base),
        start,
        factorize=cholesky_inverse,
        factor_cost=0.0 if observed else _SCORING_COST,
        tol=tol,
        max_iter=max_iter,
        value_tol=_ACCURACY * part.n_parameters / part.base.n_rows,
    )
    return start if found.status is Status.NOT_FINITE else found.theta
