r"""A linear model with a ridge penalty in coordinates of the span of its rows.

At a stationary point the slopes of a group of columns, B_g (r, d) in the units of the table, satisfy

.. math:: \lambda Q_g B_g = -\tfrac1W \sum_n w_n\, H_g^T g_n\, \tilde x_n^T ,

so that they lie in the span of the centered rows. With an orthonormal basis V (d, k) of it :math:`B = C V^T`, the row
:math:`\tilde x_n` becomes :math:`z_n = V^T \tilde x_n`, and the penalty is the same for C as for B: a model of at most
N columns, whatever the likelihood (Hastie and Tibshirani 2004). With the Cholesky factor :math:`\tilde X \tilde X^T =
R R^T` the coordinates of the rows are R itself, and :math:`V^T = R^{-1} \tilde X` is never formed.

References:
    T. Hastie and R. Tibshirani (2004), Efficient quadratic regularization for expression arrays, Biostatistics 5,
    329-340.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from raphson.data import DenseDesign, Design, SparseDesign
from raphson.linear._cost import RowCost, dense_pass, sparse_pass
from raphson.linear._group import Columns, Group, as_list
from raphson.linear._objective import LinearObjective
from raphson.linear._output_map import OutputMap

_CONDITION = 1e-7
"""Reciprocal condition of the products of rows below which their factor keeps less than nine digits of the basis."""

_RANK = 1e-9
"""Singular values below this share of the largest are rounding: rows that are copies or combinations of others."""

_SUMS_TO_ZERO = 1e-11
"""Row sums of the products of rows below this share of their size are zero: the columns are centered."""


@dataclass(frozen=True, eq=False)
class RowBasis:
    r"""An orthonormal basis V of the span of N rows :math:`\tilde X`, by the rows' coordinates :math:`Z = F R`.

    Attributes:
        root: R, ``(k, k)``, lower triangular.
        n_rows: N.
        frame: F, ``(N, k)`` with orthonormal columns; None for the identity, or where k = N - 1 for a reflection's
            basis of the vectors that sum to zero.
    """

    root: Tensor
    n_rows: int
    frame: Tensor | None = None

    @staticmethod
    def of(design: Design, columns: Columns) -> RowBasis | None:
        """Return the basis for some columns of a design's table, more than rows; None where all are constant."""
        products = design.row_products(columns)
        size = float(products.diagonal().mean())
        if not size > 0.0:
            return None
        n = design.n_rows
        centered = n > 1 and float(products.sum(1).abs().max()) <= _SUMS_TO_ZERO * n * size
        inner = _without_constant(products) if centered else products
        factor, info = torch.linalg.cholesky_ex(inner)
        if not int(info) and _reciprocal_condition(factor, inner) > _CONDITION:
            return RowBasis(factor, n)
        return RowBasis._orthogonal(centered_rows(design, columns))

    @staticmethod
    def _orthogonal(x: Tensor) -> RowBasis | None:
        """Return the basis for centered rows ``(N, d)``, d >= N, without squaring their condition number."""
        triangle = torch.linalg.qr(x.mT, mode="r")[1]
        left, values, _ = torch.linalg.svd(triangle.mT)
        kept = values > _RANK * values[0]
        return RowBasis(torch.diag(values[kept]), x.shape[0], left[:, kept].contiguous()) if bool(kept.any()) else None

    @property
    def rank(self) -> int:
        """Number of coordinates, k."""
        return self.root.shape[0]

    @property
    def is_centered(self) -> bool:
        """Whether the coordinates of all rows sum to zero."""
        return self.frame is None and self.rank < self.n_rows

    def coordinates(self) -> Tensor:
        """Return the rows in the basis, Z ``(N, k)``."""
        return self._spread(self.root)

    def combine(self, c: Tensor) -> Tensor:
        """Return the combination of rows, ``(m, N)``, that each of the vectors of coordinates ``(m, k)`` is."""
        solved = torch.linalg.solve_triangular(self.root, c, upper=False, left=False)
        return self._spread(solved.mT).mT

    def project(self, f: Tensor) -> Tensor:
        """Return the coordinates ``(m, k)`` of vectors whose products with the rows are ``f`` ``(m, N)``."""
        if self.frame is not None:
            inner = self.frame.mT @ f.mT
        else:
            inner = f.mT if self.rank == self.n_rows else _reflect(f.mT)[1:]
        solved: Tensor = torch.linalg.solve_triangular(self.root, inner, upper=False)
        return solved.mT

    def _spread(self, m: Tensor) -> Tensor:
        """Return ``F M`` for ``M`` of shape ``(k, m)``."""
        if self.frame is not None:
            return self.frame @ m
        return m if self.rank == self.n_rows else _reflect(torch.nn.functional.pad(m, (0, 0, 1, 0)))


