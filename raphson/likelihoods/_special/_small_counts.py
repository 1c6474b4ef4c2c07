r"""Sums over whole counts: what a negative binomial needs of its gamma functions, of small counts by a table.

With the size :math:`r = 1 / \alpha` and :math:`\lambda = \log\alpha` (Lawless 1987, Can. J. Stat. 15, 209-225)

.. math::
    \log\frac{\Gamma(r)\, y!}{\Gamma(y + r)} = \sum_{j < y} \log\frac{j + 1}{r + j}, \qquad
    \partial_\lambda = \sum_{j < y} \frac{r}{r + j}, \qquad
    \partial_\lambda^2 = -\sum_{j < y} \frac{r j}{(r + j)^2} .
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from raphson.likelihoods._special._tracked import can_look

_LARGEST = 2.0**16
"""Largest count of a table: sums of more terms lose digits."""

_SIZES = (1e-100, 1e3)
"""Sizes r between which the three keep 13 digits where they meet terms of the size of the count, which cancel."""


def small_count_sums(y: Tensor, log_dispersion: Tensor) -> Tensor | None:
    """Return the three sums ``(3, *y.shape)`` at counts, float64; None where a table would not do or not pay.

    That is where the dispersion differs between counts, is nearly or more than all there is, or counts are large.
    """
    if log_dispersion.ndim or y.dtype != torch.float64 or not can_look(y) or not can_look(log_dispersion):
        return None
    size = math.exp(min(-float(log_dispersion), 700.0))
    most = float(y.max())
    if not _SIZES[0] < size < _SIZES[1] or not most < min(0.25 * y.numel(), _LARGEST):
        return None
    j = np.arange(int(most))
    shifted = size + j
    table = np.zeros((3, int(most) + 1))
    np.cumsum([np.log((j + 1) / shifted), size / shifted, -size * j / shifted**2], 1, out=table[:, 1:])
    return torch.from_numpy(table).index_select(1, y.reshape(-1).long()).view(3, *y.shape)
