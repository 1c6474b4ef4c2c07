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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

_RANK = 1e-10

MAP_ELEMENTS = 2**15
"""Linear maps of the parameters are held as matrices up to this size."""


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
        columns = sorted({tuple(column) for column in whole.mT.tolist()}, reverse=True)
        if all(sum(map(bool, column)) == 1 == sum(column) for column in columns):  # unit vectors
            return torch.tensor(columns, dtype=torch.float64).mT.contiguous()
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
        return [solved(self.basis, g.matrix) for g in self.groups[int(self.intercept) :]]

    @cached_property
    def plain(self) -> bool:
        """Whether S is the identity."""
        return self.basis.shape[1] == self.n_outputs

    @cached_property
    def shares(self) -> list[Tensor]:
        """For each group of slopes the matrix ``(r_0, r_g)`` by which intercepts make up for centering its columns."""
        if not self.intercept:
            return [g.matrix.new_zeros(0, g.matrix.shape[1]) for g in self.groups]
        return [solved(self.groups[0].matrix, g.matrix) for g in self.groups[1:]]

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
        """Return K ``(q, D')`` and the constants a ``(C, 1)``.

        Where S is the identity the constants are K's coefficients of the ones, and a is None; else K is zero there.
        """
        q, d = self.basis.shape[1], self.n_columns
        if self._map is None:
            return self.products_by_group(theta)
        both = self._map @ theta
        if both.shape[0] == q * d:
            return both.view(q, d), None
        return both[: q * d].view(q, d), both[q * d :, None]

    def from_products(self, slopes: Tensor, constants: Tensor | None) -> Tensor:
        """Return the adjoint of ``to_products``: gradients in K ``(q, D')`` and a ``(C,)`` to one in theta."""
        if self._map is not None:
            flat = slopes.reshape(-1)
            return (flat if constants is None else torch.cat([flat, constants])) @ self._map
        first, parts = int(self.intercept), []
        if first:
            parts.append(self.groups[0].matrix.mT @ (slopes[:, 0] if constants is None else constants))
        for group, loading in zip(self.groups[first:], self.loadings, strict=True):
            parts.append((loading.mT @ slopes[:, group.columns]).reshape(-1))
        return torch.cat(parts)

    @property
    def has_constants(self) -> bool:
        """Whether ``to_products`` gives the constants on their own."""
        return self.intercept and not self.plain

    def products_by_group(self, theta: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return K ``(..., q, D')`` and a ``(..., C, 1)`` or None, group by group, of theta ``(..., p)``."""
        parts = self.split(theta)
        slopes = theta.new_zeros(*theta.shape[:-1], self.basis.shape[1], self.n_columns)
        first = int(self.intercept)
        for group, loading, part in zip(self.groups[first:], self.loadings, parts[first:], strict=True):
            slopes[..., group.columns] = loading @ part
        constants = self.groups[0].matrix @ parts[0] if first else None
        if constants is not None and not self.has_constants:
            slopes[..., :1] = constants
            constants = None
        return slopes, constants

    @cached_property
    def _map(self) -> Tensor | None:
        """The matrix of ``to_products`` where it is small: one product costs less than the calls for each group."""
        rows = self.basis.shape[1] * self.n_columns + (self.n_outputs if self.has_constants else 0)
        if rows * self.n_parameters > MAP_ELEMENTS:
            return None
        slopes, constants = self.products_by_group(torch.eye(self.n_parameters, dtype=torch.float64))
        parts = [slopes.flatten(1)] if constants is None else [slopes.flatten(1), constants.flatten(1)]
        return torch.cat(parts, 1).mT.contiguous()

    def expand(self, theta: Tensor) -> Tensor:
        """Return the coefficients of all outputs, ``(..., C, D')``, a linear map of theta ``(..., p)``."""
        full = theta.new_zeros(*theta.shape[:-1], self.n_outputs, self.n_columns)
        for group, part in zip(self.groups, self.split(theta), strict=True):
            full[..., group.columns] = group.matrix @ part
        return full

    @cached_property
    def plans(self) -> dict[tuple[int, ...], Any]:
        """What ``ConstrainedGram`` has worked out for these constraints, by the entries it was given."""
        return {}

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
        """Turn gradients ``(..., p)`` in parameters of standardized columns into those in the table's parameters."""
        center, scale = self._wide(center, 0.0), self._wide(scale, 1.0)
        parts = [part * scale[g.columns] for g, part in zip(self.groups, self.split(gradient), strict=True)]
        if self.intercept:
            for i, (group, share) in enumerate(zip(self.groups[1:], self.shares, strict=True), start=1):
                parts[i] = parts[i] + (share.mT @ parts[0]) * center[group.columns]
        return torch.cat([part.flatten(-2) for part in parts], -1)

    def per_parameter(self, column_values: Tensor) -> Tensor:
        """Return values of the D' columns ``(D',)`` repeated for every parameter, ``(p,)``."""
        return torch.cat([
            column_values[g.columns].expand(r, d).flatten() for g, (r, d) in zip(self.groups, self.shapes, strict=True)
        ])

    def _wide(self, values: Tensor, first: float) -> Tensor:
        return torch.cat([values.new_full((int(self.intercept),), first), values])


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
    groups += [Group(column_positions(columns), matrices[columns[0] - first]) for columns in members.values()]
    return Constraints(tuple(groups), len(matrices) + first, bool(first))


def matrix_rank(matrix: Tensor) -> int:
    """Return the rank of a constraint matrix."""
    return int(torch.linalg.matrix_rank(matrix, rtol=_RANK)) if matrix.numel() else 0


def solved(basis: Tensor, matrix: Tensor) -> Tensor:
    """Return the least-squares solution of ``basis @ solution = matrix``."""
    if torch.equal(basis.mT @ basis, torch.eye(basis.shape[1], dtype=basis.dtype)):
        return basis.mT @ matrix
    solution: Tensor = torch.linalg.lstsq(basis, matrix).solution
    whole = solution.round()
    return torch.where((solution - whole).abs() < 1e-14, whole, solution)


def column_positions(columns: list[int]) -> slice | Tensor:
    """Return ascending positions as a slice where they are consecutive."""
    if columns == list(range(columns[0], columns[-1] + 1)):
        return slice(columns[0], columns[-1] + 1)
    return torch.tensor(columns)
