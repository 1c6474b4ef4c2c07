"""What sums over a batch need of a loss: the likelihood, the scale and the weights."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from raphson.data import Batch
from raphson.likelihoods import Likelihood


class WeightedLoss(Protocol):
    """A scaled and weighted sum of negative log-likelihoods."""

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood."""

    @property
    def scale(self) -> float:
        """The factor of the sum."""

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the parameters."""

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""

    @property
    def n_examples(self) -> int:
        """Number of examples of the whole sum."""

    def position_weights(self, batch: Batch) -> Tensor | None:
        """Return the example weights of a batch for each position, ``(N, ...)``, or None where all are 1."""
