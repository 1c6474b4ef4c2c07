r"""Many output gradients backward through one graph together, node by node.

Automatic differentiation takes them one after the other, or under ``vmap``, which knows no convolution. Here every
node gets ``k`` gradients with the same axes before its own: what is elementwise is a product with its derivative, a
convolution or a pool sees ``k N`` images, and the gradient at a layer is handed over as soon as it is complete, while
it is in the cache, and dropped as soon as it was used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raphson.network.autodiff._vjp_rules import Rule, has_rule, results_of, rule_of

Visit = Callable[[int, Tensor], None]
"""Takes the number of an edge and the gradients there, ``(k, *shape)``."""

_Key = tuple[Any, int]


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
    rule: Rule | None
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
        """Whether all nodes of a graph are torch's own, or say how they take many gradients, of real numbers."""
        # gradients of complex numbers go back through conjugates, which the rules have not
        return all(has_rule(node) and not any(kind.is_complex for _, kind in results_of(node)) for node in nodes)

    def __call__(self, u: Tensor, visit: Visit) -> None:
        """Visit every edge with its gradients, of the output's ``(k, *shape)``; they may be overwritten afterwards."""
        found: dict[_Key, Tensor] = {self._root: u}
        own: set[_Key] = set()  # memory that nobody else has
        with torch.no_grad():
            for step in self._steps:
                given = [found.pop(key, None) for key in step.results]
                for result, number in step.edges:
                    g = given[result]
                    node, nr = step.results[result]
                    visit(number, u.new_zeros(len(u), *results_of(node)[nr][0]) if g is None else g)
                if step.rule is None or all(g is None for g in given):
                    continue
                mine = all(key in own for key in step.results)
                made = step.rule.call(given, mine)
                going = [g for target, g in zip(step.inputs, made, strict=True) if target is not None and g is not None]
                # what only passes through, as beside a constant that is added, belongs to nobody else afterwards either
                own_after = step.rule.makes or (mine and len(going) == 1 and going[0] is given[0])
                for target, g in zip(step.inputs, made, strict=True):
                    if target is None or g is None:
                        continue
                    key, shape, dtype = target
                    g = (g if g.shape[1:] == shape else _summed(g, shape)).to(dtype)
                    fresh = own_after
                    if key in found:
                        first, second = (g, found[key]) if fresh else (found[key], g)
                        found[key] = first.add_(second) if fresh or key in own else first + second
                        fresh = True
                    else:
                        found[key] = g
                    if fresh:
                        own.add(key)

    def _step(self, node: Any, edges: Sequence[Any], wanted: list[bool]) -> _Step:
        at = [(edge.output_nr, i) for i, edge in enumerate(edges) if edge.node is node]
        inputs = [
            ((child, nr), *results_of(child)[nr]) if want else None
            for (child, nr), want in zip(node.next_functions, wanted, strict=True)
        ]
        rule = rule_of(node, wanted) if any(wanted) else None
        return _Step([(node, i) for i in range(len(results_of(node)))], at, rule, inputs)


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
