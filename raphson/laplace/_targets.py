"""Targets beside their predictive distribution: what residuals of a posterior are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods import ClassLabels, Likelihood, TailProbabilities, TargetDistribution, Univariate

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PredictedTargets(TargetDistribution):
    r"""Targets under a mixture :math:`\frac1S \sum_s p(y \mid f_s)` over sampled outputs.

    Args:
        at_mean: The distribution at the mean outputs, beside the targets; its best means give deviances.
        center: Means of the mixture, in the shape of those of ``at_mean``.
        spread: Its variances.
        average: Averages over the samples what is computed of the distribution of rows at sampled outputs: a
            function of distributions ``(S, n, ...)`` to arrays ``(k, S, n, ...)`` becomes ``(k, N, ...)``.
        redraw: The distribution at outputs drawn from the posterior, beside the targets.
    """

    at_mean: TargetDistribution
    center: Array
    spread: Array
    average: Callable[[Callable[[TargetDistribution], Array]], Array]
    redraw: Callable[[np.random.Generator], TargetDistribution]
    drawn: bool = False

    @property
    def observed(self) -> Array:
        return self.at_mean.observed

    @property
    def mean(self) -> Array:
        return self.center

    @property
    def variance(self) -> Array:
        return self.spread

    def tails(self) -> TailProbabilities:
        """Return averages over the samples; of targets that depend on each other, those at the mean outputs."""
        self._refuse_drawn()
        if not isinstance(self.at_mean, Univariate | ClassLabels):
            return self.at_mean.tails()
        below, above = self.average(lambda law: np.stack(law.tails()))
        return TailProbabilities(below, above)

    def mass(self, count: int) -> Array | None:
        """Return the average over the samples."""
        if self.at_mean.mass(count) is None:
            return None
        found: Array = self.average(lambda law: np.asarray(law.mass(count))[None])[0]
        return found

    def deviance(self) -> Array:
        """Return the deviances at the mean outputs."""
        self._refuse_drawn()
        return self.at_mean.deviance()

    @property
    def direction(self) -> Array:
        """That at the mean outputs."""
        return self.at_mean.direction

    def simulate(self, generator: np.random.Generator) -> PredictedTargets:
        """Draw outputs from the posterior, and targets at them."""
        return replace(self, at_mean=self.redraw(generator).simulate(generator), drawn=True)

    def _refuse_drawn(self) -> None:
        if self.drawn:
            raise InputError("Simulated targets have means and variances, but no tails under the posterior.")


def predicted_targets(
    likelihood: Likelihood,
    y: Tensor,
    f: Tensor,
    moments: tuple[Tensor, Tensor],
    over_samples: Callable[[Callable[[Tensor, slice], Tensor]], list[Tensor]],
    draw: Callable[[int, torch.Generator], Tensor],
) -> PredictedTargets:
    """Return targets beside the mixture over sampled outputs, whose mean and variance are the moments.

    Args:
        likelihood: The likelihood.
        y: Targets.
        f: Mean outputs ``(N, ..., C)``.
        moments: Mean and variance of the mixture.
        over_samples: Calls a function with sampled outputs ``(S, n, ..., C)`` and the slice of their rows, and
            returns what it returns.
        draw: Draws outputs, ``(n, N, ..., C)``.
    """
    at_mean = likelihood.distribution(f, y)
    shape = at_mean.mean.shape

    def average(function: Callable[[TargetDistribution], Array]) -> Array:
        def of_part(part: Tensor, rows: slice) -> Tensor:
            targets = y[rows]
            law = likelihood.distribution(part, targets.expand(len(part), *targets.shape))
            return torch.from_numpy(function(law).mean(1)).movedim(0, 1)

        found: Array = torch.cat(over_samples(of_part)).movedim(1, 0).numpy()
        return found

    def redraw(generator: np.random.Generator) -> TargetDistribution:
        seed = torch.Generator(f.device).manual_seed(int(generator.integers(2**62)))
        return likelihood.distribution(draw(1, seed)[0], y)

    center, spread = (np.asarray(t.detach().cpu().double()).reshape(shape) for t in moments)
    return PredictedTargets(at_mean, center, spread, average, redraw)


def normal_targets(mean: Tensor, variance: Tensor, y: Tensor) -> Univariate:
    """Return targets beside normal distributions, ``(N, ...)``."""
    from scipy import stats

    center, spread, value = (np.asarray(t.detach().cpu().double()) for t in (mean, variance.sqrt(), y))
    value = value.reshape(center.shape)
    made: Any = stats.norm(value, spread)
    return Univariate(stats.norm(center, spread), value, made)
