r"""What a layer does with its parameters, seen from outside: inputs, output gradients, per-example gradients.

A *use* is one call that is linear in a parameter. With inputs :math:`a_{np}` and output gradients :math:`g_{np}` at
example n and position p (sequence or image positions; several where a weight is shared), its per-example weight
gradient is :math:`\sum_p g_{np} a_{np}^T`. Everything the K-FAC family needs is made of those two.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from raphson._errors import InputError


@dataclass(frozen=True)
class ParameterView:
    """A view of a parameter as a layer sees it: all of it, a slice of it, or its transpose.

    Attributes:
        name: The parameter.
        offset: Where the view begins in the parameter's memory.
        size: Shape of the view.
        stride: Strides of the view.
    """

    name: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def transposed(self) -> ParameterView:
        """Return the slot of the transpose."""
        return ParameterView(self.name, self.offset, self.size[::-1], self.stride[::-1])

    def is_whole(self, parameter: Tensor) -> bool:
        """Whether the view is the parameter as it is."""
        return self.offset == 0 and self.size == tuple(parameter.shape) and self.stride == parameter.stride()

    def index(self, parameter: Tensor) -> Tensor:
        """Return the row-major position in the parameter of every entry of the view, ``size``."""
        everything = torch.arange(parameter.numel(), device=parameter.device).view(parameter.shape)
        if self.is_whole(parameter):
            return everything
        places = torch.empty_strided(parameter.size(), parameter.stride(), dtype=torch.long, device=parameter.device)
        places.copy_(everything)
        return places.as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True)
class PositionLayout:
    """Which of a layer's positions belong to which example: positions are ``(before, n, after)``, row-major."""

    before: int
    n: int
    after: int

    @property
    def length(self) -> int:
        """Number of positions of each example."""
        return self.before * self.after

    def by_example(self, t: Tensor) -> Tensor:
        """Return ``(M, ...)`` as ``(n, M / n, ...)``."""
        split = t.reshape(self.before, self.n, self.after, *t.shape[1:])
        return split.movedim(1, 0).reshape(self.n, self.length, *t.shape[1:])

    def per_position(self, values: Tensor) -> Tensor:
        """Return one value per example ``(n,)`` as one per position ``(M,)``."""
        return values[None, :, None].expand(self.before, self.n, self.after).reshape(-1)


Gradients = list[tuple[ParameterView, Tensor]]
"""Per-example gradients ``(k, N, *slot.size)`` of each parameter that a use has."""


