r"""L-BFGS with a limit on what it may cost: the first thing to try where a Hessian costs many gradients.

It starts from a multiple of the identity, :math:`\gamma_k = s^T y / y^T y` (Nocedal and Wright 2006, equation 7.20), or
of a rough inverse of the caller's. Where the columns are standardized and the optimum is near, ten or
twenty gradients reach the tolerance; where they do not, their rate says so soon, and what they found is a start for
Newton's method. A fit then costs at most about twice the cheaper of the two, whichever that is.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from raphson.solve._factor import Inverse
from raphson.solve._lbfgs import InversePairs, descend
from raphson.solve._line_search import is_finite
from raphson.solve._problem import Callback, Evaluation, History, Problem
from raphson.solve._solution import Solution, Status

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
    near: bool = False,
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
        near: Whether the start is near the optimum and ``inverse`` right without a factor: else the first step has
            length one.
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
    first, least = at.norm, at.norm
    status = Status.MAX_ITERATIONS if is_finite(at) else Status.NOT_FINITE
    if status is Status.MAX_ITERATIONS and at.norm > tol:
        pairs = InversePairs(torch.clone if inverse is None else inverse, at.gradient, scaled=not near)
        status = Status.STALLED  # or at the rounding of the value: a Newton step tells
        for reached in descend(evaluate, theta, at, pairs):
            theta, at, evaluations = reached
            least = min(least, at.norm)
            met.append(at.gradient)
            history.add(at)
            if at.norm <= tol or _hopeless(len(history.steps) - 1, evaluations, first, least, tol, patience):
                status = Status.MAX_ITERATIONS
                break
    if at.norm <= tol:
        status = Status.CONVERGED
    steps = tuple(history.steps)
    return Solution(theta, status, at.value, at.norm, len(steps) - 1, "lbfgs", history=steps)


def _hopeless(taken: int, evaluations: int, first: float, least: float, tol: float, patience: float) -> bool:
    """Return whether the patience is at its end, or would be before the tolerance at the mean rate so far."""
    if evaluations >= patience:
        return True
    if taken < _RATE_FROM:
        return False
    return not least < first or taken * math.log(first / tol) / math.log(first / least) > patience
