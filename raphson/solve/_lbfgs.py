"""Limited-memory BFGS that starts from an inverse Hessian of the caller's, for smooth functions without noise."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from raphson.solve._newton import two_loops

_SUFFICIENT = 1e-4


class Descent(NamedTuple):
    """Where a run ended.

    Attributes:
        theta: The point, ``(P,)``.
        value: The function there.
        gradient: Its gradient, ``(P,)``.
        evaluations: How often the function was evaluated.
        iterations: Steps that were taken.
    """

    theta: Tensor
    value: Tensor
    gradient: Tensor
    evaluations: int
    iterations: int


def lbfgs(
    function: Callable[[Tensor], tuple[Tensor, Callable[[], Tensor]]],
    theta: Tensor,
    inverse: Callable[[Tensor], Tensor],
    *,
    max_iter: int,
    tol: float = 0.0,
    memory: int = 20,
    growth: float = 4.0,
) -> Descent:
    """Minimize a function whose gradient costs little beside a factorization of its Hessian.

    The two-loop recursion of L-BFGS (Nocedal and Wright 2006, algorithm 7.4) with ``inverse``, a solve with a
    curvature factored once, in place of a multiple of the identity, and a backtracking line search.

    Args:
        function: From ``(P,)`` to the value and a function that returns the gradient, which is called at points that
            the line search accepts.
        theta: Start, ``(P,)``.
        inverse: Product with a positive definite approximation of the inverse Hessian.
        max_iter: Largest number of steps.
        tol: The run ends with a step that lowers the function by less.
        memory: Number of pairs of steps and changes of the gradient that are held.
        growth: Factor from the length of the last step to the first length that is tried: after a short step the next
            one is hardly ever whole.

    Returns:
        The last point; a function that is not finite there ends the run at the start.

    >>> import torch
    >>> found = lbfgs(lambda v: ((v * v).sum(), lambda: 2 * v), torch.ones(2), lambda g: g / 2, max_iter=5)
    >>> found.theta
    tensor([0., 0.])
    """
    value, at_point = function(theta)
    gradient = at_point()
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=memory)
    evaluations, iterations, t = 1, 0, 1.0
    while iterations < max_iter and bool(torch.isfinite(value)):
        direction = two_loops(gradient, pairs, inverse)
        slope = float(gradient @ direction)
        if not slope < 0:
            if not pairs:
                break
            pairs.clear()
            continue
        t, found = min(1.0, growth * t), False
        for _ in range(20):
            moved = theta + t * direction
            new_value, at_point = function(moved)
            evaluations += 1
            finite = bool(torch.isfinite(new_value))
            if finite and float(new_value - value) <= _SUFFICIENT * t * slope:
                found = True
                break
            # the minimum of the parabola through value, slope and new value, kept within bounds
            excess = float(new_value - value) - t * slope
            t *= max(0.1, min(0.5, -slope * t / (2 * excess))) if finite and excess > 0 else 0.5
        if not found:
            break
        new_gradient = at_point()
        step, change = moved - theta, new_gradient - gradient
        curvature = float(step @ change)
        if curvature > 1e-10 * float(step.norm() * change.norm()):
            pairs.append((step, change, 1.0 / curvature))
        fall = float(value - new_value)
        theta, value, gradient = moved, new_value, new_gradient
        iterations += 1
        if fall <= tol:
            break
    return Descent(theta, value, gradient, evaluations, iterations)
