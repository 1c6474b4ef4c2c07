"""A run of a network whose layer calls are recorded: all derivatives come from its graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.network._checks import Traits
from raphson.network._parameters import ParameterSpace
from raphson.network.autodiff._double_backward import differentiable_kernels
from raphson.network.autodiff._linearize import rewritten
from raphson.network.layers._layer_record import LayerRecord
from raphson.network.layers._recorder import Source, record_training


class NetworkRun(Protocol):
    """One forward pass of a network, and what it is differentiated with.

    Attributes:
        record: The layer calls.
    """

    record: LayerRecord

    def gradient(self, u: Tensor, keep: bool) -> tuple[Tensor, list[Tensor]]:
        """Return the gradient ``(P,)`` for that in the outputs, ``(N, ..., C)``; ``keep``: with those of the calls."""

    def backward(self, u: Tensor, names: Collection[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the output gradients of the layer calls, and gradients by name, for ``u``, ``(N, ..., C)``."""

    def jvp(self, v: Tensor) -> Tensor:
        """Return the Jacobian of the outputs times ``v``, after ``gradient``."""


class RecordedRun:
    """A run with a graph.

    Args:
        forward: Runs the network and returns its outputs.
        leaves: The parameters that it computes with.
        traits: What is known about the network.
        space: The parameters.
        products: Whether products with the Jacobian will be asked for.
    """

    def __init__(
        self,
        forward: Callable[[], Tensor],
        leaves: Mapping[str, Tensor],
        traits: Traits,
        space: ParameterSpace,
        products: bool,
    ) -> None:
        self._space, self._products = space, products
        # of second derivatives only those in u are needed, but the gradient itself is: its graph is made in full
        with differentiable_kernels(traits), rewritten(traits, once=False, fold=False):
            self.record, self._sources = record_training(forward, leaves)

    @property
    def _edges(self) -> list[Any]:
        return [call.edge for call in self.record.calls]

    def gradient(self, u: Tensor, keep: bool) -> tuple[Tensor, list[Tensor]]:  # noqa: D102
        self._u = u.detach().requires_grad_(self._products)
        edges = self._edges if keep else []
        tensors = [*edges, *(source.tensor for source in self._sources)]
        with torch.enable_grad():
            found = torch.autograd.grad(
                self.record.output, tensors, self._u, retain_graph=True, create_graph=self._products
            )
        parts = found[len(edges) :]
        linear = [(s.name, part) for s, part in zip(self._sources, parts, strict=True) if part.requires_grad]
        self._linear = linear if self._products else []
        named = _by_name(self._sources, [part.detach() for part in parts])
        zeros = {n: t.new_zeros(t.shape) for n, t in self._space.tensors.items() if n not in named}
        return self._space.flatten(named | zeros), [g.detach().to(self._space.dtype) for g in found[: len(edges)]]

    def backward(self, u: Tensor, names: Collection[str]) -> tuple[list[Tensor], dict[str, Tensor]]:  # noqa: D102
        edges = self._edges
        wanted = [source for source in self._sources if source.name in names]
        tensors = [*edges, *(source.tensor for source in wanted)]
        found = torch.autograd.grad(self.record.output, tensors, u, retain_graph=True) if tensors else ()
        return [g.to(self._space.dtype) for g in found[: len(edges)]], _by_name(wanted, found[len(edges) :])

    def jvp(self, v: Tensor) -> Tensor:  # noqa: D102
        named = self._space.unflatten(v)
        parts, along = [part for _, part in self._linear], [named[name] for name, _ in self._linear]
        try:
            (out,) = torch.autograd.grad(parts, self._u, along, retain_graph=True, materialize_grads=True)
        except RuntimeError as error:
            raise InputError(
                f"The network cannot be differentiated twice ({str(error).split('. ')[0]}), which the quadratic model "
                "of a step needs. Use step_size='fixed' and DampingOptions(start=..., adapt=False)."
            ) from error
        return out


def _by_name(sources: Sequence[Source], parts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return gradients in tensors of the graph by parameter."""
    found: dict[str, Tensor] = {}
    for source, part in zip(sources, parts, strict=True):
        found[source.name] = found[source.name] + part if source.name in found else part
    return found
