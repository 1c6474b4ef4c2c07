r"""Layer inputs and output gradients of a network, from one forward pass, without hooks.

While the forward pass runs, a ``TorchFunctionMode`` sees every call. A call that is linear in a parameter (a linear
layer, a convolution, an embedding, a norm's scale) is recorded as a ``Use`` and made with the parameter *cut* from the
graph. After the pass, output gradients of all uses come from one backward pass that computes no weight gradient, and a
parameter that the outputs still reach in the graph has been used in a way that was not recognized: it is in ``rest``.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from raphson._errors import InputError
from raphson.network._parameters import ParameterSpace
from raphson.network.autodiff._batched_vjp import BatchedVJP, Visit
from raphson.network.autodiff._linearize import graph_nodes
from raphson.network.layers._feed_forward import FeedForward, LayerValues, backward_pass
from raphson.network.layers._layer_calls import (
    Affine,
    Convolution,
    LayerCall,
    Linear,
    Lookup,
    ParameterView,
    PositionLayout,
)


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """What one forward pass of a batch leaves behind.

    Attributes:
        output: ``f``, ``(N, ..., C)``, with its graph.
        uses: The recorded calls that lead to the output, in order.
        rest: Names of parameters used otherwise, at least once.
        backward: From output gradients ``(k, N, ..., C)`` to those of the uses, ``(k, *shape)``, which it hands over
            with their numbers; it may write over them afterwards.
    """

    output: Tensor
    calls: tuple[LayerCall, ...]
    unrecognized: frozenset[str]
    backward: Callable[[Tensor, Visit], None]

    def gradients(self, u: Tensor) -> list[Tensor]:
        """Return the output gradients of the uses.

        Args:
            u: Gradients with respect to the output, ``(k, N, ..., C)``.

        Returns:
            For each use ``(k, *shape)``.
        """
        found: dict[int, Tensor] = {}

        def keep(number: int, g: Tensor) -> None:
            found[number] = g.clone() if len(u) > 1 else g  # of one gradient nothing is overwritten

        if self.calls:
            self.backward(u, keep)
        return [found[i] for i in range(len(self.calls))]

    def deliver(self, u: Tensor, jobs: Sequence[tuple[Sequence[int], Callable[[Mapping[int, Tensor]], None]]]) -> None:
        """Give the output gradients of the uses to those who wait for them, as soon as they are there; none is kept.

        Args:
            u: Gradients with respect to the output, ``(k, N, ..., C)``.
            jobs: The numbers of the uses whose gradients each takes, and what takes them, ``(k, *shape)`` by number;
                it must not change or keep them.
        """
        waiting: list[tuple[set[int], dict[int, Tensor], Callable[[Mapping[int, Tensor]], None]]] = [
            (set(numbers), {}, call) for numbers, call in jobs
        ]

        def visit(number: int, g: Tensor) -> None:
            for numbers, found, call in waiting:
                if number in numbers:
                    found[number] = g if len(numbers) == 1 else g.clone()
                    if len(found) == len(numbers):
                        call(found)
                        found.clear()

        if self.calls:
            self.backward(u, visit)

    def layouts(self) -> list[PositionLayout]:
        """Return which positions of each use belong to which example.

        Where the shape leaves it open (two axes as long as the batch, examples folded into another axis) two backward
        passes decide: with a weight for each example's outputs, the gradient at each of its positions is multiplied.

        Returns:
            One for each use.

        Raises:
            InputError: A layer's positions cannot be split into examples.
        """
        n = self.output.shape[0]
        choices = [_candidates(call.lead, n) for call in self.calls]
        found = []
        for i, (call, candidates) in enumerate(zip(self.calls, choices, strict=True)):
            if len(candidates) > 1:
                weights, plain, weighted = self._weighted
                candidates = [c for c in candidates if _weighted_by(c.per_position(weights), plain[i], weighted[i])]
            if not candidates:
                raise InputError(
                    f"The layer with parameter '{call.name}' has an output of shape {tuple(call.shape)}, in which the "
                    f"{n} examples of the batch cannot be told apart. Keep the examples on the first axis."
                )
            found.append(candidates[0])
        return found

    @cached_property
    def _weighted(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Weights of the examples, and gradients at all positions of each use without and with them."""
        # from 1 to 2, those of neighbors far apart (the golden ratio's multiples)
        golden = torch.arange(self.output.shape[0], dtype=torch.float64) * 0.6180339887498949
        weights = 1 + golden.frac().to(self.output)
        return weights, self._mixed(torch.ones_like(weights)), self._mixed(weights)

    def touched(self, weights: Tensor) -> list[Tensor]:
        """Return for each use which positions ``(M,)`` outputs with a weight other than zero depend on."""
        return [(rows != 0).any(1) for rows in self._mixed(weights)]

    def _mixed(self, weights: Tensor) -> list[Tensor]:
        """Return the gradients of a mixture of all outputs, with weights, at all positions of each use, ``(M, d)``."""
        f = self.output
        mixed = torch.arange(1, f.numel() + 1, dtype=torch.float64, device=f.device).cos().to(f.dtype).view(f.shape)
        u = mixed * weights.reshape(*weights.shape, *(1,) * (f.ndim - weights.ndim))
        gradients = self.gradients(u.unsqueeze(0))
        return [call.rows(g)[0].flatten(1) for call, g in zip(self.calls, gradients, strict=True)]


