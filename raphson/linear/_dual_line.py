r"""How far a step of penalized classes in combinations of the rows goes, by outputs alone.

Along a step of shares :math:`\Delta A` outputs change by :math:`\Delta F = \Delta A\, G + \Delta b`, so that values and
slopes at any length cost the rows, whatever the columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit

from raphson.linear._dual_factors import Array
from raphson.linear._dual_point import DualPoint, DualStep

_BEHIND = 0.5
"""Share of a length by which its local parabola may put the minimum before it."""

_FIRST, _FLAT, _TRIALS = 0.01, 0.1, 40
"""Share of the first slope that a line search may leave, at the start and later, and its evaluations: of outputs alone.

At the start, since a weak penalty's step goes three times too far: 60 x 300, 50 classes, l2 = 1e-6, ends with it."""

_SATURATED = 0.01
"""The same for the gradient at the start, where the rest of the way is worked out: 60 x 2000, 50 classes, 3 evaluations
in place of 23."""


class Line:
    r"""The objective along a step.

    Args:
        at: The point.
        step: The step.
        penalty: :math:`\mu`.
        targets: Shares of the rows where they are of a class, ``(q, N)``.
        weights: Shares of the rows, ``(N,)``.
    """

    def __init__(self, at: DualPoint, step: DualStep, penalty: float, targets: Array, weights: Any) -> None:
        self._at, self._step, self._weights, self._is_first = at, step, weights, not at.a.any()
        self._change = step.product + step.b[:, None]
        self._own = penalty * float(np.vdot(step.a, step.product))
        self._gain = float(np.vdot(targets, self._change))
        self._linear = penalty * float(np.vdot(at.a, step.product)) - self._gain
        self._mean_and_variance = self._along(self._change)

    def balanced(self) -> float:
        """Return about the length from outputs of zero at which the penalty balances the rest of the loss.

        Where hardly any is left it falls exponentially, at the rate of the variance to the mean of the outputs' change.
        """
        k, fall, own = max(2, len(self._change)), self._at.decrease(self._step), self._own
        first = math.log((k - 1) / _SATURATED) * (1.0 - 1.0 / k) / fall if fall > 0.0 else 1.0
        length = self.length(left=_SATURATED, first=first)
        mean, variance = self._mean_and_variance(length * self._change)
        rest = self._gain - mean
        if rest > own * length > 0.0 and variance > 0.0:
            length += math.log(rest / (own * length)) * rest / variance
        return length

    def length(self, *, left: float | None = None, first: float = 1.0) -> float:
        """Return about how many times the step lowers the objective most.

        That is where ``left`` of the first slope is left at most; None for what pays before a Newton step. The search
        begins at a ``first`` length.
        """
        at, change, own = self._at, self._change, self._own
        f = at.product + at.b[:, None]
        left = left or (_FIRST if self._is_first else _FLAT)
        enough = left * at.decrease(self._step)
        low, high, length = 0.0, math.inf, first
        for _ in range(_TRIALS):
            mean, variance = self._mean_and_variance(f + length * change)
            slope, curvature = mean + self._linear + length * own, variance + own
            # a slope that rises may be small and the minimum far behind, where all rows are saturated
            if -enough <= slope <= min(enough, _BEHIND * curvature * length):
                break
            low, high = (length, high) if slope < 0.0 else (low, length)
            wanted = length - slope / curvature if curvature > 0.0 else math.inf
            length = wanted if low < wanted < high else 0.5 * (low + high)
            length = min(length, 4.0 * low) if low else length
        return length

    def _along(self, change: Array) -> Callable[[Array], tuple[float, float]]:
        """Return a map from outputs to the mean over rows of the expected change of outputs, and of its variance."""
        weights = self._weights
        if len(change) > 1:

            def of_classes(f: Array) -> tuple[float, float]:
                part = _softmax(f) * change
                mean = part.sum(0)
                return float(weights @ mean), float(weights @ ((part * change).sum(0) - mean * mean))

            return of_classes
        first = weights * change[0]
        second = first * change[0]

        def of_two(f: Array) -> tuple[float, float]:
            p = expit(f[0])
            return float(p @ first), float((p - p * p) @ second)

        return of_two


def _softmax(f: Array) -> Array:
    p: Array = np.exp(f - f.max(0))
    p /= p.sum(0)
    return p
