"""How much of a search direction to take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from raphson.solve._solution import Evaluation, Problem

_ARMIJO = 1e-4
"""Fraction of the predicted decrease that a step must achieve (Nocedal and Wright 2006, eq. 3.4)."""

_ROUNDING = 2.0**-50
"""Relative error of the objective: a predicted decrease below that is no evidence."""

_AT_ROUNDING = 2.0**-40
"""Share of the value below which a predicted decrease, on which no step could be found, was rounding's."""

_HALVINGS = 40

_STEEP, _LONGEST, _EXTENSIONS = 0.3, 4.0, 2
"""A step is extended up to twice, up to fourfold, while the slope at its end is above this share of the first one."""


class Direction(NamedTuple):
    """A search direction and ``g^T H^-1 g``, the square of the Newton decrement."""

    step: Tensor
    decrement_squared: float

    @classmethod
    def of(cls, step: Tensor, gradient: Tensor) -> Direction:
        """Return a step at a point with that gradient, with the decrease it predicts."""
        return cls(step, -float(torch.dot(gradient, step)))

    @property
    def decrement(self) -> float:
        """The Newton decrement."""
        return math.sqrt(max(self.decrement_squared, 0.0))


def backtrack(
    problem: Problem,
    theta: Tensor,
    at: Evaluation,
    direction: Direction,
    evaluate: Callable[[Tensor], Evaluation],
) -> tuple[Tensor, Evaluation, float] | None:
    """Halve a step until the objective falls enough: new point, state there and length, or None if no step helps."""
    slope = -direction.decrement_squared
    if not slope < 0:
        return None
    # the full step is evaluated with all that comes next; where the decrease is below the value's rounding, the value
    # can no longer judge, and a step is accepted if it lowers the gradient norm
    rounding = _ROUNDING * max(abs(at.value), 1.0)
    length = 1.0
    for _ in range(_HALVINGS):
        trial = torch.add(theta, direction.step, alpha=length)
        if length == 1.0 or -slope * length <= rounding:
            new = evaluate(trial)
            # below rounding values say nothing: steps that they allow would be taken to and fro
            lower = -slope * length > rounding and new.value <= at.value + _ARMIJO * length * slope
            if is_finite(new) and (lower or (-slope * length <= 16 * rounding and new.norm < at.norm)):
                return trial, new, length
            # outside the domain of an objective that is flat a shorter step may still help
            if -slope * length <= rounding and is_finite(new):
                return None
        elif problem.value(trial) <= at.value + _ARMIJO * length * slope:
            return trial, evaluate(trial), length
        length *= 0.5
    return None


def extend(
    evaluate: Callable[[Tensor], Evaluation], theta: Tensor, direction: Direction, reached: Tensor, at: Evaluation
) -> tuple[Tensor, Evaluation]:
    """Go on along a Newton step at whose end the objective still falls steeply: the best point and the state there."""
    # On nearly separated data the loss is an exponential tail, of which a Newton step takes one unit, a factor e, and a
    # factor costs more than an evaluation. Where the slope fell to a share r, a slope like (1 - t/T)^2 ends at T below.
    length = 1.0
    for _ in range(_EXTENSIONS):
        share = float(torch.dot(at.gradient, direction.step)) / -direction.decrement_squared
        if not _STEEP < share < 1.0:
            break
        length *= min(1.0 / (1.0 - math.sqrt(share)), _LONGEST)
        trial = torch.add(theta, direction.step, alpha=length)
        new = evaluate(trial)
        if not (is_finite(new) and new.value < at.value):
            break
        reached, at = trial, new
    return reached, at


def is_finite(at: Evaluation) -> bool:
    """Return whether value and gradient are finite numbers."""
    return math.isfinite(at.value) and math.isfinite(at.norm)


def at_rounding(direction: Direction, at: Evaluation) -> bool:
    """Return whether the decrease that a direction predicts is below the rounding of the value."""
    return direction.decrement_squared <= _AT_ROUNDING * max(abs(at.value), 1.0)