def record_layers(
    call: Callable[[Mapping[str, Tensor], Any], Tensor], params: Mapping[str, Tensor], x: Any
) -> LayerRecord:
    """Run a model once and record every use of its parameters.

    Args:
        call: The model, ``f(params, x)``; parameters that it does not find in ``params`` are constants.
        params: The parameters to watch, by name.
        x: Inputs of a batch.

    Returns:
        Output and uses. Nothing is left on the model, and the parameters' own ``grad`` and flags are as before.
    """
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    mode = _Recorder(leaves)
    with torch.enable_grad(), mode:
        output = call(leaves, x)
    nodes, reached = graph_nodes(output)
    # an autograd edge is one node and one of its outputs; what the output does not reach has no gradient
    calls = tuple(call for call in mode.calls if call.edge.node in nodes)
    names = {id(leaf): name for name, leaf in leaves.items()}
    unrecognized = frozenset(names[id(leaf)] for leaf in reached if id(leaf) in names)
    return LayerRecord(
        output, calls, unrecognized, _GraphBackward(output, [call.edge for call in calls], BatchedVJP.supports(nodes))
    )


def record_feed_forward(feed_forward: FeedForward, space: ParameterSpace, x: Any) -> LayerRecord | None:
    """Return what ``tap`` would of a feed-forward network, from its closed form: nothing is recorded.

    Args:
        feed_forward: The network.
        space: The parameters to watch.
        x: Inputs of a batch.

    Returns:
        Output and uses; None where the bias of a layer is watched and its weight is not.
    """
    watched = [(layer.weight in space.tensors, layer.bias in space.tensors) for layer in feed_forward.layers]
    if any(bias and not weight for weight, bias in watched):
        return None
    numbers = [i for i, (weight, _) in enumerate(watched) if weight]
    layers = list(feed_forward.forward_pass(feed_forward.features(x)))

    def view(name: str | None) -> ParameterView | None:
        tensor = space.tensors.get(name or "")
        return None if name is None or tensor is None else ParameterView(name, 0, tuple(tensor.shape), tensor.stride())

    def call(at: LayerValues) -> Linear:
        shape = torch.Size((*at.inputs.shape[:-1], at.layer.linear.out_features))
        return Linear(view(at.layer.weight), view(at.layer.bias), at.inputs, at.inputs._version, None, shape, 1)

    def backward(u: Tensor, visit: Visit) -> None:
        with torch.no_grad():
            for i, g in zip(range(len(layers) - 1, -1, -1), backward_pass(layers[numbers[0] :], u), strict=False):
                if i in numbers:
                    visit(numbers.index(i), g)

    return LayerRecord(layers[-1].outputs, tuple(call(layers[i]) for i in numbers), frozenset(), backward)


class _GraphBackward:
    """The way backward through a graph: automatic differentiation for one gradient, node by node for many."""

    def __init__(self, output: Tensor, edges: list[Any], known: bool) -> None:
        self._output, self._edges, self._known = output, edges, known
        self._batched_vjp: BatchedVJP | None = None

    def __call__(self, u: Tensor, visit: Visit) -> None:
        if len(u) > 1 and self._known:
            self._batched_vjp = self._batched_vjp or BatchedVJP(self._output, self._edges)
            self._batched_vjp(u, visit)
            return
        columns = [torch.autograd.grad(self._output, self._edges, column, retain_graph=True) for column in u]
        for i, parts in enumerate(zip(*columns, strict=True)):
            visit(i, parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts))


