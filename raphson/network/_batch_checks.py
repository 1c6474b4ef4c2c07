"""What a batch must be for the losses of a network to have derivatives, beyond what its model and likelihood ask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.data import Batch, take, tree_map
from raphson.likelihoods import Likelihood
from raphson.linalg import is_near
from raphson.network._call_place import runnable
from raphson.network._module import Model
from raphson.network._parameters import ParameterSpace


def check_target_axes(likelihood: Likelihood, f: Tensor, y: Tensor, index: int) -> None:
    """Raise ``InputError`` for targets with as many axes as outputs that a likelihood does not take.

    Args:
        likelihood: The likelihood.
        f: Outputs of one example, which show it.
        y: Targets of a batch.
        index: Its number.

    Raises:
        InputError: The likelihood gives them no losses, or losses of another shape.
    """
    if y.ndim != f.ndim:
        return
    try:
        shape = likelihood.nll(f, y[:1]).shape
    except (RuntimeError, InputError):
        shape = None
    if shape != f.shape[:-1]:
        labels = "y.argmax(-1), or y of the outputs' type if its rows are numbers"
        remedy = "drop their last axis, as in y.squeeze(-1)" if y.shape[-1] == 1 else f"give {labels}"
        raise InputError(
            f"Batch {index}: the targets have shape {tuple(y.shape)} and type {y.dtype}, but "
            f"{type(likelihood).__name__} takes one for each row of {f.shape[-1]} outputs: {remedy}."
        )


def check_classes_last(f: Tensor, y: Tensor) -> None:
    """Raise ``InputError`` where torch's cross-entropy has classes on axis 1 of the outputs, which these may mean.

    Args:
        f: Outputs, of which the axes after the first matter.
        y: Targets of a batch: labels, or probabilities.

    Raises:
        InputError: Targets fit outputs with classes on axis 1.
    """
    if f.ndim > 2 and (y.shape[1:] == f.shape[2:] or (y.is_floating_point() and y.shape[1:] == f.shape[1:])):
        raise InputError(
            f"The outputs have shape {tuple(f.shape)}, where nn.CrossEntropyLoss has the classes on axis 1 and raphson "
            "on the last: say that they are last by giving rp.Categorical(), which has the same options."
        )


def form_of(x: Any) -> Any:
    """Return which tensors inputs consist of: names, types and sizes, their number of rows aside."""
    if isinstance(x, Mapping):
        return tuple((key, form_of(value)) for key, value in x.items())
    if isinstance(x, tuple | list):
        return tuple(map(form_of, x))
    if isinstance(x, Tensor):
        return x.dtype, x.shape[1:]
    return type(x)


def check_form(model: Model, batch: Batch, f: Tensor, index: int) -> None:
    """Raise ``InputError`` if inputs of a form that was not met before do not go through the model.

    Args:
        model: The model.
        batch: A batch with such inputs.
        f: Outputs of another batch.
        index: The number of this one.

    Raises:
        InputError: The model does not run on its first example, or makes other outputs of it.
    """
    try:
        with torch.no_grad(), runnable(model.function, batch.x, model.space.dtype):
            own = model.call(None, take(batch.x, slice(0, 1), batch.n_examples))
    except InputError as error:
        raise InputError(f"Batch {index}: {error}") from error
    if own.ndim != f.ndim or own.shape[-1] != f.shape[-1]:
        raise InputError(
            f"Batch {index}: its outputs have shape {tuple(own.shape)} for one example, and those of batch 0 "
            f"{tuple(f[:1].shape)}: batches must have outputs of one kind."
        )


def check_infinite_inputs(model: Model, likelihood: Likelihood, batch: Batch, index: int) -> None:
    """Refuse infinite inputs that reach a gradient, unlike those in a mask, by ``InputError``.

    They can do so where the losses are finite: behind an activation that saturates. Where looking at a value means to
    wait for a device, it is the gradient that shows them.
    """
    found: list[Tensor] = []
    tree_map(lambda t: found.append(t) if t.is_floating_point() else None, batch.x)
    if not any(is_near(t) and bool(torch.isinf(t).any()) for t in found):
        return
    leaves = model.leaves()
    with torch.enable_grad():
        f = model.call(leaves, batch.x)
    gradient = likelihood.gradient(f.detach(), batch.y)
    parts = torch.autograd.grad(f, list(leaves.values()), gradient, materialize_grads=True)
    total = torch.cat([part.reshape(-1) for part in parts])
    if bool(torch.isfinite(f).all()) and not bool(torch.isfinite(total).all()):
        error = not_finite(model.space, total, f" of batch {index}")
        raise error


def not_finite(space: ParameterSpace, gradient: Tensor, where: str = "") -> InputError:
    """Return the error for a gradient ``(P,)`` that is not finite, which names its first such entry."""
    index = int((~torch.isfinite(gradient)).nonzero()[0])
    return InputError(
        f"The gradient{where} is {float(gradient[index]):g} in parameter '{space.label(index)}', although the losses "
        "are finite. Check for infinite inputs, and for parameters that are infinite or too large."
    )


def checked_penalty(l2: Any) -> float:
    """Return a penalty as a number; ``InputError`` for what is no finite number that is not negative."""
    try:
        value = float(l2)
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if isinstance(l2, str) or not 0 <= value < math.inf:
        seen = repr(l2) if isinstance(l2, str) or not math.isfinite(value) else f"{value:g}"
        raise InputError(f"l2 is {seen}, but it must be a finite number that is not negative.")
    return value
