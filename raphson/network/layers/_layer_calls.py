r"""What a layer does with its parameters, seen from outside: inputs, output gradients, per-example gradients.

A *layer call* is one call that is linear in a parameter. With inputs :math:`a_{np}` and output gradients
:math:`g_{np}` at example n and position p (sequence or image positions; several where a weight is shared), its
per-example weight gradient is :math:`\sum_p g_{np} a_{np}^T`. Everything the K-FAC family needs is made of those two.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.network._tensor_memory import in_place_version
from raphson.network.layers._parameter_view import ParameterView, PositionLayout

Gradients = list[tuple[ParameterView, Tensor]]
"""Per-example gradients ``(k, N, *view.size)`` of each parameter that a call has."""


@dataclass(frozen=True, eq=False)
class LayerCall(abc.ABC):
    """One call that is linear in its parameters.

    Attributes:
        weight: View of the weight, None where only a bias is a parameter.
        bias: View of the bias, None if there is none.
        x: The call's input.
        version: How often the input had been changed in place when it was recorded.
        edge: Where the gradient of the call's output is found in the graph.
        shape: Shape of the call's output.
        tail: Number of last axes of the output that are not positions.
    """

    weight: ParameterView | None
    bias: ParameterView | None
    x: Tensor
    version: int
    edge: Any
    shape: torch.Size
    tail: int

    @property
    def name(self) -> str:
        """The parameter that names the layer."""
        view = self.weight or self.bias
        assert view is not None
        return view.name

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes of positions, examples among them."""
        return tuple(self.shape[: len(self.shape) - self.tail])

    @property
    def positions(self) -> int:
        """Number of positions of the lead axes, over all examples."""
        return math.prod(self.lead)

    @property
    def inner(self) -> int:
        """Number of positions that are inside each of the lead's (the image positions of a convolution)."""
        return 1

    def rows(self, g: Tensor) -> Tensor:
        """Return ``(k, *shape)`` as ``(k, M, *tail)``."""
        return g.reshape(g.shape[0], self.positions, *self.shape[len(self.lead) :])

    def input(self) -> Tensor:
        """Return the input as it was.

        Returns:
            The tensor.

        Raises:
            InputError: It was changed in place since.
        """
        if in_place_version(self.x) != self.version:
            raise InputError(
                f"The input of the layer with parameter '{self.name}' is changed in place after the layer used it, so "
                "its curvature cannot be computed. Replace the in-place operation (inplace=True, +=) by a plain one."
            )
        return self.x

    def without_input(self) -> Self:
        """Return the call with the shape of its input only, which keeps no memory."""
        return replace(self, x=torch.empty(self.x.shape, device="meta"), edge=None)

    @abc.abstractmethod
    def example_gradients(self, g: Tensor, layout: PositionLayout, rows: slice = slice(None)) -> Gradients:
        """Return the gradients of some examples, for output gradients ``(k, *shape)``."""


