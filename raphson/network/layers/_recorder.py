r"""Layer calls of a network and their output gradients, from one forward pass, without hooks.

While the forward pass runs, a ``TorchFunctionMode`` sees every call. A call that is linear in a parameter (a linear
layer, a convolution, an embedding, the scale of a norm) becomes a ``LayerCall`` and is made with the parameter *cut*
from the graph. After the pass, output gradients of all calls come from one backward pass without weight gradients. A
parameter that the outputs still reach in the graph is used outside recognized layers: it is ``unrecognized``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from raphson.network._onednn import linear, linear_is_faster
from raphson.network._parameters import ParameterSpace
from raphson.network._tensor_memory import base_of, in_place_version, no_longer_view, unseen_by_modes
from raphson.network.autodiff._batched_vjp import BatchedVJP, Visit
from raphson.network.autodiff._linearize import refuse_constant
from raphson.network.autodiff._vjp_rules import RESHAPES, graph_nodes
from raphson.network.layers._convolution import Convolution
from raphson.network.layers._feed_forward import FeedForward, LayerValues, backward_pass
from raphson.network.layers._layer_calls import Affine, LayerCall, Linear, Lookup
from raphson.network.layers._layer_record import LayerRecord
from raphson.network.layers._open_attention import open_attention
from raphson.network.layers._parameter_view import ParameterView


def record_layers(
    model: Callable[[Mapping[str, Tensor], Any], Tensor], params: Mapping[str, Tensor], x: Any
) -> LayerRecord:
    """Return every layer call of the given parameters in one run of a model ``f(params, x)`` on a batch.

    Parameters that the model does not find in ``params`` are constants. Nothing is left on it, and the parameters' own
    ``grad`` and flags are as before.
    """
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    mode = _Recorder(leaves)
    with torch.enable_grad(), mode:
        output = model(leaves, x)
    refuse_constant(output, tuple(params))
    nodes, reached = graph_nodes(output)
    # an autograd edge is one node and one of its outputs; what the output does not reach has no gradient, nor has a
    # call without rows (an expert that no example was sent to)
    calls = tuple(call for call in mode.calls if call.edge.node in nodes and call.positions)
    names = {id(leaf): name for name, leaf in leaves.items()}
    unrecognized = frozenset(names[id(leaf)] for leaf in reached if id(leaf) in names)
    backward = _GraphBackward(output, [call.edge for call in calls], BatchedVJP.supports(nodes))
    return LayerRecord(output, calls, unrecognized, backward, _at_output(output, calls))


def record_training(run: Callable[[], Tensor], leaves: Mapping[str, Tensor]) -> tuple[LayerRecord, list[Source]]:
    """Return every layer call in one run of a model that computes with leaves, and where their gradients are found.

    Layer calls are made with stand-ins for the leaves, in the same memory: a leaf's gradient is the sum of its own, if
    it is used outside recognized layers, and its stand-in's. One backward pass gives output gradients and weight
    gradients.

    Args:
        run: Runs the model and returns its outputs.
        leaves: The parameters by name, as the model uses them; they require gradients.

    Returns:
        The record, and the tensors to differentiate in, with the names of the leaves: two for a leaf used both ways.
    """
    stand_ins = {name: p.detach().requires_grad_() for name, p in leaves.items()}
    mode = _Recorder(leaves, stand_ins)
    with torch.enable_grad(), mode:
        output = run()
    refuse_constant(output, tuple(leaves))
    nodes, reached = graph_nodes(output)
    calls = tuple(call for call in mode.calls if call.edge.node in nodes)
    seen = {id(leaf) for leaf in reached}
    outside = frozenset(name for name, leaf in leaves.items() if id(leaf) in seen)
    sources = [Source(name, t) for tensors in (stand_ins, leaves) for name, t in tensors.items() if id(t) in seen]
    edges = [call.edge for call in calls]
    backward = _GraphBackward(output, edges, BatchedVJP.supports(nodes))
    return LayerRecord(output, calls, outside, backward, _at_output(output, calls)), sources


def record_feed_forward(feed_forward: FeedForward, space: ParameterSpace, x: Any) -> LayerRecord | None:
    """Return what ``record_layers`` would of a feed-forward network, from its closed form: nothing is recorded.

    None where the bias of a layer is differentiated and its weight is not.
    """
    if not records_feed_forward(feed_forward, space):
        return None
    return feed_forward_record(list(feed_forward.forward_pass(feed_forward.features(x))), space)


def records_feed_forward(feed_forward: FeedForward, space: ParameterSpace) -> bool:
    """Whether ``feed_forward_record`` knows the layers: none whose bias is differentiated and whose weight is not."""
    return all(layer.weight in space.tensors or layer.bias not in space.tensors for layer in feed_forward.layers)


def feed_forward_record(layers: Sequence[LayerValues], space: ParameterSpace) -> LayerRecord:
    """Return the record of a feed-forward network that was evaluated."""
    numbers = [i for i, at in enumerate(layers) if at.layer.weight in space.tensors]

    def view(name: str | None) -> ParameterView | None:
        tensor = space.tensors.get(name or "")
        return None if name is None or tensor is None else ParameterView(name, 0, tuple(tensor.shape), tensor.stride())

    def call(at: LayerValues) -> Linear:
        shape = torch.Size((*at.inputs.shape[:-1], at.layer.linear.out_features))
        return Linear(
            view(at.layer.weight), view(at.layer.bias), at.inputs, in_place_version(at.inputs), None, shape, 1
        )

    def backward(u: Tensor, visit: Visit) -> None:
        with torch.no_grad():
            for i, g in zip(range(len(layers) - 1, -1, -1), backward_pass([*layers[numbers[0] :]], u), strict=False):
                if i in numbers:
                    visit(numbers.index(i), g)

    last = not layers[-1].layer.activations and numbers[-1:] == [len(layers) - 1]
    calls = tuple(call(layers[i]) for i in numbers)
    return LayerRecord(layers[-1].outputs, calls, frozenset(), backward, len(numbers) - 1 if last else None)


def _at_output(output: Tensor, calls: Sequence[LayerCall]) -> int | None:
    """Return the number of the call that made the output, seen by the graph: reshaped at most, not rearranged."""
    with unseen_by_modes():
        edge = get_gradient_edge(output)
    node: Any = edge.node
    place = edge.output_nr
    while node is not None:
        for number, call in enumerate(calls):
            if call.edge.node == node and call.edge.output_nr == place:
                same = call.shape[-1:] == output.shape[-1:] and call.shape.numel() == output.numel()
                return number if same else None
        node, place = node.next_functions[0] if node.name() in RESHAPES else (None, 0)
    return None


class _GraphBackward:
    """The way backward through a graph: automatic differentiation for one gradient, node by node for many.

    Gradients are in the type of the output, whatever that of their layer is.
    """

    def __init__(self, output: Tensor, edges: list[Any], known: bool) -> None:
        self._output, self._edges, self._known = output, edges, known
        self._batched_vjp: BatchedVJP | None = None

    def __call__(self, u: Tensor, visit: Visit) -> None:
        if len(u) > 1 and self._known:
            self._batched_vjp = self._batched_vjp or BatchedVJP(self._output, self._edges)
            self._batched_vjp(u, lambda number, g: visit(number, g.to(self._output.dtype)))
            return
        columns = [torch.autograd.grad(self._output, self._edges, column, retain_graph=True) for column in u]
        for i, parts in enumerate(zip(*columns, strict=True)):
            g = parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)
            visit(i, g.to(self._output.dtype))


class _LinearByOneDNN(torch.autograd.Function):
    """``x W^T + b`` where oneDNN is faster, with a gradient in ``x`` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return linear(gradients[0], ctx.saved_tensors[0].mT), None, None

    @staticmethod
    def batched_backward(ctx: Any, wanted: Sequence[bool], *gradients: Tensor) -> Any:
        return _LinearByOneDNN.backward(ctx, *gradients)[: len(wanted)]  # one fewer where there is no bias


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
    def batched_backward(ctx: Any, wanted: Sequence[bool], *gradients: Tensor) -> Any:
        return [None] * len(wanted)


