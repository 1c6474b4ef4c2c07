"""PyTorch's private account of tensors: views, changes in place, transformations, and looking without being seen.

All private names for this purpose are used here only; ``tests/network/test_private_torch.py`` holds what they must do.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor


def in_place_version(t: Tensor) -> int:
    """Return how often a tensor has been changed in place."""
    return t._version


def base_of(t: Tensor) -> Tensor:
    """Return the tensor of which this one is a view, or the tensor itself."""
    return t if t._base is None else t._base


def no_longer_view(t: Tensor) -> Tensor:
    """Return a tensor that is no view in the eyes of autograd, in the same memory, which nobody else may use."""
    return cast(Tensor, torch.ops.aten._unsafe_view(t, t.shape)) if t._is_view() else t


def unseen_by_modes() -> AbstractContextManager[object]:
    """Return a context in which no function mode sees the calls: looking at a tensor is no call of the model's."""
    return cast(AbstractContextManager[object], torch._C.DisableTorchFunction())


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device that has no float64 (Apple's)."""
    return torch.float32 if device.type == "mps" else torch.float64


def inside_transformation(t: Tensor) -> bool:
    """Whether a tensor stands for others inside ``vmap`` or another transformation of ``torch.func``."""
    return torch.func.debug_unwrap(t) is not t
