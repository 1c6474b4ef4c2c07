"""The damping of a quadratic model: its first value, and how it follows what the model was worth."""

from __future__ import annotations

import math
from collections.abc import Callable

from raphson.optim._options import DampingOptions

_GOOD, _BAD = 0.8, 0.25
"""Ratios above which damping falls and below which it grows: steps are judged by mini-batches that they have not seen.
Four fifths of what they promised is much then, and less than a quarter a sign that noise rules. Growth only without any
gain leaves the autoencoder of 10,000 digits at 65.4 after 333 steps, this at 61.9. Falls from one half on are too many:
69.8 in place of 65.2 (with the inverse curvature; measured)."""

_RETRY = 4.0
"""Factor of the damping where a step is taken back."""

_MEMORY = 0.8
"""Share of the running sums of changes and promises that stays: near a minimum the change on a single mini-batch is
mostly noise. A damping that follows it alone ends a sixfold of its start, at a loss of 68.7 (same measurement)."""

_NEARLY = 0.1
"""Share of the best first step's gain that a smaller first damping has to reach: the best first step is a cautious one,
smaller dampings are ahead after few steps and stay ahead, and noise raises them later. With 0.5 in its place 60 steps
on 10,000 digits end at 70.8 (69.2), 125 on 1400 digits at 14.41 and 14.29 (14.29 and 14.28, two seeds, measured)."""

_LEAST = 0.99e-4
"""Share of the curvature's mean eigenvalue below which no first damping is lowered: on the autoencoder of 10,000 digits
a start at 3e-6 of it is at 90 after 55 steps, one at 5e-5 at 85 (measured)."""

_LONGEST = 4
"""Most periods from one comparison of a loss with its promise to the next, where comparisons change nothing: on the
autoencoders noise holds the damping at a share of the curvature, which it follows without any (measured)."""

_GROWTH = 4
"""No gap is longer than a quarter of the steps so far."""

_LOW = 1e-5
"""Share of the curvature's mean eigenvalue up to which noise raises a damping, and below which none stays.

Without an upper bound: on the autoencoder of 1400 digits a tenth of the promises comes true after 200 steps, damping
grows to 10^4 of the mean and the loss stops falling, at 13.97; with a bound of a tenth of the mean at 13.95. With
powers that rise as steps get shorter 500 steps end at 13.90 with 1e-4, at 13.87 with this one. Without a lower one:
curvature grows a hundredfold in the first hundred steps, and a damping that was small at the first (1e-4 of the mean,
1e-7 then) lets a step throw the loss from 14 to 29,000 (seed 1, 143rd step; 1000 steps end at 13.82 with it).
Measured."""

_START = 0.1
"""Share of the mean eigenvalue at which a damping of batches that are all the same begins: 20 steps on ``concrete`` end
at a loss of -0.56, in place of -0.24 with 1 (measured)."""

HELD = 0.01
"""Share of the mean eigenvalue below which it does not fall then: each step of a batch without noise is as good as it
promised, so that it would fall to nothing, and parameters follow directions that the batch says nothing about."""

_DECADES = 12


