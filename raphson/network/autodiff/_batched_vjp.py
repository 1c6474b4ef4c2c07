r"""Many output gradients backward through one graph together, node by node.

Automatic differentiation takes them one after the other, or under ``vmap``, which knows no convolution. Here every
node gets ``k`` gradients with the same axes before its own: what is elementwise is a product with its derivative, a
convolution or a pool sees ``k N`` images, and the gradient at a layer is handed over as soon as it is complete, while
it is in the cache, and kept no longer than it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

Visit = Callable[[int, Tensor], None]
"""Takes the number of an edge and the gradients there, ``(k, *shape)``."""

_Key = tuple[Any, int]


class _Rule(NamedTuple):
    """The backward pass of a node for many gradients.

    Attributes:
        call: From gradients of the node's results, ``(k, *shape)``, and whether their memory may be written to, to
            those of its inputs.
        makes: Whether these are in memory of their own, not that of what was given or of each other.
    """

    call: Callable[[Sequence[Any], bool], Sequence[Tensor | None]]
    makes: bool = True


_ELEMENTWISE = {
    f"{name}Backward0"
    for name in (
        *("Relu", "Tanh", "Sigmoid", "Gelu", "Silu", "Softplus", "Elu", "LeakyRelu", "Hardtanh", "Hardswish", "Mish"),
        *("LogSigmoid", "Exp", "Log", "Sqrt", "Rsqrt", "Sin", "Cos", "Neg", "Abs", "Pow", "Clamp", "Threshold"),
    )
}
"""Nodes that multiply with a derivative."""

_VMAPPED = {
    f"{name}Backward{i}"
    for name, i in (
        *(("Mm", 0), ("Bmm", 0), ("T", 0), ("Transpose", 0), ("Permute", 0), ("Unsqueeze", 0), ("Squeeze", 1)),
        *(("Sum", 0), ("Sum", 1), ("Mean", 0), ("Mean", 1), ("Softmax", 0), ("Expand", 0), ("Div", 0), ("Select", 0)),
        *(("Sub", 0), ("Clone", 0), ("AsStrided", 1)),
    )
}
"""Nodes that take many gradients under ``vmap`` without a loop."""


class _Step(NamedTuple):
    """A node of the graph.

    Attributes:
        results: The gradients that it takes.
        edges: Which of them are asked for, with the numbers of the edges.
        rule: Its backward pass, None where that leads nowhere.
        inputs: For each gradient that it returns where that goes, its shape and type; None where nobody needs it.
    """

    results: list[_Key]
    edges: list[tuple[int, int]]
    rule: _Rule | None
    inputs: list[tuple[_Key, tuple[int, ...], torch.dtype] | None]


class BatchedVJP:
    """The way from an output backward to some edges of its graph.

    Args:
        output: The output.
        edges: Autograd edges, each a node and the number of one of its results.
    """

    def __init__(self, output: Tensor, edges: Sequence[Any]) -> None:
        self._root: _Key = (output.grad_fn, output.output_nr)
        self._steps = [self._step(node, edges, wanted) for node, wanted in _order(output.grad_fn, edges)]

    @staticmethod
    def supports(nodes: set[Any]) -> bool:
        """Whether all nodes of a graph are torch's own, or say how they take many gradients."""
        return all(not isinstance(node, BackwardCFunction) or hasattr(_made_by(node), "many") for node in nodes)

    def __call__(self, u: Tensor, visit: Visit) -> None:
        """Visit every edge with its gradients.

        Args:
            u: Gradients with respect to the output, ``(k, *shape)``.
            visit: Takes them; it must not change them, and they may be overwritten when it has returned.
        """
        found: dict[_Key, Tensor] = {self._root: u}
        own: set[_Key] = set()  # memory that nobody else has
        with torch.no_grad():
            for step in self._steps:
                given = [found.pop(key, None) for key in step.results]
                for result, number in step.edges:
                    g = given[result]
                    node, nr = step.results[result]
                    visit(number, u.new_zeros(len(u), *node._input_metadata[nr].shape) if g is None else g)
                if step.rule is None or all(g is None for g in given):
                    continue
                mine = all(key in own for key in step.results)
                made = step.rule.call(given, mine)
                for target, g in zip(step.inputs, made, strict=True):
                    if target is None or g is None:
                        continue
                    key, shape, dtype = target
                    g = (g if g.shape[1:] == shape else _summed(g, shape)).to(dtype)
                    fresh = step.rule.makes
                    if key in found:
                        first, second = (g, found[key]) if fresh else (found[key], g)
                        found[key] = first.add_(second) if fresh or key in own else first + second
                        fresh = True
                    else:
                        found[key] = g
                    if fresh:
                        own.add(key)

    def _step(self, node: Any, edges: Sequence[Any], wanted: list[bool]) -> _Step:
        metadata = node._input_metadata
        at = [(edge.output_nr, i) for i, edge in enumerate(edges) if edge.node is node]
        inputs = [
            ((child, nr), tuple(child._input_metadata[nr].shape), child._input_metadata[nr].dtype) if want else None
            for (child, nr), want in zip(node.next_functions, wanted, strict=True)
        ]
        return _Step(
            [(node, i) for i in range(len(metadata))], at, _rule(node, wanted) if any(wanted) else None, inputs
        )


