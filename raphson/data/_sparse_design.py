"""Sparse tables of examples, never made dense."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson.data._column_moments import column_moments
from raphson.data._design import Block, Design
from raphson.data._sparse_product import SparseRows, arranged, padded, row_products

_LOOKS = 16
"""Rows whose columns are compared before all entries are counted for columns with one in every row."""

_CACHED = 2**17
"""Nonzeros that pass through several operations while they are in the cache: of 5 million, 19 ms in place of 48."""

_SAFE = 1e75
"""Entries between this and its reciprocal have squares that neither overflow nor vanish."""


@dataclass(frozen=True)
class SparseBlock(Block):
    """Rows of a sparse table, columns scaled, the ones implicit."""

    rows: slice
    x: SparseRows
    intercept: bool

    def arrange(self, coef: Tensor) -> Tensor:  # noqa: D102
        return coef if len(coef) == 1 and self.x.takes_vectors else arranged(coef.mT).mT

    def predict(self, coef: Tensor) -> Tensor:  # noqa: D102
        if len(coef) == 1 and self.x.takes_vectors:
            f = self.x.vector_product(coef[0, self.intercept :])
            return (f.add_(coef[0, 0]) if self.intercept else f)[None]
        if not self.intercept:
            return self.x.product(coef.mT).mT
        return self.x.product(coef.mT[1:]).mT + coef[:, :1]

    def adjoint(self, r: Tensor) -> Tensor:  # noqa: D102
        if len(r) > 1 or not self.x.takes_vectors:
            return self._transposed_product(self.x.transposed, r)
        out = r.new_empty(1, self.x.shape[1] + self.intercept)
        out[0, self.intercept :] = self.x.vector_product(r[0], transposed=True)
        if self.intercept:
            out[0, 0] = r.sum()
        return out

    def features(self) -> Tensor:  # noqa: D102
        x = self.x.to_dense().mT
        return torch.cat([x.new_ones(1, x.shape[1]), x]) if self.intercept else x

    def adjoint_squared(self, r: Tensor) -> Tensor:  # noqa: D102
        return self._transposed_product(self.x.transposed.square(), r)

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

    @cached_property
    def raw(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Starts of the rows, int64, columns, int32, and values as given; None where sums over them lose digits.

        None also of other types, and of a table without a row, a column, or a scale that has a reciprocal.
        """
        x, factor = self.x, self.factor
        if self.dtype != torch.float64 or x.data.dtype != np.float64 or x.indices.dtype != np.int32:
            return None
        if not self.n_rows or not len(factor) or not self.has_small_means or not float(factor.max()) < math.inf:
            return None
        return torch.from_numpy(x.indptr.astype(np.int64)), torch.from_numpy(x.indices), torch.from_numpy(x.data)

    @cached_property
    def dense_rows(self) -> Tensor:
        """The table as given, dense, ``(N, D)``, for what is made of it as often as its columns permit."""
        return torch.from_numpy(self.x.toarray())

    @cached_property
    def factor(self) -> Tensor:
        """By which columns less their centers are multiplied, ``(D,)``: zero for those that are their centers."""
        factor, center = self.scale.reciprocal(), self.center
        for j in ((center != 0) & (center.abs() == self.scale)).nonzero()[:, 0]:  # as moments of constant columns are
            if (self.x.data[self.x.indices == int(j)] == float(center[j])).all():
                factor[j] = 0.0
        return factor

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
        everything = isinstance(columns, slice) and columns == slice(None)
        return row_products(x if everything else x[:, columns if isinstance(columns, slice) else columns.numpy()])

    def astype(self, dtype: torch.dtype) -> SparseDesign:  # noqa: D102
        design = SparseDesign(self.x, intercept=self.intercept, dtype=dtype, moments=(self.center, self.scale))
        design._blocks = {
            size: [replace(b, x=b.x.astype(dtype)) for b in blocks] for size, blocks in self._blocks.items()
        }
        return design

    def _standardized(self, x: Any) -> NDArray[Any]:
        """Return the values of some rows, centered and scaled, in the design's element type."""
        center, scale = self.center.numpy(), self.scale.numpy()
        out = torch.empty(len(x.data), dtype=self.dtype).numpy()
        for start in range(0, len(out), _CACHED):
            part = slice(start, start + _CACHED)
            values, columns = x.data[part], x.indices[part]
            with np.errstate(all="ignore"):
                out[part] = (values - center[columns] if self._shifts else values) / scale[columns]
        return out

    def _block(self, start: int, size: int) -> SparseBlock:
        rows = slice(start, min(start + size, self.n_rows))
        x = self.x if rows.stop - rows.start == self.n_rows else self.x[rows]
        scaled = type(x)((self._standardized(x), x.indices, x.indptr), shape=x.shape)
        return SparseBlock(rows, SparseRows.of(scaled), self.intercept)


def full_columns(x: Any) -> NDArray[np.bool_]:
    """Return which columns of a CSR matrix ``(N, D)`` have an entry in every row, bool ``(D,)``."""
    n, d = x.shape
    looked = range(0, n, max(1, n // _LOOKS))
    if n:  # a few rows nearly always tell that there is none
        some = np.concatenate([x.indices[x.indptr[row] : x.indptr[row + 1]] for row in looked])
        if not (np.bincount(some, minlength=d) == len(looked)).any():
            return np.zeros(d, dtype=bool)
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
    used = slice(0, int(x.indptr[-1]))
    squares = _squares(x, used.stop)
    if squares is not None:
        rms = torch.from_numpy(np.sqrt(squares / max(n, 1)))
    else:  # squares of 1e24 must not overflow
        peak = torch.from_numpy(abs(x).max(axis=0).toarray().ravel().astype("float64"))
        peak = torch.where(peak > 0, peak, 1.0)
        unit = np.abs(x.data[used]) / peak.numpy()[x.indices[used]]  # by quotients: what is subnormal has no reciprocal
        shares = np.bincount(x.indices[used], np.square(unit, dtype=np.float64), minlength=d)
        rms = torch.from_numpy(np.sqrt(shares / max(n, 1))) * peak
    center, scale = torch.zeros_like(rms), torch.where(rms > 0, rms, 1.0)
    full = full_columns(x)
    if centered and full.any():
        values = torch.from_numpy(x[:, full].toarray()).to(torch.float64)
        mean, deviation = column_moments(values, centered=True)
        same = (values == values[0]).all(0)  # exactly, so that a constant column is exactly zero
        center[full], scale[full] = torch.where(same, values[0], mean), deviation
    return center, scale


def _squares(x: Any, count: int) -> NDArray[np.float64] | None:
    """Return the sums of the squares of the columns of a CSR matrix; None where these may lose digits."""
    d = x.shape[1]
    total, step = np.zeros(d), max(_CACHED, d)
    for start in range(0, count, step):  # new memory for all nonzeros takes longer than the rest
        part = slice(start, min(start + step, count))
        size = np.abs(x.data[part])
        least = float(size.min())
        least = least or float(size.min(initial=1.0, where=size > 0))
        if not (float(size.max()) < _SAFE and least > 1.0 / _SAFE):
            return None
        total += np.bincount(x.indices[part], np.square(size, dtype=np.float64), minlength=d)
    return total