class _Begin(torch.autograd.Function):
    """Starts the graph at a tensor that had no gradient, so that the gradient there can be asked for."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, root: Tensor) -> Tensor:
        ctx.mark_dirty(t)
        return t

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None

    @staticmethod
    def batched_vjp(ctx: Any, wanted: Sequence[bool], *gradients: Tensor) -> Any:
        return [None] * len(wanted)


class _Found(NamedTuple):
    view: ParameterView
    cut: Tensor


class _Recorder(TorchFunctionMode):
    """Records the uses of some leaves while it is active."""

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.calls: list[LayerCall] = []
        self._names = {id(leaf): name for name, leaf in leaves.items()}
        first = next(iter(leaves.values()))
        self._root = torch.zeros((), dtype=first.dtype, device=first.device, requires_grad=True)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _opened(func)(*args, **kwargs)
        handler = _HANDLERS.get(func)
        return func(*args, **kwargs) if handler is None else handler(self, func, *args, **kwargs)

    def find(self, t: Any) -> _Found | None:
        """Return which part of which leaf a tensor is, or None."""
        if not isinstance(t, Tensor):
            return None
        with torch._C.DisableTorchFunction():  # looking is no call of the model's, which other modes would see
            base = t if t._base is None else t._base
            name = self._names.get(id(base))
            if name is None:
                return None
            offset = int(t.storage_offset() - base.storage_offset())
            return _Found(ParameterView(name, offset, tuple(t.size()), tuple(t.stride())), t.detach())

    def record(self, call: LayerCall, out: Tensor) -> Tensor:
        """Return the output of a call, which leads to gradients, and keep the use."""
        with torch._C.DisableTorchFunction():
            if out._is_view():
                # writing into a view (an activation in place) would take its edge out of the graph; what it is a view
                # of is nobody else's
                out = torch.ops.aten._unsafe_view(out, out.shape)
            if not out.requires_grad:
                out = _Begin.apply(out, self._root)  # type: ignore[no-untyped-call]
            self.calls.append(replace(call, edge=get_gradient_edge(out), shape=out.shape))
        return out

    def pair(self, weight: Any, bias: Any) -> tuple[_Found | None, Any, ParameterView | None]:
        """Return the weight if it is watched, the bias to compute with, and the bias's slot if it is watched."""
        found, offset = self.find(weight), self.find(bias)
        return found, (offset.cut if offset else bias), (offset.view if offset else None)


def _blank(
    kind: type[Any], weight: ParameterView | None, bias: ParameterView | None, x: Tensor, tail: int, **more: Any
) -> Any:
    return kind(weight, bias, x.detach(), x._version, None, torch.Size(), tail, **more)


def _linear(mode: _Recorder, func: Any, input: Tensor, weight: Any, bias: Any = None) -> Any:
    w, b, view = mode.pair(weight, bias)
    if w is None or mode.find(input) or weight.ndim != 2:
        return func(input, weight, bias)
    return mode.record(_blank(Linear, w.view, view, input, 1), func(input, w.cut, b))


def _matmul(mode: _Recorder, func: Any, input: Any, other: Any, **kwargs: Any) -> Any:
    w = mode.find(other)
    if w is None or mode.find(input) or other.ndim != 2 or input.ndim < 2 or kwargs:
        return func(input, other, **kwargs)
    return mode.record(_blank(Linear, w.view.transposed(), None, input, 1), func(input, w.cut))


def _addmm(mode: _Recorder, func: Any, bias: Any, input: Any, weight: Any, **kwargs: Any) -> Any:
    w, b, view = mode.pair(weight, bias)
    if w is None or mode.find(input) or kwargs or (view is not None and view.size != (weight.shape[1],)):
        return func(bias, input, weight, **kwargs)
    return mode.record(_blank(Linear, w.view.transposed(), view, input, 1), func(b, input, w.cut))