@dataclass(frozen=True, eq=False)
class RowSpace:
    """A penalized objective and the same in the span of its rows.

    Attributes:
        whole: The objective of all columns.
        objective: That of the coordinates of the rows.
        bases: For each group of columns of the whole's map the basis of its rows; None where the columns are kept.
        squares: Squared scales of the columns, ``(D,)``; zero where a column is constant, so that its slope is too.
    """

    whole: LinearObjective
    objective: LinearObjective
    bases: tuple[RowBasis | None, ...]
    squares: Tensor

    @staticmethod
    def of(objective: LinearObjective) -> RowSpace | None:
        """Return an objective's row space, or None: without a penalty, or where no group has more columns than rows."""
        if not has_row_space(objective):
            return None
        here, n = objective.output_map, objective.n_rows
        slopes = [slope_columns(here, group) for group in here.groups]
        bases = tuple(RowBasis.of(objective.design, own) if count(own) > n else None for own in slopes)
        if not any(basis is not None for basis in bases):
            return None
        first = int(here.intercept)
        columns, centers, scales, groups, start = [], [], [], [], first if not here.is_uniform else 0
        design = objective.design
        for group, own, basis in zip(here.groups, slopes, bases, strict=True):
            if basis is None and not count(own):
                groups.append(group)  # the ones
                continue
            columns.append(basis.coordinates() if basis is not None else table_columns(design, own))
            k = columns[-1].shape[1]
            centers.append(torch.zeros(k, dtype=torch.float64) if basis is not None else design.center[own])
            scales.append(torch.ones(k, dtype=torch.float64) if basis is not None else design.scale[own])
            stop = start + k + (first if here.is_uniform else 0)
            groups.append(Group(slice(start, stop), group.matrix))
            start = stop
        x = columns[0] if len(columns) == 1 else torch.cat(columns, 1)
        moments = torch.cat(centers), torch.cat(scales)
        coordinates = DenseDesign(x.contiguous(), intercept=here.intercept, moments=moments)
        coordinates.is_centered = all(basis is not None and basis.is_centered for basis in bases)
        if here.is_uniform:  # all slopes are coordinates
            coordinates.mean_square = float(torch.linalg.vector_norm(x)) ** 2 / x.numel()
        rotated = objective.on(coordinates, OutputMap(tuple(groups), x.shape[1] + first, here.intercept))
        squares, constant = design.scale.square(), constant_columns(design)
        if constant is not None:
            squares[constant] = 0.0
        return RowSpace(objective, rotated, bases, squares)

    def into(self, theta: Tensor) -> Tensor:
        """Return the coordinates ``(p,)`` of parameters ``(P,)`` of all columns, without what is outside the span."""
        here, found = self.whole.output_map, []
        for group, basis, part in zip(here.groups, self.bases, here.split(theta), strict=True):
            ones = part.shape[1] - count(slope_columns(here, group))
            slopes = part[:, ones:]
            if basis is not None and not bool(slopes.any()):
                slopes = slopes.new_zeros(part.shape[0], basis.rank)
            elif basis is not None:
                wide = part.new_zeros(part.shape[0], here.n_columns)
                wide[:, group.columns] = part
                wide[:, : int(here.intercept)] = 0.0
                slopes = basis.project(self.whole.design.predict(wide))
            found.append(torch.cat([part[:, :ones], slopes], 1).flatten())
        return torch.cat(found)

    def back(self, theta: Tensor) -> Tensor:
        """Return the parameters ``(..., P)`` of all columns that coordinates ``(..., p)`` stand for, a linear map."""
        here, lead, found = self.whole.output_map, theta.shape[:-1], []
        parts = self.objective.output_map.split(theta.reshape(-1, theta.shape[-1]))
        for group, basis, part in zip(here.groups, self.bases, parts, strict=True):
            own = slope_columns(here, group)
            slopes = part
            if basis is not None:
                m, r, width = part.shape
                ones = width - basis.rank
                combined = basis.combine(part[..., ones:].reshape(m * r, basis.rank))
                table = self.whole.design.adjoint(combined)[:, int(here.intercept) :][:, own]
                table = table * self.squares[own]  # of centered columns, then of standardized ones
                slopes = torch.cat([part[..., :ones], table.view(m, r, -1)], 2)
            found.append(slopes.flatten(1))
        return torch.cat(found, 1).view(*lead, -1)


