"""Convolutions as layer calls: linear in patches of their input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raphson.network.layers._layer_calls import Matmul

_PATCH_ELEMENTS = 2**20
"""Entries of patches that are made at a time: they stay in the cache until they are used."""


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


def windows(x: Tensor, kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Return views of images ``(M, channels, *size)`` under each window, ``(M, channels, *kernel, *positions)``."""
    n = len(kernel)
    for axis, (size, step) in enumerate(zip(kernel, dilation, strict=True)):
        x = x.unfold(2 + axis, step * (size - 1) + 1, stride[axis])[..., ::step]
    return x.permute(0, 1, *range(2 + n, 2 + 2 * n), *range(2, 2 + n))


def _each(value: int | tuple[int, ...], n: int) -> tuple[int, ...]:
    """Return one value for each of ``n`` axes."""
    return (value,) * n if isinstance(value, int) else tuple(value) * (n if len(value) == 1 else 1)
