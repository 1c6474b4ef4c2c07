"""From one tensor per parameter, ``(..., M)`` each, to outputs and blocks, in the layout that linear models read.

Parameters come last within a response, but each is stored in one piece: writing them, and reading one at a time as
a linear model does (its outputs are ``(C, N)``), is several times faster than with parameters side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def interleaved(*parameters: Tensor) -> Tensor:
    """Return ``k`` tensors ``(..., M)`` as ``(..., M k)``, the parameters of a response side by side."""
    return torch.stack([p.movedim(-1, 0) for p in parameters], 1).flatten(0, 1).movedim(0, -1)


def block_entries(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the entries of ``k x k`` blocks, each ``(..., M)``, as ``(..., M, k, k)``."""
    k = len(rows)
    stacked = torch.stack([entry.movedim(-1, 0) for row in rows for entry in row], 1)
    return stacked.reshape(stacked.shape[0], k, k, *stacked.shape[2:]).movedim((0, 1, 2), (-3, -2, -1))
