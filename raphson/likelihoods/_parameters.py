"""Several parameters per response: from one tensor each, ``(..., M)``, to outputs, gradients and Hessians.

Parameters come last within a response, ``C = M k``, but each is stored in one piece: writing them, and reading one at
a time as a linear model does (its outputs are ``(C, N)``), is several times faster than with parameters side by side.
Of two parameters the second may be a fixed number: then only the first counts, ``C = M``, and Hessians are diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg import Diagonal, EqualBlocks, EqualBlocksMatrix, is_near


def interleaved(*parameters: Tensor) -> Tensor:
    """Return ``k`` tensors ``(..., M)`` as ``(..., M k)``, the parameters of a response side by side."""
    return torch.stack([p.movedim(-1, 0) for p in parameters], 1).flatten(0, 1).movedim(0, -1)


def block_entries(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the entries of ``k x k`` blocks, each ``(..., M)``, as ``(..., M, k, k)``."""
    k = len(rows)
    stacked = torch.stack([entry.movedim(-1, 0) for row in rows for entry in row], 1)
    return stacked.reshape(stacked.shape[0], k, k, *stacked.shape[2:]).movedim((0, 1, 2), (-3, -2, -1))


def check_number(name: str, value: float | None) -> None:
    """Raise ``InputError`` unless a fixed parameter is None or a positive finite number."""
    if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value!r}, but it must be a positive finite number, or None to be an output.")


def split(f: Tensor, fixed: float | None) -> tuple[Tensor, Tensor]:
    """Return the first parameter ``(..., M)`` and the second, ``(..., M)`` or, if fixed, a scalar."""
    if fixed is not None:
        return f, f.new_full((), fixed)
    if f.shape[-1] % 2:
        raise InputError(f"The model has {f.shape[-1]} outputs, but two are needed per response.")
    first, second = f.view(*f.shape[:-1], f.shape[-1] // 2, 2).unbind(-1)
    return first, second


def constant(second: Tensor) -> Tensor:
    """Return a parameter that is constant over rows as a scalar: gamma functions of it are then taken once.

    Under a transform of ``torch.func``, where it differs, and where looking at it means to wait for a device, it stays
    as it is.
    """
    trivial = second.ndim == 0 or second.numel() == 0
    if trivial or not is_near(second) or torch.func.debug_unwrap(second) is not second:
        return second
    first = second[(0,) * second.ndim]
    return first if bool((second == first).all()) else second


def join(first: Tensor, second: Tensor, fixed: bool) -> Tensor:
    """Return the gradient ``(..., C)`` of its elements ``(..., M)``."""
    return first if fixed else interleaved(first, second)


def blocks(a: Tensor, b: Tensor, c: Tensor) -> EqualBlocks:
    """Return the operator of the blocks ``[[a, b], [b, c]]``, from elements ``(..., M)``."""
    return EqualBlocks(block_entries(((a, b), (b, c))))


def lower_blocks(a: Tensor, b: Tensor, c: Tensor) -> EqualBlocksMatrix:
    """Return the operator of the blocks ``[[a, 0], [b, c]]``, from elements ``(..., M)``."""
    return EqualBlocksMatrix(block_entries(((a, torch.zeros_like(a)), (b, c))))


def uncorrelated(a: Tensor, c: Tensor) -> Diagonal:
    """Return the operator of the blocks ``[[a, 0], [0, c]]``, from elements ``(..., M)``."""
    return Diagonal(interleaved(a, c.expand_as(a)))


def product(factor: Tensor, other: Tensor) -> Tensor:
    """Return the product, which is zero with the first factor though the second be infinite."""
    return torch.where(factor == 0, factor, factor * other)


def total(values: Tensor, f: Tensor) -> Tensor:
    """Return the sum over responses ``(..., M)``, infinite (not nan) where an output is not finite."""
    value = values.squeeze(-1) if values.shape[-1] == 1 else values.sum(-1)
    outputs = f.squeeze(-1) if f.shape[-1] == 1 else f.sum(-1)
    return torch.add(value, outputs, alpha=0.0).nan_to_num(math.inf, math.inf, -math.inf)


def total_of(values: Tensor) -> Tensor:
    """Return the sum over responses of values that are infinite or nan where an output is, infinite in both cases."""
    value = values.squeeze(-1) if values.shape[-1] == 1 else values.sum(-1)
    return value.nan_to_num(math.inf, math.inf, -math.inf)
