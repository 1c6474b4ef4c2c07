"""Whether a tensor may be written over."""

from __future__ import annotations

import torch
from torch import Tensor


def tracked(x: Tensor) -> bool:
    """Return whether reverse mode or a transform of ``torch.func`` keeps track of a tensor."""
    return x.requires_grad or torch.func.debug_unwrap(x) is not x
