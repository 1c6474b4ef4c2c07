"""Sparse tables of examples, never made dense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    """A sparse table (SciPy CSR), never densified; columns are scaled but not centered."""

    def __init__(
        self,
        x: Any,
        *,
        intercept: bool = True,
        standardize: bool = False,
        dtype: torch.dtype = torch.float64,
        scale: Tensor | None = None,
    ) -> None:
        self.x, self.intercept, self.dtype = x, intercept, dtype
        d = x.shape[1]
        self.center = torch.zeros(d, dtype=torch.float64)
        if scale is not None:
            self.scale = scale
        elif standardize:
            largest = torch.from_numpy(abs(x).max(axis=0).toarray().ravel().astype("float64"))
            largest = torch.where(largest > 0, largest, 1.0)
            unit = x.multiply(1.0 / largest.numpy()).tocsr()  # squares of 1e24 must not overflow
            rms = torch.from_numpy(unit.power(2).mean(axis=0)).ravel().sqrt() * largest
            self.scale = torch.where(rms > 0, rms, 1.0)
        else:
            self.scale = torch.ones(d, dtype=torch.float64)
        self._blocks: dict[int, list[SparseBlock]] = {}

    def blocks(self, n_outputs: int) -> Iterator[Block]:  # noqa: D102
        size = max(256, min(2**17, 2**23 // n_outputs))  # a block's adjoint touches all columns: few, large blocks
        if size not in self._blocks:
            self._blocks = {size: [self._block(s, size) for s in range(0, self.n_rows, size)]}
        yield from self._blocks[size]

    def take(self, index: Tensor) -> SparseDesign:  # noqa: D102
        return SparseDesign(self.x[index.numpy()], intercept=self.intercept, dtype=self.dtype, scale=self.scale)

    def row_products(self, columns: slice | Tensor) -> Tensor:  # noqa: D102
        x = self.x[:, columns if isinstance(columns, slice) else columns.numpy()]
        return torch.from_numpy((x @ x.T).toarray()).double()

    def astype(self, dtype: torch.dtype) -> SparseDesign:  # noqa: D102
        return SparseDesign(self.x, intercept=self.intercept, dtype=dtype, scale=self.scale)

    def _block(self, start: int, size: int) -> SparseBlock:
        rows = slice(start, min(start + size, self.n_rows))
        x = self.x[rows]
        values = torch.from_numpy(x.data).to(torch.float64) / self.scale[torch.from_numpy(x.indices).long()]
        scaled = type(x)((values.to(self.dtype).numpy(), x.indices, x.indptr), shape=x.shape)
        return SparseBlock(rows, SparseRows.of(scaled), SparseRows.of(scaled.T.tocsr()), self.intercept)
