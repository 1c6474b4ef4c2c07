"""What is done around the methods of every operator: right-hand sides are checked, half precision is avoided."""

from __future__ import annotations

import functools
import math
import numbers
import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raphson._errors import InputError

HALF = frozenset({torch.float16, torch.bfloat16})
"""Types in which PyTorch multiplies but does not decompose."""

_PRODUCTS = {"mv": (-1, -1), "rmv": (-1, -2), "mm": (-2, -1), "rmm": (-2, -2)}
"""For each product which axis of its argument has the length of which axis of the operator."""


class Guarded(Protocol):
    """What is done around an operator's methods needs of it."""

    @property
    def shape(self) -> torch.Size:
        """Shape ``(*batch, m, n)``."""

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""

    @property
    def device(self) -> torch.device:
        """Where it lives."""

    def to(self, *, dtype: torch.dtype) -> Any:
        """Return the operator in another element type."""


def as_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor as an array on the processor; bfloat16, which NumPy does not have, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def numpy_type(element: torch.dtype) -> np.dtype[Any]:
    """Return the NumPy type of arrays that ``as_numpy`` makes of tensors of a type."""
    found: np.dtype[Any] = as_numpy(torch.empty(0, dtype=element, device="cpu")).dtype
    return found


def single(tensor: Tensor) -> Tensor:
    """Return a tensor of half precision in single precision, any other as it is."""
    return tensor.float() if tensor.dtype in HALF else tensor


_WITHOUT_FLOAT64 = frozenset({"mps"})
"""Kinds of devices that have no float64: Apple's."""


def all_finite(t: Tensor) -> bool:
    """Whether no entry is infinite or nan. A finite sum says so in a fortieth of the time; finite ones may overflow."""
    return bool(torch.isfinite(t.sum())) or bool(torch.isfinite(t).all())


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def where_float64(t: Tensor) -> Tensor:
    """Return a tensor where float64 can be had: on its device, or on the processor."""
    return t if widest_float(t.device) is torch.float64 else t.cpu()


def in_float64(t: Tensor) -> Tensor:
    """Return a tensor in float64, on the processor if its own device has none."""
    return where_float64(t).double()


def is_near(t: Tensor) -> bool:
    """Whether looking at a value costs little: on the processor, that is; elsewhere it means to wait for all before."""
    return t.device.type == "cpu"


def guard(cls: type[Guarded]) -> None:
    """Put around the methods that an operator class defines what they owe their callers."""
    for name, method in list(vars(cls).items()):
        if name in _WRAPPERS and not getattr(method, "__isabstractmethod__", False):
            setattr(cls, name, _WRAPPERS[name](name, method))


