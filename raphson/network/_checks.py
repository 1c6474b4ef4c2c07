"""What a model must be before it is differentiated: the same function each time, one example at a time.

The operations that run are seen by PyTorch's private ``TorchDispatchMode``, here only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from raphson._errors import InputError, RaphsonError
from raphson.data import take, tree_map
from raphson.network._call_place import place_of_call, runnable
from raphson.network._chance import undisturbed
from raphson.network._module import Inputs, Model
from raphson.network._plain_run import checkpoint_around
from raphson.network._tensor_memory import saved_tensor_hooks
from raphson.network._watched_calls import WatchedCalls
from raphson.network.autodiff._rewrite import Rewritten
from raphson.network.autodiff._vjp_rules import custom_functions, graph_nodes

_ATTENTION = ("flash_attention", "efficient_attention", "cudnn_attention", "fused_attention")
_ONCE = ("hardsigmoid", "cdist", "weight_norm", "prelu")
_RECURRENT = ("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn")

_REENTRANT = (
    "The model calls torch.utils.checkpoint with use_reentrant=True, which runs without a graph and writes into the "
    "gradients of the parameters: call it with use_reentrant=False."
)


class _Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the names of the operations that run inside it, and counts the entries of what they make.

    Args:
        model: The model.
        random: Whether operations may be random.

    Attributes:
        names: Names of the operations.
        entries: Number of entries.
        trouble: A sentence on the first operation that no fixed, differentiable function of an example has, or None.
    """

    def __init__(self, model: Any = None, random: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model, self._random = model, random
        self.names: set[str] = set()
        self.entries = 0
        self.trouble: str | None = None
        self.eps = 0.0
        self.checkpoints: set[str | None] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.__name__)
        around = checkpoint_around()
        self.checkpoints.add(around)
        if self.trouble is None:
            given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
            trouble = _trouble_of(func, {**given, **(kwargs or {})}, self._random)
            hook = saved_tensor_hooks(in_checkpoint=around is not None)
            if trouble is None and hook is not None:
                trouble = (
                    f"packs what the backward pass needs (saved_tensors_hooks, {hook}): gradients are then those of "
                    "what was unpacked. Take these hooks out of the forward pass."
                )
            if trouble is not None:
                self.trouble = f"{place_of_call(self._model)} {trouble}"
        out = func(*args, **(kwargs or {}))
        for made, result in zip(func._schema.returns, out if isinstance(out, tuple) else (out,), strict=False):
            if isinstance(result, Tensor) and made.alias_info is None:
                self.entries += result.numel()
                if result.is_floating_point():
                    self.eps = max(self.eps, torch.finfo(result.dtype).eps)
        return out


