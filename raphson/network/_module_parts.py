"""PyTorch's private account of what is inside a module, and the parts that keep it from being a fixed function.

All private names for this purpose are used here only; ``tests/network/test_private_torch.py`` holds what they must do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from raphson._errors import InputError


def unwrapped(model: Any) -> Any:
    """Return the module that a compiled or a parallel one wraps, which has second derivatives; others as they are."""
    while True:
        inner = getattr(model, "_orig_mod", model)
        inner = inner.module if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel) else inner
        if inner is model:
            return model
        model = inner


def refuse_without_values(module: nn.Module) -> None:
    """Raise for a module that is a script, or whose parameters hold no values.

    Args:
        module: The module.

    Raises:
        InputError: Naming the remedy.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            "The model is a torch.jit module, whose parameters cannot be replaced: give the module that it was made "
            "of, or a function f(params, x)."
        )
    for name, p in module.named_parameters():
        if p.device.type == "meta":
            raise InputError(
                f"Parameter '{name}' is on the meta device, where it has a shape but no values: load the model's "
                "weights first (model.to_empty(device='cpu'), then load_state_dict)."
            )


def parameter_places(module: nn.Module) -> dict[str, str]:
    """Return the name of the parameter in every place that holds one, each place once.

    Tied parameters lie in several places. A module that is used twice must not appear twice: torch's ``tie_weights``
    would put its parameters back in the wrong order and leave the copies in the module.
    """
    names = {id(p): name for name, p in module.named_parameters()}
    return {
        f"{prefix}.{name}" if prefix else name: names[id(p)]
        for prefix, part in module.named_modules()
        for name, p in part._parameters.items()
        if p is not None
    }


def children(part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules in a module, one that is used twice two times, unlike ``named_children``."""
    return ((name, child) for name, child in part._modules.items() if child is not None)


def is_plain(part: nn.Module) -> bool:
    """Whether calling a module is running the ``forward`` of its class: no hook, no other ``forward``."""
    return not (part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__)


def refuse_training_mode(module: nn.Module | None) -> None:
    """Raise for the first part of a module that is random, or mixes examples, because it is in training mode.

    Args:
        module: The module; None passes.

    Raises:
        InputError: Naming the part, and the remedy.
    """
    for name, part in module.named_modules() if module is not None else ():
        trouble = _training_trouble(part) if part.training else None
        if trouble is not None:
            where = f"Module '{name}'" if name else "The model"
            raise InputError(
                f"{where} ({type(part).__name__}) is in training mode, where {trouble}: the loss is then no fixed sum "
                "over examples. Call model.eval() first."
            )


def _training_trouble(part: nn.Module) -> str | None:
    if isinstance(part, _DropoutNd) and part.p > 0:
        return f"it drops values at random (p={part.p:g})"
    if isinstance(part, nn.MultiheadAttention | nn.RNNBase) and part.dropout > 0 and getattr(part, "num_layers", 2) > 1:
        return f"it drops values at random (dropout={part.dropout:g})"
    if isinstance(part, nn.RReLU):
        return "its slopes are random"
    if isinstance(part, _BatchNorm):
        return "it normalizes with the statistics of the batch"
    if isinstance(part, _InstanceNorm) and part.track_running_stats:
        return "it updates its running statistics"
    return None
