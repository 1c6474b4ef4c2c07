"""Backward passes of an autograd graph's nodes for many gradients at once.

All private names of such nodes (their names, what they saved, the shapes that they expect) are used here only;
``tests/network/test_private_torch.py`` holds what they must do. A node that no rule knows is called once for each
gradient, as automatic differentiation does, so that a new name costs time only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction


class Rule(NamedTuple):
    """The backward pass of a node for many gradients.

    Attributes:
        call: From gradients of the node's results, ``(k, *shape)``, and whether their memory may be written to, to
            those of its inputs.
        makes: Whether these are in memory of their own, not that of what was given or of each other.
    """

    call: Callable[[Sequence[Any], bool], Sequence[Tensor | None]]
    makes: bool = True


_ELEMENTWISE = {
    *(
        f"{name}Backward0"
        for name in ("Relu", "Tanh", "Sigmoid", "Gelu", "Silu", "Softplus", "Elu", "LeakyRelu", "Mish")
    ),
    *(
        f"{name}Backward0"
        for name in ("Hardtanh", "Hardswish", "LogSigmoid", "Exp", "Log", "Sqrt", "Rsqrt", "Sin", "Cos")
    ),
    *(f"{name}Backward0" for name in ("Neg", "Abs", "Pow", "Threshold")),
    "ClampBackward1",  # the other one has gradients in tensors of bounds, too
}
"""Nodes that multiply with a derivative."""

_VMAPPED = {
    f"{name}Backward{i}"
    for name, i in (
        *(("Mm", 0), ("Bmm", 0), ("T", 0), ("Transpose", 0), ("Permute", 0), ("Unsqueeze", 0), ("Squeeze", 1)),
        *(("Sum", 0), ("Sum", 1), ("Mean", 0), ("Mean", 1), ("Softmax", 0), ("Expand", 0), ("Div", 0), ("Select", 0)),
        *(("Sub", 0), ("Clone", 0)),
    )
}
"""Nodes that take many gradients under ``vmap`` without a loop."""


RESHAPES = {
    f"{name}Backward{i}"
    for name in ("View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "Unsqueeze", "Squeeze")
    for i in (0, 1)
}
"""Nodes that leave the entries of a tensor in their order, whatever its shape."""


def results_of(node: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and type of each result of a node's operation, whose gradients it takes."""
    return [(tuple(result.shape), result.dtype) for result in node._input_metadata]


def has_rule(node: Any) -> bool:
    """Whether a node is torch's own, or of a function that says how it takes many gradients."""
    return not isinstance(node, BackwardCFunction) or hasattr(_function_of(node), "batched_backward")


def _function_of(node: Any) -> Any:
    return getattr(type(node), "_forward_cls", None)


def graph_nodes(output: Tensor) -> tuple[set[Any], list[Tensor]]:
    """Return the nodes of a tensor's graph, and the leaves among them."""
    nodes: set[Any] = set()
    leaves: list[Tensor] = []
    waiting = [output.grad_fn] if output.grad_fn is not None else []
    while waiting:
        node = waiting.pop()
        if node in nodes:
            continue
        nodes.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting.extend(child for child, _ in node.next_functions if child is not None)
    return nodes, leaves


def custom_functions(nodes: set[Any]) -> list[str]:
    """Return the names of the functions in a graph that have a backward pass of their own."""
    found = {_function_of(node) for node in nodes if isinstance(node, BackwardCFunction)}
    return sorted(getattr(function, "__name__", "?") for function in found)


def rule_of(node: Any, wanted: list[bool]) -> Rule:
    """Return the backward pass of a node for many gradients."""
    name = node.name()
    if isinstance(node, BackwardCFunction):
        return Rule(lambda g, _: _function_of(node).batched_backward(node, wanted, *g))
    if name in _ELEMENTWISE:
        return _elementwise(node)
    found = _RULES[name](node, wanted) if name in _RULES else None
    return found or (_vmapped(node, wanted) if name in _VMAPPED else _looped(node))