class Source(NamedTuple):
    """A tensor in a graph whose gradient is, or is part of, that of a parameter.

    Attributes:
        name: The parameter.
        tensor: The tensor.
    """

    name: str
    tensor: Tensor


class _Found(NamedTuple):
    view: ParameterView
    cut: Tensor


class _Recorder(TorchFunctionMode):
    """Records the calls that are linear in some leaves while it is active."""

    def __init__(self, leaves: Mapping[str, Tensor], stand_ins: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.calls: list[LayerCall] = []
        self._stand_ins = stand_ins or {}
        self._names = {id(leaf): name for name, leaf in leaves.items()}
        first = next(iter(leaves.values()))
        self._root = torch.zeros((), dtype=first.dtype, device=first.device, requires_grad=True)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return open_attention(*args, **kwargs)
        handler = _HANDLERS.get(func)
        return func(*args, **kwargs) if handler is None else handler(self, func, *args, **kwargs)

    def find(self, t: Any) -> _Found | None:
        """Return which part of which leaf a tensor is, or None."""
        if not isinstance(t, Tensor):
            return None
        with unseen_by_modes():
            base = base_of(t)
            name = self._names.get(id(base))
            if name is None:
                return None
            offset = int(t.storage_offset() - base.storage_offset())
            view = ParameterView(name, offset, tuple(t.size()), tuple(t.stride()))
            return _Found(view, self._cut(t, view))

    def _cut(self, t: Tensor, view: ParameterView) -> Tensor:
        """Return what a call computes with in place of a view of a leaf: without a graph, or leading to a stand-in."""
        stand_in = self._stand_ins.get(view.name)
        if stand_in is None:
            return t.detach()
        if view.is_whole(stand_in):
            return stand_in
        return stand_in.as_strided(view.size, view.stride, int(stand_in.storage_offset()) + view.offset)

    def record(self, call: LayerCall, out: Tensor) -> Tensor:
        """Return the output of a call, which leads to gradients, and record the call."""
        with unseen_by_modes():
            # writing into a view (an activation in place) would take its edge out of the graph
            out = no_longer_view(out)
            if not out.requires_grad:
                out = _Begin.apply(out, self._root)  # type: ignore[no-untyped-call]
            x, version = call.x, call.version
            if x.is_floating_point() and x.dtype != self._root.dtype:  # under torch.autocast
                x = x.to(self._root.dtype)
                version = in_place_version(x)
            self.calls.append(replace(call, x=x, version=version, edge=get_gradient_edge(out), shape=out.shape))
        return out

    def pair(self, weight: Any, bias: Any) -> tuple[_Found | None, Any, ParameterView | None]:
        """Return the weight if it is watched, the bias to compute with, and the bias's view if it is watched."""
        found, offset = self.find(weight), self.find(bias)
        return found, (offset.cut if offset else bias), (offset.view if offset else None)


def _blank(
    kind: type[Any], weight: ParameterView | None, bias: ParameterView | None, x: Tensor, tail: int, **more: Any
) -> Any:
    return kind(weight, bias, x.detach(), in_place_version(x), None, torch.Size(), tail, **more)


def _linear(mode: _Recorder, func: Any, input: Tensor, weight: Any, bias: Any = None) -> Any:
    w, b, view = mode.pair(weight, bias)
    if w is None or mode.find(input) or weight.ndim != 2:
        return func(input, weight, bias)
    call = _blank(Linear, w.view, view, input, 1)
    constant = not w.cut.requires_grad and (b is None or not b.requires_grad)
    if func is F.linear and constant and linear_is_faster(call.x, w.cut):
        return mode.record(call, _LinearByOneDNN.apply(input, w.cut, b))  # type: ignore[no-untyped-call]
    return mode.record(call, func(input, w.cut, b))


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


def _convolution(names: str, transposed: bool) -> Callable[..., Any]:
    """Return the handler of a convolution whose arguments have these names."""
    defaults = {"stride": 1, "padding": 0, "dilation": 1, **({"output_padding": 0} if transposed else {})}

    def handle(mode: _Recorder, func: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names.split(), args, strict=False)) | kwargs
        x, weight, groups = given["input"], given["weight"], given.get("groups", 1)
        w, b, view = mode.pair(weight, given.get("bias"))
        if w is None or mode.find(x) or x.ndim != weight.ndim:
            return func(**given)
        options = {name: given.get(name, value) for name, value in defaults.items()}
        more = {"options": options, "groups": groups, "transposed": transposed}
        call = _blank(Convolution, w.view, view, x, x.ndim - 1, **more)
        return mode.record(call, func(x, w.cut, b, groups=groups, **options))

    return handle


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
        scale, offset = w.view if w else None, shift.view if shift else None
        more = {"normalized": lambda: func(**inner), "aligned": aligned}
        return mode.record(_blank(Affine, scale, offset, x, len(aligned), **more), func(**cut))

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


_FORWARD = "input weight bias stride padding dilation groups"
_TRANSPOSED = "input weight bias stride padding output_padding groups dilation"

_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution(_FORWARD, False)),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _convolution(_TRANSPOSED, True)),
    F.embedding: _embedding,
    F.layer_norm: _norm("input normalized_shape weight bias eps", False),
    F.rms_norm: _norm("input normalized_shape weight eps", False),
    F.group_norm: _norm("input num_groups weight bias eps", True),
    F.batch_norm: _norm("input running_mean running_var weight bias training momentum eps", True),
    F.instance_norm: _norm("input running_mean running_var weight bias use_input_stats momentum eps", True),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _elementwise(True)),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _elementwise(False)),
}
