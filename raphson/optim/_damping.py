"""The damping of a quadratic model: its first value, and how it follows what the model was worth."""

from __future__ import annotations

import math
from collections.abc import Callable

from raphson.optim._options import DampingOptions

_GOOD, _BAD = 0.5, 0.0
"""Ratios above which damping falls and below which it grows: a step is judged by a mini-batch that it has not seen.
Half of what it promised is much then, and no gain at all a sign of noise."""

_DECADES = 12
_STEP = 10.0**0.5


class DampingSchedule:
    """The present damping.

    Args:
        options: How it is chosen.

    Attributes:
        value: The damping; None until it is known.
    """

    def __init__(self, options: DampingOptions) -> None:
        self._options = options
        self.value: float | None = options.start

    def due(self, count: int) -> bool:
        """Whether it changes after step ``count``, counted from 1."""
        return self._options.adapt and count % self._options.period == 0

    def begin(self, trial: Callable[[float], float], guess: float) -> None:
        """Choose the first value: the one with which a first step lowers the loss most, from a guess up or down.

        Args:
            trial: From a damping to the change of the loss by a first step.
            guess: Where to start.
        """
        best, change = guess, _finite(trial(guess))
        for factor in (_STEP, 1.0 / _STEP):
            at = best
            for _ in range(2 * _DECADES):
                at *= factor
                new = _finite(trial(at))
                if new >= change:
                    break
                best, change = at, new
            if best != guess:
                break
        self.value = min(max(best, self._options.smallest), self._options.largest)

    def adapt(self, change: float, promised: float, lr: float) -> None:
        """Change it by what a step did to the loss and what the model had promised.

        Args:
            change: Of the loss.
            promised: By the model.
            lr: Factor of the step: where a schedule makes it short, noise is dealt with, and damping grows less.
        """
        assert self.value is not None
        factor = self._options.rate**self._options.period
        ratio = change / promised if promised < 0 and math.isfinite(change) else -math.inf
        if ratio > _GOOD:
            self.value = max(self.value * factor, self._options.smallest)
        elif ratio < _BAD:
            self.value = min(self.value / factor ** min(lr, 1.0), self._options.largest)


def _finite(change: float) -> float:
    return change if math.isfinite(change) else math.inf
