"""What a model must be before it is differentiated: the same function each time, one example at a time."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode

from raphson._errors import InputError
from raphson.network._module import Inputs, Model
from raphson.network.autodiff._rewrite import Rewritten

_ATTENTION = ("flash_attention", "efficient_attention", "cudnn_attention", "fused_attention")
_ONCE = ("hardsigmoid", "cdist")
_RECURRENT = ("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn")


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


class _Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the names of the operations that run inside it, and counts the entries of what they make."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.__name__)
        out = func(*args, **(kwargs or {}))
        for made, result in zip(func._schema.returns, out if isinstance(out, tuple) else (out,), strict=False):
            if isinstance(result, Tensor) and made.alias_info is None:
                self.entries += result.numel()
        return out


class Traits:
    """What one evaluation of a model shows about it.

    Attributes:
        fused_attention: Whether it runs an attention kernel without a second derivative.
        fused_recurrence: Whether it runs a recurrent kernel without a second derivative.
        once_differentiable: Whether it makes other calls without one.
        convolution: Whether it convolves.
        rewritten: Whether it makes calls that ``Rewritten`` replaces.
        channels_last: Whether it runs with images that have their channels last in memory.
        entries: Number of entries, for an example, of what its operations make.
    """

    def __init__(self, names: set[str], entries: int) -> None:
        self.entries = entries
        self.fused_attention = any(part in name for name in names for part in _ATTENTION)
        self.fused_recurrence = any(part in name for name in names for part in _RECURRENT)
        self.once_differentiable = any(part in name for name in names for part in _ONCE)
        self.convolution = any("convolution" in name for name in names)
        self.rewritten = self.convolution or any("batch_norm" in name for name in names)
        self.channels_last = self.convolution


def probe(model: Model, one: Inputs, other: Inputs, both: Inputs) -> tuple[Tensor, Traits]:
    """Evaluate a model on two examples apart and together, and raise unless the outputs agree.

    Args:
        model: The model.
        one: Inputs of one example.
        other: Inputs of another.
        both: Inputs of both.

    Returns:
        The outputs of both, and what the evaluation shows.

    Raises:
        InputError: The output of an example depends on the others, or is random.
    """
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        with _Kernels() as kernels:
            together = model.call(model.leaves(), both).detach()
        if together.shape[0] != 2:
            raise InputError(
                f"The model returned outputs of shape {tuple(together.shape)} for 2 examples: examples must be on the "
                "first axis (of a recurrent module: batch_first=True)."
            )
        traits = Traits(kernels.names, max(1, kernels.entries // 2))
        apart = _apart(model, one, other, traits)
    tol = 10 * torch.finfo(together.dtype).eps ** 0.5
    gap = (apart - together).abs().amax()
    size = together.abs().amax()
    if bool(torch.isfinite(gap)) and not bool(gap <= tol * size + torch.finfo(together.dtype).tiny):
        raise InputError(
            f"The outputs of an example change by {float(gap):.2g} (their size is {float(size):.2g}) when it is "
            "evaluated without the others: the model mixes examples across the batch, has them on another axis than "
            "the first, or is random. Use normalization with fixed statistics (model.eval()) and batch_first=True."
        )
    return together, traits


def _apart(model: Model, one: Inputs, other: Inputs, traits: Traits) -> Tensor:
    """Return the outputs of two examples, run as for derivatives; see whether channels can be last in memory."""

    def outputs() -> Tensor:
        with torch.no_grad(), Rewritten(traits.channels_last) if traits.rewritten else contextlib.nullcontext():
            return torch.cat([model.call(None, one), model.call(None, other)])

    if traits.channels_last:
        # what a model does with its images (a view, say) can ask for their usual order
        with contextlib.suppress(RuntimeError):
            return outputs()
        traits.channels_last = False
    return outputs()
