r"""Newton's method: the step :math:`-H^{-1} g` from a dense factorization, globalized.

The pieces are separate: a *direction* turns the state at a point into a step, ``backtrack`` finds how much of it to
take, ``newton`` runs them to a stationary point. An indefinite Hessian is shifted to positive definite (Levenberg,
Marquardt).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raphson.solve._problem import Callback, Evaluation, History, Problem
from raphson.solve._solution import Solution, Status

ARMIJO = 1e-4
"""Fraction of the predicted decrease that a step must achieve (Nocedal and Wright 2006, eq. 3.4)."""

ROUNDING = 2.0**-50
_HALVINGS = 40


class Direction(NamedTuple):
    """A search direction and ``g^T H^-1 g``, the square of the Newton decrement."""

    step: Tensor
    decrement_squared: float


Preconditioner = Callable[[Tensor], Tensor]


def newton(
    problem: Problem,
    start: Tensor,
    *,
    tol: float = 1e-8,
    max_iter: int = 100,
    kinds: Sequence[str] = ("observed",),
    callback: Callback | None = None,
) -> Solution:
    r"""Minimize by Newton's method with a dense Cholesky factor per step.

    Args:
        problem: Objective with a dense Hessian.
        start: Starting point ``(p,)``, float64.
        tol: Bound on ``problem.gradient_norm``.
        max_iter: Largest number of steps.
        kinds: Hessians to use, in order: with ``("expected", "observed")`` the expected information serves until a
            full step of it has been accepted near the optimum, then the observed one (Fisher scoring, then Newton).
        callback: Called with a ``Step`` after every iteration.

    Returns:
        The solution; ``status`` says how it ended. Nothing is raised for an objective without an optimum.
    """
    history = History(callback)
    kind = 0
    at: Evaluation = problem.evaluate(start, kinds[kind])
    theta, decrement = start, math.nan
    norm = problem.gradient_norm(at.gradient)
    history.add(at.value, norm)
    status, last = Status.MAX_ITERATIONS, None
    if not is_finite(at):
        return Solution(start, Status.NOT_FINITE, at.value, norm, 0, "newton", history=tuple(history.steps))
    for iteration in range(max_iter + 1):
        assert at.hessian is not None
        direction = newton_direction(at.hessian.to_dense(), at.gradient)
        decrement, last = math.sqrt(max(direction.decrement_squared, 0.0)), direction.step
        if norm <= tol:
            status = Status.CONVERGED
            break
        if iteration == max_iter:
            break

        def evaluate(point: Tensor, which: str = kinds[kind]) -> Evaluation:
            return problem.evaluate(point, which)

        found = backtrack(problem, theta, at, direction, norm, evaluate)
        if found is None and not at_rounding(direction, at):
            found = _shorter_step(problem, theta, at, norm, evaluate)
        if found is None:
            status = Status.PRECISION_REACHED if at_rounding(direction, at) else Status.STALLED
            break
        theta, at, length = found
        norm = problem.gradient_norm(at.gradient)
        history.add(at.value, norm)
        if kind + 1 < len(kinds) and length == 1.0 and direction.decrement_squared < 0.1:
            kind += 1
            at = problem.evaluate(theta, kinds[kind])
    steps = tuple(history.steps)
    return Solution(theta, status, at.value, norm, len(steps) - 1, "newton", decrement, last, at.hessian, history=steps)


def newton_direction(hessian: Tensor, gradient: Tensor) -> Direction:
    """Return the step ``-H^-1 g`` and ``g^T H^-1 g``, of a shifted H if it is not positive definite."""
    step = -inverse_map(hessian)(gradient)
    return Direction(step, -float(gradient @ step))


def inverse_map(hessian: Tensor) -> Preconditioner:
    """Factorize a Hessian by Cholesky, shifted by a multiple of its diagonal until it is positive definite.

    Args:
        hessian: ``(p, p)``; the factorization runs in its element type.

    Returns:
        The map ``v -> H^-1 v`` for ``v`` of shape ``(p,)``, which keeps the element type of ``v``.
    """
    factor, info = torch.linalg.cholesky_ex(hessian)
    if int(info):
        factor = _shifted_cholesky(hessian)

    def solve(v: Tensor) -> Tensor:
        right = v if v.dtype == factor.dtype else v.to(factor.dtype)
        found = torch.cholesky_solve(right.unsqueeze(1), factor).squeeze(1)
        return found if v.dtype == factor.dtype else found.to(v.dtype)

    return solve


def _shorter_step(
    problem: Problem, theta: Tensor, at: Evaluation, norm: float, evaluate: Callable[[Tensor], Evaluation]
) -> tuple[Tensor, Evaluation, float] | None:
    """Try steps of ``H + t I`` with growing t, down to a gradient step: far out the quadratic model is worthless."""
    assert at.hessian is not None
    hessian = at.hessian.to_dense()
    size = max(1.0, float(hessian.diagonal().max()))
    for shift in (1e-8, 1e-6, 1e-4, 1e-2, 1.0, 1e2):
        direction = newton_direction(
            hessian + torch.eye(hessian.shape[0], dtype=hessian.dtype) * (shift * size), at.gradient
        )
        found = backtrack(problem, theta, at, direction, norm, evaluate)
        if found is not None:
            return found
    return None


def _shifted_cholesky(hessian: Tensor) -> Tensor:
    """Factorize ``H + t diag|H|`` with the smallest tried t that makes it positive definite; I for H not finite."""
    if not bool(torch.isfinite(hessian).all()):
        return torch.eye(hessian.shape[0], dtype=hessian.dtype)
    eps = torch.finfo(hessian.dtype).eps
    diagonal = hessian.diagonal().abs()
    diagonal = diagonal.clamp_min(float(diagonal.max()) * eps + torch.finfo(hessian.dtype).tiny)
    shift = 4.0 * eps * hessian.shape[0]
    factor: Tensor
    while True:
        factor, info = torch.linalg.cholesky_ex(hessian + torch.diag(shift * diagonal))
        if int(info) == 0 and bool(torch.isfinite(factor.diagonal()).all()):
            return factor
        shift *= 10.0


def backtrack(
    problem: Problem,
    theta: Tensor,
    at: Evaluation,
    direction: Direction,
    norm: float,
    evaluate: Callable[[Tensor], Evaluation],
) -> tuple[Tensor, Evaluation, float] | None:
    """Halve the step until the objective falls enough; the full step is evaluated with all that comes next.

    Where the predicted decrease is below the rounding of the value, the value can no longer judge: the step is then
    accepted if it lowers the gradient norm.

    Args:
        problem: The objective.
        theta: Current point.
        at: State there.
        direction: Search direction.
        norm: Gradient norm at the current point.
        evaluate: Evaluates a trial point in full.

    Returns:
        New point, state there and step length, or None if no step helps.
    """
    slope = -direction.decrement_squared
    if not slope < 0:
        return None
    rounding = ROUNDING * max(abs(at.value), 1.0)
    length = 1.0
    for _ in range(_HALVINGS):
        trial = torch.add(theta, direction.step, alpha=length)
        if length == 1.0 or -slope * length <= rounding:
            new = evaluate(trial)
            if is_finite(new) and (
                new.value <= at.value + ARMIJO * length * slope
                or (-slope * length <= 16 * rounding and problem.gradient_norm(new.gradient) < norm)
            ):
                return trial, new, length
            if -slope * length <= rounding:
                return None
        elif problem.value(trial) <= at.value + ARMIJO * length * slope:
            return trial, evaluate(trial), length
        length *= 0.5
    return None


def is_finite(at: Evaluation) -> bool:
    """Return whether value and gradient are finite numbers."""
    return math.isfinite(at.value) and math.isfinite(float(at.gradient.sum()))


def at_rounding(direction: Direction, at: Evaluation) -> bool:
    """Return whether the decrease that a direction predicts is below the rounding of the value."""
    return direction.decrement_squared <= 2.0**-40 * max(abs(at.value), 1.0)
