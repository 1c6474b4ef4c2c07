r"""Which columns of a design are linear combinations of others, by name, and what stays estimable.

The rank is decided on standardized columns :math:`z_j = (x_j - \bar x_j) / s_j`, so that neither units
(1e24 or 1e-24) nor large means matter. A pivoted Cholesky factorization of their Gram matrix proposes
dependent columns; because a Gram matrix squares the condition number, each proposal is then decided on its
residual computed from the rows themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson.estimators._names import listed
from raphson.estimators.separation._null_space import RESIDUAL, null_vectors, readable, row_space
from raphson.estimators.separation._standardize import SNAP, Standardized, as_numpy, as_rows, standardize

_GRAM_COLUMNS = 5000  # a 5000 x 5000 Gram matrix takes 200 MB
_READABLE = 64  # with more dependencies than this they are not rewritten to name few columns
_WIDE = 500  # with so many more columns than rows the rows are factorized, which are few, not the columns


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
                "combined effect is determined. Remedy: drop one of the two; the fit stays the same."
            )
        if self.kind == "total":
            return (
                f"Columns {names} add up to {-self.constant:.6g} in every row, which the intercept already "
                "carries (the dummy-variable trap). Remedy: drop one of them or the intercept; "
                "the fit stays the same."
            )
        return (
            f"Column '{last}' is a linear combination of others: {self.equation()}. "
            f"Remedy: drop one of {names}; the fit stays the same."
        )


Array = NDArray[Any]


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
        is_near: Whether columns were found that others explain but for very little.
    """

    rank: int
    n_rows: int
    null: Any
    groups: tuple[Dependency, ...]
    complete: bool
    is_near: bool = False

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
        """Return which contrasts, intercept first, the data determine: :math:`c^T n = 0` on the null space."""
        c = as_numpy(contrast).astype(np.float64)
        rows = np.atleast_2d(c)
        product = np.abs(self.null.T @ rows.T)
        scale = np.abs(self.null).T @ np.abs(rows).T
        return torch.from_numpy((product <= SNAP * scale).all(0).reshape(c.shape[:-1]))

    def sentences(self, limit: int = 20) -> list[str]:
        """Return one message per dependency with its remedy, and what was left out; none for a design of full rank."""
        found = [group.sentence() for group in self.groups[:limit]]
        if self.nullity and self.n_coefficients > self.n_rows:
            found.insert(
                0,
                f"There are {self.n_coefficients} coefficients per class and {self.n_rows} rows, so at most "
                f"{self.rank} combinations of coefficients are determined. Remedy: drop columns or add "
                "rows; l2=1e-3 gives predictions that do not follow every row, and no standard errors.",
            )
        if len(self.groups) > limit:
            found.append(f"{len(self.groups) - limit} more dependencies between columns are not listed.")
        if not self.complete:
            found.append(
                f"With {self.n_coefficients} coefficients only constant and proportional columns were looked "
                "for; other linear combinations are possible."
            )
        return found


def find_collinear(
    x: Any, weights: Any = None, names: Sequence[str] | None = None, has_intercept: bool = True
) -> Collinearity:
    """Return every linear dependency between the columns of a design, named by as few columns as possible.

    A column counts as dependent when what the others leave of it is below 1e-9 of its standard deviation, or
    below the rounding of the columns themselves. Time is that of one Gram matrix, ``N D^2``, and more passes
    over the rows when something is found; dense rows ``(N, D)``, without the ones, are read in blocks, sparse ones stay
    sparse. Where columns are many more than rows it is one factorization, ``N^2 D``, and nothing of the size ``D^2`` is
    made. ``nullity`` is zero for a design of full column rank.
    """
    import scipy.sparse

    rows, _ = as_rows(x, weights)
    n, d = rows.shape
    labels = tuple(names) if names is not None else tuple(f"x{j}" for j in range(d))
    std = standardize(rows, has_intercept)
    live = std.live
    complete = not (hasattr(rows, "tocsr") and len(live) > _GRAM_COLUMNS)
    is_near = False
    if complete and len(live) - n > _WIDE:
        few, rest, shares = row_space(std, live)
        index = np.concatenate([np.repeat(few[:, None], len(rest), 1), rest[None]])  # the last of each is its own
        found = std.to_original(index, np.concatenate([-shares, np.ones((1, len(rest)))]))
    elif complete:
        vectors, is_near = null_vectors(std, live)
        if vectors.shape[1] <= _READABLE:
            vectors = readable(vectors)
        found = std.to_original(np.repeat(live[:, None], vectors.shape[1], 1), vectors)
    else:
        found = _proportional(std, live)
    null = scipy.sparse.hstack([_constants(std), found], format="csc")
    null.eliminate_zeros()
    nullity = null.shape[1]
    named = nullity <= _READABLE or d + has_intercept <= n
    groups = [_dependency(null, q, labels, has_intercept) for q in range(nullity)] if named else []
    groups.sort(key=lambda group: group.columns[-1])
    return Collinearity(min(n, d + has_intercept - nullity), n, null, tuple(groups), complete, is_near)


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
            if np.abs(values - ratio * theirs).max() <= RESIDUAL * np.abs(values).max():
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
