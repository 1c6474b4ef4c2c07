"""Lengths of steps that are good for the next few, too, because they change little from model to model."""

from __future__ import annotations

import math
from collections.abc import Sequence

_SAME_AT_FIRST, _SAME = 1.5, 3.0
"""Factor between steps from two models, in the metric of the curvature, up to which they count as the same. Those of
mini-batches of the autoencoders differ by less but for noise, and those of a network whose curvature changes from step
to step, a regressor with a scale, by more (measured)."""

_STAYS = 0.5
"""Share of the lengths kept so far that stays after the first 50 steps: lengths of single mini-batches are noisy where
steps are short, above all that of the last layer. 500 steps on 1400 digits end at 13.882 and 13.917 (two seeds) with
about 130 models, at 13.886 and 13.916 with 160 where nothing stays, and at 13.877 and 13.918 with 250 where lengths
count as the same up to a factor of 1.5 (measured)."""

_LONGER = 2.0
"""How much longer than the last step with a model a step without may be. Without such a bound, and with a model at
every fifth step whatever it finds, regressors with a scale diverge (measured)."""

_GROWTH = 10
"""Steps for each by which periods may grow. On the autoencoder of 1400 digits 125 steps end at 14.46, as
with a model each step, but at 14.70 where the period grows from the first step on (6 seeds, measured)."""

_SETTLED = 50
"""Steps after which lengths that differ are noise."""


class KeptLength:
    r"""The lengths of steps along their direction and a part of it, kept between the quadratic models that find them.

    A model is made at each step where a length changes from one to the next, and more and more seldom where they stay
    the same.

    Attributes:
        found: The last coefficients; None before the first.
        decrement: The square root of :math:`|m^\top \Delta|` for the step of these lengths.
        at: The step when it was found.
        period: Steps from there to the next model.
    """

    def __init__(self) -> None:
        self.found: list[float] | None = None
        self.decrement, self.at, self.period = 0.0, -1, 1

    def due(self, count: int) -> bool:
        """Whether step ``count`` needs a model."""
        return self.found is None or count - self.at >= self.period

    def put(self, coefficients: list[float], slopes: Sequence[float], count: int, longest: int) -> None:
        """Keep what a model found.

        Args:
            coefficients: Of the direction and, on top of that, of its part, if it has one.
            slopes: The averaged gradient along each.
            count: The step.
            longest: Bound of the period.
        """
        decrement, same = _decrement(coefficients, slopes), False
        if self.found is not None:
            changes = [now - before for now, before in zip(coefficients, self.found, strict=True)]
            longer = max(decrement, _decrement(self.found, slopes))
            same = (
                0 < longer
                and _decrement(changes, slopes)
                <= (1.0 - 1.0 / (_SAME if count >= _SETTLED else _SAME_AT_FIRST)) * longer
            )
            if same and count >= _SETTLED:
                coefficients = [now - _STAYS * change for now, change in zip(coefficients, changes, strict=True)]
                decrement = _decrement(coefficients, slopes)
        self.period = min(self.period + 1, longest, 1 + count // _GROWTH) if same else 1
        self.found, self.decrement, self.at = coefficients, decrement, count

    def along(self, slopes: Sequence[float]) -> list[float]:
        """Return the coefficients of a step without a model, for the averaged gradient along its direction and part."""
        assert self.found is not None
        share = min(1.0, _LONGER * self.decrement / max(_decrement(self.found, slopes), 1e-300))
        return [share * one for one in self.found]


def _decrement(coefficients: Sequence[float], slopes: Sequence[float]) -> float:
    """Return the length, in the metric of the curvature, of a step along a direction and, on top of that, a part."""
    first, *more = coefficients
    total = first**2 * abs(slopes[0] - sum(slopes[1:]))
    for coefficient, slope in zip(more, slopes[1:], strict=True):
        total += (first + coefficient) ** 2 * abs(slope)
    return math.sqrt(total)
