"""Sums of outer products, with little of what symmetry repeats computed twice.

Matrix products make tiles from the diagonal to the right: four tiles do 5/8 of the operations of a whole product at the
same speed, and more of them lose what they save to narrow products (measured with 128 to 1024 columns).
"""

from __future__ import annotations

from torch import Tensor

from raphson.linalg import MAX_DENSE_ELEMENTS, Dense, Diagonal, SymmetricOperator

_PARTS = 4
"""Tiles of a large sum: of four, symmetry leaves 5/8 of a whole product."""

_SMALL = 128
"""Size below which one product beats several with fewer operations (measured)."""

_ENTRIES = 2**17
"""Entries of the vectors below which it does, too: mirroring costs more than the operations that are saved."""


class Syrk:
    r"""A running sum :math:`\sum x x^T` for each of several groups.

    Args:
        groups: Number of groups ``G``.
        d: Length of the vectors.
        like: Gives type and device.
        border: Number of rows and columns to leave free after the sum, for others to fill.
    """

    def __init__(self, groups: int, d: int, like: Tensor, border: int = 0) -> None:
        self._d = d
        # memory is zeroed only where nothing is ever added: the first product overwrites it
        self._whole = like.new_empty(groups, d + border, d + border)
        self._sum = self._whole[:, :d, :d]
        self._empty = True
        self._mirrored = d

    def add(self, x: Tensor) -> None:
        """Add the outer products of ``x``, ``(B, G, d, L)``, summed over ``B`` and ``L``."""
        if x.numel() == 0:
            return
        b, groups, d, length = x.shape
        tiles = self._tiles(b * length)
        rows_in_memory = x.stride(2) == 1  # positions one after the other, as with channels last: one long product
        if length > 1 and not rows_in_memory and (d <= 2 * length or b == 1):
            for start, stop in tiles:
                product = x[:, :, start:stop] @ x[:, :, start:].mT
                product = product.sum(0) if b > 1 else product[0]
                if self._empty:
                    self._sum[:, start:stop, start:] = product
                else:
                    self._sum[:, start:stop, start:] += product
        else:
            for g in range(groups):
                rows = x[:, g].reshape(b, d) if length == 1 else x[:, g].mT.reshape(-1, d)
                for start, stop in tiles:
                    target, left, right = self._sum[g, start:stop, start:], rows[:, start:stop].mT, rows[:, start:]
                    target.addmm_(left, right, beta=0 if self._empty else 1)
        self._empty = False

    def total(self) -> Tensor:
        """Return the sums, ``(G, d, d)`` and the border, whose entries are undefined; nothing is added after that."""
        if self._empty:
            self._sum.zero_()
            self._empty = False
        # tiles of two sizes nest: what lies above the smaller ones on the diagonal was always added to
        for start in range(0, self._d, self._mirrored):
            stop = start + self._mirrored
            if stop < self._d:
                self._sum[:, stop:, start:stop] = self._sum[:, start:stop, stop:].mT
        self._mirrored = self._d
        return self._whole

    def _tiles(self, rows: int) -> list[tuple[int, int]]:
        """Return where the tiles on the diagonal begin and end; the products reach from them to the right."""
        d = self._d
        if d < _SMALL or d * rows < _ENTRIES:
            return [(0, d)]
        size = -(-d // _PARTS)
        self._mirrored = min(self._mirrored, size)
        return [(start, min(start + size, d)) for start in range(0, d, size)]


class DiagonalSyrk:
    """The diagonal of such sums, with the same arguments: where vectors are too long for the other entries."""

    def __init__(self, groups: int, d: int, like: Tensor, border: int = 0) -> None:
        self._whole = like.new_zeros(groups, d + border)
        self._sum = self._whole[:, :d]

    def add(self, x: Tensor) -> None:
        """Add the squares of ``x``, ``(B, G, d, L)``, summed over ``B`` and ``L``."""
        self._sum += x.square().sum((0, 3))

    def total(self) -> Tensor:
        """Return the sums, ``(G, d)`` and the border."""
        return self._whole


def syrk_of(groups: int, d: int, like: Tensor, border: int = 0, most: int | None = None) -> Syrk | DiagonalSyrk:
    """Return a running sum of outer products, or of its diagonal where it has more than ``most`` elements."""
    fits = groups * (d + border) ** 2 <= (MAX_DENSE_ELEMENTS if most is None else most)
    return (Syrk if fits else DiagonalSyrk)(groups, d, like, border)


def as_operator(factor: Tensor) -> SymmetricOperator:
    """Return a sum of one group, ``(d, d)`` or its diagonal ``(d,)``, as an operator."""
    return Dense(factor) if factor.ndim == 2 else Diagonal(factor)
