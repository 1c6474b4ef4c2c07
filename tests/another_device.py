"""A device that is not the processor, with values: what is made, moved and looked at on it can be watched.

A tensor there (``elsewhere``) says that it is on the device ``lazy``, which torch has the name of and no kernels for,
and holds one on the processor that does the work. Under ``Watch`` every call that reaches a kernel is seen:

- a tensor of the processor that meets one of the device, a generator that lives on the other one and, if the
  device is to lack it as Apple's do, a number in float64 are failures at once;
- tensors made on the processor, copies to the device and looks at values, copies from the device among them, are
  noted with the place in this package that asked for them.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from raphson.linalg import _entry
from raphson.network import _tensor_memory
from raphson.network.curvature import _products

DEVICE = torch.device("lazy", 0)
HOST = torch.device("cpu")

aten: Any = torch.ops.aten
_Generator = torch.Generator  # while all is watched, torch has another one under this name
_LOOKS = {aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select, aten._unique2}
"""Calls whose answer (or its shape) the host waits for."""

_COPIES = {aten._to_copy, aten.copy_}


class Elsewhere(Tensor):
    """A tensor on the device."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            value.size(),
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=DEVICE,
        )
        made.value = value
        return made  # type: ignore[no-any-return]

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.value})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carry_out(func, args, kwargs or {}, None)


class DeviceGenerator(torch.Generator):
    """A generator that says where it lives."""

    known: ClassVar[WeakValueDictionary[int, DeviceGenerator]] = WeakValueDictionary()
    place: torch.device

    def __new__(cls, device: Any = HOST) -> DeviceGenerator:
        made = super().__new__(cls, HOST)
        made.place = torch.device(device)
        cls.known[made._cdata] = made
        return made

    @property
    def device(self) -> torch.device:
        return self.place

    @classmethod
    def place_of(cls, generator: torch.Generator) -> torch.device:
        """Where a generator lives that came through a call of torch, which makes a new object of it."""
        found = cls.known.get(generator._cdata)
        return HOST if found is None else found.place


class Watch(TorchDispatchMode):
    """Notes what is done between the device and the processor: kinds of events and places, each with its count."""

    def __init__(self, float64: bool) -> None:
        super().__init__()
        self.float64 = float64
        self.made: Counter[str] = Counter()
        self.looks: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()

    def forget(self) -> None:
        """Forget what was noted so far."""
        for noted in (self.made, self.looks, self.copies):
            noted.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carry_out(func, args, kwargs or {}, self)


class _NewTensors(TorchFunctionMode):
    """Makes tensors of numbers on the device, which torch does in one call that no kernel is seen of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor) and device is not None:
            made = func(*args, **{**kwargs, "device": HOST})
            return made.to(device)
        return func(*args, **kwargs)


def _carry_out(func: Any, args: Any, kwargs: dict[str, Any], watch: Watch | None) -> Any:
    flat, form = pytree.tree_flatten((args, kwargs))
    there = any(isinstance(t, Elsewhere) for t in flat)
    here = [t for t in flat if isinstance(t, Tensor) and not isinstance(t, Elsewhere)]
    packet = func.overloadpacket
    if there and here and packet not in _COPIES:
        raise AssertionError(f"{func} is asked to mix tensors of the device and of the processor at {place()}")
    given = kwargs.get("device")
    target = torch.device(given) if given is not None else None
    result_there = target.type == DEVICE.type if target is not None else there
    if packet is aten.copy_:
        result_there = isinstance(args[0], Elsewhere)
    for source in (DeviceGenerator.place_of(g) for g in flat if isinstance(g, _Generator)):
        if (source.type == DEVICE.type) is not result_there:
            raise AssertionError(f"{func} draws with a generator of {source} at {place()}")
    plain_args, plain_kwargs = pytree.tree_unflatten([t.value if isinstance(t, Elsewhere) else t for t in flat], form)
    if target is not None and result_there:
        plain_kwargs["device"] = HOST
    out = func(*plain_args, **plain_kwargs)
    if not any(isinstance(t, Tensor) for t in pytree.tree_leaves(out)) and packet not in _LOOKS:
        return out
    if watch is not None:
        masks = any(isinstance(t, Elsewhere) and t.dtype is torch.bool for t in flat[1:])
        if there and (not result_there or packet in _LOOKS or (packet is aten.index and masks)):
            watch.looks[f"{place()} {packet}"] += 1
        elif here and result_there:
            watch.copies[f"{place()} {packet}"] += 1
        elif not there and not here and not result_there and (target is None or target.type == HOST.type):
            watch.made[f"{place()} {packet}"] += 1
    if not result_there:
        return out
    wide = any(isinstance(t, Tensor) and t.dtype is torch.float64 for t in pytree.tree_leaves(out))
    if watch is not None and wide and not watch.float64:
        raise AssertionError(f"{func} makes float64 at {place()}")
    found = pytree.tree_map_only(Tensor, Elsewhere, out)
    return return_and_correct_aliasing(func, args, kwargs, found) if there else found


def place() -> str:
    """The line of this package that is being run, innermost."""
    frame: Any = sys._getframe(1)
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("raphson."):
        frame = frame.f_back
    return "outside" if frame is None else f"{frame.f_globals['__name__']}:{frame.f_code.co_name}"


def elsewhere(x: Any) -> Any:
    """Return tensors, in whatever holds them, on the device; of a module a copy."""
    if isinstance(x, nn.Module):
        made = copy.deepcopy(x)
        for part in made.modules():
            for name, p in list(part._parameters.items()):
                if p is not None:
                    part._parameters[name] = nn.Parameter(Elsewhere(p.detach()), p.requires_grad)
            for name, b in list(part._buffers.items()):
                if b is not None:
                    part._buffers[name] = Elsewhere(b)
        return made
    return pytree.tree_map_only(Tensor, Elsewhere, x)


def back(x: Tensor) -> Tensor:
    """Return the value of a tensor that must be on the device."""
    assert isinstance(x, Elsewhere), "the result is not on the device"
    return x.value.detach()


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, float64: bool = True) -> Generator[Watch, None, None]:
    """Watch everything, with generators that may live on the device."""

    # torch asks a module of the device's name for the state of its random numbers, of which it has none
    states = SimpleNamespace(get_rng_state=lambda device: None, set_rng_state=lambda state, device: None)
    monkeypatch.setattr(torch, DEVICE.type, states, raising=False)
    monkeypatch.setattr(torch, "Generator", DeviceGenerator)
    # no memory is reserved on the device
    monkeypatch.setattr(_tensor_memory, "_POINTER", lambda t: Tensor.data_ptr(getattr(t, "value", t)))
    block = _tensor_memory.block_of
    monkeypatch.setattr(_products, "block_of", lambda t: block(getattr(t, "value", t)))
    monkeypatch.setattr(_entry, "_WITHOUT_FLOAT64", frozenset() if float64 else frozenset({DEVICE.type}))
    with _NewTensors(), Watch(float64) as watch:
        yield watch
