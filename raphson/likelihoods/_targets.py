"""What every likelihood asks of its targets: a shape that matches the outputs, and values in the support."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._support import Support
from raphson.linalg import in_float64


def like_outputs(f: Tensor, y: Tensor) -> Tensor:
    """Return real-valued targets in shape ``(..., M)`` and type of the outputs; other shapes would broadcast."""
    if f.shape[-1] == 1 and y.shape == f.shape[:-1]:
        y = y.unsqueeze(-1)
    if y.shape != f.shape:
        raise InputError(
            f"The targets have shape {tuple(y.shape)} but the outputs have shape {tuple(f.shape)}: "
            "give one target per response (a single one may drop its last axis)."
        )
    return y.to(f.dtype)


def columns(y: Tensor, n_outputs: int, n_parameters: int = 1) -> Tensor:
    """Return real-valued targets ``(..., M)`` with the axis of responses last, which outputs ``M k`` go with.

    Raises:
        InputError: The outputs are no multiple of ``k``, or the last axis does not have one entry per response.
    """
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


def start_rows(y: Tensor, n_outputs: int, n_parameters: int = 1) -> Tensor:
    """Return targets as rows ``(N, M)`` in float64."""
    return in_float64(columns(y, n_outputs, n_parameters)).reshape(-1, n_outputs // n_parameters)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean over rows, ``(M,)``, of values ``(N, M)``."""
    if weights is None:
        return values.mean(0)
    share = weights.to(values) / weights.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return share @ values


def log_mean_count(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Return the logarithm of the mean over rows ``(N, M)``, as if of half a count where all are zero."""
    return weighted_mean(rows, weights).clamp(min=0.5 / max(rows.shape[0], 1)).log()


def refuse_outside(bad: Tensor, y: Tensor, support: str) -> None:
    """Raise ``InputError`` for the first marked target; ``support`` completes "each target must be ..."."""
    if not bool(bad.any()):
        return
    position = torch.nonzero(bad)[0].tolist()
    value = y[tuple(position)].item()
    place = f"row {position[0]}" if position else "the only row"
    if position[1:] and y.shape[1:] != (1,):
        place += f", position {', '.join(map(str, position[1:]))}"
    raise InputError(
        f"The target in {place} is {value:g}, but each target must be {support}. "
        f"{int(bad.sum())} of {bad.numel()} values are affected: correct them or drop those rows.",
        row=position[0] if position else None,
    )


def weight_tensor(name: str, given: Any) -> Tensor | None:
    """Return weights as a tensor; ``InputError`` for what is no number, list of numbers or tensor."""
    if given is None or isinstance(given, Tensor):
        return given
    try:
        return torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} is {given!r}, but it must be a number, a list of numbers or a tensor.") from error
