"""The distribution of targets of a likelihood that can only draw them: by simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._target_distribution import Array, TailProbabilities, TargetDistribution, to_array

_DRAWS = 1000
"""Draws for each target: probabilities, and so quantile residuals, are known to a standard error of at most 0.016."""


@dataclass(frozen=True, eq=False)
class Sampled(TargetDistribution):
    """Targets whose model is known by its draws: moments and tail probabilities are those of the same 1000 draws.

    Args:
        draw: Draws targets of the shape of ``value``.
        value: Targets, ``(..., M)``.
        title: What messages call the likelihood.
        device: Where targets are drawn.
    """

    draw: Callable[[torch.Generator], Tensor]
    value: Array
    title: str
    device: torch.device

    @cached_property
    def _counts(self) -> tuple[Array, Array, Array, Array]:
        """How many draws are below and above, and their mean and variance."""
        generator = torch.Generator(self.device).manual_seed(0)
        below, above, mean, square = (np.zeros(self.value.shape) for _ in range(4))
        for count in range(1, _DRAWS + 1):
            drawn = self._drawn(generator)
            below += drawn < self.value
            above += drawn > self.value
            step = drawn - mean
            mean += step / count
            square += step * (drawn - mean)
        return below, above, mean, square / (_DRAWS - 1)

    def _drawn(self, generator: torch.Generator) -> Array:
        return to_array(self.draw(generator)).reshape(self.value.shape)

    @property
    def observed(self) -> Array:
        return self.value

    @property
    def mean(self) -> Array:
        return self._counts[2]

    @property
    def variance(self) -> Array:
        return self._counts[3]

    def tails(self) -> TailProbabilities:
        """Return shares of the draws, among which the target counts as one (Hartig's DHARMa does the same)."""
        below, above, *_ = self._counts
        return TailProbabilities(below / (_DRAWS + 1), above / (_DRAWS + 1))

    def deviance(self) -> Array:
        """Refuse by an ``InputError``: draws do not tell the best value."""
        raise InputError(
            f"{self.title} is known by its value and its draws only, which give no deviance: use residuals of kind "
            "'quantile', 'pearson' or 'response'."
        )

    def simulate(self, generator: np.random.Generator) -> Sampled:
        """Draw once more."""
        seeded = torch.Generator(self.device).manual_seed(int(generator.integers(2**62)))
        return replace(self, value=self._drawn(seeded))
