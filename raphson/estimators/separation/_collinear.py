r"""Which columns of a design are linear combinations of others, by name, and what stays estimable.

The rank is decided on standardized columns :math:`z_j = (x_j - \bar x_j) / s_j`, so that neither units
(1e24 or 1e-24) nor large means matter. A pivoted Cholesky factorization of their Gram matrix proposes
dependent columns; because a Gram matrix squares the condition number, each proposal is then decided on its
residual computed from the rows themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

_EPS = float(np.finfo(np.float64).eps)
_GRAM_COLUMNS = 5000  # a 5000 x 5000 Gram matrix takes 200 MB
_RESIDUAL = 1e-9  # a column is dependent when its residual is below this share of its standard deviation
_PIVOT = 1e-10  # squared residual below which a Gram matrix cannot tell near from exact dependence
_SNAP = 1e-8  # standardized coefficients of a dependency below this are rounding
_READABLE = 64  # with more dependencies than this they are not rewritten to name few columns
_BLOCK = 2**22  # numbers held at once in a block of rows

INTERCEPT = "(intercept)"


@dataclass(frozen=True)
class Standardized:
    r"""Rows ``x`` with the affine map that standardizes their columns, :math:`z = (x - r) / s - m`.

    The reference ``r`` is a value of the column, so that ``x - r`` is exact where the mean is large.

    Attributes:
        x: ``(N, D)`` array or CSR matrix, as given.
        reference: ``r``, ``(D,)``; zero without an intercept and for sparse rows.
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
        """Yield slices of rows with their standardized values in the given columns.

        Args:
            columns: Indices of columns that vary.

        Yields:
            The slice and an array of that many rows by ``len(columns)``.
        """
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
            scaled = self.x[:, columns].multiply(1.0 / self.scale[columns]).tocsr()
            product: Array = (scaled.T @ scaled).toarray() / n
            product -= np.outer(self.shift[columns], self.shift[columns])
            return product
        total: Array = np.zeros((len(columns), len(columns)))
        for _, z in self.blocks(columns):
            total += z.T @ z
        total /= n
        return total

    def to_original(self, b: Array) -> Array:
        """Turn standardized coefficients ``(D, q)`` into those of ``x``, intercept first if there is one.

        Args:
            b: Coefficients of the standardized columns; the intercept is whatever cancels the shifts.

        Returns:
            ``(D + has_intercept, q)``.
        """
        slopes = np.divide(b, self.scale[:, None], out=np.zeros_like(b), where=self.scale[:, None] > 0)
        if not self.has_intercept:
            return slopes
        parts = slopes * self.reference[:, None] + b * self.shift[:, None]
        intercept = -parts.sum(0)
        rounding = _SNAP * (np.abs(parts).sum(0) + np.abs(b).sum(0))
        return np.vstack([np.where(np.abs(intercept) > rounding, intercept, 0.0), slopes])