def _elementwise(node: Any) -> Rule:
    derivative: list[Tensor] = []

    def call(g: Sequence[Tensor], mine: bool) -> list[Tensor]:
        if not derivative:
            # in memory as the values are, which the gradients need not be yet
            like = getattr(node, "_saved_result", getattr(node, "_saved_self", g[0][0]))
            derivative.append(node(torch.ones_like(like)))
        if mine and g[0].stride()[1:] == derivative[0].stride():
            return [g[0].mul_(derivative[0])]
        return [derivative[0] * g[0]]  # the first factor decides on the order in memory

    return Rule(call)


def _vmapped(node: Any, wanted: list[bool]) -> Rule:
    def wanted_only(g: Tensor) -> tuple[Tensor, ...]:
        return tuple(out for out, want in zip(_tuple(node(g)), wanted, strict=True) if want)  # type: ignore[misc]

    def call(g: Sequence[Tensor], _: bool) -> list[Tensor | None]:
        found = iter(torch.vmap(wanted_only)(g[0]))
        return [next(found) if want else None for want in wanted]

    return Rule(call, False)


def _looped(node: Any) -> Rule:
    def call(g: Sequence[Tensor | None], _: bool) -> list[Tensor | None]:
        k = next(len(t) for t in g if t is not None)
        columns = [_tuple(node(*(None if t is None else t[i] for t in g))) for i in range(k)]
        return [None if parts[0] is None else torch.stack(parts) for parts in zip(*columns, strict=True)]

    return Rule(call)


def _tuple(found: Any) -> tuple[Tensor | None, ...]:
    return found if isinstance(found, tuple) else (found,)


def _sum(node: Any, wanted: list[bool]) -> Rule | None:
    return Rule(lambda g, _: [g[0], g[0]], False) if node._saved_alpha == 1 else None


def _product(node: Any, wanted: list[bool]) -> Rule:
    # a factor is saved for the gradient of the other one
    factors = [f if want else None for f, want in zip((node._saved_other, node._saved_self), wanted, strict=True)]
    alone = sum(wanted) == 1

    def call(g: Sequence[Tensor], mine: bool) -> list[Tensor | None]:
        if alone and mine:
            return [None if f is None else g[0].mul_(f) for f in factors]
        return [None if f is None else g[0] * f for f in factors]

    return Rule(call)


def _view(node: Any, wanted: list[bool]) -> Rule:
    child, number = node.next_functions[0]
    shape = results_of(child)[number][0]
    return Rule(lambda g, _: [g[0].reshape(len(g[0]), *shape)], False)


def _addmm(node: Any, wanted: list[bool]) -> Rule | None:
    if wanted != [False, True, False] or node._saved_alpha != 1:
        return None
    right = node._saved_mat2.mT
    return Rule(lambda g, _: [None, g[0] @ right, None])


def _max_pool(node: Any, wanted: list[bool]) -> Rule:
    x, indices = node._saved_self, node._saved_result1
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    options = [getattr(node, f"_saved_{name}") for name in names]

    def call(g: Sequence[Tensor], _: bool) -> list[Tensor]:
        found = _many_like(x, len(g[0]))
        for given, to in zip(g[0], found, strict=True):
            torch.ops.aten.max_pool2d_with_indices_backward.grad_input(given, x, *options, indices, grad_input=to)
        return [found]

    return Rule(call)


def _many_like(x: Tensor, k: int) -> Tensor:
    """Return memory for ``k`` tensors, each in the order of the given one but without its gaps."""
    dense = torch.empty_like(x, device="meta")
    return torch.empty_strided((k, *x.shape), (x.numel(), *dense.stride()), dtype=x.dtype, device=x.device)


_RULES: dict[str, Callable[[Any, list[bool]], Rule | None]] = {
    "AddBackward0": _sum,
    "MulBackward0": _product,
    **dict.fromkeys(("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"), _view),
    "AddmmBackward0": _addmm,
    "MaxPool2DWithIndicesBackward0": _max_pool,
}
