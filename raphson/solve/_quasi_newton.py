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
from raphson.solve._lbfgs import PairsStepper, Stepper, descend
from raphson.solve._line_search import is_finite
from raphson.solve._pairs import InversePairs
from raphson.solve._solution import Callback, Evaluation, History, Problem, Solution, Status

_RATE_FROM = 8
"""Steps after which the rate at which the gradient falls is believed: the first ones find the scale. When
it was believed after four, a fit of 200 x 5000 that ends after 13 steps was given up."""

_BEST_RATE = 3.0
"""By what a step lowers the gradient, once the first one found the scale, at best: seldom by more over several."""

_LONGEST, _CLOSE = 1.5, 0.33
"""Times its patience that a run may take, where no more than this share of it seems to be left."""

_GAIN, _WITHOUT_GAIN = 0.95, 6
"""Share of the smallest gradient that is a gain, and steps without one, near its rounding, that end it: 20000 x 50000,
sparse, 20 classes, came to 4.6e-6 after 29 steps and to 4.3e-6 after 49; 50000 x 300, sparse, ten, separable, l2 =
1e-6, in single precision came to 2e-6 after 30 steps and to no less in 120 more; in double 41 reach 1e-6."""


def quasi_newton(
    problem: Problem,
    start: Tensor,
    *,
    tol: float = 1e-8,
    patience: float = 100.0,
    at: Evaluation | None = None,
    inverse: Inverse | None = None,
    length: float | None = None,
    rounded: float = 0.0,
    stepper: Stepper | None = None,
    callback: Callback | None = None,
) -> Solution:
    """Minimize by L-BFGS, as long as that promises to end within so many gradients.

    Args:
        problem: Objective; its Hessian is never asked for.
        start: Starting point ``(p,)``, float64.
        tol: Bound on the gradient's norm.
        patience: Evaluations that it may take, and that the mean rate at which the gradient falls may promise.
        at: The state at the start, where it is known.
        inverse: About the product with the inverse Hessian, up to a factor; None for the identity.
        length: About how many times the first step, ``-inverse(gradient)``, is best taken; None for a length of one.
        rounded: Norm of the gradient from which on rounding may be all that is left: a few steps in which the smallest
            one hardly falls then end it.
        stepper: Makes the steps, with inverse and length of its own; None for one that asks ``problem``.
        callback: Called with a ``Step`` after every step.

    Returns:
        The solution; it has converged only if the gradient is below the tolerance.
    """
    evaluate = functools.partial(problem.evaluate, hessian=None)
    history = History(callback)
    theta, at = start, evaluate(start) if at is None else at
    history.add(at)
    status = Status.MAX_ITERATIONS if is_finite(at) else Status.NOT_FINITE
    if status is Status.MAX_ITERATIONS and at.norm > tol:
        if stepper is None:
            pairs = InversePairs(torch.clone if inverse is None else inverse, at.gradient, scaled=True, length=length)
            stepper = PairsStepper(evaluate, pairs)
        status = Status.STALLED  # or at the rounding of the value: a Newton step tells
        first = least = math.inf  # since the first step of all, which finds the scale: the gradient falls by far more
        mark, since = math.inf, 0
        for reached in descend(stepper, theta, at, tol=tol):
            theta, at, evaluations, passed = reached
            for value, norm in (*passed, (at.value, at.norm)):
                first = norm if len(history.steps) == 1 else first
                least = min(least, norm)
                mark, since = (least, 0) if least < _GAIN * mark else (mark, since + 1)
                history.reach(value, norm)
            if since >= _WITHOUT_GAIN and least <= rounded:
                break
            if at.norm <= tol or _hopeless(len(history.steps) - 1, evaluations, first, least, tol, patience):
                status = Status.MAX_ITERATIONS
                break
    if at.norm <= tol:
        status = Status.CONVERGED
    return history.solution(theta, at, status, "lbfgs")


def _hopeless(taken: int, evaluations: int, first: float, least: float, tol: float, patience: float) -> bool:
    """Return whether the patience is at its end, or would be before the tolerance at the rate since the first step."""
    if evaluations >= _LONGEST * patience:
        return True
    if taken < _RATE_FROM:
        return taken + math.log(least / tol) / math.log(_BEST_RATE) > patience
    if not least < first:
        return True
    left = (taken - 1) * math.log(least / tol) / math.log(first / least)
    return taken + left > patience and left > _CLOSE * patience
