r"""Linear predictors whose outputs share coefficients: constraint matrices, one per group of columns.

The outputs of a row are

.. math:: f = \sum_g H_g \Theta_g x_g = T u, \qquad u_g = \Theta_g x_g, \quad T = [H_1, \ldots, H_G],

where the columns of the design are dealt out to groups, :math:`H_g` (C, r_g) says how the :math:`r_g` coefficients of a
column of group g act on the outputs, and :math:`\Theta_g` (r_g, d_g) is free (Yee and Wild 1996, section 2.2). The
identity gives every output its own coefficients, a column of ones makes slopes parallel, a unit vector serves a single
output. By the chain rule derivatives in u are :math:`T^T g` and :math:`T^T H T`.

Products with the data never need more rows than the slopes span: with a basis S (C, q) of the matrices of all columns
but the ones, :math:`f = S K x + a`, where K (q, D') and a (C) are linear in :math:`\Theta`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raphson.curvature._khatri_rao import triangle

_RANK = 1e-10


@dataclass(frozen=True, eq=False)
class Group:
    """Columns of a design that act on the outputs alike.

    Attributes:
        columns: Their positions among all D', a slice or indices ``(d,)``.
        matrix: H, ``(C, r)``, of full column rank.
    """

    columns: slice | Tensor
    matrix: Tensor

    @property
    def n_columns(self) -> int:
        """Number of columns, d."""
        if isinstance(self.columns, slice):
            return int(self.columns.stop - self.columns.start)
        return int(self.columns.shape[0])


@dataclass(frozen=True, eq=False)
class Constraints:
    """Groups of columns with their constraint matrices; the group of the ones, where there is one, comes first.

    The free parameters are ``[vec(Theta_1); vec(Theta_2); ...]``, each ``Theta_g`` ``(r_g, d_g)`` row by row.

    Attributes:
        groups: They cover all D' columns once.
        n_columns: D'.
        intercept: Whether the first group is the column of ones.
    """

    groups: tuple[Group, ...]
    n_columns: int
    intercept: bool

    @property
    def n_outputs(self) -> int:
        """Number of outputs, C."""
        return int(self.groups[0].matrix.shape[0])

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """Shapes ``(r_g, d_g)`` of the parameters of each group."""
        return [(int(g.matrix.shape[1]), g.n_columns) for g in self.groups]

    @cached_property
    def n_parameters(self) -> int:
        """Number of free parameters."""
        return sum(r * d for r, d in self.shapes)

    @cached_property
    def reduced(self) -> Tensor:
        """T, ``(C, R)``: the constraint matrices side by side."""
        return torch.cat([g.matrix for g in self.groups], 1)

    @cached_property
    def basis(self) -> Tensor:
        """S, ``(C, q)``: a basis of what the slopes can do, of columns of their matrices where those will do."""
        slopes = self.groups[int(self.intercept) :]
        if not slopes:
            return self.reduced.new_zeros(self.n_outputs, 0)
        whole = torch.cat([g.matrix for g in slopes], 1)
        distinct: Tensor = torch.unique(whole, dim=1)
        rank = matrix_rank(whole)
        if rank == self.n_outputs:
            return torch.eye(rank, dtype=whole.dtype)
        if distinct.shape[1] == rank:
            return distinct
        left: Tensor = torch.linalg.svd(whole, full_matrices=False)[0]
        return left[:, :rank]

    @cached_property
    def loadings(self) -> list[Tensor]:
        """For each group of slopes the matrix ``(q, r_g)`` with ``S loading = H_g``."""
        return [_solved(self.basis, g.matrix) for g in self.groups[int(self.intercept) :]]

    @cached_property
    def plain(self) -> bool:
        """Whether S is the identity."""
        return self.basis.shape[1] == self.n_outputs

    @cached_property
    def shares(self) -> list[Tensor]:
        """For each group of slopes the matrix ``(r_0, r_g)`` by which intercepts make up for centering its columns."""
        if not self.intercept:
            return [g.matrix.new_zeros(0, g.matrix.shape[1]) for g in self.groups]
        return [_solved(self.groups[0].matrix, g.matrix) for g in self.groups[1:]]

    def can_center(self) -> Tensor:
        """Return for which of the D columns beside the ones an intercept can make up, bool ``(D,)``."""
        first = int(self.intercept)
        found = torch.zeros(self.n_columns, dtype=torch.bool)
        for group, share in zip(self.groups[first:], self.shares, strict=True):
            made = self.groups[0].matrix @ share if first else torch.zeros_like(group.matrix)
            found[group.columns] = torch.allclose(made, group.matrix, rtol=0.0, atol=_RANK)
        return found[first:]

    # between parameters and products with the data ---------------------------------------------------------------

    def split(self, theta: Tensor) -> list[Tensor]:
        """Return the parameters ``(..., p)`` group by group, ``(..., r_g, d_g)``."""
        parts = torch.split(theta, [r * d for r, d in self.shapes], -1)
        return [part.reshape(*theta.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def to_products(self, theta: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return K ``(q, D')``, zero at the ones, and the constants a ``(C, 1)``, None without ones."""
        parts = self.split(theta)
        slopes = theta.new_zeros(self.basis.shape[1], self.n_columns)
        first = int(self.intercept)
        for group, loading, part in zip(self.groups[first:], self.loadings, parts[first:], strict=True):
            slopes[:, group.columns] = loading @ part
        return slopes, self.groups[0].matrix @ parts[0] if first else None

    def from_products(self, slopes: Tensor, constants: Tensor | None) -> Tensor:
        """Return the adjoint of ``to_products``: gradients in K ``(q, D')`` and a ``(C,)`` to one in theta."""
        parts = []
        if constants is not None:
            parts.append(self.groups[0].matrix.mT @ constants)
        for group, loading in zip(self.groups[int(self.intercept) :], self.loadings, strict=True):
            parts.append((loading.mT @ slopes[:, group.columns]).reshape(-1))
        return torch.cat(parts)

    def expand(self, theta: Tensor) -> Tensor:
        """Return the coefficients of all outputs, ``(..., C, D')``, a linear map of theta ``(..., p)``."""
        full = theta.new_zeros(*theta.shape[:-1], self.n_outputs, self.n_columns)
        for group, part in zip(self.groups, self.split(theta), strict=True):
            full[..., group.columns] = group.matrix @ part
        return full

    # between standardized columns and the table's ----------------------------------------------------------------

    def to_table(self, theta: Tensor, center: Tensor, scale: Tensor) -> Tensor:
        """Turn parameters ``(..., p)`` of standardized columns into those of the table's columns.

        Args:
            theta: ``(..., p)``.
            center: ``(D,)`` subtracted from the columns, zero where ``can_center`` is False.
            scale: ``(D,)`` by which they were divided.

        Returns:
            ``(..., p)``.
        """
        center, scale = self._wide(center, 0.0), self._wide(scale, 1.0)
        parts = [part / scale[g.columns] for g, part in zip(self.groups, self.split(theta), strict=True)]
        if self.intercept:
            for group, share, part in zip(self.groups[1:], self.shares, parts[1:], strict=True):
                parts[0] = parts[0] - share @ (part @ center[group.columns][:, None])
        return torch.cat([part.flatten(-2) for part in parts], -1)

    def gradient_to_table(self, gradient: Tensor, center: Tensor, scale: Tensor) -> Tensor:
        """Turn a gradient ``(p,)`` in parameters of standardized columns into one in those of the table's columns."""
        center, scale = self._wide(center, 0.0), self._wide(scale, 1.0)
        parts = [part * scale[g.columns] for g, part in zip(self.groups, self.split(gradient), strict=True)]
        if self.intercept:
            for i, (group, share) in enumerate(zip(self.groups[1:], self.shares, strict=True), start=1):
                parts[i] = parts[i] + (share.mT @ parts[0]) * center[group.columns]
        return torch.cat([part.flatten() for part in parts])

    def per_parameter(self, column_values: Tensor) -> Tensor:
        """Return values of the D' columns ``(D',)`` repeated for every parameter, ``(p,)``."""
        return torch.cat([
            column_values[g.columns].expand(r, d).flatten() for g, (r, d) in zip(self.groups, self.shapes, strict=True)
        ])

    def _wide(self, values: Tensor, first: float) -> Tensor:
        return torch.cat([values.new_full((int(self.intercept),), first), values])

    # curvature in the reduced predictors -------------------------------------------------------------------------

    def congruence(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the linear map from entries of H to those of :math:`T^T H T`.

        Args:
            pairs: ``(2, q)`` entries of the symmetric H that are given, row <= column; the others are zero.

        Returns:
            The entries of the reduced matrix that are not zero by structure, ``(2, Q)``, row <= column, and the matrix
            ``(Q, q)``. They are made once: a Hessian of few rows costs no more than this.
        """
        key = tuple(pairs.flatten().tolist())
        if key not in self._congruences:
            self._congruences[key] = self._congruence(pairs)
        return self._congruences[key]

    @cached_property
    def _congruences(self) -> dict[tuple[int, ...], tuple[Tensor, Tensor]]:
        return {}

    def _congruence(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        k, l = pairs  # noqa: E741
        i, j = triangle(self.reduced.shape[1])
        t = self.reduced
        both = t[k][:, i] * t[l][:, j]
        crossed = torch.where((k != l)[:, None], t[l][:, i] * t[k][:, j], 0.0)
        whole = (both + crossed).mT
        kept = (whole != 0).any(1)
        return torch.stack([i[kept], j[kept]]), whole[kept].contiguous()

    def places(self, pairs: Tensor) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """Return for each two groups, g <= h, which entries of a reduced matrix are theirs, and where; made once.

        Args:
            pairs: ``(2, Q)`` entries that are given, row <= column.

        Returns:
            By ``(g, h)`` the positions in ``pairs`` ``(m,)`` and their row and column within the two groups ``(2, m)``;
            groups without an entry are left out.
        """
        key = tuple(pairs.flatten().tolist())
        if key not in self._places:
            starts = torch.tensor([0, *itertools.accumulate(r for r, _ in self.shapes)])
            owner = torch.bucketize(pairs, starts, right=True) - 1
            found = {}
            for g, h in itertools.combinations_with_replacement(range(len(self.groups)), 2):
                index = ((owner[0] == g) & (owner[1] == h)).nonzero()[:, 0]
                if index.numel():
                    found[g, h] = index, pairs[:, index] - torch.stack([starts[g], starts[h]])[:, None]
            self._places[key] = found
        return self._places[key]

    @cached_property
    def _places(self) -> dict[tuple[int, ...], dict[tuple[int, int], tuple[Tensor, Tensor]]]:
        return {}


def group_columns(intercepts: Tensor, matrices: Sequence[Tensor]) -> Constraints:
    """Group the columns of a table by equal constraint matrices.

    Args:
        intercepts: Constraint matrix of the ones, ``(C, r_0)``; r_0 = 0 for a design without ones.
        matrices: Those of the D columns, ``(C, r)`` each.

    Returns:
        The constraints on a design with D or D + 1 columns.
    """
    first = int(intercepts.shape[1] > 0)
    members: dict[tuple[tuple[int, ...], tuple[float, ...]], list[int]] = {}
    for column, matrix in enumerate(matrices):
        key = (tuple(matrix.shape), tuple(matrix.flatten().tolist()))
        members.setdefault(key, []).append(column + first)
    groups = [Group(slice(0, 1), intercepts)] if first else []
    groups += [Group(_positions(columns), matrices[columns[0] - first]) for columns in members.values()]
    return Constraints(tuple(groups), len(matrices) + first, bool(first))


def matrix_rank(matrix: Tensor) -> int:
    """Return the rank of a constraint matrix."""
    return int(torch.linalg.matrix_rank(matrix, rtol=_RANK)) if matrix.numel() else 0


def _solved(basis: Tensor, matrix: Tensor) -> Tensor:
    """Return the least-squares solution of ``basis @ solution = matrix``."""
    solution: Tensor = torch.linalg.lstsq(basis, matrix).solution
    return solution


def _positions(columns: list[int]) -> slice | Tensor:
    if columns == list(range(columns[0], columns[-1] + 1)):
        return slice(columns[0], columns[-1] + 1)
    return torch.tensor(columns)
