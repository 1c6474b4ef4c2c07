"""PyTorch's private account of tensors: views, changes in place, transformations, and looking unseen, hooks.

All private names for this purpose are used here only; ``tests/network/test_private_torch.py`` holds what they must do.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor

_VERSION, _DTYPE = attrgetter("_version"), attrgetter("dtype")
_SET_TO = Tensor.is_set_to
_POINTER, _SIZE, _STRIDE = Tensor.data_ptr, Tensor.size, Tensor.stride


def in_place_version(t: Tensor) -> int:
    """Return how often a tensor has been changed in place."""
    return t._version


def in_place_versions(tensors: Sequence[Tensor]) -> list[int]:
    """Return how often each of some tensors has been changed in place."""
    return [*map(_VERSION, tensors)]


def memory_of(tensors: Sequence[Tensor]) -> list[Any]:
    """Return where tensors are in memory, and in which form, in a list that is equal where that is the same."""
    return [*map(_POINTER, tensors), *map(_SIZE, tensors), *map(_STRIDE, tensors), *map(_DTYPE, tensors)]


def in_same_memory(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether each of some tensors is in the memory of another one, in the same form (type aside)."""
    if len(tensors) != len(others):
        return False
    try:
        return all(map(_SET_TO, tensors, others))
    except RuntimeError:  # tensors of a device, or of a kind, that has no such operation
        return memory_of(tensors) == memory_of(others)


def block_of(t: Tensor) -> tuple[int, int]:
    """Return where the block of memory begins that a tensor is in, with all that share it, and its bytes."""
    storage = t.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def base_of(t: Tensor) -> Tensor:
    """Return the tensor of which this one is a view, or the tensor itself."""
    return t if t._base is None else t._base


def no_longer_view(t: Tensor) -> Tensor:
    """Return a tensor that is no view in the eyes of autograd, in the same memory, which nobody else may use."""
    return cast(Tensor, torch.ops.aten._unsafe_view(t, t.shape)) if t._is_view() else t


def unseen_by_modes() -> AbstractContextManager[object]:
    """Return a context in which no function mode sees the calls: looking at a tensor is no call of the model's."""
    return cast(AbstractContextManager[object], torch._C.DisableTorchFunction())


def saved_tensor_hooks() -> str | None:
    """Return the name of a function that packs what backward passes need, unless it is one of PyTorch's; or None."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is None or hooks[0].__module__.startswith(("torch.", "raphson.network.")):
        return None
    return getattr(hooks[0], "__qualname__", repr(hooks[0]))


def inside_transformation(t: Tensor) -> bool:
    """Whether a tensor stands for others inside ``vmap`` or another transformation of ``torch.func``."""
    return torch.func.debug_unwrap(t) is not t