@dataclass(frozen=True, eq=False)
class LayerCall(abc.ABC):
    """One call that is linear in its parameters.

    Attributes:
        weight: The weight's slot, None where only a bias is a parameter.
        bias: The bias's slot, None if there is none.
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
        if self.x._version != self.version:
            raise InputError(
                f"The input of the layer with parameter '{self.name}' is changed in place after the layer used it, so "
                "its curvature cannot be computed. Replace the in-place operation (inplace=True, +=) by a plain one."
            )
        return self.x

    def without_input(self) -> Self:
        """Return the use with the shape of its input only, which keeps no memory."""
        return replace(self, x=torch.empty(self.x.shape, device="meta"), edge=None)

    @abc.abstractmethod
    def example_gradients(self, g: Tensor, layout: PositionLayout, rows: slice = slice(None)) -> Gradients:
        """Return the gradients of some examples, for output gradients ``(k, *shape)``."""


@dataclass(frozen=True, eq=False)
class Matmul(LayerCall):
    """A use with inputs and outputs that are vectors at positions: linear layers and convolutions.

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
        """Return ``(..., G, O, I)`` in the shape of the slot, ``(..., *size)``."""

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
class Convolution(Matmul):
    """A convolution in 1, 2 or 3 dimensions, transposed or not: linear in patches of its input.

    Attributes:
        options: ``stride``, ``padding``, ``dilation`` and, if transposed, ``output_padding``.
        groups: ``G``.
        transposed: Whether it is a transposed convolution.
    """

    options: dict[str, Any]
    groups: int
    transposed: bool

    @property
    def inner(self) -> int:  # noqa: D102
        return self.shape[2:].numel()

    @property
    def kernel(self) -> tuple[int, ...]:
        """Lengths of the kernel's axes."""
        assert self.weight is not None
        return self.weight.size[2:]

    @property
    def stride(self) -> tuple[int, ...]:
        """Steps between positions on each axis."""
        return _each(self.options["stride"], len(self.kernel))

    @property
    def dilation(self) -> tuple[int, ...]:
        """Steps between places under the kernel on each axis."""
        return _each(self.options["dilation"], len(self.kernel))

    @property
    def margins(self) -> list[tuple[int, int]]:
        """Zeros before and after each axis of the input."""
        padding = self.options["padding"]
        if not isinstance(padding, str):
            return [(margin, margin) for margin in _each(padding, len(self.kernel))]
        total = [step * (size - 1) * (padding == "same") for step, size in zip(self.dilation, self.kernel, strict=True)]
        return [(both // 2, both - both // 2) for both in total]

    @property
    def weight_shape(self) -> tuple[int, int, int]:  # noqa: D102
        patch = self.x.shape[1] // self.groups * math.prod(self.kernel)
        return self.groups, self.shape[1] // self.groups, patch

    def weight_index(self, parameter: Tensor) -> Tensor:  # noqa: D102
        assert self.weight is not None
        index = self.weight.index(parameter)
        if not self.transposed:
            return index.reshape(self.weight_shape)
        groups, o, _ = self.weight_shape
        return index.reshape(groups, -1, o, math.prod(self.kernel)).movedim(2, 1).reshape(self.weight_shape)

    def as_parameter(self, t: Tensor) -> Tensor:  # noqa: D102
        assert self.weight is not None
        if self.transposed:
            k = math.prod(self.kernel)
            t = t.reshape(*t.shape[:-1], -1, k).movedim(-2, -3)
        return t.reshape(*t.shape[: t.ndim - 3 - self.transposed], *self.weight.size)

    def inputs(self) -> Tensor:  # noqa: D102
        return self.patches(self.input())

    def input_chunks(self) -> Iterator[tuple[slice, Tensor]]:  # noqa: D102
        x = self.input()
        groups, _, patch = self.weight_shape
        step = max(1, _PATCH_ELEMENTS // (groups * patch * self.inner))
        for start in range(0, x.shape[0], step):
            rows = slice(start, start + step)
            yield rows, self.patches(x[rows])

    def patches(self, x: Tensor) -> Tensor:
        """Return the patches of some inputs, ``(M, G, I, L)``."""
        patches = self._spread(x) if self.transposed else self._windows(x)
        return patches.reshape(x.shape[0], self.groups, -1, self.inner)

    def _windows(self, x: Tensor) -> Tensor:
        """Return views of the input under each window, ``(M, channels, *kernel, *positions)``."""
        zeros = [margin for pair in reversed(self.margins) for margin in pair]
        return windows(F.pad(x.contiguous(), zeros), self.kernel, self.dilation, self.stride)

    def outputs(self, g: Tensor) -> Tensor:  # noqa: D102
        return g.reshape(g.shape[0], self.shape[0], self.groups, self.shape[1] // self.groups, -1)

    def _spread(self, x: Tensor) -> Tensor:
        """Return each channel transposed-convolved with every unit kernel, ``(M, channels * kernel, *positions)``."""
        k, n, channels = math.prod(self.kernel), len(self.kernel), x.shape[1]
        units = torch.eye(k, dtype=x.dtype, device=x.device).reshape(k, *self.kernel)
        transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
        return transpose(x, units.expand(channels, *units.shape), groups=channels, **self.options)


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
        return self.normalized().detach().reshape(self.positions, *self.shape[len(self.lead) :])

    def _by_parameter(self, t: Tensor) -> Tensor:
        """Return ``(k, N, P, *tail)`` with all that a parameter is broadcast along on one axis, ``(k, N, P', C)``."""
        shared = [3 + i for i, length in enumerate(self.aligned) if length == 1]
        own = [3 + i for i, length in enumerate(self.aligned) if length > 1]
        split = t.permute(0, 1, 2, *shared, *own)
        return split.reshape(*t.shape[:2], split.shape[2 : 3 + len(shared)].numel(), -1)


def weight_gradients(u: Tensor, a: Tensor) -> Tensor:
    """Return sums over positions of output gradients ``(N, k, G, O, P)`` times inputs ``(N, G, I, P)``.

    Returns:
        ``(N, G, k, O, I)``: all ``k`` in one product with the inputs of a group.
    """
    products = u.transpose(1, 2).flatten(2, 3) @ a.mT
    return products.view(*products.shape[:2], u.shape[1], u.shape[3], -1)


def windows(x: Tensor, kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Return views of images ``(M, channels, *size)`` under each window, ``(M, channels, *kernel, *positions)``."""
    n = len(kernel)
    for axis, (size, step) in enumerate(zip(kernel, dilation, strict=True)):
        x = x.unfold(2 + axis, step * (size - 1) + 1, stride[axis])[..., ::step]
    return x.permute(0, 1, *range(2 + n, 2 + 2 * n), *range(2, 2 + n))


_PATCH_ELEMENTS = 2**20
"""Entries of patches that are made at a time: they stay in the cache until they are used."""


def _each(value: int | tuple[int, ...], n: int) -> tuple[int, ...]:
    """Return one value for each of ``n`` axes."""
    return (value,) * n if isinstance(value, int) else tuple(value) * (n if len(value) == 1 else 1)


def _merge(t: Tensor) -> Tensor:
    """Return ``(N, P, ..., L)`` as ``(N, ..., P L)``."""
    return t.squeeze(1) if t.shape[1] == 1 else t.movedim(1, -2).flatten(-2)