class _Hooks(TorchFunctionMode):
    """Sees whether a model puts hooks on tensors.

    Args:
        model: The model.

    Attributes:
        trouble: A sentence on the first one, or None.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model
        self.trouble: str | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.register_hook and self.trouble is None:
            self.trouble = (
                f"{place_of_call(self._model)} puts a hook on a tensor (register_hook), which may change gradients on "
                "their way back: they would belong to no loss. Take the hook out of the forward pass."
            )
        return func(*args, **(kwargs or {}))


def _trouble_of(func: Any, given: Mapping[str, Any], random: bool) -> str | None:
    """Return why an operation with these arguments has no place in a model, as the end of a sentence; None if it has.

    Random operations take a generator or are tagged; that includes some which can be random but are not as called. They
    may be there if ``random``.
    """
    name = str(func).removesuffix(".default")
    defaults = {argument.name: argument.default_value for argument in func._schema.arguments}
    options = {**defaults, **given}
    rate = options.get("dropout_p", options.get("dropout"))
    still = rate == 0 or options.get("training") is False or options.get("train") is False
    tagged = torch.Tag.nondeterministic_seeded in func.tags or "generator" in options
    recurrent = any(part in name for part in _RECURRENT) and bool(rate)
    if (tagged or recurrent) and not still and not random:
        return (
            f"draws random numbers ({name}): the loss is then no fixed function of the parameters. Call model.eval(), "
            "or take the random part out of the model."
        )
    if options.get("scale_grad_by_freq") is True:
        return (
            "has scale_grad_by_freq=True: its gradients are divided by counts over the batch and belong to no loss. "
            "Set scale_grad_by_freq=False."
        )
    if "embedding" in name and options.get("sparse") is True:
        return "has sparse=True: sparse gradients have no second derivatives. Set sparse=False."
    if "embedding_bag" in name:
        return (
            "sums rows of a table in a kernel without second derivatives (EmbeddingBag). Use an Embedding, and sum or "
            "average its output."
        )
    if "embedding_renorm" in name:
        return "has max_norm, which rewrites the weight whenever it is used. Set max_norm=None."
    return None


class Traits:
    """What one evaluation of a model shows about it.

    Attributes:
        fused_attention: Whether it runs an attention kernel without a second derivative.
        fused_recurrence: Whether it runs a recurrent kernel without a second derivative.
        once_differentiable: Whether it makes other calls without one.
        convolution: Whether it convolves.
        rewritten: Whether it makes calls that ``Rewritten`` replaces.
        channels_last: Whether it runs with images that have their channels last in memory.
        complex_views: Whether it sees pairs of numbers as complex ones, which must begin at an even place in memory.
        entries: Number of entries, for an example, of what its operations make.
        eps: The coarsest precision of what they make.
        batched: Whether products with several vectors at once are those with each.
        adjoint: For which parameters, by name, products with its Jacobian were checked.
        layers: What is known of the layer calls, for each way in which batches go through the model.
    """

    def __init__(self, names: set[str], entries: int, eps: float = 0.0) -> None:
        self.entries, self.eps = entries, eps
        self.batched = True
        self.adjoint: set[tuple[str | bool, ...]] = set()
        self.layers: dict[Hashable, Any] = {}
        self.fused_attention = any(part in name for name in names for part in _ATTENTION)
        self.fused_recurrence = any(part in name for name in names for part in _RECURRENT)
        self.once_differentiable = any(part in name for name in names for part in _ONCE)
        self.convolution = any("convolution" in name for name in names)
        self.complex_views = any("view_as_complex" in name for name in names)
        self.rewritten = self.convolution or any("batch_norm" in name for name in names)
        self.channels_last = self.convolution

    def notes(self, checkpointed: bool) -> tuple[str, ...]:
        """Return what is done differently than usual, in sentences; ``checkpointed``: whether there are checkpoints."""
        found = []
        if self.fused_attention:
            found.append(
                "The model's attention runs in a fused kernel, which has no second derivative; for curvature it runs "
                "in plain matrix products instead (more memory: one entry for each pair of positions)."
            )
        if self.fused_recurrence:
            found.append(
                "The model's recurrent layers run in a fused kernel, which has no second derivative; for curvature "
                "they run step by step instead (slower)."
            )
        if checkpointed:
            found.append(
                "The model uses torch.utils.checkpoint, which runs parts of it once more in the backward pass; for "
                "curvature what these parts make is kept instead (more memory)."
            )
        return tuple(found)


def probe(model: Model, x: Inputs, n: int) -> tuple[Tensor, Traits]:
    """Return a model's outputs for the first and last of ``n`` examples, apart and together, and what they show.

    Raises:
        InputError: The output of an example depends on the others, or the model makes a call that no fixed function of
            an example makes (a random one, say).
    """
    model.refresh()
    one, other = take(x, slice(0, 1), n), take(x, slice(n - 1, n), n)
    both = take(x, slice(0, n, n - 1), n) if n > 1 else tree_map(twice, one)
    device = model.space.device
    own = [device] if device.type not in {"cpu", "meta"} else []
    written = model.buffer_versions()
    target = model.module or model.function
    # what kind of device does not matter where there is none
    with torch.random.fork_rng(devices=own, device_type=device.type if own else "cuda"):
        with _Hooks(target) as hooks, _Kernels(target) as kernels, WatchedCalls(target) as calls:
            together = _together(model, both)
        if "reentrant" in kernels.checkpoints:
            raise InputError(_REENTRANT)
        model.checkpointed = bool(kernels.checkpoints - {None})
        _check_backward(together)
        together = together.detach()
        trouble = kernels.trouble or hooks.trouble or calls.trouble
        try:
            if trouble is None:
                trouble = _repeated(model, both, together, calls)
        finally:
            calls.restore()
        if trouble is not None:
            raise InputError(trouble)
        model.check_buffers(written)
        if together.shape[0] != 2:
            raise InputError(
                f"The model returned outputs of shape {tuple(together.shape)} for 2 examples: examples must be on the "
                "first axis (of a recurrent module: batch_first=True)."
            )
        traits = Traits(kernels.names, max(1, kernels.entries // 2), kernels.eps)
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


def _repeated(model: Model, x: Inputs, before: Tensor, calls: WatchedCalls) -> str | None:
    """Return a sentence if a second forward pass on the same inputs differs from the first."""
    again = WatchedCalls(model.module or model.function)
    with again if calls.saw_generators else contextlib.nullcontext():
        now = _together(model, x).detach()
    trouble = calls.difference(again)
    if trouble is not None or now.shape != before.shape:
        return trouble or f"The model returned outputs of shapes {tuple(before.shape)} and {tuple(now.shape)} {_TWICE}"
    gap, size = (now - before).abs().amax(), before.abs().amax()
    # the same operations on the same numbers: sums in another order, on some devices, are all that may differ
    if bool(torch.isfinite(gap)) and not bool(gap <= _ROUNDING * torch.finfo(before.dtype).eps * size):
        return f"The outputs of the model differ by {float(gap):.2g} (their size is {float(size):.2g}) {_TWICE}"
    return None


_ROUNDING = 64
"""Units of rounding by which two evaluations of a model may differ."""

_TWICE = (
    "when it is evaluated on the same inputs twice: it is random, or keeps something from call to call, so that the "
    "loss is no fixed function of the parameters. Call model.eval(), or take that part out of the model."
)


def _check_backward(f: Tensor) -> None:
    """Raise ``InputError`` for functions with a backward pass of their own that cannot be run from here."""
    nodes, leaves = graph_nodes(f)
    custom = custom_functions(nodes)
    if not custom or not leaves:
        return
    try:
        torch.autograd.grad(f, leaves, torch.ones_like(f), allow_unused=True)
    except RuntimeError as error:
        raise InputError(
            f"The function {', '.join(map(repr, custom))} in the model has a backward pass that fails "
            f"({str(error).split('. ')[0]}). Take it out of the model; of torch.utils.checkpoint, use "
            "checkpoint(..., use_reentrant=False)."
        ) from error


def _together(model: Model, x: Inputs) -> Tensor:
    with runnable(model.module or model.function, x, model.space.dtype):
        return model.call(model.leaves(), x)


def _first_words(error: Exception) -> str:
    """Return the kind of an error, and the first sentence of what it says."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0].split('. ')[0]}" if str(error) else repr(error)


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
    try:
        return outputs()
    except RaphsonError:
        raise
    except Exception as error:
        raise InputError(
            f"The model runs on two examples together and fails on one of them alone ({_first_words(error)}): it mixes "
            "examples across the batch. Use normalization with fixed statistics (model.eval())."
        ) from error