def _product(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    axis, side = _PRODUCTS[name]

    @functools.wraps(method)
    def product(self: Guarded, v: Any) -> Any:
        if not isinstance(v, Tensor):
            return as_numpy(product(self, _tensor(self, v)))
        length = v.shape[axis] if v.ndim >= -axis else None
        if length != self.shape[side] or v.dtype is not self.dtype or v.device != self.device:
            raise _refusal(self, name, v, self.shape[side])
        if v.layout is not torch.strided:
            raise _refused_layout(self, name, v)
        if axis == -2 and v.shape[-1] == 0:  # no column
            return v.new_zeros(*v.shape[:-2], self.shape[-3 - side], 0)
        return method(self, v)

    return product


def _solve(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def solve(self: Guarded, b: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(b, Tensor):
            return as_numpy(solve(self, _tensor(self, b), *args, **options))
        n = self.shape[-1]
        length = b.shape[-1 if b.ndim < len(self.shape) else -2] if b.ndim else None
        if length != n or b.dtype is not self.dtype or b.device != self.device:
            raise _refusal(self, name, b, n)
        if b.layout is not torch.strided:
            raise _refused_layout(self, name, b)
        if b.dtype in HALF:
            return getattr(self.to(dtype=torch.float32), name)(b.float(), *args, **options).to(b.dtype)
        return method(self, b, *args, **options)

    return solve


def _shift(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def shift(self: Guarded, c: Any) -> Any:
        c = torch.as_tensor(c) if isinstance(c, np.ndarray) else c
        if isinstance(c, Tensor):
            batch, real = self.shape[:-2], not c.is_complex() and c.dtype != torch.bool
            fits = c.ndim <= len(batch) and all(a in {1, b} for a, b in zip(c.shape[::-1], batch[::-1], strict=False))
            if not real or not fits:
                each = f" of each of a batch {tuple(batch)}" if batch else ""
                raise InputError(
                    f"shift adds a real number to the diagonal{each}, and got a tensor {tuple(c.shape)} of {c.dtype}. "
                    "A diagonal of its own is added by Sum, with a Diagonal."
                )
            if is_near(c) and not bool(torch.isfinite(c).all()):
                raise InputError("shift got a tensor with entries that are not finite.")
            return method(self, c)
        if isinstance(c, bool) or not isinstance(c, numbers.Real) or not math.isfinite(c):
            raise InputError(f"shift adds a finite number to the diagonal, and got {c!r}.")
        # nothing is added, and what is singular stays what it is, in its own structure
        return self if c == 0 else method(self, float(c))

    return shift


def _decomposition(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def decomposition(self: Guarded) -> Any:
        if self.dtype not in HALF:
            try:
                return method(self)
            except RuntimeError as error:
                if "failed to converge" not in str(error):
                    raise
                raise InputError(
                    f"{type(self).__name__} of shape {tuple(self.shape)} has no {name}, since its decomposition did "
                    "not converge: it holds nan or infinity, or numbers at the limits of its type. Check what it was "
                    "made from, or take it in float64."
                ) from error
        result = getattr(self.to(dtype=torch.float32), name)()
        if isinstance(result, tuple):
            return type(result)(*(part.to(dtype=self.dtype) for part in result))
        return result.to(dtype=self.dtype)

    return decomposition


def _element_type(name: str, given: Any) -> property:
    """Return ``dtype`` as a property that answers SciPy, whose functions make a NumPy type of it, with such a type.

    SciPy asks nothing else: ``eigsh`` and ``aslinearoperator`` read ``dtype`` of what they are given, subclasses of
    their own operator included, and NumPy makes no type of a ``torch.dtype``. So who asks has to decide.
    """

    def dtype(self: Guarded) -> Any:
        """Element type of the products."""
        found = given.__get__(self) if isinstance(given, property) else given
        scipy = sys._getframe(1).f_globals.get("__name__", "").startswith("scipy.")
        return numpy_type(found) if scipy else found

    return property(dtype)


_WRAPPERS: dict[str, Callable[[str, Any], Any]] = {
    "dtype": _element_type,
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(("solve", "power_mv"), _solve),
    **dict.fromkeys(("eigh", "slogdet", "factor"), _decomposition),
    "shift": _shift,
}


def _tensor(operator: Guarded, v: Any) -> Tensor:
    """Return a NumPy array of real numbers in the operator's type, on its device."""
    if not isinstance(v, np.ndarray) or v.dtype.kind not in "fiub":
        kind = f"an array of {v.dtype}" if isinstance(v, np.ndarray) else f"a {type(v).__name__}"
        raise InputError(
            f"{type(operator).__name__} multiplies tensors and NumPy arrays of real numbers, and got {kind}."
        )
    return torch.tensor(v, dtype=operator.dtype, device=operator.device)


def _refused_layout(operator: Guarded, name: str, v: Tensor) -> InputError:
    return InputError(
        f"{type(operator).__name__} multiplies dense vectors, but the one in {name} has layout {v.layout}: convert it "
        "by v.to_dense()."
    )


def _refusal(operator: Guarded, name: str, v: Tensor, length: int) -> InputError:
    what = f"{type(operator).__name__} of shape {tuple(operator.shape)}"
    remedy = "Convert it by v.to(op.device, op.dtype)"
    if v.dtype is not operator.dtype:
        return InputError(f"{what} has dtype {operator.dtype}, but the vector in {name} has {v.dtype}: {remedy}.")
    if v.device != operator.device:
        return InputError(f"{what} lives on {operator.device}, but the vector in {name} on {v.device}: {remedy}.")
    columns = name.endswith("mm") or (name not in _PRODUCTS and v.ndim >= len(operator.shape))
    entries = v.shape[-2 if columns else -1] if v.ndim > columns else "no"
    return InputError(
        f"The vector has {entries} entries, but there are {length} parameters: the right-hand side of {name} has "
        f"shape {tuple(v.shape)}, and {what} needs {'(..., n, k)' if columns else '(..., n)'} with n = {length}."
    )