def has_row_space(objective: LinearObjective) -> bool:
    """Return whether an objective is penalized and has a group of more columns than rows."""
    here, n = objective.output_map, objective.n_rows
    return objective.l2 > 0 and here.n_columns > n and any(count(slope_columns(here, g)) > n for g in here.groups)


def row_space_cost(objective: LinearObjective) -> RowCost:
    """Return what a fit costs in the row space of an objective and in all columns."""
    here, design, n = objective.output_map, objective.design, objective.n_rows
    wide = [count(own) for own in (slope_columns(here, g) for g in here.groups) if count(own) > n]
    q, in_place = here.basis.shape[1], objective.reduced.is_in_place
    if isinstance(design, SparseDesign):
        nonzeros, d = design.x.nnz, design.x.shape[1]
        passed = sparse_pass(nonzeros, sum(wide), q, compiled=objective.nonzeros is not None)
        # if all columns had as many, the products would take least
        least = RowCost.of(n, len(wide), q, passed, nonzeros * (nonzeros / d), sparse=True, in_place=False)
        if least.gain <= 0.0:
            return least
        counts = np.bincount(design.x.indices, minlength=d).astype(np.float64)
        return RowCost.of(n, len(wide), q, passed, float(counts @ counts), sparse=True, in_place=False)
    entries = float(n) * sum(wide)
    passed = dense_pass(entries, q, in_place=in_place)
    return RowCost.of(n, len(wide), q, passed, n * entries, sparse=False, in_place=in_place)


def slope_columns(output_map: OutputMap, group: Group) -> Columns:
    """Return the positions of a group's columns in the table, the ones aside."""
    first, own = int(output_map.intercept), group.columns
    if isinstance(own, slice):
        return slice(max(own.start - first, 0), own.stop - first)
    return own - first


def count(columns: Columns) -> int:
    """Return the number of columns."""
    return columns.stop - columns.start if isinstance(columns, slice) else columns.shape[0]


def table_columns(design: Design, columns: Columns) -> Tensor:
    """Return columns of a design's table as given, dense, ``(N, d)``."""
    if isinstance(design, SparseDesign):
        return torch.from_numpy(design.x[:, as_list(columns, design.x.shape[1])].toarray()).double()
    x: Tensor = design.x[:, columns]
    return x.double()


def centered_rows(design: Design, columns: Columns) -> Tensor:
    """Return rows of a design's table, centered, dense, ``(N, d)``."""
    return table_columns(design, columns) - design.center[columns]


def constant_columns(design: Design) -> Tensor | None:
    """Return which columns of a dense table are the same in all rows and centered to nothing, bool ``(D,)``.

    None for none, and for sparse tables.
    """
    if not isinstance(design, DenseDesign):
        return None
    size = np.abs(design.center.numpy())
    near = np.abs(design.scale.numpy() - size) <= 1e-9 * size  # of a constant column the scale is its size
    if not near.any():
        return None
    found = torch.from_numpy(near)
    x: Tensor = design.x[:, found]
    same = torch.isclose(x[0].double(), design.center[found], rtol=1e-14, atol=0)
    found[found.clone()] = (x == x[0]).all(0) & same
    return found


def _without_constant(products: Tensor) -> Tensor:
    """Return products of centered rows ``(N, N)`` in a basis of the vectors that sum to zero, ``(N - 1, N - 1)``.

    With the reflection ``I - s v v^T``: ``G - v w^T - w v^T``, of ``p = s G v`` and ``w = p - (s p^T v / 2) v``.
    """
    v, s = _reflection(len(products))
    p = torch.mv(products, v)
    w = p.mul_(s).sub_(v, alpha=0.5 * s * float(p @ v))
    return torch.addr(products[1:, 1:], v[1:], w[1:], alpha=-1.0).addr_(w[1:], v[1:], alpha=-1.0)


def _reflect(m: Tensor) -> Tensor:
    """Return a matrix ``(N, m)`` after the reflection of the first unit vector and the constant one."""
    v, s = _reflection(m.shape[0])
    return torch.addr(m, v, v @ m, alpha=-s)


def _reflection(n: int) -> tuple[Tensor, float]:
    """Return v and s of that reflection, ``I - s v v^T``."""
    v = torch.full((n,), n**-0.5, dtype=torch.float64)
    v[0] -= 1.0
    return v, 2.0 / float(v @ v)


def _reciprocal_condition(factor: Tensor, matrix: Tensor) -> float:
    """Return an estimate of the reciprocal condition number of a matrix from its lower Cholesky factor."""
    size = float(matrix.abs().sum(0).max())
    # rows of the factor are LAPACK's columns
    return float(lapack.dpocon(factor.numpy().T, size, uplo="U")[0])
