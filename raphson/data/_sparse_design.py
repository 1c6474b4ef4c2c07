"""Sparse tables of examples, never made dense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson.data._column_moments import column_moments
from raphson.data._design import Block, Design
from raphson.data._sparse_product import SparseRows, arranged, padded


@dataclass(frozen=True)
class SparseBlock(Block):
    """Rows of a sparse table and their transpose, columns scaled, the ones implicit."""

    rows: slice
    x: SparseRows
    xt: SparseRows
    intercept: bool

    def arrange(self, coef: Tensor) -> Tensor:  # noqa: D102
        return arranged(coef.mT).mT

    def predict(self, coef: Tensor) -> Tensor:  # noqa: D102
        if not self.intercept:
            return self.x.product(coef.mT).mT
        return self.x.product(coef.mT[1:]).mT + coef[:, :1]

    def adjoint(self, r: Tensor) -> Tensor:  # noqa: D102
        return self._transposed_product(self.xt, r)

    def features(self) -> Tensor:  # noqa: D102
        x = self.xt.to_dense()
        return torch.cat([x.new_ones(1, x.shape[1]), x]) if self.intercept else x

    def adjoint_squared(self, r: Tensor) -> Tensor:  # noqa: D102
        return self._transposed_product(self.xt.square(), r)

    def _transposed_product(self, xt: SparseRows, r: Tensor) -> Tensor:
        """Return ``r @ X`` for the transpose of X, with columns slowest: what a sparse product writes, not copied."""
        if not self.intercept:
            return xt.product(r.mT).mT
        out = padded(xt.shape[0] + 1, r.shape[0], r)
        torch.sum(r, 1, out=out[0])
        xt.product(r.mT, out[1:])
        return out.mT


class SparseDesign(Design):
    """A sparse table (SciPy CSR), never densified; columns are scaled, and centered where no entry is left out.

    Of a column with zeros the mean is at most ``sqrt(N)`` standard deviations, which costs few digits. One without any
    may have any mean, and is centered as it is in a dense table.
    """

    def __init__(
        self,
        x: Any,
        *,
        intercept: bool = True,
        standardize: bool = False,
        dtype: torch.dtype = torch.float64,
        moments: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.x, self.intercept, self.dtype = x, intercept, dtype
        d = x.shape[1]
        if moments is not None:
            self.center, self.scale = moments
        elif standardize:
            self.center, self.scale = _moments(x, centered=intercept)
        else:
            self.center = torch.zeros(d, dtype=torch.float64)
            self.scale = torch.ones(d, dtype=torch.float64)
        self._shifts = bool(self.center.any())
        self._blocks: dict[int, list[SparseBlock]] = {}

    def blocks(self, n_outputs: int) -> Iterator[Block]:  # noqa: D102
        size = max(256, min(2**17, 2**23 // n_outputs))  # a block's adjoint touches all columns: few, large blocks
        if size not in self._blocks:
            self._blocks = {size: [self._block(s, size) for s in range(0, self.n_rows, size)]}
        yield from self._blocks[size]

    def take(self, index: Tensor) -> SparseDesign:  # noqa: D102
        moments = self.center, self.scale
        return SparseDesign(self.x[index.numpy()], intercept=self.intercept, dtype=self.dtype, moments=moments)

    def row_products(self, columns: slice | Tensor) -> Tensor:  # noqa: D102
        x = centered_entries(self.x, self.center.numpy())
        x = x[:, columns if isinstance(columns, slice) else columns.numpy()]
        return torch.from_numpy((x @ x.T).toarray()).double()

    def astype(self, dtype: torch.dtype) -> SparseDesign:  # noqa: D102
        design = SparseDesign(self.x, intercept=self.intercept, dtype=dtype, moments=(self.center, self.scale))
        design._blocks = {
            size: [replace(b, x=b.x.astype(dtype), xt=b.xt.astype(dtype)) for b in blocks]
            for size, blocks in self._blocks.items()
        }
        return design

    def _block(self, start: int, size: int) -> SparseBlock:
        rows = slice(start, min(start + size, self.n_rows))
        x = self.x if rows.stop - rows.start == self.n_rows else self.x[rows]
        index = torch.from_numpy(x.indices).long()
        values = torch.from_numpy(x.data).to(torch.float64)
        if self._shifts:
            values = values - self.center[index]
        values = values / self.scale[index]
        scaled = type(x)((values.to(self.dtype).numpy(), x.indices, x.indptr), shape=x.shape)
        return SparseBlock(rows, SparseRows.of(scaled), SparseRows.of(scaled.T.tocsr()), self.intercept)


def full_columns(x: Any) -> NDArray[np.bool_]:
    """Return which columns of a CSR matrix ``(N, D)`` have an entry in every row, bool ``(D,)``."""
    n, d = x.shape
    full: NDArray[np.bool_] = np.bincount(x.indices, minlength=d) == max(n, 1)
    return full


def centered_entries(x: Any, center: NDArray[np.float64]) -> Any:
    """Return a CSR matrix less a number for each column, zero for columns that have not an entry in every row."""
    if not center.any():
        return x
    return type(x)((x.data - center[x.indices], x.indices, x.indptr), shape=x.shape)


def _moments(x: Any, *, centered: bool) -> tuple[Tensor, Tensor]:
    """Return center and scale of the columns of a CSR matrix: those of a dense table, or zero and the mean square."""
    n, d = x.shape
    index, values = torch.from_numpy(x.indices).long(), torch.from_numpy(x.data).to(torch.float64)
    largest = values.new_zeros(d).scatter_reduce_(0, index, values.abs(), "amax")
    largest = torch.where(largest > 0, largest, 1.0)
    unit = values / largest[index]  # squares of 1e24 must not overflow
    mean_squares = values.new_zeros(d).index_add_(0, index, unit.square_()) / max(n, 1)
    rms = mean_squares.sqrt() * largest
    center, scale = torch.zeros_like(rms), torch.where(rms > 0, rms, 1.0)
    full = full_columns(x)
    if centered and full.any():
        values = torch.from_numpy(x[:, full].toarray()).to(torch.float64)
        mean, deviation = column_moments(values, centered=True)
        same = (values == values[0]).all(0)  # exactly, so that a constant column is exactly zero
        center[full], scale[full] = torch.where(same, values[0], mean), deviation
    return center, scale
