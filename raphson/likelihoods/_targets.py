"""What every likelihood asks of its targets: a shape that matches the outputs, and values in the support."""

from __future__ import annotations

import torch
from torch import Tensor

from raphson._errors import InputError


def like_outputs(f: Tensor, y: Tensor) -> Tensor:
    """Return real-valued targets with the shape and element type of the outputs.

    Args:
        f: Outputs ``(..., M)``.
        y: Targets ``(..., M)``, or ``(...,)`` where ``M = 1``.

    Returns:
        The targets, ``(..., M)``.

    Raises:
        InputError: The shapes do not match; broadcasting them would silently pair every row with every other.
    """
    if f.shape[-1] == 1 and y.shape == f.shape[:-1]:
        y = y.unsqueeze(-1)
    if y.shape != f.shape:
        raise InputError(
            f"The targets have shape {tuple(y.shape)} but the outputs have shape {tuple(f.shape)}: "
            "give one target per response (a single one may drop its last axis)."
        )
    return y.to(f.dtype)


def output_columns(y: Tensor, n_outputs: int) -> Tensor:
    """Return real-valued targets with the output axis last, checking its length.

    Args:
        y: Targets ``(..., M)``, or ``(...,)`` where ``M = 1``.
        n_outputs: Number of model outputs ``M``.

    Returns:
        The targets, ``(..., M)``.

    Raises:
        InputError: The last axis does not have one entry per output.
    """
    if n_outputs == 1 and (y.ndim == 0 or y.shape[-1] != 1):
        y = y.unsqueeze(-1)
    if y.ndim == 0 or y.shape[-1] != n_outputs:
        raise InputError(
            f"The targets have shape {tuple(y.shape)} but the model has {n_outputs} outputs: "
            f"give targets of shape (N, {n_outputs})."
        )
    return y


def refuse_outside(bad: Tensor, y: Tensor, support: str) -> None:
    """Raise for the first marked target.

    Args:
        bad: Boolean marks, of the shape of ``y``.
        y: Targets; the first axis counts rows.
        support: The admissible values in words, completing "each target must be ...".

    Raises:
        InputError: Some target is marked.
    """
    if not bool(bad.any()):
        return
    position = torch.nonzero(bad)[0].tolist()
    value = y[tuple(position)].item()
    place = f"row {position[0]}" if position else "the only row"
    if position[1:] and y.shape[1:] != (1,):
        place += f", position {', '.join(map(str, position[1:]))}"
    raise InputError(
        f"The target in {place} is {value:g}, but each target must be {support}. "
        f"{int(bad.sum())} of {bad.numel()} values are affected: correct them or drop those rows."
    )