def as_numpy(values: Any) -> Array:
    """Return a tensor, array or list as a NumPy array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def as_rows(x: Any, weights: Any = None) -> tuple[Any, Array]:
    """Return the rows that count, as float64 NumPy or CSR, and the mask that selects them.

    Args:
        x: ``(N, D)`` tensor, array or sparse matrix.
        weights: ``(N,)`` or None; rows of weight zero do not count.

    Returns:
        The selected rows and the ``(N,)`` boolean mask.
    """
    if hasattr(x, "tocsr"):
        rows = x.tocsr().astype(np.float64)
    else:
        rows = as_numpy(x).astype(np.float64, copy=False)
    keep = np.ones(rows.shape[0], dtype=bool) if weights is None else as_numpy(weights) > 0
    return (rows if keep.all() else rows[keep]), keep


def standardize(x: Any, has_intercept: bool) -> Standardized:
    """Return the map that standardizes the columns of ``x``; see ``Standardized``.

    Args:
        x: ``(N, D)`` float64 array or CSR matrix.
        has_intercept: Whether the columns may be centered.

    Returns:
        The rows with their map.
    """
    sparse = hasattr(x, "tocsr")
    low, high = x.min(axis=0), x.max(axis=0)
    if sparse:
        low, high = low.toarray().ravel(), high.toarray().ravel()
    size = np.maximum(np.abs(low), np.abs(high))
    spread = high - low if has_intercept else size
    varies = spread > (4 * _EPS * size if has_intercept else 0.0)
    unit = np.where(varies, spread, 1.0)
    reference = np.where(varies, low, 0.0) if has_intercept and not sparse else np.zeros_like(low)
    mean, square = _moments(x, reference, unit, has_intercept)
    deviation = np.sqrt(square)
    shift = np.where(varies, mean / np.where(varies, deviation, 1.0), 0.0)
    return Standardized(x, reference, np.where(varies, deviation * unit, 0.0), shift, size, has_intercept)


def _moments(x: Any, reference: Array, unit: Array, centered: bool) -> tuple[Array, Array]:
    """Return the mean and the mean square about it of ``(x - reference) / unit``, column by column."""
    n, d = x.shape
    if hasattr(x, "tocsr"):
        u = x.multiply(1.0 / unit).tocsr()
        mean = np.asarray(u.sum(axis=0)).ravel() / n if centered else np.zeros(d)
        stored = np.bincount(u.indices, minlength=d)
        square = np.bincount(u.indices, (u.data - mean[u.indices]) ** 2, minlength=d)
        return mean, (square + (n - stored) * mean**2) / n
    step = max(1, _BLOCK // max(1, d))
    slices = [slice(start, start + step) for start in range(0, n, step)]
    zero = np.zeros(d)
    mean = sum((((x[s] - reference) / unit).sum(0) for s in slices), zero) / n if centered else zero
    return mean, sum(((((x[s] - reference) / unit - mean) ** 2).sum(0) for s in slices), zero) / n


@dataclass(frozen=True)
class Dependency:
    """One linear relation between columns, which holds in every row.

    Attributes:
        columns: Indices of the columns in it, ascending; the last is the one the relation is solved for.
        names: Their names.
        coefficients: The relation is ``constant + sum_j coefficients[j] * column_j = 0``, the last being 1.
        constant: Coefficient of the intercept; zero without one.
    """

    columns: tuple[int, ...]
    names: tuple[str, ...]
    coefficients: tuple[float, ...]
    constant: float

    @property
    def kind(self) -> str:
        """``"zero"``, ``"constant"``, ``"duplicate"``, ``"total"`` (a constant sum) or ``"combination"``."""
        if len(self.columns) == 1:
            return "constant" if self.constant else "zero"
        if len(self.columns) == 2 and not np.isclose(self.coefficients[0], 1.0):
            return "duplicate"
        if self.constant and np.allclose(self.coefficients, 1.0, rtol=1e-6):
            return "total"
        return "duplicate" if len(self.columns) == 2 else "combination"

    def equation(self) -> str:
        """Return the relation solved for its last column, say ``c = a + b``."""
        terms = [(-c, f" {name}") for c, name in zip(self.coefficients[:-1], self.names[:-1], strict=True)]
        if self.constant or not terms:
            terms.append((-self.constant, ""))
        shown = terms if len(terms) <= 8 else terms[:7]
        text = ""
        for value, name in shown:
            size = f"{abs(value):.6g}"
            body = name.strip() if name and size == "1" else size + name
            text += (" - " if value < 0 else " + ") + body
        text = text[3:] if text.startswith(" + ") else "-" + text[3:]
        return f"{self.names[-1]} = {text}" + (f" + {len(terms) - 7} more terms" if shown is not terms else "")

    def sentence(self) -> str:
        """Return what was seen and the remedy, in whole sentences."""
        last, names = self.names[-1], listed(self.names)
        if self.kind == "zero":
            return f"Column '{last}' is zero in every row: its coefficient is not determined. Remedy: drop it."
        if self.kind == "constant":
            return (
                f"Column '{last}' is constant ({-self.constant:.6g}) beside the intercept: only the sum of "
                f"the two effects is determined. Remedy: drop '{last}', or fit without an intercept."
            )
        if self.kind == "duplicate":
            up_to = " exactly" if self.coefficients[0] == -1 and not self.constant else " up to scale"
            up_to += " and shift" if self.constant else ""
            return (
                f"Column '{last}' duplicates '{self.names[0]}'{up_to} ({self.equation()}): only their "
                "combined effect is determined. Remedy: drop one of the two, or add a penalty (l2=1e-3)."
            )
        if self.kind == "total":
            return (
                f"Columns {names} add up to {-self.constant:.6g} in every row, which the intercept already "
                "carries (the dummy-variable trap). Remedy: drop one of them or the intercept, or add a "
                "penalty (l2=1e-3)."
            )
        return (
            f"Column '{last}' is a linear combination of others: {self.equation()}. "
            f"Remedy: drop one of {names}, or add a penalty (l2=1e-3)."
        )


@dataclass(frozen=True)
class Collinearity:
    r"""Rank, null space and dependencies of the design :math:`\hat X = [1, X]` (without the 1 if none).

    Attributes:
        rank: Rank of the design; an upper bound where ``complete`` is False.
        n_rows: Rows that count.
        null: ``(D + has_intercept, nullity)`` sparse matrix (CSC) in the units of ``X``, intercept first:
            ``design @ null = 0``.
        groups: The dependencies, each naming as few columns as was found; empty where rows are fewer than
            coefficients and so many columns depend on each other that no list would help.
        complete: Whether every dependency was sought; False for sparse designs wider than 5000 columns, where
            only constant and proportional columns are.
    """

    rank: int
    n_rows: int
    null: Any
    groups: tuple[Dependency, ...]
    complete: bool

    @property
    def n_coefficients(self) -> int:
        """Columns of the design, the intercept included."""
        return int(self.null.shape[0])

    @property
    def nullity(self) -> int:
        """Number of independent linear relations between the columns."""
        return int(self.null.shape[1])

    @property
    def null_basis(self) -> Tensor:
        """``null`` as a dense ``(D + has_intercept, nullity)`` tensor."""
        return torch.from_numpy(self.null.toarray())

    @property
    def mask(self) -> Tensor:
        """Which coefficients are estimable, ``(D + has_intercept,)``: those that no dependency involves."""
        return torch.from_numpy(np.bincount(self.null.indices, minlength=self.n_coefficients) == 0)

    def estimable(self, contrast: Tensor | Array) -> Tensor:
        r"""Return whether the data determine contrasts :math:`c^T\beta`: :math:`c^T n = 0` on the null space.

        Args:
            contrast: ``(D + has_intercept,)`` or ``(m, D + has_intercept)``, intercept first.

        Returns:
            Boolean tensor, one element per contrast.
        """
        c = as_numpy(contrast).astype(np.float64)
        rows = np.atleast_2d(c)
        product = np.abs(self.null.T @ rows.T)
        scale = np.abs(self.null).T @ np.abs(rows).T
        return torch.from_numpy((product <= _SNAP * scale).all(0).reshape(c.shape[:-1]))

    def sentences(self, limit: int = 20) -> list[str]:
        """Return one message per dependency with its remedy, and what was left out.

        Args:
            limit: Most dependencies to describe.

        Returns:
            The messages; empty if the design has full rank.
        """
        found = [group.sentence() for group in self.groups[:limit]]
        if self.nullity and self.n_coefficients > self.n_rows:
            found.insert(
                0,
                f"There are {self.n_coefficients} coefficients per class and {self.n_rows} rows, so at most "
                f"{self.rank} combinations of coefficients are determined. Remedy: add a penalty (l2=1e-3), "
                "drop columns or add rows.",
            )
        if len(self.groups) > limit:
            found.append(f"{len(self.groups) - limit} more dependencies between columns are not listed.")
        if not self.complete:
            found.append(
                f"With {self.n_coefficients} coefficients only constant and proportional columns were looked "
                "for; other linear combinations are possible."
            )
        return found


def listed(names: Sequence[str], limit: int = 6) -> str:
    """Return names in quotes as an English list, the tail beyond ``limit`` as a count."""
    quoted = [f"'{name}'" for name in names[:limit]]
    if len(names) > limit:
        return ", ".join(quoted) + f" and {len(names) - limit} more"
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def find_collinear(
    x: Any, weights: Any = None, names: Sequence[str] | None = None, has_intercept: bool = True
) -> Collinearity:
    """Find every linear dependency between the columns of a design, named by as few columns as possible.

    A column counts as dependent when what the others leave of it is below 1e-9 of its standard deviation, or
    below the rounding of the columns themselves. Time is that of one Gram matrix, ``N D^2``, and more passes
    over the rows when something is found; dense rows are read in blocks, sparse ones stay sparse.

    Args:
        x: ``(N, D)`` finite tensor, array or CSR matrix, without the column of ones.
        weights: ``(N,)`` or None; rows of weight zero do not count.
        names: ``D`` column names; ``x0, x1, ...`` by default.
        has_intercept: Whether the model adds a column of ones.

    Returns:
        The rank, the null space and the dependencies; ``nullity`` is zero for a design of full column rank.
    """
    import scipy.sparse

    rows, _ = as_rows(x, weights)
    n, d = rows.shape
    labels = tuple(names) if names is not None else tuple(f"x{j}" for j in range(d))
    std = standardize(rows, has_intercept)
    live = std.live
    complete = not (hasattr(rows, "tocsr") and len(live) > _GRAM_COLUMNS)
    if complete:
        vectors = _null_vectors(std, live)
        if vectors.shape[1] <= _READABLE:
            vectors = _readable(vectors)
        z = np.zeros((d, vectors.shape[1]))
        z[live] = vectors
        found = scipy.sparse.csc_array(std.to_original(z))
    else:
        found = _proportional(std, live)
    null = scipy.sparse.hstack([_constants(std), found], format="csc")
    null.eliminate_zeros()
    nullity = null.shape[1]
    named = nullity <= _READABLE or d + has_intercept <= n
    groups = [_dependency(null, q, labels, has_intercept) for q in range(nullity)] if named else []
    groups.sort(key=lambda group: group.columns[-1])
    return Collinearity(min(n, d + has_intercept - nullity), n, null, tuple(groups), complete)


def _constants(std: Standardized) -> Any:
    """Return the null vectors of constant columns: the column minus its value times the intercept."""
    import scipy.sparse

    dead = np.flatnonzero(std.scale == 0)
    first = int(std.has_intercept)
    vectors = scipy.sparse.lil_array((len(std.scale) + first, len(dead)))
    for q, j in enumerate(dead):
        vectors[j + first, q] = 1.0
        if std.has_intercept and std.size[j]:
            vectors[0, q] = -float(std.x[0, j])
    return vectors.tocsc()


def _null_vectors(std: Standardized, live: Array) -> Array:
    """Return a basis ``(len(live), q)`` of the null space of the standardized columns.

    Each round factorizes the Gram matrix of combinations ``Z C`` of the columns. What it cannot tell from
    dependent is orthogonalized against the rest (twice, for full accuracy): a residual at rounding level is a
    null vector, a larger one goes into the next round at unit size.
    """
    from scipy.linalg import solve_triangular
    from scipy.linalg.lapack import dpstrf

    combos: Array | None = None
    noise = 8 * _EPS * std.size[live] / std.scale[live] if len(live) else np.zeros(0)
    found = [np.zeros((len(live), 0))]
    while combos is None or combos.shape[1]:
        gram = std.gram(live) if combos is None else _product(std, live, combos, combos)
        if not len(gram):
            break
        factor, pivots, rank, _ = dpstrf(gram, tol=_PIVOT, lower=1)
        if rank == len(gram):
            break
        basis = np.eye(len(live)) if combos is None else combos
        kept, rest = basis[:, pivots[:rank] - 1], basis[:, pivots[rank:] - 1]
        lower = factor[:rank, :rank]
        rest = rest - kept @ solve_triangular(lower, factor[rank:, :rank].T, lower=True, trans="T")
        again = solve_triangular(lower, _product(std, live, kept, rest), lower=True)
        rest = rest - kept @ solve_triangular(lower, again, lower=True, trans="T")
        left = np.sqrt(_squares(std, live, rest))
        null = left <= _RESIDUAL * np.abs(rest).max(0) + noise @ np.abs(rest)
        found.append(rest[:, null])
        combos = rest[:, ~null] / left[~null]
    return np.hstack(found)


def _product(std: Standardized, live: Array, a: Array, b: Array) -> Array:
    """Return ``(Z a)^T (Z b) / N``."""
    total: Array = np.zeros((a.shape[1], b.shape[1]))
    for _, z in std.blocks(live):
        total += (z @ a).T @ (z @ b)
    total /= std.x.shape[0]
    return total


def _squares(std: Standardized, live: Array, a: Array) -> Array:
    """Return the mean squares of the columns of ``Z a``."""
    total: Array = np.zeros(a.shape[1])
    for _, z in std.blocks(live):
        total += ((z @ a) ** 2).sum(0)
    total /= std.x.shape[0]
    return total


def _readable(vectors: Array) -> Array:
    """Rewrite a null basis so that each vector expresses one column by few earlier ones.

    Column echelon form from the bottom gives every dependent column in terms of earlier independent ones;
    then a vector is replaced by its difference with a multiple of another wherever that leaves fewer columns.

    Returns:
        The new basis, ``(D, q)``, rounding set to zero.
    """
    v = vectors / np.abs(vectors).max(0, keepdims=True) if vectors.size else vectors.copy()
    free = list(range(v.shape[1]))
    for row in range(v.shape[0] - 1, -1, -1):
        if not free:
            break
        q = max(free, key=lambda c: abs(v[row, c]))
        if abs(v[row, q]) <= _SNAP * np.abs(v[:, q]).max():
            continue
        free.remove(q)
        v[:, q] /= v[row, q]
        others = np.arange(v.shape[1]) != q
        v[:, others] -= np.outer(v[:, q], v[row, others])
        v[row, others] = 0.0
    v[np.abs(v) <= _SNAP * np.abs(v).max(0, initial=0.0)] = 0.0
    # relations of late columns first: they are the ones to shorten
    v = v[:, np.argsort([-np.flatnonzero(column)[-1] for column in v.T])] if v.size else v
    improved = True
    while improved:
        improved = False
        for p in range(v.shape[1]):
            for q in range(v.shape[1]):
                if p == q:
                    continue
                for shared in np.flatnonzero((v[:, p] != 0) & (v[:, q] != 0)):
                    trial = v[:, p] - v[shared, p] / v[shared, q] * v[:, q]
                    trial[np.abs(trial) <= _SNAP * np.abs(v[:, p]).max()] = 0.0
                    if np.count_nonzero(trial) < np.count_nonzero(v[:, p]):
                        v[:, p] = trial
                        improved = True
                        break
    return v


def _proportional(std: Standardized, live: Array) -> Any:
    """Return null vectors of columns proportional to an earlier one, by hashing their nonzero pattern."""
    import scipy.sparse

    columns = std.x.tocsc()
    columns.sort_indices()
    first: dict[bytes, list[int]] = {}
    entries: list[tuple[int, int, float]] = []
    for j in live:
        span = slice(columns.indptr[j], columns.indptr[j + 1])
        values = columns.data[span]
        seen = first.setdefault(columns.indices[span].tobytes(), [])
        for other in seen:
            theirs = columns.data[columns.indptr[other] : columns.indptr[other + 1]]
            peak = int(np.abs(theirs).argmax())
            ratio = values[peak] / theirs[peak]
            if np.abs(values - ratio * theirs).max() <= _RESIDUAL * np.abs(values).max():
                entries.append((int(j), other, float(ratio)))
                break
        else:
            seen.append(int(j))
    offset = int(std.has_intercept)
    count = np.arange(len(entries))
    rows = np.array([(j + offset, other + offset) for j, other, _ in entries], dtype=np.int64).reshape(-1, 2)
    data = np.array([(1.0, -ratio) for _, _, ratio in entries]).reshape(-1, 2)
    shape = (len(std.scale) + offset, len(entries))
    return scipy.sparse.csc_array((data.ravel(), (rows.ravel(), np.repeat(count, 2))), shape=shape)


def _dependency(null: Any, q: int, names: Sequence[str], has_intercept: bool) -> Dependency:
    """Return column ``q`` of the null space, scaled so that its last coefficient is 1."""
    span = slice(null.indptr[q], null.indptr[q + 1])
    index, value = null.indices[span], null.data[span]
    order = np.argsort(index)
    index, value = index[order], value[order] / value[order][-1]
    constant = float(value[0]) if has_intercept and index[0] == 0 else 0.0
    slopes = index >= int(has_intercept)
    columns = tuple(int(j) - int(has_intercept) for j in index[slopes])
    coefficients = tuple(float(c) for c in value[slopes])
    return Dependency(columns, tuple(names[j] for j in columns), coefficients, constant)
