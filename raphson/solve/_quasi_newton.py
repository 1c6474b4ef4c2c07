r"""L-BFGS with a limit on what it may cost: the first thing to try where a Hessian costs many gradients.

The limited-memory BFGS recursion (Nocedal and Wright 2006, algorithm 7.4) from a multiple of the identity,
:math:`\gamma_k = s^T y / y^T y` (equation 7.20), or of a rough inverse of
the caller's. Where the columns are standardized and the optimum is near, ten or
twenty gradients reach the tolerance; where they do not, their rate says so soon, and what they found is a start for
Newton's method. A fit then costs at most about twice the cheaper of the two, whichever that is.
"""

from __future__ import annotations

import functools
import math
from collections import deque

import torch
from torch import Tensor

from raphson.solve._factor import Inverse
from raphson.solve._line_search import Direction, is_finite
from raphson.solve._newton import two_loops
from raphson.solve._problem import Callback, Evaluation, History, Problem
from raphson.solve._solution import Solution, Status

_MEMORY = 10
"""Pairs of steps and changes of the gradient."""

_SUFFICIENT = 1e-4
"""Fraction of the predicted decrease that a step must achieve (Nocedal and Wright 2006, equation 3.4)."""

_TRIALS = 20
"""Lengths tried for a step."""

_RATE_FROM = 4
"""Steps after which the rate at which the gradient falls is believed: the first ones find the scale."""


def quasi_newton(
    problem: Problem,
    start: Tensor,
    *,
    tol: float = 1e-8,
    patience: float = 100.0,
    at: Evaluation | None = None,
    met: list[Tensor] | None = None,
    inverse: Inverse | None = None,
    callback: Callback | None = None,
) -> Solution:
    """Minimize by L-BFGS, as long as that promises to end within so many gradients.

    Args:
        problem: Objective; its Hessian is never asked for.
        start: Starting point ``(p,)``, float64.
        tol: Bound on the gradient's norm.
        patience: Evaluations that it may take, and that the mean rate at which the gradient falls may promise.
        at: The state at the start, where it is known.
        met: Is given the gradients ``(p,)`` at the start and after every step.
        inverse: About the product with the inverse Hessian, up to a factor; None for the identity.
        callback: Called with a ``Step`` after every step.

    Returns:
        The solution; it has converged only if the gradient is below the tolerance.
    """
    evaluate = functools.partial(problem.evaluate, hessian=None)
    history = History(callback)
    theta, at = start, evaluate(start) if at is None else at
    history.add(at)
    met = [] if met is None else met
    met.append(at.gradient)
    first, least, evaluations = at.norm, at.norm, 0
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=_MEMORY)
    # of unknown scale: the first step has length one in standardized coefficients
    rough = torch.clone if inverse is None else inverse
    scale = 1.0 / max(float(rough(at.gradient).norm()), torch.finfo(torch.float64).tiny)
    status = Status.MAX_ITERATIONS if is_finite(at) else Status.NOT_FINITE
    while (
        status is Status.MAX_ITERATIONS
        and at.norm > tol
        and not _hopeless(len(history.steps) - 1, evaluations, first, least, tol, patience)
    ):
        step = two_loops(at.gradient, pairs, functools.partial(_scaled, rough, scale))
        direction = Direction.of(step, at.gradient)
        found = _search(evaluate, theta, at, direction)
        if found is None and pairs:
            pairs.clear()
            evaluations += _TRIALS
            continue
        if found is None:
            status = Status.STALLED  # or at the rounding of the value: a Newton step tells
            break
        reached, new, trials = found
        moved, change = reached - theta, new.gradient - at.gradient
        curvature = float(torch.dot(moved, change))
        if curvature > 0.0:
            pairs.append((moved, change, 1.0 / curvature))
            scale = curvature / float(torch.dot(change, rough(change)))
        theta, at, evaluations = reached, new, evaluations + trials
        least = min(least, at.norm)
        met.append(at.gradient)
        history.add(at)
    if at.norm <= tol:
        status = Status.CONVERGED
    steps = tuple(history.steps)
    return Solution(theta, status, at.value, at.norm, len(steps) - 1, "lbfgs", history=steps)


def _scaled(inverse: Inverse, scale: float, v: Tensor) -> Tensor:
    return inverse(v).mul_(scale)


def _hopeless(taken: int, evaluations: int, first: float, least: float, tol: float, patience: float) -> bool:
    """Return whether the patience is at its end, or would be before the tolerance at the mean rate so far."""
    if evaluations >= patience:
        return True
    if taken < _RATE_FROM:
        return False
    return not least < first or taken * math.log(first / tol) / math.log(first / least) > patience


def _search(
    evaluate: functools.partial[Evaluation], theta: Tensor, at: Evaluation, direction: Direction
) -> tuple[Tensor, Evaluation, int] | None:
    """Shorten a step until the objective falls enough: new point, state there and trials, or None if none helps."""
    slope = -direction.decrement_squared
    if not slope < 0.0:
        return None
    length, rounding = 1.0, 2.0**-50 * max(abs(at.value), 1.0)
    for trial in range(1, _TRIALS + 1):
        reached = torch.add(theta, direction.step, alpha=length)
        new = evaluate(reached)
        finite = is_finite(new)
        if finite and new.value <= at.value + _SUFFICIENT * length * slope:
            return reached, new, trial
        if finite and -slope * length <= 16 * rounding:  # the value can no longer judge
            return (reached, new, trial) if new.norm < at.norm else None
        # the minimum of the parabola through value, slope and new value, kept within bounds
        excess = new.value - at.value - length * slope
        length *= max(0.1, min(0.5, -slope * length / (2 * excess))) if finite and excess > 0 else 0.1
    return None
