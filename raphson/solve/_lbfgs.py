"""Limited-memory BFGS: its loop and its line search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from raphson.solve._factor import Inverse
from raphson.solve._line_search import Direction, is_finite
from raphson.solve._pairs import InversePairs
from raphson.solve._solution import Evaluation

_SUFFICIENT = 1e-4
"""Fraction of the predicted decrease that a step must achieve (Nocedal and Wright 2006, equation 3.4)."""

TRIALS = 20
"""Lengths tried for a step."""


Passed = Sequence[tuple[float, float]]
"""Values and gradient norms of points that steps led through."""


class Stepper(Protocol):
    """Makes steps of L-BFGS, of whose pairs there is some ``number``."""

    @property
    def number(self) -> int:
        """Number of pairs."""

    def clear(self) -> None:
        """Forget the pairs."""

    def step(
        self, theta: Tensor, at: Evaluation, length: float, lowest: float, growth: float, tol: float
    ) -> tuple[Tensor, Evaluation, int, float, Passed] | None:
        """Take one step or several from where the last one led.

        Args:
            theta: The point, ``(p,)``.
            at: The state there.
            length: Directions that are tried first.
            lowest: No trial may rise above this value by more than its rounding.
            growth: From the length of one step to the first one that the next one tries, at most the whole.
            tol: Norm of a gradient that ends the steps.

        Returns:
            New point, state there, trials, length of the last step in directions and where those before it led; or None
            where no length helps.
        """


class Reached(NamedTuple):
    """Where steps led.

    Attributes:
        theta: The point, ``(p,)``.
        at: The state there.
        evaluations: Since the start.
        passed: Values and gradient norms of points between the one before and this one.
    """

    theta: Tensor
    at: Evaluation
    evaluations: int
    passed: Passed


def descend(
    stepper: Stepper, theta: Tensor, at: Evaluation, growth: float = 4.0, tol: float = 0.0
) -> Iterator[Reached]:
    """Yield point after point of L-BFGS, as long as steps lower the objective.

    Args:
        stepper: Makes the steps.
        theta: Start, ``(p,)``.
        at: The state at the start.
        growth: Factor from the length of the last step to the first length that is tried, at most the whole: after a
            short step the next one is hardly ever whole.
        tol: Norm of the gradient from which on no more steps are wanted.
    """
    evaluations, length, lowest = 0, 1.0, at.value
    while is_finite(at):
        # rounding may raise the value, but never by more above the lowest of all points: rises do not add up
        lowest = min(lowest, at.value)
        found = stepper.step(theta, at, min(1.0, growth * length), lowest, growth, tol)
        if found is None and not stepper.number:
            return
        if found is None:
            stepper.clear()
            evaluations, length = evaluations + TRIALS, 1.0
            continue
        theta, at, trials, length, passed = found
        lowest = min(lowest, *(value for value, _ in passed)) if passed else lowest
        evaluations += trials
        yield Reached(theta, at, evaluations, passed)


class PairsStepper:
    """Makes steps for any objective.

    Args:
        evaluate: From ``(p,)`` to the state there; where the value has not fallen, nothing else of it is looked at.
        pairs: Of an initial inverse Hessian; single precision is enough for them.
    """

    def __init__(self, evaluate: Callable[[Tensor], Evaluation], pairs: InversePairs) -> None:
        self._evaluate, self._pairs = evaluate, pairs

    @property
    def number(self) -> int:
        """Number of pairs."""
        return self._pairs.number

    def clear(self) -> None:
        """Forget the pairs."""
        self._pairs.clear()

    def step(
        self, theta: Tensor, at: Evaluation, length: float, lowest: float, growth: float, tol: float
    ) -> tuple[Tensor, Evaluation, int, float, Passed] | None:
        """Take a step: see ``Stepper``."""
        direction = Direction.of(self._pairs.direction().to(theta.dtype), at.gradient)
        found = _search(self._evaluate, theta, at, direction, length, lowest)
        if found is None:
            return None
        self._pairs.move(found[0] - theta, found[1].gradient)
        return *found, ()


def _search(
    evaluate: Callable[[Tensor], Evaluation],
    theta: Tensor,
    at: Evaluation,
    direction: Direction,
    length: float,
    lowest: float,
) -> tuple[Tensor, Evaluation, int, float] | None:
    """Shorten a step until the objective falls enough: new point, state there, trials and length, or None."""
    slope = -direction.decrement_squared
    if not slope < 0.0:
        return None
    for trial in range(1, TRIALS + 1):
        reached = torch.add(theta, direction.step, alpha=length)
        new = evaluate(reached)
        if new.value <= at.value + _SUFFICIENT * length * slope and is_finite(new):
            return reached, new, trial, length
        finite, rounding = math.isfinite(new.value), 64.0 * torch.finfo(theta.dtype).eps * max(abs(at.value), 1.0)
        if finite and -slope * length <= rounding and new.value <= lowest + rounding:
            # the value can no longer judge, its slope can: the approximate Wolfe condition (Hager and Zhang 2005)
            end = float(torch.dot(new.gradient, direction.step))
            if end <= (2.0 * _SUFFICIENT - 1.0) * slope:
                return reached, new, trial, length
            length *= 0.5
            continue
        # the minimum of the parabola through value, slope and new value, kept within bounds
        excess = new.value - at.value - length * slope
        length *= max(0.1, min(0.5, -slope * length / (2 * excess))) if finite and excess > 0 else 0.1
    return None


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
    value: float
    gradient: Tensor
    evaluations: int
    iterations: int


class _Point:
    """A value, and its gradient when that is asked for: trial points that are not taken cost no gradient."""

    hessian = None

    def __init__(self, value: Tensor, gradient: Callable[[], Tensor]) -> None:
        self.value, self._gradient = float(value), gradient

    @cached_property
    def gradient(self) -> Tensor:
        return self._gradient()

    @cached_property
    def norm(self) -> float:
        return float(self.gradient.abs().max())


def lbfgs(
    function: Callable[[Tensor], tuple[Tensor, Callable[[], Tensor]]],
    theta: Tensor,
    inverse: Inverse,
    *,
    max_iter: int,
    tol: float = 0.0,
    memory: int = 20,
    growth: float = 4.0,
) -> Descent:
    """Minimize a function whose gradient costs little beside a factorization of its Hessian.

    Args:
        function: From ``(P,)`` to the value and a function that returns the gradient, which is called at points that
            the line search accepts.
        theta: Start, ``(P,)``.
        inverse: Product with a positive definite approximation of the inverse Hessian.
        max_iter: Largest number of steps.
        tol: The run ends with a step that lowers the function by less.
        memory: Number of pairs of steps and changes of the gradient that are held.
        growth: Factor from the length of the last step to the first length that is tried.

    Returns:
        The last point; a function that is not finite there ends the run at the start.

    >>> import torch
    >>> found = lbfgs(lambda v: ((v * v).sum(), lambda: 2 * v), torch.ones(2), lambda g: g / 2, max_iter=5)
    >>> found.theta
    tensor([0., 0.])
    """

    def evaluate(at: Tensor) -> Evaluation:
        return _Point(*function(at))

    at, evaluations, iterations = evaluate(theta), 0, 0
    if max_iter and is_finite(at):
        pairs = InversePairs(inverse, at.gradient, memory=memory)
        for reached in descend(PairsStepper(evaluate, pairs), theta, at, growth):
            fall = at.value - reached.at.value
            theta, at, evaluations, _ = reached
            iterations += 1
            if fall <= tol or iterations == max_iter:
                break
    return Descent(theta, at.value, at.gradient, 1 + evaluations, iterations)