class DampingSchedule:
    """The present damping.

    Args:
        options: How it is chosen.

    Attributes:
        value: The damping; None until it is known.
        seen: Running averages of what steps did to the loss and of what was promised; None before the first.
        gap: Periods from one comparison to the next: twice as many after each that changes nothing, 1 after others.
    """

    def __init__(self, options: DampingOptions) -> None:
        self._options = options
        self.value: float | None = options.start
        self.seen: tuple[float, float] | None = None
        self.gap = 1

    @property
    def adapts(self) -> bool:
        """Whether it ever changes."""
        return self._options.adapt

    def due(self, count: int) -> bool:
        """Whether it is compared after step ``count``, counted from 1: more often at the start."""
        period = self._options.period
        gap = max(1, min(self.gap, count // (_GROWTH * period)))
        return self._options.adapt and count % (gap * period) == 0

    def follow(self, mean: Callable[[], float], count: int) -> None:
        """Let it follow the mean eigenvalue of the curvature up, if step ``count`` ends a period."""
        if self._options.adapt and self.value is not None and count % self._options.period == 0:
            self._rise(max(self._options.smallest, _LOW * mean()))

    def begin(self, trial: Callable[[float], float], guess: float) -> None:
        """Choose the first value: the smallest with which a first step lowers the loss nearly as much as it can.

        The best one is searched from a guess up or down.

        Args:
            trial: From a damping to the change of the loss by a first step.
            guess: The size of the curvature, where the search begins.
        """
        seen: dict[int, float] = {}

        def change(halves: int) -> float:
            if halves not in seen:
                seen[halves] = _finite(trial(guess * 10.0 ** (halves / 2)))
            return seen[halves]

        best = 0
        for decade in (2, -2):
            while abs(best) < 2 * _DECADES and change(best + decade) < change(best):
                best += decade
            if best:
                break
        enough = _NEARLY * change(best)
        for step in (2, 1):
            while enough < 0 and best - step > -2 * _DECADES and _LEAST <= 10.0 ** ((best - step) / 2):
                if change(best - step) > enough:
                    break
                best -= step
        self.value = min(max(guess * 10.0 ** (best / 2), self._options.smallest), self._options.largest)

    def adapt(self, change: float, promised: float, lr: float, mean: float | None = None) -> None:
        """Change it by what the last steps did to the loss and what the model had promised.

        Args:
            change: Of the loss.
            promised: By the model.
            lr: Factor of the step: where a schedule makes it short, noise is dealt with, and damping grows less.
            mean: Eigenvalue of the curvature, where the loss is that of a mini-batch that did not make the step. What
                is lost on it may then be noise, which is no reason for a damping larger than a share of the curvature,
                unless the loss rises by more than the step promised to lower it; and damping follows that share up.
        """
        assert self.value is not None
        factor = self._options.rate**self._options.period
        ratio = -math.inf
        if promised < 0 and math.isfinite(change):
            before = self.seen or (change, promised)
            self.seen = _MEMORY * before[0] + (1 - _MEMORY) * change, _MEMORY * before[1] + (1 - _MEMORY) * promised
            ratio = self.seen[0] / self.seen[1]
        least = self._options.smallest if mean is None else max(self._options.smallest, _LOW * mean)
        followed = self.value
        if self.value < least:
            self._rise(least)
            followed = self.value
        elif ratio > _GOOD:
            self.value = max(self.value * factor, least)
        elif ratio < _BAD:
            most = self._options.largest
            if mean is not None and ratio > -1.0:
                most = max(self.value, _LOW * mean)
            self.value = min(self.value / factor ** min(lr, 1.0), most, self._options.largest)
        self.gap = min(2 * self.gap, _LONGEST) if self.value == followed and ratio > -1.0 else 1

    def restart(self, mean: float) -> None:
        """Begin anew for steps that are judged by the rows that made them, at a share of the curvature's mean."""
        if self._options.start is None:
            self.value, self.seen = min(max(_START * mean, self._options.smallest), self._options.largest), None
            self.gap = 1

    def forget(self) -> None:
        """Let the first value be chosen once more, unless it was given."""
        if self._options.start is None:
            self.value, self.seen, self.gap = None, None, 1

    def hold(self, mean: float) -> None:
        """Let it be no less than a share of the curvature's mean eigenvalue, unless its first value was given."""
        assert self.value is not None
        if self._options.start is None:
            self.value = min(max(self.value, HELD * mean), self._options.largest)

    def retry(self) -> None:
        """Raise it for another try of a step that was taken back."""
        assert self.value is not None
        self.value = min(_RETRY * self.value, self._options.largest)

    def _rise(self, least: float) -> None:
        """Let it come nearer to a bound below which it is."""
        assert self.value is not None
        if self.value < least:
            factor = self._options.rate**self._options.period
            self.value = min(self.value / factor, least, self._options.largest)


def _finite(change: float) -> float:
    return change if math.isfinite(change) else math.inf
