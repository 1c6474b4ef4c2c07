"""Sums of outer products, with little of what symmetry repeats computed twice.

Matrix products make tiles from the diagonal to the right: four tiles do 5/8 of the operations of a whole product at the
same speed, and more of them lose what they save to narrow products (measured with 128 to 512 columns). A larger sum is
halved first: one product off the diagonal and two smaller sums, 9/16 of the operations. Still larger ones have more
tiles, none of them high: a product off the diagonal would leave the cache. Where oneDNN makes the products, a sum is
made in squares, so small that what one takes in memory is not asked of the system every time.
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from raphson.linalg import MAX_DENSE_ELEMENTS, Dense, Diagonal, SymmetricOperator
from raphson.network._onednn import computes, correlations, is_faster, rows_product

_PARTS = 4
"""Tiles of a large sum: of four, symmetry leaves 5/8 of a whole product."""

_HALVED = range(513, 1024)
"""Sizes at which a sum is halved before it is tiled: with 784 columns 4.8 ms against 5.2 (measured, one thread)."""

_HIGH = 128
"""Rows of a tile of sums that are too large to be halved: 128 vectors of 2048 entries take 14.0 ms, and 16.8 halved,
256 vectors 24 and 29 (measured, one thread)."""

_SMALL = 128
"""Size below which one product beats several with fewer operations (measured)."""

_ENTRIES = 2**17
"""Entries of the vectors below which it does, too: mirroring costs more than the operations that are saved."""


_SQUARE = 160
"""Least size of the squares that oneDNN makes: 512 vectors of 784 entries take 2.6 ms, and 3.3 with 128 (measured, one
thread)."""

_SQUARES = 8
"""Squares on the diagonal at most: 128 vectors of 2048 entries take 7.9 ms, and 10.7 with twice as many (measured)."""

_TURNED = 2**17
"""Entries of vectors that oneDNN is given at a time, or as many vectors as they are long: they stay in the cache, and
their memory is not new each time. 4608 vectors of 256 entries in K-FAC take 4.3 ms, all at once 5.8 (measured)."""

_NARROW = 64
"""Size up to which vectors in a row are not turned for oneDNN: turning costs more than it saves. Those of images are
summed as correlations without a shift: 128 images of 1024 positions with 16 channels take 0.32 ms, and 0.81 as one long
product of matrices (measured, one thread)."""

_POSITIONS = 2**11
"""Positions of images from which that is faster: 2048 with 64 channels take 0.11 ms against 0.17, 576 with 48 take 0.05
against 0.03 (measured, one thread)."""

Tiles = list[tuple[slice, slice]]


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
        self._mirrored: list[Tiles] = []

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
        apart = length > 1 and x.stride(2) != 1  # else one row after the other, as with channels last: one long product
        images = min(b, length) > 1 and b * length >= _POSITIONS
        if groups == 1 and (apart or d > _NARROW) and is_faster(x, x.numel() * d):
            step = max(1, max(_TURNED // d, d) // length)
            for start in range(0, b, step):
                columns = x[start : start + step, 0].movedim(1, 0).reshape(d, -1).contiguous()
                for up, across in self._upper(_squares(d)):
                    self._put(up, across, rows_product(columns[up], columns[across]))
                self.empty = False
        elif groups == 1 and d <= _NARROW and images and not apart and computes(x):
            self._put(slice(d), slice(d), correlations(x[:, 0, :, None], (1, 1), (1, 1))[..., 0, 0])
        elif apart and (d <= 2 * length or b == 1):
            for up, across in self._tiles(b * length):
                product = x[:, :, up] @ x[:, :, across].mT
                self._put(up, across, product.sum(0) if b > 1 else product[0])
        else:
            tiles = self._tiles(b * length)
            for g in range(groups):
                rows = x[:, g].reshape(b, d) if length == 1 else x[:, g].mT.reshape(-1, d)
                total = self._sum[g]
                for up, across in tiles:
                    total[up, across].addmm_(rows[:, up].mT, rows[:, across], beta=0 if self.empty else 1)
        self.empty = False

    def _put(self, up: slice, across: slice, product: Tensor) -> None:
        if self.empty:
            self._sum[:, up, across] = product
        else:
            self._sum[:, up, across] += product

    def total(self) -> Tensor:
        """Return the sums, ``(G, d, d)`` and the border, whose entries are undefined; nothing is added after that."""
        if self.empty:
            self._sum.zero_()
            self.empty = False
        # if once there were tiles, what lies below them is theirs: other ones added to all that is above, too
        for up, across in (tile for tiles in self._mirrored for tile in tiles):
            if up.stop < across.stop:
                across = slice(max(up.stop, across.start), across.stop)
                self._sum[:, across, up] = self._sum[:, up, across].mT
        self._mirrored = []
        return self._whole

    def _tiles(self, rows: int) -> Tiles:
        """Return rows and columns of tiles that cover what is on the diagonal and above."""
        d = self._d
        if d < _SMALL or d * rows < _ENTRIES:
            return [(slice(0, d), slice(0, d))]
        return self._upper(_triangle(0, d))

    def _upper(self, tiles: Tiles) -> Tiles:
        """Return tiles that cover what is on the diagonal and above, and see to it that the sum below is theirs."""
        if len(tiles) > 1 and tiles not in self._mirrored:
            self._mirrored.append(tiles)
        return tiles


def _squares(d: int) -> Tiles:
    """Return squares, about as large as one another, on the diagonal and above."""
    count = max(1, min(_SQUARES, d // _SQUARE))
    step = -(-d // (16 * count)) * 16
    parts = [slice(start, min(start + step, d)) for start in range(0, d, step)]
    return [(up, across) for i, up in enumerate(parts) for across in parts[i:]]


def _triangle(start: int, stop: int) -> Tiles:
    """Return tiles of the upper triangle from row and column ``start`` to ``stop``."""
    size = stop - start
    if size in _HALVED:
        middle = start + -(-size // 32) * 16
        off = slice(start, middle), slice(middle, stop)
        return [off, *_triangle(start, middle), *_triangle(middle, stop)]
    step = -(-size // max(_PARTS, size // _HIGH))
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
