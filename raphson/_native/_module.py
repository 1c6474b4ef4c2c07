"""The compiled module: whether it was built, which instructions it runs, on how many threads."""

from __future__ import annotations

import math
import os
from types import ModuleType

import torch  # first: the compiled module looks for the threads that PyTorch brings
from torch import Tensor

VARIABLE = "RAPHSON_NATIVE"

Memory = tuple[int, int, str]
"""Address, number of elements and type of a contiguous tensor, the type by its letter in ``struct``."""

_SHARED = 2.0**15
"""Multiplications below which PyTorch does not share out work either (``at::internal::GRAIN_SIZE``)."""

_LETTERS = {torch.float64: "d", torch.float32: "f", torch.int64: "q", torch.int32: "i"}


def load(asked: str) -> tuple[ModuleType | None, str]:
    """Return the compiled module and an empty text, or None and half a sentence that says why there is none.

    Raises:
        ImportError: If it was asked for (``"1"``, not ``"0"``) and does not load, or the variable says something else.
    """
    if asked not in ("", "0", "1"):
        raise ImportError(f"{VARIABLE} is '{asked}'; it must be 0 (no compiled code), 1 (require it) or unset.")
    if asked == "0":
        return None, f"switched off by {VARIABLE}=0"
    try:
        import raphson._native._kernels as found
    except ImportError as error:
        reason = f"built, but does not load ({error})"
        if isinstance(error, ModuleNotFoundError):
            reason = "not built (install raphson again where there is a C compiler: GCC 12, clang 14 or newer)"
        if asked:
            raise ImportError(f"{VARIABLE} is 1, and the compiled code is {reason}.") from error
        return None, reason
    return found, ""


kernels, reason = load(os.environ.get(VARIABLE, ""))


def compiled() -> ModuleType:
    """Return the compiled module, which ``is_available``."""
    assert kernels is not None, "is_available() was not asked"
    return kernels


def runtime() -> str:
    """Return the file of the OpenMP library whose threads compiled code runs on; empty where there is none."""
    return "" if kernels is None else kernels.openmp


def is_available(multiplications: float = math.inf) -> bool:
    """Return whether compiled code was built, and runs work of this size on as many threads as PyTorch would."""
    if kernels is None:
        return False
    return bool(kernels.openmp) or torch.get_num_threads() == 1 or multiplications < _SHARED


def threads(multiplications: float, part: float) -> int:
    """Return how many threads some work is worth, of which one takes ``part`` multiplications."""
    return min(torch.get_num_threads(), 1 + int(multiplications / part)) if runtime() else 1


def memory(name: str, tensor: Tensor, *shape: int, dtype: torch.dtype = torch.float64) -> Memory:
    """Return where a contiguous tensor of that shape and element type lies, as compiled functions take it.

    Raises:
        ValueError: If it is another kind of tensor.
    """
    fits = tensor.shape == shape and tensor.dtype == dtype and tensor.is_cpu and tensor.is_contiguous()
    if not fits or dtype not in _LETTERS:
        raise ValueError(
            f"'{name}' is a tensor {tuple(tensor.shape)} of {tensor.dtype} with strides {tensor.stride()} on "
            f"{tensor.device}; compiled code needs a contiguous one {shape} of {dtype} on the processor."
        )
    return own(tensor)


def own(tensor: Tensor) -> Memory:
    """Return where a tensor lies that was made for the call: nothing of it needs to be checked."""
    return tensor.data_ptr(), tensor.numel(), _LETTERS[tensor.dtype]


def use_vectors(bits: int) -> bool:
    """Use vectors of so many bits, for tests; returns whether the processor has them."""
    return kernels is not None and kernels.use_vectors(bits) == bits


def vector_bits() -> int:
    """Return how long the vectors are that compiled code computes with."""
    return 0 if kernels is None else kernels.use_vectors(0)
