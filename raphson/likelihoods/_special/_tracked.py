"""Whether a tensor may be written over."""

from __future__ import annotations

import torch
from torch import Tensor


def tracked(x: Tensor) -> bool:
    """Return whether reverse mode or a transform of ``torch.func`` keeps track of a tensor."""
    # Reverse mode keeps what it has seen, and torch.func cannot write through all of its wrappers.
    return x.requires_grad or torch.func.debug_unwrap(x) is not x
