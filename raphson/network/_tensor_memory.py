"""PyTorch's private account of tensors: views, changes in place, transformations, and looking unseen, hooks.

All private names for this purpose are used here only; ``tests/network/test_private_torch.py`` holds what they must do.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor

_VERSION, _DTYPE = attrgetter("_version"), attrgetter("dtype")
_SET_TO = Tensor.is_set_to
_TOP_HOOKS = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
"""From PyTorch 2.8 on."""

_POINTER, _SIZE, _STRIDE = Tensor.data_ptr, Tensor.size, Tensor.stride


def in_place_version(t: Tensor) -> int:
    """Return how often a tensor has been changed in place."""
    return t._version


def in_place_versions(tensors: Sequence[Tensor]) -> list[int]:
    """Return how often each of some tensors has been changed in place."""
    return [*map(_VERSION, tensors)]


class Written:
    """How often each of some tensors had been changed in place when this was made."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = [t for t in tensors if not t.is_inference()]  # which nothing outside inference mode changes
        self.versions = in_place_versions(self.tensors)

    def since(self) -> bool:
        """Return whether one has been changed in place since."""
        return in_place_versions(self.tensors) != self.versions


_SEEN = 16
"""Entries of a tensor that are looked at."""


class Entries:
    """Some entries of tensors, evenly spaced, where they are in memory: those on the processor, which cost no waiting.

    All of them are read by one operation (100 layers with biases: 160 microseconds, measured).

    Args:
        tensors: The tensors.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._views = [_spaced(t.detach()) for t in tensors if t.is_cpu and t.numel()]

    def now(self) -> Values | None:
        """Return their present values; None where there are none."""
        return Values(torch.cat(self._views)) if self._views else None


class Values:
    """Numbers that are equal to others where each of them is.

    Args:
        tensor: The numbers.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __eq__(self, other: object) -> bool:
        """Whether each number is the same."""
        return isinstance(other, Values) and torch.equal(self._tensor, other._tensor)


def _spaced(t: Tensor) -> Tensor:
    while t.ndim > 1 and not t.is_contiguous():
        t = t.select(0, 0)
    flat = t.view(-1) if t.is_contiguous() else t
    return flat[:: max(1, flat.shape[0] // _SEEN)]


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


def saved_tensor_hooks(in_checkpoint: bool = False) -> str | None:
    """Return the name of a function that packs what backward passes need, unless it is one of PyTorch's; or None.

    Args:
        in_checkpoint: Whether a checkpoint is running, which counts what is saved: PyTorch 2.7 is not asked then.
    """
    if _TOP_HOOKS is None:
        place, name = ("", None) if in_checkpoint else _packing()
    else:
        hooks = _TOP_HOOKS(True)
        if hooks is None:
            return None
        place = getattr(hooks[0], "__module__", None) or ""  # what is written in C has none
        name = getattr(hooks[0], "__qualname__", repr(hooks[0]))
    return None if name is None or place.startswith(("torch.", "raphson.network.")) else name


def _packing() -> tuple[str, str | None]:
    """Return the module and name of the function that packs a tensor saved here, as PyTorch 2.7 tells no one else."""
    number = torch.zeros((), requires_grad=True)
    with _differentiable():
        node = number.exp().grad_fn
    if node is None:  # inference mode
        return "", None
    try:
        node._raw_saved_result.register_hooks(_same, _same)  # type: ignore[attr-defined]
    except RuntimeError:  # it has hooks already
        pass
    else:
        return "", None
    called: list[tuple[str, str]] = []

    def look(frame: Any, event: str, function: Any) -> None:
        if event == "call":
            called.append((frame.f_globals.get("__name__", ""), frame.f_code.co_qualname))
        elif event == "c_call" and function.__name__ not in ("exp", "setprofile"):
            called.append((getattr(function, "__module__", None) or "", function.__qualname__))

    before = sys.getprofile()
    with _differentiable():
        sys.setprofile(look)
        try:
            number.exp()
        finally:
            sys.setprofile(before)
    return called[0] if called else ("", "a function that cannot be seen")


@contextmanager
def _differentiable() -> Generator[None]:
    """Let operations be differentiated and saved for, also inside a dispatch mode, and no function mode see them."""
    key = torch._C.DispatchKey.AutogradFunctionality
    with torch._C._SetExcludeDispatchKeyGuard(key, False), torch.enable_grad(), unseen_by_modes():
        yield


def _same(t: Tensor) -> Tensor:
    return t


def inside_transformation(t: Tensor) -> bool:
    """Whether a tensor stands for others inside ``vmap`` or another transformation of ``torch.func``."""
    return torch.func.debug_unwrap(t) is not t