def _convolution(
    mode: _Recorder,
    func: Any,
    input: Tensor,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    w, b, view = mode.pair(weight, bias)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    if w is None or mode.find(input) or input.ndim != weight.ndim:
        return func(input, weight, bias, groups=groups, **options)
    call = _blank(Convolution, w.view, view, input, input.ndim - 1, options=options, groups=groups, transposed=False)
    return mode.record(call, func(input, w.cut, b, groups=groups, **options))


def _transposed(
    mode: _Recorder,
    func: Any,
    input: Tensor,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    w, b, view = mode.pair(weight, bias)
    options = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    if w is None or mode.find(input) or input.ndim != weight.ndim:
        return func(input, weight, bias, groups=groups, **options)
    call = _blank(Convolution, w.view, view, input, input.ndim - 1, options=options, groups=groups, transposed=True)
    return mode.record(call, func(input, w.cut, b, groups=groups, **options))


def _embedding(
    mode: _Recorder,
    func: Any,
    input: Tensor,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    w = mode.find(weight)
    if w is None or max_norm is not None or scale_grad_by_freq:
        return func(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    padding = None if padding_idx is None else padding_idx % weight.shape[0]
    return mode.record(_blank(Lookup, w.view, None, input, 1, padding=padding), func(input, w.cut, padding_idx))


def _norm(names: str, channels: bool) -> Callable[..., Any]:
    """Return the handler of a normalization whose arguments have these names; ``channels``: one scale a channel."""

    def handle(mode: _Recorder, func: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names.split(), args, strict=False)) | kwargs
        weight, bias = given.get("weight"), given.get("bias")
        w, shift = mode.find(weight), mode.find(bias)
        training = given.get("training", False) or given.get("use_input_stats", False) is True
        if (w is None and shift is None) or (training and given.get("running_mean") is not None):
            return func(**given)
        x = given["input"]
        inner = {**given, "input": x.detach(), "weight": None}
        cut = {**given, "weight": w.cut if w else weight}
        if "bias" in names:
            inner["bias"], cut["bias"] = None, shift.cut if shift else bias
        size = (w or shift).view.size  # type: ignore[union-attr]
        aligned = size + (1,) * (x.ndim - 2) if channels else size
        call = _blank(
            Affine,
            w.view if w else None,
            shift.view if shift else None,
            x,
            len(aligned),
            normalized=lambda: func(**inner),
            aligned=aligned,
        )
        return mode.record(call, func(**cut))

    return handle


def _elementwise(scale: bool) -> Callable[..., Any]:
    """Return the handler of a product or a sum of a bare parameter and something else."""

    def handle(mode: _Recorder, func: Any, input: Any, other: Any, **kwargs: Any) -> Any:
        pair = [mode.find(input), mode.find(other)]
        parameter = pair[0] or pair[1]
        x = other if pair[0] else input
        if parameter is None or all(pair) or kwargs or not isinstance(x, Tensor):
            return func(input, other, **kwargs)
        aligned = parameter.view.size
        while aligned and aligned[0] == 1:
            aligned = aligned[1:]
        if not aligned or len(aligned) >= x.ndim or not x.is_floating_point() or x.ndim < len(parameter.view.size):
            return func(input, other)
        if any(a not in (1, b) for a, b in zip(aligned, x.shape[-len(aligned) :], strict=True)):
            return func(input, other)
        out = func(parameter.cut, x) if pair[0] else func(x, parameter.cut)
        weight, bias = (parameter.view, None) if scale else (None, parameter.view)
        fixed = x.detach()
        call = _blank(Affine, weight, bias, x, len(aligned), normalized=lambda: fixed, aligned=aligned)
        return mode.record(call, out)

    return handle


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _transposed),
    F.embedding: _embedding,
    F.layer_norm: _norm("input normalized_shape weight bias eps", False),
    F.rms_norm: _norm("input normalized_shape weight eps", False),
    F.group_norm: _norm("input num_groups weight bias eps", True),
    F.batch_norm: _norm("input running_mean running_var weight bias training momentum eps", True),
    F.instance_norm: _norm("input running_mean running_var weight bias use_input_stats momentum eps", True),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _elementwise(True)),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _elementwise(False)),
}


def _opened(func: Any) -> Any:
    """Return a function of torch that runs its body at once, so that the calls inside it can be seen."""
    known = {name: (lambda *_: False) for name in func.__globals__ if name.startswith("has_torch_function")}
    copy = types.FunctionType(
        func.__code__, {**func.__globals__, **known}, func.__name__, func.__defaults__, func.__closure__
    )
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _weighted_by(weights: Tensor, plain: Tensor, weighted: Tensor) -> bool:
    """Whether rows ``(M, d)`` are others times weights ``(M,)``, as far as weights of different examples differ."""
    if not len(plain):
        return True
    gap, size = (weighted - weights[:, None] * plain).norm(dim=1), weighted.norm(dim=1)
    # what rounding leaves of a zero is a multiple of nothing
    return bool((gap <= max(1e-3, 10 * torch.finfo(gap.dtype).eps) * (size + 0.01 * size.amax())).all())


def _candidates(lead: tuple[int, ...], n: int) -> list[PositionLayout]:
    """Return the ways in which positions may be split into examples, the likely one first."""
    total = torch.Size(lead).numel()
    found = [
        PositionLayout(torch.Size(lead[:i]).numel(), n, torch.Size(lead[i + 1 :]).numel())
        for i, length in enumerate(lead)
        if length == n
    ]
    if lead and lead[0] % n == 0 and lead[0] != n:
        # examples folded into the first axis, outside or inside of what is folded with them
        found += [PositionLayout(1, n, total // n), PositionLayout(lead[0] // n, n, total // lead[0])]
    return found[:1] if n == 1 or total == n else found
