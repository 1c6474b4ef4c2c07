r"""Tables of examples, read in blocks: the single place where sums over data happen.

A design matrix :math:`\hat X` (N, D') holds an optional column of ones first and then the D columns of the table.
Solvers work on standardized columns :math:`(x_j - m_j) / s_j`, which costs nothing (it is applied block by block) and
makes them indifferent to units from 1e-24 to 1e24. A block stores its columns first, ``(D', rows)``: a feature is then
contiguous, products of two features and of a feature with a weight run at memory speed, and per-class reductions of the
``(C, rows)`` outputs vectorize over examples however few the classes.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from raphson.data._sparse_product import SparseRows, arranged, padded

CACHE_BYTES = 2**27
"""A standardized copy of the table is kept only below this size (128 MiB); larger tables are read in place."""

PRODUCT_BYTES = 2**25
"""Products of two columns, which every dense Hessian needs, are kept only below this size (32 MiB)."""

_GRAM_COLUMNS = 2000
_GRAM_ROWS = (1000, 5000)
"""Rows on which columns are tried for independence, the second number if rare columns need more."""

_CONDITION = 1e-9
"""Smallest over largest eigenvalue of the Gram matrix above which columns are independent beyond doubt."""

_CENTERING = 1e3
"""Means up to this many standard deviations may be subtracted from sums instead of from rows: three digits are lost."""

_SAFE_VARIANCE = 1e-6
"""Share of the mean square above which a variance is the difference of the mean square and the squared mean."""

_MATRIX_COLUMNS = 64
"""Up to this many columns the map of gradients is one product with its matrix: fewer calls, negligible arithmetic."""

_CACHED_ROWS = 4096
"""Rows that pass through several operations while they are in the cache."""

_BLOCK_ELEMENTS = 2**17
"""Outputs per block: enough to occupy two threads, little enough to stay in the cache."""


class Block(abc.ABC):
    """Some consecutive rows of a design matrix.

    Attributes:
        rows: Which rows of the table these are.
    """

    rows: slice

    @abc.abstractmethod
    def predict(self, coef: Tensor) -> Tensor:
        """Return linear predictors ``(C, rows)`` of coefficients ``(C, D')``."""

    @abc.abstractmethod
    def adjoint(self, r: Tensor) -> Tensor:
        """Return ``r @ X``, ``(C, D')``, for ``r`` of shape ``(C, rows)``."""

    def arrange(self, coef: Tensor) -> Tensor:
        """Return coefficients ``(C, D')`` with the strides that ``predict`` wants, copied only if they have others."""
        return coef

    @abc.abstractmethod
    def features(self) -> Tensor:
        """Return the block as a dense tensor ``(D', rows)``."""

    def products(self) -> Tensor | None:
        """Return the products of two columns, ``(D' (D' + 1) / 2, rows)``, where they are kept; None elsewhere."""
        return None

    @abc.abstractmethod
    def squares(self, r: Tensor) -> Tensor:
        """Return ``r @ X**2``, ``(C, D')``: the diagonal counterpart of ``adjoint``."""


@dataclass(frozen=True)
class DenseBlock(Block):
    """Rows of a dense table as a ``(D', rows)`` tensor.

    Attributes:
        rows: Which rows of the table these are.
        x: Their columns.
        keeps_products: Whether the products of columns are kept once they have been made.
    """

    rows: slice
    x: Tensor
    keeps_products: bool = False

    @cached_property
    def _products(self) -> Tensor:
        i, j = torch.triu_indices(self.x.shape[0], self.x.shape[0])
        return self.x[i].mul_(self.x[j])

    def products(self) -> Tensor | None:  # noqa: D102
        return self._products if self.keeps_products else None

    def predict(self, coef: Tensor) -> Tensor:  # noqa: D102
        return coef @ self.x

    def adjoint(self, r: Tensor) -> Tensor:  # noqa: D102
        return r @ self.x.mT

    def features(self) -> Tensor:  # noqa: D102
        return self.x

    def squares(self, r: Tensor) -> Tensor:  # noqa: D102
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
        product = r @ self.x
        if not self.design.intercept:
            return product / self.design.scale
        total = r.sum(1, keepdim=True)
        return torch.cat([total, (product - total * self.design.center) / self.design.scale], 1)

    def features(self) -> Tensor:  # noqa: D102
        return self.design.standardized(self.rows)

    def squares(self, r: Tensor) -> Tensor:  # noqa: D102
        return r @ self.features().square().mT


@dataclass(frozen=True)
class SparseBlock(Block):
    """Rows of a sparse table and their transpose, columns scaled, the ones kept implicit."""

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

    def squares(self, r: Tensor) -> Tensor:  # noqa: D102
        return self._transposed_product(self.xt.square(), r)

    def _transposed_product(self, xt: SparseRows, r: Tensor) -> Tensor:
        """Return ``r @ X`` for the transpose of X, with columns slowest: what a sparse product writes, not copied."""
        if not self.intercept:
            return xt.product(r.mT).mT
        out = padded(xt.shape[0] + 1, r.shape[0], r)
        torch.sum(r, 1, out=out[0])
        xt.product(r.mT, out[1:])
        return out.mT


class Design(abc.ABC):
    """A design matrix with standardized columns, given in blocks.

    Attributes:
        n_rows: N.
        n_columns: D', the column of ones included.
        intercept: Whether the first column is the ones.
        center: ``(D,)`` subtracted from the columns of the table.
        scale: ``(D,)`` by which they are divided.
    """

    n_rows: int
    n_columns: int
    intercept: bool
    center: Tensor
    scale: Tensor
    dtype: torch.dtype

    @abc.abstractmethod
    def blocks(self, n_outputs: int) -> Iterator[Block]:
        """Yield the rows in order, in blocks fit for ``n_outputs`` outputs."""

    @abc.abstractmethod
    def take(self, index: Tensor) -> Design:
        """Return the design of some rows, standardized as this one."""

    @abc.abstractmethod
    def astype(self, dtype: torch.dtype) -> Design:
        """Return the same design whose blocks have another element type."""

    def whole(self) -> Tensor | None:
        """Return all rows as one double-precision tensor ``(D', N)`` where such a copy is kept; None elsewhere."""
        return None

    def is_well_conditioned(self) -> bool:
        """Return whether the columns are far from collinear; False also where finding out would cost too much."""
        return False

    def to_table(self, coef: Tensor) -> Tensor:
        """Turn coefficients of the standardized columns into those of the table, ``(C, D')``.

        From ``b0 + sum_j b_j (x_j - m_j) / s_j``, the slopes are ``b_j / s_j`` and the intercept is
        ``b0 - sum_j m_j b_j / s_j``.

        Args:
            coef: ``(C, D')``.

        Returns:
            ``(C, D')``.
        """
        slopes = coef[:, self.intercept :] / self.scale
        if not self.intercept:
            return slopes
        return torch.cat([coef[:, :1] - slopes @ self.center[:, None], slopes], 1)

    def from_table(self, coef: Tensor) -> Tensor:
        """Turn coefficients of the table's columns into those of the standardized ones; undoes ``to_table``."""
        slopes = coef[:, self.intercept :]
        if not self.intercept:
            return slopes * self.scale
        return torch.cat([coef[:, :1] + slopes @ self.center[:, None], slopes * self.scale], 1)

    def gradient_to_table(self, gradient: Tensor) -> Tensor:
        """Turn a gradient ``(C, D')`` in standardized coefficients into one in the table's coefficients."""
        if self._gradient_matrix is not None:
            return gradient @ self._gradient_matrix
        factor, shift = self.gradient_map
        return torch.addcmul(gradient * factor, gradient[:, :1], shift) if self.intercept else gradient * factor

    @cached_property
    def gradient_map(self) -> tuple[Tensor, Tensor]:
        """``(D',)`` each: by what an entry of a gradient is multiplied, and what of the intercept's is added to it."""
        ones = torch.ones(int(self.intercept), dtype=torch.float64)
        center = self.center if self.intercept else torch.zeros_like(self.center)
        return torch.cat([ones, self.scale]), torch.cat([0.0 * ones, center])

    @cached_property
    def _gradient_matrix(self) -> Tensor | None:
        if self.n_columns > _MATRIX_COLUMNS:
            return None
        factor, shift = self.gradient_map
        matrix = torch.diag(factor)
        if self.intercept:
            matrix[0] += shift
        return matrix

    def table_map(self) -> Tensor:
        """Return the ``(D', D')`` matrix of ``to_table`` acting on one output's coefficients."""
        eye = torch.eye(self.n_columns, dtype=torch.float64)
        return self.to_table(eye).mT


def _rows_per_block(n_outputs: int) -> int:
    fitting = int(_BLOCK_ELEMENTS // max(n_outputs, 1))
    return max(256, 1 << max(fitting.bit_length() - 1, 0))


class DenseDesign(Design):
    """A dense table ``(N, D)``, held as given; a standardized copy is kept while it is small."""

    def __init__(
        self,
        x: Tensor,
        *,
        intercept: bool = True,
        standardize: bool = False,
        dtype: torch.dtype = torch.float64,
        moments: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.x = x
        self.n_rows, d = x.shape
        self.intercept = intercept
        self.n_columns = d + intercept
        self.dtype = dtype
        if moments is not None:
            self.center, self.scale = moments
        elif standardize:
            self.center, self.scale = _moments(x, centered=intercept)
        else:
            self.center = torch.zeros(d, dtype=torch.float64)
            self.scale = torch.ones(d, dtype=torch.float64)
        self._blocks: dict[int, list[DenseBlock]] = {}

    def blocks(self, n_outputs: int) -> Iterator[Block]:  # noqa: D102
        size = _rows_per_block(n_outputs)
        slices = [slice(s, min(s + size, self.n_rows)) for s in range(0, self.n_rows, size)]
        if not self._is_kept:
            for rows in slices:
                yield (
                    RawBlock(rows, self.x[rows], self)
                    if self._read_in_place
                    else DenseBlock(rows, self.standardized(rows))
                )
            return
        if size not in self._blocks:
            products = self.n_columns * (self.n_columns + 1) // 2 * self.n_rows * self.dtype.itemsize
            self._blocks = {size: [DenseBlock(r, self._whole[:, r], products <= PRODUCT_BYTES) for r in slices]}
        yield from self._blocks[size]

    def whole(self) -> Tensor | None:  # noqa: D102
        return self._whole if self._is_kept and self.dtype == torch.float64 and self.x.device.type == "cpu" else None

    @property
    def _is_kept(self) -> bool:
        return self.n_rows * self.n_columns * self.dtype.itemsize <= CACHE_BYTES

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
    def _read_in_place(self) -> bool:
        """Whether sums over the raw columns keep their digits when they are centered afterwards."""
        return self._is_double and bool((self.center.abs() <= _CENTERING * self.scale).all())

    def take(self, index: Tensor) -> DenseDesign:  # noqa: D102
        return DenseDesign(self.x[index], intercept=self.intercept, dtype=self.dtype, moments=(self.center, self.scale))

    def is_well_conditioned(self) -> bool:  # noqa: D102
        if self.n_columns > min(self.n_rows, _GRAM_COLUMNS):
            return False
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
        out = torch.empty(self.n_columns, x.shape[1], dtype=self.dtype)
        if self.intercept:
            out[0] = 1.0
        body = out[self.intercept :]
        if self.dtype == torch.float64:
            for start in range(0, x.shape[1], _CACHED_ROWS):
                part = slice(start, start + _CACHED_ROWS)
                torch.sub(x[:, part], self.center[:, None], out=body[:, part]).div_(self.scale[:, None])
        else:  # centered in double precision first: large means would cost single precision its digits
            body.copy_((x - self.center[:, None]).div_(self.scale[:, None]))
        return out


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
        self.x = x
        self.n_rows, d = x.shape
        self.intercept = intercept
        self.n_columns = d + intercept
        self.dtype = dtype
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

    def astype(self, dtype: torch.dtype) -> SparseDesign:  # noqa: D102
        return SparseDesign(self.x, intercept=self.intercept, dtype=dtype, scale=self.scale)

    def _block(self, start: int, size: int) -> SparseBlock:
        rows = slice(start, min(start + size, self.n_rows))
        x = self.x[rows]
        values = torch.from_numpy(x.data).to(torch.float64) / self.scale[torch.from_numpy(x.indices).long()]
        scaled = type(x)((values.to(self.dtype).numpy(), x.indices, x.indptr), shape=x.shape)
        return SparseBlock(rows, SparseRows.of(scaled), SparseRows.of(scaled.T.tocsr()), self.intercept)


def _moments_of_sums(x: Tensor, *, centered: bool) -> tuple[Tensor, Tensor, bool]:
    """Return center and scale of the columns from sums of values and squares, and whether these kept their digits."""
    n, d = x.shape
    total, squares = torch.zeros(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    buffer = torch.empty(min(n, _CACHED_ROWS), d, dtype=torch.float64)
    for start in range(0, n, _CACHED_ROWS):
        block = x[start : start + _CACHED_ROWS]
        total += block.sum(0)
        squares += torch.mul(block, block, out=buffer[: block.shape[0]]).sum(0)
    center, square = total / n, squares / n
    variance = square - center.square() if centered else square
    safe = (variance > _SAFE_VARIANCE * square) & (square > 1e-200) & (square < 1e200)
    return center if centered else torch.zeros_like(center), variance.sqrt(), bool(safe.all())


def _moments(x: Tensor, *, centered: bool) -> tuple[Tensor, Tensor]:
    """Return center and scale of the columns, safe for entries of 1e24 and 1e-24 and for large means."""
    n, d = x.shape
    center, scale, safe = _moments_of_sums(x, centered=centered)
    if safe:
        return center, scale
    size = max(1024, 2**20 // max(d, 1))
    starts = range(0, n, size)
    largest = torch.zeros(d, dtype=torch.float64)
    total = torch.zeros(d, dtype=torch.float64)
    for s in starts:
        block = x[s : s + size].to(torch.float64)
        largest = torch.maximum(largest, block.abs().amax(0))
        total += block.sum(0)
    center = total / n if centered else torch.zeros_like(total)
    largest = torch.where(largest > 0, largest, 1.0)
    second = torch.zeros(d, dtype=torch.float64)
    for s in starts:
        second += ((x[s : s + size].to(torch.float64) - center) / largest).square().sum(0)
    scale = (second / n).sqrt() * largest
    # a constant column keeps a scale at which rounding noise is not blown up to look like variation
    return center, torch.where(scale > 1e-13 * largest, scale, largest)
