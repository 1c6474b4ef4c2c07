"""What a model must be before it is differentiated: the same function each time, one example at a time.

The operations that run are seen by PyTorch's private ``TorchDispatchMode``, here only.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raphson._errors import InputError
from raphson.data import take, tree_map
from raphson.network._module import Inputs, Model
from raphson.network._plain_run import checkpoint_around
from raphson.network.autodiff._rewrite import Rewritten

_ATTENTION = ("flash_attention", "efficient_attention", "cudnn_attention", "fused_attention")
_ONCE = ("hardsigmoid", "cdist")
_RECURRENT = ("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn")


class _Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the names of the operations that run inside it, and counts the entries of what they make."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()
        self.entries = 0
        self.eps = 0.0
        self.checkpoints: set[str | None] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.__name__)
        self.checkpoints.add(checkpoint_around())
        out = func(*args, **(kwargs or {}))
        for made, result in zip(func._schema.returns, out if isinstance(out, tuple) else (out,), strict=False):
            if isinstance(result, Tensor) and made.alias_info is None:
                self.entries += result.numel()
                if result.is_floating_point():
                    self.eps = max(self.eps, torch.finfo(result.dtype).eps)
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


def probe(model: Model, x: Inputs, n: int) -> tuple[Tensor, Traits]:
    """Evaluate a model on the first and the last of ``n`` examples, apart and together.

    Args:
        model: The model.
        x: Inputs of the examples.
        n: Their number.

    Returns:
        The outputs of both, and what the evaluation shows.

    Raises:
        InputError: The output of an example depends on the others, or is random.
    """
    one, other = take(x, slice(0, 1), n), take(x, slice(n - 1, n), n)
    both = take(x, slice(0, n, n - 1), n) if n > 1 else tree_map(twice, one)
    with torch.random.fork_rng(devices=[model.space.device] if model.space.device.type == "cuda" else []):
        with _Kernels() as kernels:
            together = _together(model, both)
        if "reentrant" in kernels.checkpoints:
            raise InputError(
                "The model calls torch.utils.checkpoint with use_reentrant=True, which runs without a graph and writes "
                "into the gradients of the parameters: call it with use_reentrant=False."
            )
        model.checkpointed = bool(kernels.checkpoints - {None})
        if together.shape[0] != 2:
            raise InputError(
                f"The model returned outputs of shape {tuple(together.shape)} for 2 examples: examples must be on the "
                "first axis (of a recurrent module: batch_first=True)."
            )
        traits = Traits(kernels.names, max(1, kernels.entries // 2))
        apart = _apart(model, one, other, traits)
    # of a model that goes through half precision in between, as under torch.autocast, a few of its digits
    tol = max(10 * torch.finfo(together.dtype).eps ** 0.5, 16 * kernels.eps)
    gap = (apart - together).abs().amax()
    size = together.abs().amax()
    if bool(torch.isfinite(gap)) and not bool(gap <= tol * size + torch.finfo(together.dtype).tiny):
        raise InputError(
            f"The outputs of an example change by {float(gap):.2g} (their size is {float(size):.2g}) when it is "
            "evaluated without the others: the model mixes examples across the batch, has them on another axis than "
            "the first, or is random. Use normalization with fixed statistics (model.eval()) and batch_first=True."
        )
    return together, traits


def _together(model: Model, x: Inputs) -> Tensor:
    try:
        return model.call(model.leaves(), x).detach()
    except RuntimeError as error:
        found: list[Tensor] = []
        tree_map(found.append, x)
        other = [t.dtype for t in found if t.is_floating_point() and t.dtype != model.space.dtype]
        if not other or "dtype" not in str(error):
            raise
        raise InputError(
            f"The inputs have type {other[0]} and the parameters {model.space.dtype}: convert one of them, as in "
            "x.to(dtype) or model.to(dtype)."
        ) from error


def twice(t: Tensor) -> Tensor:
    """Return the row of a tensor two times; a tensor that has no row for each example stays."""
    return torch.cat([t, t]) if t.ndim and t.shape[0] == 1 else t


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
