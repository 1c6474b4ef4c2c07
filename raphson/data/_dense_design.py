"""Dense tables of examples: held as given, standardized block by block or once, where the copy is small."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raphson.data._column_moments import ColumnSums, column_moments
from raphson.data._design import Block, Design
from raphson.data._memory import new_table

CACHE_BYTES = 9 * 2**24
"""A standardized copy of the table is cached only below this size (144 MiB); larger tables are read in place."""

_GRAM_COLUMNS = 2000
_GRAM_ROWS = (1000, 5000)
"""Rows on which columns are tried for independence, the second number if rare columns need more."""

_CONDITION = 1e-7
"""Smallest over largest eigenvalue of the Gram matrix above which columns are independent beyond doubt, and nine of the
sixteen digits of their products are left."""

_CACHED_ROWS = 512
"""Rows that are standardized at a time: the entries of a column, which lie apart in them, stay in the cache.

5000 x 2000, with memory in large pages: 32 ms, 108 by 4096 rows without them."""

_PANEL_ELEMENTS = 2**18
"""Entries of the columns that are centered at a time for the products of rows: they stay in the cache."""

_BLOCK_ELEMENTS = 2**17
"""Outputs per block: enough to occupy two threads, little enough to stay in the cache."""


@dataclass(frozen=True)
class DenseBlock(Block):
    """Rows of a dense table as a ``(D', rows)`` tensor.

    Attributes:
        rows: Which rows of the table these are.
        x: Their columns.
    """

    rows: slice
    x: Tensor

    def predict(self, coef: Tensor) -> Tensor:  # noqa: D102
        return coef @ self.x

    def adjoint(self, r: Tensor) -> Tensor:  # noqa: D102
        return r @ self.x.mT

    def features(self) -> Tensor:  # noqa: D102
        return self.x

    def adjoint_squared(self, r: Tensor) -> Tensor:  # noqa: D102
        return r @ self.x.square().mT


@dataclass(frozen=True)
class RawBlock(Block):
    """Rows of a large dense table, read in place: standardization is applied to coefficients and sums instead.

    Attributes:
        rows: Which rows of the table these are.
        x: ``(rows, D)``, as given, float64.
        design: The design, for the centers and scales.
    """

    rows: slice
    x: Tensor
    design: DenseDesign

    def predict(self, coef: Tensor) -> Tensor:  # noqa: D102
        table = self.design.to_table(coef)
        if not self.design.intercept:
            return table @ self.x.mT
        return torch.addmm(table[:, :1], table[:, 1:], self.x.mT)

    def adjoint(self, r: Tensor) -> Tensor:  # noqa: D102
        ones = int(self.design.intercept)
        found = r.new_empty(r.shape[0], self.design.n_columns)
        slopes = torch.mm(r, self.x, out=found[:, ones:])
        if ones:
            total = torch.sum(r, 1, out=found[:, 0])
            slopes.addr_(total, self.design.center, alpha=-1.0)
        slopes.div_(self.design.scale)
        return found

    def features(self) -> Tensor:  # noqa: D102
        return self.design.standardized(self.rows)

    def adjoint_squared(self, r: Tensor) -> Tensor:  # noqa: D102
        return r @ self.features().square().mT


class DenseDesign(Design):
    """A dense table ``(N, D)``, held as given; a standardized copy is cached while it is small."""

    def __init__(
        self,
        x: Tensor,
        *,
        intercept: bool = True,
        standardize: bool = False,
        dtype: torch.dtype = torch.float64,
        moments: tuple[Tensor, Tensor] | None = None,
        sums: ColumnSums | None = None,
    ) -> None:
        self.x, self.intercept, self.dtype = x, intercept, dtype
        self._may_cache, d = True, x.shape[1]
        self.is_centered = moments is None and standardize and intercept
        if moments is not None:
            self.center, self.scale = moments
        elif standardize:
            self.center, self.scale = column_moments(x, centered=intercept, sums=sums)
        else:
            self.center = torch.zeros(d, dtype=torch.float64)
            self.scale = torch.ones(d, dtype=torch.float64)
        self._blocks: dict[int, list[DenseBlock]] = {}

    def blocks(self, n_outputs: int) -> Iterator[Block]:  # noqa: D102
        size = _rows_per_block(n_outputs)
        slices = [slice(s, min(s + size, self.n_rows)) for s in range(0, self.n_rows, size)]
        if not self.is_cached:
            for rows in slices:
                yield (
                    RawBlock(rows, self.x[rows], self)
                    if self.sums_keep_digits
                    else DenseBlock(rows, self.standardized(rows))
                )
            return
        if size not in self._blocks:
            self._blocks = {size: [DenseBlock(r, self._whole[:, r]) for r in slices]}
        yield from self._blocks[size]

    def whole(self) -> Tensor | None:  # noqa: D102
        return self._whole if self.is_cached and self.dtype == torch.float64 and self.x.device.type == "cpu" else None

    @property
    def is_cached(self) -> bool:
        """Whether a standardized copy is kept: it is small, and may be made or has to be."""
        few = self.n_rows * self.n_columns * self.dtype.itemsize <= CACHE_BYTES
        return few and (self._may_cache or not self.sums_keep_digits)

    def without_copy(self) -> DenseDesign:  # noqa: D102
        found = copy.copy(self)
        found._may_cache, found._blocks = False, {}
        found.__dict__.pop("_whole", None)
        return found

    def row_products(self, columns: slice | Tensor) -> Tensor:  # noqa: D102
        x, center, n = self.x[:, columns], self.center[columns], self.n_rows
        total = torch.zeros(n, n, dtype=torch.float64)
        width = max(256, _PANEL_ELEMENTS // max(n, 1))
        tile = max(64, -(-n // 4))  # of a symmetric matrix one triangle is enough: four tiles need 5/8 of the products
        for start in range(0, x.shape[1], width):
            part = x[:, start : start + width].double() - center[start : start + width]
            for first in range(0, n, tile):
                rows = slice(first, min(first + tile, n))
                total[rows, : rows.stop].addmm_(part[rows], part[: rows.stop].mT)
        return total.tril() + total.tril(-1).mT

    @property
    def is_raw(self) -> bool:
        """Whether ``x`` can be read in place: double precision, on the processor, each row contiguous."""
        return self._is_double and self.x.device.type == "cpu" and self.x.stride(1) == 1

    @property
    def _is_double(self) -> bool:
        return self.dtype == torch.float64 and self.x.dtype == torch.float64

    @cached_property
    def _whole(self) -> Tensor:
        return self.standardized(slice(0, self.n_rows))

    @cached_property
    def sums_keep_digits(self) -> bool:
        """Whether sums over the columns as given, in double precision, keep their digits when centered afterwards."""
        return self._is_double and self.has_small_means

    def take(self, index: Tensor) -> DenseDesign:  # noqa: D102
        return DenseDesign(self.x[index], intercept=self.intercept, dtype=self.dtype, moments=(self.center, self.scale))

    def is_well_conditioned(self) -> bool:  # noqa: D102
        if self.n_columns > min(self.n_rows, _GRAM_COLUMNS):
            return False
        if not self.n_columns:
            return True
        # columns that are independent on some of the rows are so on all of them
        for rows in _GRAM_ROWS:
            x = self.standardized(slice(0, self.n_rows, max(1, self.n_rows // max(rows, 20 * self.n_columns))))
            eigenvalues = torch.linalg.eigvalsh(x @ x.mT)
            if bool(eigenvalues[0] > _CONDITION * eigenvalues[-1]):
                return True
        return False

    def astype(self, dtype: torch.dtype) -> DenseDesign:  # noqa: D102
        return DenseDesign(self.x, intercept=self.intercept, dtype=dtype, moments=(self.center, self.scale))

    def standardized(self, rows: slice) -> Tensor:
        """Return standardized rows with the ones, ``(D', rows)``, in the design's element type."""
        x = self.x[rows].mT.to(torch.float64)
        d, n = map(int, x.shape)
        out = new_table(self.n_columns, n, self.dtype)
        if self.intercept:
            out[0] = 1.0
        body, double = out[self.intercept :], self.dtype == torch.float64
        step = _CACHED_ROWS if double else max(_PANEL_ELEMENTS // max(d, 1), 64)
        for start in range(0, n, step):
            part = slice(start, start + step)
            if double:
                torch.sub(x[:, part], self.center[:, None], out=body[:, part]).div_(self.scale[:, None])
            else:  # centered in double precision first: large means would cost single precision its digits
                body[:, part] = (x[:, part] - self.center[:, None]).div_(self.scale[:, None])
        return out


def _rows_per_block(n_outputs: int) -> int:
    fitting = int(_BLOCK_ELEMENTS // max(n_outputs, 1))
    return max(256, 1 << max(fitting.bit_length() - 1, 0))