@dataclass(frozen=True, eq=False)
class Matmul(LayerCall):
    """A call with inputs and outputs that are vectors at positions: linear layers and convolutions.

    In ``G`` groups, each with a weight ``(O, I)``; convolutions have patches as inputs.
    """

    @property
    @abc.abstractmethod
    def weight_shape(self) -> tuple[int, int, int]:
        """``(G, O, I)``."""

    @abc.abstractmethod
    def weight_index(self, parameter: Tensor) -> Tensor:
        """Return the positions of the weight's entries in the parameter, ``(G, O, I)``."""

    @abc.abstractmethod
    def inputs(self) -> Tensor:
        """Return the inputs of all positions, ``(M, G, I, L)``; ``L`` positions are inside one of the lead's."""

    @abc.abstractmethod
    def outputs(self, g: Tensor) -> Tensor:
        """Return output gradients ``(k, *shape)`` as ``(k, M, G, O, L)``."""

    @abc.abstractmethod
    def as_parameter(self, t: Tensor) -> Tensor:
        """Return ``(..., G, O, I)`` in the shape of the view of the weight, ``(..., *size)``."""

    def input_chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the inputs as ``inputs`` does, some positions ``M`` at a time, where they are larger than ``x``."""
        yield slice(None), self.inputs()

    def example_inputs(self, layout: PositionLayout) -> Tensor:
        """Return the inputs by example, ``(N, G, I, P)``."""
        return _merge(layout.by_example(self.inputs()))

    def example_outputs(self, g: Tensor, layout: PositionLayout) -> Tensor:
        """Return output gradients ``(k, *shape)`` by example, ``(N, k, G, O, P)``."""
        rows = self.outputs(g).movedim(0, 1)
        return _merge(layout.by_example(rows))

    def example_gradients(self, g: Tensor, layout: PositionLayout, rows: slice = slice(None)) -> Gradients:  # noqa: D102
        u = self.example_outputs(g, layout)[rows]
        found: Gradients = []
        if self.weight is not None:
            a = self.example_inputs(layout)[rows]
            products = weight_gradients(u, a).movedim(2, 0)
            found.append((self.weight, self.as_parameter(products)))
        if self.bias is not None:
            found.append((self.bias, u.sum(-1).flatten(-2).movedim(0, 1)))
        return found


@dataclass(frozen=True, eq=False)
class Linear(Matmul):
    """``y = x W^T + b`` with ``x`` of shape ``(..., in)``."""

    @property
    def weight_shape(self) -> tuple[int, int, int]:  # noqa: D102
        return 1, self.shape[-1], self.x.shape[-1]

    def weight_index(self, parameter: Tensor) -> Tensor:  # noqa: D102
        assert self.weight is not None
        return self.weight.index(parameter).unsqueeze(0)

    def inputs(self) -> Tensor:  # noqa: D102
        return self.input().reshape(-1, 1, self.x.shape[-1], 1)

    def outputs(self, g: Tensor) -> Tensor:  # noqa: D102
        return self.rows(g)[:, :, None, :, None]

    def as_parameter(self, t: Tensor) -> Tensor:  # noqa: D102
        return t.squeeze(-3)


@dataclass(frozen=True, eq=False)
class Lookup(LayerCall):
    """Rows of a table ``(V, E)``, as of an embedding; ``x`` holds their numbers.

    Attributes:
        padding: The row that has no gradient, or None.
    """

    padding: int | None

    def tokens(self) -> Tensor:
        """Return the row numbers of all positions, ``(M,)``."""
        return self.input().reshape(-1)

    def counted(self) -> Tensor:
        """Return a mask ``(M,)`` of the positions that have a gradient."""
        tokens = self.tokens()
        return torch.ones_like(tokens, dtype=torch.bool) if self.padding is None else tokens != self.padding

    def example_gradients(self, g: Tensor, layout: PositionLayout, rows: slice = slice(None)) -> Gradients:  # noqa: D102
        assert self.weight is not None
        v, e = self.weight.size
        mask = self.counted().to(g.dtype)
        u = layout.by_example((self.rows(g) * mask[:, None]).movedim(0, 1))[rows]
        tokens = layout.by_example(self.tokens())[rows]
        n, p = tokens.shape
        place = tokens + v * torch.arange(n, device=tokens.device)[:, None]
        total = g.new_zeros(n * v, g.shape[0], e).index_add_(0, place.reshape(-1), u.reshape(n * p, -1, e))
        return [(self.weight, total.view(n, v, -1, e).permute(2, 0, 1, 3))]


@dataclass(frozen=True, eq=False)
class Affine(LayerCall):
    r"""``y = w z + b`` elementwise: the scale and shift of a normalization, a bare scale or shift.

    Attributes:
        normalized: Returns ``z``, ``(*lead, ...)``.
        aligned: Shape of the parameters against the last axes of ``y``, with 1 where they are broadcast.
    """

    normalized: Callable[[], Tensor]
    aligned: tuple[int, ...]

    def example_gradients(self, g: Tensor, layout: PositionLayout, rows: slice = slice(None)) -> Gradients:  # noqa: D102
        u = layout.by_example(self.rows(g).movedim(0, 1))[rows].movedim(2, 0)
        g = self._by_parameter(u)
        found: Gradients = []
        if self.weight is not None:
            z = self._by_parameter(layout.by_example(self._z)[rows].unsqueeze(0))
            found.append((self.weight, (g * z).sum(2).reshape(*u.shape[:2], *self.weight.size)))
        if self.bias is not None:
            found.append((self.bias, g.sum(2).reshape(*u.shape[:2], *self.bias.size)))
        return found

    @cached_property
    def _z(self) -> Tensor:
        """The input of scale and shift at all positions, ``(M, *tail)``."""
        return self.normalized().detach().to(self.x.dtype).reshape(self.positions, *self.shape[len(self.lead) :])

    def _by_parameter(self, t: Tensor) -> Tensor:
        """Return ``(k, N, P, *tail)`` with all that a parameter is broadcast along on one axis, ``(k, N, P', C)``."""
        shared = [3 + i for i, length in enumerate(self.aligned) if length == 1]
        own = [3 + i for i, length in enumerate(self.aligned) if length > 1]
        split = t.permute(0, 1, 2, *shared, *own)
        return split.reshape(*t.shape[:2], split.shape[2 : 3 + len(shared)].numel(), -1)


def weight_gradients(u: Tensor, a: Tensor) -> Tensor:
    """Return sums over positions of output gradients ``(N, k, G, O, P)`` times inputs ``(N, G, I, P)``.

    They are ``(N, G, k, O, I)``: all ``k`` in one product with the inputs of a group.
    """
    products = u.transpose(1, 2).flatten(2, 3) @ a.mT
    return products.view(*products.shape[:2], u.shape[1], u.shape[3], -1)


def _merge(t: Tensor) -> Tensor:
    """Return ``(N, P, ..., L)`` as ``(N, ..., P L)``."""
    return t.squeeze(1) if t.shape[1] == 1 else t.movedim(1, -2).flatten(-2)
