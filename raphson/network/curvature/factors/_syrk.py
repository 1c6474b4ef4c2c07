"""Sums of outer products, with little of what symmetry repeats computed twice.

Matrix products make tiles from the diagonal to the right: four tiles do 5/8 of the operations of a whole product at the
same speed, and more of them lose what they save to narrow products (measured with 128 to 512 columns). A larger sum is
halved first: one product off the diagonal and two smaller sums, 9/16 of the operations or fewer.
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from raphson.linalg import MAX_DENSE_ELEMENTS, Dense, Diagonal, SymmetricOperator

_PARTS = 4
"""Tiles of a large sum: of four, symmetry leaves 5/8 of a whole product."""

_HALVED = 512
"""Size above which a sum is halved before it is tiled: with 784 columns 4.8 ms against 5.2, with 1024 16.9 against
18.4, with 2048 41 against 47 (measured, one thread)."""

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

    Attributes:
        empty: Whether nothing was added yet.
    """

    def __init__(self, groups: int, d: int, like: Tensor, border: int = 0) -> None:
        self._d, self._shape, self._like = d, (groups, d + border, d + border), like
        self.empty = True
        self._mirrored: list[tuple[slice, slice]] = []

    @cached_property
    def _whole(self) -> Tensor:
        # taken when the first vectors come, and zeroed only where none ever do: the first product overwrites it
        return self._like.new_empty(self._shape)

    @cached_property
    def _sum(self) -> Tensor:
        return self._whole[:, : self._d, : self._d]

    def add(self, x: Tensor) -> None:
        """Add the outer products of ``x``, ``(B, G, d, L)``, summed over ``B`` and ``L``."""
        if x.numel() == 0:
            return
        b, groups, d, length = x.shape
        tiles = self._tiles(b * length)
        rows_in_memory = x.stride(2) == 1  # positions one after the other, as with channels last: one long product
        if length > 1 and not rows_in_memory and (d <= 2 * length or b == 1):
            for up, across in tiles:
                product = x[:, :, up] @ x[:, :, across].mT
                product = product.sum(0) if b > 1 else product[0]
                if self.empty:
                    self._sum[:, up, across] = product
                else:
                    self._sum[:, up, across] += product
        else:
            for g in range(groups):
                rows = x[:, g].reshape(b, d) if length == 1 else x[:, g].mT.reshape(-1, d)
                total = self._sum[g]
                for up, across in tiles:
                    total[up, across].addmm_(rows[:, up].mT, rows[:, across], beta=0 if self.empty else 1)
        self.empty = False

    def total(self) -> Tensor:
        """Return the sums, ``(G, d, d)`` and the border, whose entries are undefined; nothing is added after that."""
        if self.empty:
            self._sum.zero_()
            self.empty = False
        # if once there were tiles, what lies below them is theirs: whole products added to all that is above, too
        for up, across in self._mirrored:
            if up.stop < across.stop:
                across = slice(max(up.stop, across.start), across.stop)
                self._sum[:, across, up] = self._sum[:, up, across].mT
        self._mirrored = []
        return self._whole

    def _tiles(self, rows: int) -> list[tuple[slice, slice]]:
        """Return rows and columns of tiles that cover what is on the diagonal and above."""
        d = self._d
        if d < _SMALL or d * rows < _ENTRIES:
            return [(slice(0, d), slice(0, d))]
        self._mirrored = _triangle(0, d)
        return self._mirrored


def _triangle(start: int, stop: int) -> list[tuple[slice, slice]]:
    """Return tiles of the upper triangle from row and column ``start`` to ``stop``."""
    size = stop - start
    if size > _HALVED:
        middle = start + -(-size // 32) * 16
        off = slice(start, middle), slice(middle, stop)
        return [off, *_triangle(start, middle), *_triangle(middle, stop)]
    step = -(-size // _PARTS)
    return [(slice(i, min(i + step, stop)), slice(i, stop)) for i in range(start, stop, step)]


class DiagonalSyrk:
    """The diagonal of such sums, with the same arguments: where vectors are too long for the other entries."""

    def __init__(self, groups: int, d: int, like: Tensor, border: int = 0) -> None:
        self._whole = like.new_zeros(groups, d + border)
        self._sum = self._whole[:, :d]
        self.empty = True

    def add(self, x: Tensor) -> None:
        """Add the squares of ``x``, ``(B, G, d, L)``, summed over ``B`` and ``L``."""
        self.empty = False
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