def observe(
    target: Any, module: nn.Module | None, device: torch.device, run: Callable[[], Tensor]
) -> tuple[Traits, bool]:
    """Return what one evaluation shows of a model in whatever mode it is, which may be random and mix examples.

    Args:
        target: The model, a module or a function.
        module: The module whose buffers are looked after; None for a function.
        device: Its device.
        run: Evaluates it.

    Returns:
        Its traits, and whether it uses checkpoints, with nothing changed: generators and running statistics are as
        before.

    Raises:
        InputError: The model makes a call whose derivative is wrong or missing, or puts a hook on a graph.
    """
    with undisturbed(module, device):
        with torch.enable_grad(), _Hooks(target) as hooks, _Kernels(target, random=True) as kernels:
            with WatchedCalls(target, random=True) as calls:
                out = run()
        calls.restore()
        if "reentrant" in kernels.checkpoints:
            raise InputError(_REENTRANT)
        trouble = kernels.trouble or hooks.trouble or calls.trouble
        if trouble is not None:
            raise InputError(trouble)
        traits = Traits(kernels.names, max(1, kernels.entries // max(1, out.shape[0])), kernels.eps)
        if traits.channels_last:
            try:
                with torch.no_grad(), Rewritten(True):
                    run()
            except (RuntimeError, InputError):  # a closure's error, or what a batch's became
                traits.channels_last = False
    return traits, bool(kernels.checkpoints - {None})
