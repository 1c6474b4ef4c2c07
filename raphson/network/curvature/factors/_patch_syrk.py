r"""Sums of outer products of the patches under a convolution, from the autocorrelation of its input.

With positions :math:`t`, channels i, j and places a, b under the kernel the sum is

.. math:: A_{(i,a),(j,b)} = \sum_t x_i(t + a)\, x_j(t + b) .

Over *all* positions, those included at which the kernel reaches over the edge, it depends on a and b through
:math:`b - a` only: a kernel of 3 x 3 has 25 such shifts, 13 of them up to symmetry, against 45 pairs of places. What
the convolution leaves out of these positions is a frame around the image, whose patches are taken away again; they
hold few lines. No other patch is made: every shift is a product of matrices, or oneDNN makes all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from raphson.network._onednn import computes, correlations
from raphson.network.curvature.factors._syrk import Syrk
from raphson.network.layers._convolution import Convolution, windows

_CHANNELS = 8
"""Channels from which products of matrices as narrow beat those of whole patches (measured); oneDNN takes any."""

_COST = 3
"""What an operation with half of the shifts costs against one with all pairs of places (measured)."""


class PatchSyrk:
    """A running sum of the outer products of patches.

    Args:
        channels: Number of channels ``I``.
        kernel: Lengths of the kernel's axes.
        like: Gives type and device.
    """

    def __init__(self, channels: int, kernel: Sequence[int], like: Tensor) -> None:
        self._channels, self._kernel, self._like = channels, tuple(kernel), like
        self._shifts = _shifts(self._kernel)
        self._sums = like.new_zeros(len(self._shifts), channels, channels)
        # by axis, first place and number of the places under the kernel at which there are lines
        self._frame: dict[tuple[int, int, int], Syrk] = {}

    @staticmethod
    def suits(call: Convolution) -> bool:
        """Whether the patches of a convolution are summed faster here than one by one."""
        if call.transposed or call.groups > 1 or any(s > 1 for s in call.stride):
            return False
        if call.x.shape[1] < _CHANNELS and not computes(call.x):
            return False
        places, shifts = math.prod(call.kernel), n_shifts(call.kernel)
        reach = _reach(call.kernel, call.dilation)
        if any(max(pair) > r for pair, r in zip(call.margins, reach, strict=True)):
            return False
        padded = math.prod(size + r for size, r in zip(call.x.shape[2:], reach, strict=True))
        return _COST * shifts * padded <= places**2 * call.inner

    def add(self, x: Tensor, call: Convolution) -> None:
        """Add the patches of images ``(N, I, *size)`` under a convolution."""
        if computes(x):
            found = correlations(x, self._kernel, call.dilation).flatten(2)
            # row by row, those from no shift on are the ones of self._shifts
            self._sums += found[..., math.prod(2 * k - 1 for k in self._kernel[1:]) // 2 :].permute(2, 0, 1)
        else:
            self._add_shifts(x.movedim(1, -1), call)
        x = x.movedim(1, -1)
        reach = _reach(self._kernel, call.dilation)
        for axis, (size, r, (before, after)) in enumerate(zip(x.shape[1:-1], reach, call.margins, strict=True)):
            for start in (*range(-r, -before), *range(size + after - r, size)):
                self._add_frame(x, call, axis, start)

    def _add_shifts(self, x: Tensor, call: Convolution) -> None:
        """Add the products of images ``(N, *size, I)`` with themselves at all shifts."""
        reach = _reach(self._kernel, call.dilation)
        # zeros behind each axis: a shift over the edge meets nothing else
        sizes = [size + r for size, r in zip(x.shape[1:-1], reach, strict=True)]
        padded = x.new_zeros(x.shape[0], *sizes, self._channels)
        padded[(slice(None), *map(slice, x.shape[1:-1]))] = x
        rows = padded.view(-1, self._channels)
        steps = [d * math.prod(sizes[m + 1 :]) for m, d in enumerate(call.dilation)]
        for total, shift in zip(self._sums, self._shifts, strict=True):
            ahead = sum(s * step for s, step in zip(shift, steps, strict=True))
            total.addmm_(rows[: len(rows) - ahead].mT, rows[ahead:])

    def _add_frame(self, x: Tensor, call: Convolution, axis: int, start: int) -> None:
        """Add patches that the convolution leaves out: they begin at ``start`` on an axis, anywhere on those behind."""
        d = call.dilation[axis]
        places = [a for a in range(self._kernel[axis]) if 0 <= start + a * d < x.shape[1 + axis]]
        if not places:
            return
        lines = slice(start + places[0] * d, start + places[-1] * d + 1, d)
        view = x[(slice(None),) * (1 + axis) + (lines,)]
        kernel, dilation = list(self._kernel), list(call.dilation)
        margins = [call.margins[m] if m < axis else (r, r) for m, r in enumerate(_reach(self._kernel, dilation))]
        kernel[axis], dilation[axis], margins[axis] = len(places), 1, (0, 0)
        view = F.pad(view, [0, 0, *(zeros for pair in reversed(margins) for zeros in pair)])
        patches = windows(view.movedim(-1, 1), kernel, dilation, (1,) * len(kernel))
        key = axis, places[0], len(places)
        if key not in self._frame:
            self._frame[key] = Syrk(1, self._channels * math.prod(kernel), self._like)
        self._frame[key].add(patches.reshape(x.shape[0], 1, self._channels * math.prod(kernel), -1))

    def total(self) -> Tensor:
        """Return the sum, ``(I K, I K)`` with ``K`` places of the kernel, channels first."""
        both = torch.cat([self._sums, self._sums.mT])
        pairs = torch.tensor(_pairs(self._kernel), device=both.device)
        found = both[pairs].permute(2, 0, 3, 1).contiguous()
        axes = found.view(self._channels, *self._kernel, self._channels, *self._kernel)
        for (axis, first, count), sums in self._frame.items():
            block = axes.narrow(1 + axis, first, count).narrow(2 + len(self._kernel) + axis, first, count)
            block -= sums.total().view(block.shape)
        size = self._channels * len(pairs)
        return found.view(size, size)


def n_shifts(kernel: tuple[int, ...]) -> int:
    """Return the number of differences between places under a kernel, up to their sign."""
    return len(_shifts(kernel))


@cache
def _pairs(kernel: tuple[int, ...]) -> list[list[int]]:
    """Return the number of the shift between any two places, those against the order in memory after all others."""
    shifts = _shifts(kernel)
    number = {tuple(-s for s in shift): len(shifts) + i for i, shift in enumerate(shifts)}
    number |= {shift: i for i, shift in enumerate(shifts)}
    places = list(product(*map(range, kernel)))
    return [[number[tuple(v - u for u, v in zip(a, b, strict=True))] for b in places] for a in places]


@cache
def _shifts(kernel: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the differences of places under a kernel, of two opposite ones the one that leads ahead in memory."""
    middle = (0,) * len(kernel)
    return [shift for shift in product(*(range(1 - k, k) for k in kernel)) if shift >= middle]


def _reach(kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Return how far a kernel reaches on each axis."""
    return [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
