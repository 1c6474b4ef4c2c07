"""Random variates that several likelihoods are made of."""

from __future__ import annotations

import torch
from torch import Tensor


def log_gamma_variate(shape: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw logarithms of gamma variates of unit scale, which do not underflow at small shapes."""
    # a variate of shape a is one of shape a + 1 times u^(1/a) (Marsaglia and Tsang 2000, section 6)
    larger = torch._standard_gamma(shape + 1, generator=generator).log()
    return larger - torch.empty_like(shape).exponential_(generator=generator) / shape
