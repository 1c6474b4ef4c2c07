"""Views of parameters as layers see them, and which of a layer's positions belong to which example."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.network._parameters import ParameterSpace


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

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.size)

    def transposed(self) -> ParameterView:
        """Return the view of the transpose."""
        return ParameterView(self.name, self.offset, self.size[::-1], self.stride[::-1])

    def is_whole(self, parameter: Tensor) -> bool:
        """Whether the view is the parameter as it is."""
        return self.offset == 0 and self.size == tuple(parameter.shape) and self.stride == parameter.stride()

    def label(self, parameter: Tensor) -> str:
        """Return the name of the parameter, seen whole in whatever order, or of a part of it."""
        return self.name if self.numel == parameter.numel() else f"{self.name} (part)"

    def index(self, parameter: Tensor) -> Tensor:
        """Return the row-major position in the parameter of every entry of the view, ``size``."""
        everything = torch.arange(parameter.numel(), device=parameter.device).view(parameter.shape)
        if self.is_whole(parameter):
            return everything
        places = torch.empty_strided(parameter.size(), parameter.stride(), dtype=torch.long, device=parameter.device)
        places.copy_(everything)
        return places.as_strided(self.size, self.stride, self.offset)

    def add(self, total: Tensor, parameter: Tensor, values: Tensor) -> None:
        """Add values ``(..., *size)`` to the entries of the view in ``total``, ``(..., numel)`` of the parameter."""
        flat = values.reshape(*total.shape[:-1], self.numel)
        if self.is_whole(parameter):
            total += flat
        else:
            total.index_add_(-1, self.index(parameter).reshape(-1), flat)

    def places(self, space: ParameterSpace) -> Tensor:
        """Return the position in the vector of all parameters of every entry of the view, ``(numel,)``."""
        start: int = space.slices[self.name].start
        return self.index(space.tensors[self.name]).reshape(-1) + start


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


@dataclass(frozen=True)
class NoLayout(PositionLayout):
    """Positions that are not split into examples: every use is refused, in these words."""

    why: str

    def by_example(self, t: Tensor) -> Tensor:
        """Raise ``InputError``."""
        raise InputError(self.why)

    def per_position(self, values: Tensor) -> Tensor:
        """Raise ``InputError``."""
        raise InputError(self.why)