def _summed(g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return gradients summed over the axes along which what they belong to was broadcast."""
    more = g.ndim - 1 - len(shape)
    single = [1 + more + i for i, length in enumerate(shape) if length == 1 and g.shape[1 + more + i] > 1]
    return g.sum([*range(1, 1 + more), *single], keepdim=True).reshape(len(g), *shape)


def _order(root: Any, edges: Sequence[Any]) -> list[tuple[Any, list[bool]]]:
    """Return the nodes that lead to an edge, each before those that it leads to, and which of its inputs do."""
    leads: dict[Any, bool] = {}
    order: list[Any] = []
    ends = {edge.node for edge in edges}
    waiting = [(root, False)]
    while waiting:
        node, done = waiting.pop()
        if done:
            leads[node] = node in ends or any(leads.get(child, False) for child, _ in node.next_functions)
            if leads[node]:
                order.append(node)
        elif node not in leads:
            leads[node] = False
            waiting.append((node, True))
            waiting += [(child, False) for child, _ in node.next_functions if child is not None and child not in leads]
    return [(node, [leads.get(child, False) for child, _ in node.next_functions]) for node in reversed(order)]


def _made_by(node: Any) -> Any:
    return getattr(type(node), "_forward_cls", None)


def _rule(node: Any, wanted: list[bool]) -> _Rule:
    """Return the backward pass of a node for many gradients."""
    name = node.name()
    if isinstance(node, BackwardCFunction):
        return _Rule(lambda g, _: _made_by(node).batched_vjp(node, wanted, *g))
    if name in _ELEMENTWISE:
        return _elementwise(node)
    found = _RULES[name](node, wanted) if name in _RULES else None
    return found or (_vmapped(node, wanted) if name in _VMAPPED else _looped(node))


def _elementwise(node: Any) -> _Rule:
    derivative: list[Tensor] = []

    def call(g: Sequence[Tensor], mine: bool) -> list[Tensor]:
        if not derivative:
            # in memory as the values are, which the gradients need not be yet
            like = getattr(node, "_saved_result", getattr(node, "_saved_self", g[0][0]))
            derivative.append(node(torch.ones_like(like)))
        if mine and g[0].stride()[1:] == derivative[0].stride():
            return [g[0].mul_(derivative[0])]
        return [derivative[0] * g[0]]  # the first factor decides on the order in memory

    return _Rule(call)


def _vmapped(node: Any, wanted: list[bool]) -> _Rule:
    def wanted_only(g: Tensor) -> tuple[Tensor, ...]:
        return tuple(out for out, want in zip(_tuple(node(g)), wanted, strict=True) if want)  # type: ignore[misc]

    def call(g: Sequence[Tensor], _: bool) -> list[Tensor | None]:
        found = iter(torch.vmap(wanted_only)(g[0]))
        return [next(found) if want else None for want in wanted]

    return _Rule(call, False)


def _looped(node: Any) -> _Rule:
    def call(g: Sequence[Tensor | None], _: bool) -> list[Tensor | None]:
        k = next(len(t) for t in g if t is not None)
        columns = [_tuple(node(*(None if t is None else t[i] for t in g))) for i in range(k)]
        return [None if parts[0] is None else torch.stack(parts) for parts in zip(*columns, strict=True)]

    return _Rule(call)


def _tuple(found: Any) -> tuple[Tensor | None, ...]:
    return found if isinstance(found, tuple) else (found,)


def _sum(node: Any, wanted: list[bool]) -> _Rule | None:
    return _Rule(lambda g, _: [g[0], g[0]], False) if node._saved_alpha == 1 else None


def _product(node: Any, wanted: list[bool]) -> _Rule:
    # a factor is saved for the gradient of the other one
    factors = [f if want else None for f, want in zip((node._saved_other, node._saved_self), wanted, strict=True)]
    alone = sum(wanted) == 1

    def call(g: Sequence[Tensor], mine: bool) -> list[Tensor | None]:
        if alone and mine:
            return [None if f is None else g[0].mul_(f) for f in factors]
        return [None if f is None else g[0] * f for f in factors]

    return _Rule(call)


def _view(node: Any, wanted: list[bool]) -> _Rule:
    child, number = node.next_functions[0]
    shape = child._input_metadata[number].shape
    return _Rule(lambda g, _: [g[0].reshape(len(g[0]), *shape)], False)


def _addmm(node: Any, wanted: list[bool]) -> _Rule | None:
    if wanted != [False, True, False] or node._saved_alpha != 1:
        return None
    right = node._saved_mat2.mT
    return _Rule(lambda g, _: [None, g[0] @ right, None])


def _max_pool(node: Any, wanted: list[bool]) -> _Rule:
    x, indices = node._saved_self, node._saved_result1
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    options = [getattr(node, f"_saved_{name}") for name in names]

    def call(g: Sequence[Tensor], _: bool) -> list[Tensor]:
        found = _many_like(x, len(g[0]))
        for given, to in zip(g[0], found, strict=True):
            torch.ops.aten.max_pool2d_with_indices_backward.grad_input(given, x, *options, indices, grad_input=to)
        return [found]

    return _Rule(call)


def _many_like(x: Tensor, k: int) -> Tensor:
    """Return memory for ``k`` tensors, each in the order of the given one but without its gaps."""
    dense = torch.empty_like(x, device="meta")
    return torch.empty_strided((k, *x.shape), (x.numel(), *dense.stride()), dtype=x.dtype, device=x.device)


_RULES: dict[str, Callable[[Any, list[bool]], _Rule | None]] = {
    "AddBackward0": _sum,
    "MulBackward0": _product,
    **dict.fromkeys(("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"), _view),
    "AddmmBackward0": _addmm,
    "MaxPool2DWithIndicesBackward0": _max_pool,
}
