"""Whether a tensor may be written over, or looked at."""

from __future__ import annotations

import torch
from torch import Tensor

from raphson.linalg import is_near


def tracked(x: Tensor) -> bool:
    """Return whether reverse mode or a transform of ``torch.func`` keeps track of a tensor."""
    # Reverse mode keeps what it has seen, and torch.func cannot write through all of its wrappers.
    return x.requires_grad or torch.func.debug_unwrap(x) is not x


def can_look(x: Tensor) -> bool:
    """Return whether values of a tensor, which has some, may decide what is computed: it costs no wait."""
    return x.numel() > 0 and is_near(x) and not tracked(x)
