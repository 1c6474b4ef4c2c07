"""Standardized columns of a table, read in blocks of rows, and the map back to the table's units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raphson.data import centered_entries, full_columns

Array = NDArray[Any]

EPS = float(np.finfo(np.float64).eps)
SNAP = 1e-8  # standardized coefficients of a dependency below this are rounding
_BLOCK = 2**22  # numbers held at once in a block of rows


@dataclass(frozen=True)
class Standardized:
    r"""Rows ``x`` with the affine map that standardizes their columns, :math:`z = (x - r) / s - m`.

    The reference ``r`` is a value of the column, so that ``x - r`` is exact where the mean is large. Of sparse rows
    only columns with an entry in every row have one: with a zero among the entries the mean is not large.

    Attributes:
        x: ``(N, D)`` array or CSR matrix, as given.
        reference: ``r``, ``(D,)``; zero without an intercept.
        scale: ``s``, ``(D,)``; zero for a column that is constant beside the intercept, or zero everywhere.
        shift: ``m``, ``(D,)``; zero without an intercept.
        size: Largest absolute value of each column, ``(D,)``.
        has_intercept: Whether columns are centered, as an intercept allows.
    """

    x: Any
    reference: Array
    scale: Array
    shift: Array
    size: Array
    has_intercept: bool

    @property
    def live(self) -> Array:
        """Indices of the columns that vary."""
        return np.flatnonzero(self.scale)

    def blocks(self, columns: Array) -> Iterator[tuple[slice, Array]]:
        """Yield slices of rows with their standardized values in the given columns that vary."""
        everything = len(columns) == self.x.shape[1]
        step = max(1, _BLOCK // max(1, len(columns)))
        for start in range(0, self.x.shape[0], step):
            rows = slice(start, min(start + step, self.x.shape[0]))
            block = self.x[rows] if everything else self.x[rows][:, columns]
            dense = block.toarray() if hasattr(block, "toarray") else block
            yield rows, (dense - self.reference[columns]) / self.scale[columns] - self.shift[columns]

    def gram(self, columns: Array) -> Array:
        """Return ``Z^T Z / N`` of the given columns."""
        n = self.x.shape[0]
        if hasattr(self.x, "tocsr"):
            shifted = centered_entries(self.x, self.reference)
            scaled = shifted[:, columns].multiply(1.0 / self.scale[columns]).tocsr()
            product: Array = (scaled.T @ scaled).toarray() / n
            product -= np.outer(self.shift[columns], self.shift[columns])
            return product
        return self.average(columns, lambda z: z.T @ z)

    def average(self, columns: Array, of: Callable[[Array], Array]) -> Array:
        """Return the mean over rows of what is summed over the rows of each block of the given columns."""
        sums = (of(z) for _, z in self.blocks(columns))
        total = next(sums)
        for part in sums:
            total += part
        total /= self.x.shape[0]
        return total

    def to_original(self, index: Array, b: Array) -> Any:
        """Return relations ``b`` ``(m, q)`` of standardized columns ``index`` ``(m, q)`` as those of ``x``.

        The result is CSC ``(D + has_intercept, q)``, first the intercept that cancels shifts.
        """
        import scipy.sparse

        slopes, first = b / self.scale[index], int(self.has_intercept)
        entries, rows = [slopes], [index + first]
        if first:
            parts = slopes * self.reference[index] + b * self.shift[index]
            ones, size = -parts.sum(0), np.abs(parts).sum(0) + np.abs(b).sum(0)
            entries.insert(0, np.where(np.abs(ones) > SNAP * size, ones, 0.0)[None])
            rows.insert(0, np.zeros((1, b.shape[1]), dtype=np.int64))
        data, place, q = np.concatenate(entries), np.concatenate(rows), np.arange(b.shape[1])
        at = place.T.ravel(), np.repeat(q, len(data))
        return scipy.sparse.csc_array((data.T.ravel(), at), shape=(len(self.scale) + first, len(q)))


def as_numpy(values: Any) -> Array:
    """Return a tensor, array or list as a NumPy array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def as_rows(x: Any, weights: Any = None) -> tuple[Any, Array]:
    """Return the rows of positive weight, as float64 NumPy or CSR, and the ``(N,)`` mask that selects them."""
    if hasattr(x, "tocsr"):
        rows = x.tocsr().astype(np.float64)
    else:
        rows = as_numpy(x).astype(np.float64, copy=False)
    keep = np.ones(rows.shape[0], dtype=bool) if weights is None else as_numpy(weights) > 0
    return (rows if keep.all() else rows[keep]), keep


def standardize(x: Any, has_intercept: bool) -> Standardized:
    """Return the rows, a float64 array or CSR matrix, with the map that standardizes their columns."""
    sparse = hasattr(x, "tocsr")
    low, high = x.min(axis=0), x.max(axis=0)
    if sparse:
        low, high = low.toarray().ravel(), high.toarray().ravel()
    size = np.maximum(np.abs(low), np.abs(high))
    spread = high - low if has_intercept else size
    varies = spread > (4 * EPS * size if has_intercept else 0.0)
    unit = np.where(varies, spread, 1.0)
    reference = np.where(varies & (full_columns(x) if sparse else True), low if has_intercept else 0.0, 0.0)
    mean, square = _moments(x, reference, unit, has_intercept)
    deviation = np.sqrt(square)
    shift = np.where(varies, mean / np.where(varies, deviation, 1.0), 0.0)
    return Standardized(x, reference, np.where(varies, deviation * unit, 0.0), shift, size, has_intercept)


def _moments(x: Any, reference: Array, unit: Array, centered: bool) -> tuple[Array, Array]:
    """Return the mean and the mean square about it of ``(x - reference) / unit``, column by column."""
    n, d = x.shape
    if hasattr(x, "tocsr"):
        u = centered_entries(x, reference).multiply(1.0 / unit).tocsr()
        mean = np.asarray(u.sum(axis=0)).ravel() / n if centered else np.zeros(d)
        stored = np.bincount(u.indices, minlength=d)
        square = np.bincount(u.indices, (u.data - mean[u.indices]) ** 2, minlength=d)
        return mean, (square + (n - stored) * mean**2) / n
    step = max(1, _BLOCK // max(1, d))
    slices = [slice(start, start + step) for start in range(0, n, step)]
    zero = np.zeros(d)
    mean = sum((((x[s] - reference) / unit).sum(0) for s in slices), zero) / n if centered else zero
    return mean, sum(((((x[s] - reference) / unit - mean) ** 2).sum(0) for s in slices), zero) / n
