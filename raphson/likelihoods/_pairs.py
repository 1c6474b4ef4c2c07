"""Outputs in pairs, the logarithms of two parameters per response, the second of which may be a fixed number.

A likelihood of two parameters gives the elements of its ``2 x 2`` blocks, each ``(..., M)``; here they become
gradients ``(..., C)`` and operators ``(..., C, C)``. With the second parameter fixed only the first of each
counts, ``C = M``, and the Hessian is diagonal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._interleave import block_entries, interleaved
from raphson.likelihoods._support import Support
from raphson.likelihoods._targets import refuse_outside
from raphson.linalg import Diagonal, EqualBlocks, EqualBlocksMatrix


def check_number(name: str, value: float | None) -> None:
    """Raise ``InputError`` unless a fixed parameter is None or a positive finite number."""
    if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value!r}, but it must be a positive finite number, or None to be an output.")


def split(f: Tensor, fixed: float | None) -> tuple[Tensor, Tensor]:
    """Return the first parameter ``(..., M)`` and the second, ``(..., M)`` or, if fixed, a scalar.

    Args:
        f: Outputs ``(..., 2 M)``, or ``(..., M)`` if the second parameter is fixed.
        fixed: Its value as an output, or None.

    Returns:
        The two.

    Raises:
        InputError: There are two parameters per response and an odd number of outputs.
    """
    if fixed is not None:
        return f, f.new_full((), fixed)
    if f.shape[-1] % 2:
        raise InputError(f"The model has {f.shape[-1]} outputs, but two are needed per response.")
    first, second = f.view(*f.shape[:-1], f.shape[-1] // 2, 2).unbind(-1)
    return first, second


def constant(second: Tensor) -> Tensor:
    """Return a parameter as a scalar where it is one number for all: gamma functions of it are then taken once.

    Args:
        second: ``(..., M)``, or a scalar.

    Returns:
        The scalar, or ``second``, as it is under a transform of ``torch.func``.
    """
    if second.ndim == 0 or second.numel() == 0 or torch.func.debug_unwrap(second) is not second:
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


def uncorrelated(a: Tensor, c: Tensor, fixed: bool) -> Diagonal:
    """Return the operator of the blocks ``[[a, 0], [0, c]]``, or of ``a`` alone, from elements ``(..., M)``."""
    return Diagonal(a if fixed else join(a, c.expand_as(a), fixed))


def columns(y: Tensor, n_outputs: int, n_parameters: int) -> Tensor:
    """Return targets ``(..., M)``, refusing a number of outputs that is not ``M`` times that of parameters."""
    if n_outputs % n_parameters:
        raise InputError(f"The model has {n_outputs} outputs, but {n_parameters} are needed per response.")
    m = n_outputs // n_parameters
    if m == 1 and (y.ndim == 0 or y.shape[-1] != 1):
        return y.unsqueeze(-1)
    if y.ndim == 0 or y.shape[-1] != m:
        each = "" if n_parameters == 1 else f", {n_parameters} per response"
        raise InputError(
            f"The targets have shape {tuple(y.shape)} but the model has {n_outputs} outputs{each}: "
            f"give targets of shape (N, {m})."
        )
    return y


def check_columns(y: Tensor, n_outputs: int, n_parameters: int, support: Support) -> None:
    """Raise ``InputError`` for the first target outside the support, or for a wrong number of outputs."""
    values = columns(y, n_outputs, n_parameters)
    refuse_outside(~support.contains(values), values, support.description)


def total(values: Tensor, f: Tensor) -> Tensor:
    """Return the sum over responses, infinite (not nan) where an output is not finite."""
    value = values.sum(-1)
    return torch.where(torch.isnan(value + 0 * f.sum(-1)), math.inf, value)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean over rows, ``(M,)``, of values ``(N, M)``."""
    if weights is None:
        return values.mean(0)
    share = weights.to(values) / weights.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return share @ values


def start_rows(y: Tensor, n_outputs: int, n_parameters: int) -> Tensor:
    """Return targets as rows ``(N, M)`` in float64."""
    return columns(y, n_outputs, n_parameters).double().reshape(-1, n_outputs // n_parameters)


def log_mean_count(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Return the logarithm of the mean over rows ``(N, M)``, as if of half a count where all are zero."""
    return weighted_mean(rows, weights).clamp(min=0.5 / max(rows.shape[0], 1)).log()
