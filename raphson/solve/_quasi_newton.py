r"""Newton's method that pays for few Hessians: a factor is held over many steps, and L-BFGS corrects what it misses.

A dense Hessian costs many gradients, and after a step most of it is still right. So the inverse of the last factorized
Hessian serves as the initial matrix of a limited-memory BFGS recursion (Nocedal and Wright 2006, algorithm 7.4): every
step costs one gradient and one solve, and the pairs since the factorization carry the change of the Hessian. A new
factor is made when the gradient falls too slowly for its price.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from raphson.solve._newton import Direction, Preconditioner, at_rounding, backtrack, inverse_map, is_finite
from raphson.solve._problem import Callback, Evaluation, History, Problem
from raphson.solve._solution import Solution, Status

_MEMORY = 10

_NEWTON_RATE = 1.2
"""What a fresh factor is counted on for: a step that reduces the gradient by ``exp(1.2)``, about 3."""

STEEP = 0.3
LONGEST = 4.0
EXTENSIONS = 2
"""A step is extended up to twice, up to fourfold, while the slope at its end is above this share of the first one."""

_STEPS = 20
"""Steps allowed for each iteration asked for: these are cheap ones, a fraction of a Newton iteration each."""


def quasi_newton(
    problem: Problem,
    start: Tensor,
    *,
    factorize: Callable[[Evaluation], Preconditioner],
    factor_cost: float,
    tol: float = 1e-8,
    max_iter: int = 100,
    value_tol: float = 0.0,
    inverse: Preconditioner | None = None,
    callback: Callback | None = None,
) -> Solution:
    """Minimize with a held Hessian factor and L-BFGS corrections.

    Args:
        problem: The objective.
        start: Starting point ``(p,)``, float64.
        factorize: Turns the state at a point into a map ``v -> H^-1 v``, exact or approximate.
        factor_cost: What ``factorize`` costs, in evaluations of value and gradient; decides how often it is called.
            Zero makes a factor for every step: Newton's method.
        tol: Bound on ``problem.gradient_norm``.
        max_iter: Largest number of factorizations; twenty times as many steps are allowed.
        value_tol: Stop as soon as the predicted distance to the optimal value falls below this.
        inverse: A map to begin with, say of a subset of the rows; None makes one at the start.
        callback: Called with a ``Step`` after every step.

    Returns:
        The solution; ``status`` says how it ended.
    """
    history = History(callback)
    theta, at = start, problem.evaluate(start)
    norm = problem.gradient_norm(at.gradient)
    history.add(at.value, norm)
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=_MEMORY)
    status, last, decrement, factors = Status.MAX_ITERATIONS, None, math.nan, 0
    fresh = True  # no step has been taken since the factor was made: making it again would change nothing
    slow = False
    if not is_finite(at):
        max_iter, status = 0, Status.NOT_FINITE
    for _ in range(_STEPS * max_iter):
        if norm <= tol:
            status = Status.CONVERGED
            break
        if inverse is None or (slow and not fresh):
            if factors == max_iter:
                break
            inverse, fresh, slow = factorize(at), True, False
            factors += 1
            pairs.clear()
        step = _two_loops(at.gradient, pairs, inverse)
        direction = Direction(step, -float(at.gradient @ step))
        decrement, last = math.sqrt(max(direction.decrement_squared, 0.0)), step
        if direction.decrement_squared < 2.0 * value_tol:
            status = Status.CONVERGED
            break
        found = backtrack(problem, theta, at, direction, norm, problem.evaluate)
        if found is None:
            if at_rounding(direction, at):
                status = Status.PRECISION_REACHED
                break
            if fresh:
                status = Status.STALLED
                break
            slow = True
            continue
        new_theta, new, length = found
        if not factor_cost and length == 1.0:
            new_theta, new = _longer(problem, theta, direction, new_theta, new)
        if factor_cost:
            moved, change = new_theta - theta, new.gradient - at.gradient
            curvature = float(moved @ change)
            if curvature > 0.0:
                pairs.append((moved, change, 1.0 / curvature))
        new_norm = problem.gradient_norm(new.gradient)
        wanted = math.exp(-_NEWTON_RATE / (1.0 + factor_cost)) if factor_cost else 0.0
        slow = new_norm > norm * wanted or length < 0.5
        theta, at, norm, fresh = new_theta, new, new_norm, False
        history.add(at.value, norm)
    if norm <= tol and status is Status.MAX_ITERATIONS:
        status = Status.CONVERGED
    steps = tuple(history.steps)
    return Solution(theta, status, at.value, norm, len(steps) - 1, "quasi-newton", decrement, last, history=steps)


def cholesky_inverse(at: Evaluation) -> Preconditioner:
    """Factorize the dense Hessian at a point, shifted if it is not positive definite in its element type."""
    assert at.hessian is not None
    return inverse_map(at.hessian.to_dense())


def _longer(
    problem: Problem, theta: Tensor, direction: Direction, reached: Tensor, at: Evaluation
) -> tuple[Tensor, Evaluation]:
    """Go on along a Newton step at whose end the objective still falls steeply, as it does on nearly separated data.

    There the loss is an exponential tail, of which a Newton step takes one unit, a factor e, and a factor costs more
    than another evaluation. Where the slope has fallen to a share r, a slope like ``(1 - t/T)^2`` vanishes at
    ``T = 1 / (1 - sqrt(r))``.

    Args:
        problem: The objective.
        theta: Where the step began.
        direction: The step.
        reached: Its end.
        at: State there.

    Returns:
        The best point found and the state there.
    """
    length = 1.0
    for _ in range(EXTENSIONS):
        share = float(at.gradient @ direction.step) / -direction.decrement_squared
        if not STEEP < share < 1.0:
            break
        length *= min(1.0 / (1.0 - math.sqrt(share)), LONGEST)
        trial = torch.add(theta, direction.step, alpha=length)
        new = problem.evaluate(trial)
        if not (is_finite(new) and new.value < at.value):
            break
        reached, at = trial, new
    return reached, at


def _two_loops(gradient: Tensor, pairs: deque[tuple[Tensor, Tensor, float]], inverse: Preconditioner) -> Tensor:
    """Return ``-H_k g`` by the two-loop recursion."""
    q = gradient
    coefficients = []
    for s, y, rho in reversed(pairs):
        alpha = rho * (s @ q)
        q = torch.addcmul(q, alpha, y, value=-1.0)
        coefficients.append(alpha)
    z = inverse(q)
    for (s, y, rho), alpha in zip(pairs, reversed(coefficients), strict=True):
        z = torch.addcmul(z, alpha - rho * (y @ z), s)
    return -z
