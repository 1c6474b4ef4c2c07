r"""How the coefficients of a linear model act on its outputs: constraint matrices, one per group of columns.

The outputs of a row are

.. math:: f = \sum_g H_g \Theta_g x_g,

where the columns of the design are dealt out to groups, :math:`H_g` (C, r_g) says how the :math:`r_g` coefficients of
a column of group g act on the outputs, and :math:`\Theta_g` (r_g, d_g) is free (Yee and Wild 1996, section 2.2). The
identity gives every output its own coefficients, without a column it makes them relative to a reference class, a
column of ones makes slopes parallel, a unit vector serves a single output.

Products with the data never need more rows than the matrices span: with a basis S (C, q) of them :math:`f = S K x + a`,
where K (q, D') and a (C) are linear in :math:`\Theta`. Where all columns share one matrix, S is that matrix, K is
:math:`\Theta` itself and there is no a; else S is a basis for the slopes and the intercepts make up a.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raphson.linalg import SERIAL_ENTRIES
from raphson.linear._group import RANK, Columns, Group, as_list, is_unit, matrix_rank, positions, solve_matrix

_MATRIX_ELEMENTS = 2**15
"""Linear maps of the parameters are held as matrices up to this size: one product costs less than calls by group."""


@dataclass(frozen=True, eq=False)
class OutputMap:
    """Groups of columns with their constraint matrices: one linear map from parameters to the outputs' coefficients.

    The parameters are ``[vec(Theta_1); vec(Theta_2); ...]``, each ``Theta_g`` ``(r_g, d_g)`` row by row. One group of
    all columns has them output by output, the intercept first.

    Attributes:
        groups: They cover all D' columns once. The ones are a group of their own, the first, unless the map is uniform.
        n_columns: D'.
        intercept: Whether the first column is the ones.
    """

    groups: tuple[Group, ...]
    n_columns: int
    intercept: bool

    # constructors ------------------------------------------------------------------------------------------------

    @staticmethod
    def uniform(matrix: Tensor, n_columns: int, intercept: bool) -> OutputMap:
        """Return the map whose columns, the ones among them, all have one constraint matrix ``(C, r)``."""
        return OutputMap((Group(slice(0, n_columns), matrix),), n_columns, intercept)

    @staticmethod
    @functools.lru_cache(maxsize=32)
    def own(n_outputs: int, n_columns: int, intercept: bool) -> OutputMap:
        """Return the map in which every output has coefficients of its own."""
        return OutputMap.uniform(torch.eye(n_outputs, dtype=torch.float64), n_columns, intercept)

    @staticmethod
    @functools.lru_cache(maxsize=32)
    def relative(n_outputs: int, reference: int, n_columns: int, intercept: bool) -> OutputMap:
        """Return the map whose coefficients are relative to one output's, which are zero."""
        others = torch.arange(n_outputs) != reference
        return OutputMap.uniform(torch.eye(n_outputs, dtype=torch.float64)[:, others], n_columns, intercept)

    @staticmethod
    def of_columns(intercepts: Tensor, matrices: Sequence[Tensor]) -> OutputMap:
        """Group a table's columns by equal constraint matrices ``(C, r)``; ``intercepts`` has r = 0 without ones."""
        first = int(intercepts.shape[1] > 0)
        known: dict[int, list[int]] = {}  # columns mostly share one tensor: it is read once
        members: dict[tuple[Any, ...], list[int]] = {}
        for column, matrix in enumerate(matrices):
            if id(matrix) not in known:
                key = (tuple(matrix.shape), tuple(matrix.flatten().tolist()))
                known[id(matrix)] = members.setdefault(key, [])
            known[id(matrix)].append(column + first)
        d = len(matrices) + first
        if len(members) == 1 and (not first or torch.equal(matrices[0], intercepts)):
            return OutputMap.uniform(matrices[0], d, bool(first))
        groups = [Group(slice(0, 1), intercepts)] if first else []
        groups += [Group(positions(columns), matrices[columns[0] - first]) for columns in members.values()]
        return OutputMap(tuple(groups), d, bool(first))

    def restrict(self, kept: Tensor) -> tuple[OutputMap, Tensor, Tensor]:
        """Return the map of the parameters in ``kept`` ``(P,)``, the ones' among them, the others being zero.

        With it come the columns that still have parameters, ``(d,)``, and the place of each parameter among all.
        """
        first = int(self.intercept)
        place = torch.arange(self.n_parameters)
        matrices: list[Tensor] = [torch.zeros(0)] * self.n_columns
        places: list[Tensor] = [torch.zeros(0)] * self.n_columns
        for group, own, where in zip(self.groups, self.split(kept), self.split(place), strict=True):
            for at, column in enumerate(as_list(group.columns, self.n_columns)):
                matrices[column], places[column] = group.matrix[:, own[:, at]], where[own[:, at], at]
        left = [j for j in range(first, self.n_columns) if matrices[j].shape[1]]
        none = self.groups[0].matrix[:, :0]
        part = OutputMap.of_columns(matrices[0] if first else none, [matrices[j] for j in left])
        columns = [*range(first), *left]
        index = [
            torch.stack([places[columns[j]] for j in as_list(g.columns, part.n_columns)], 1).flatten()
            for g in part.groups
        ]
        return part, torch.tensor(columns, dtype=torch.long), torch.cat(index)

    # what it is --------------------------------------------------------------------------------------------------

    @cached_property
    def is_uniform(self) -> bool:
        """Whether all columns, the ones among them, have one constraint matrix."""
        return len(self.groups) == 1 and self.groups[0].n_columns == self.n_columns

    @cached_property
    def n_outputs(self) -> int:
        """Number of outputs, C."""
        return int(self.groups[0].matrix.shape[0])

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """Shapes ``(r_g, d_g)`` of the parameters of each group."""
        return [(int(g.matrix.shape[1]), g.n_columns) for g in self.groups]

    @cached_property
    def n_parameters(self) -> int:
        """Number of parameters, P."""
        return sum(r * d for r, d in self.shapes)

    @cached_property
    def n_intercepts(self) -> int:
        """Number of parameters of the ones."""
        return self.shapes[0][0] if self.intercept else 0

    @cached_property
    def is_intercept(self) -> Tensor:
        """Which parameters are those of the ones, bool ``(P,)``."""
        ones = torch.zeros(self.n_columns, dtype=torch.bool)
        ones[: int(self.intercept)] = True
        return self.per_parameter(ones)

    def has_slopes(self, theta: Tensor) -> bool:
        """Return whether a parameter ``(P,)`` beside those of the ones is not zero."""
        if self.is_uniform:
            # NumPy's takes a tenth of the time of PyTorch's
            return bool(theta.view(self.shapes[0])[:, int(self.intercept) :].numpy().any())
        return bool(theta[~self.is_intercept].any())

    @cached_property
    def basis(self) -> Tensor:
        """S, ``(C, q)``: the matrix of a uniform map, or a basis of what the slopes can do."""
        if self.is_uniform:
            return self.groups[0].matrix
        slopes = self._slopes
        if not slopes:
            return self.groups[0].matrix.new_zeros(self.n_outputs, 0)
        whole = torch.cat([g.matrix for g in slopes], 1)
        columns = sorted({tuple(column) for column in whole.mT.tolist()}, reverse=True)
        if all(is_unit(column) for column in columns):
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
    def selected(self) -> Columns | None:
        """The outputs that S picks where its columns are unit vectors in their order, slice or indices; else None."""
        one = self.basis.numpy() == 1.0
        if not (self.basis.count_nonzero(0) == 1).all() or not (one.sum(0) == 1).all():
            return None
        picked = one.argmax(0).tolist()
        return positions(picked) if picked == sorted(picked) else None

    @cached_property
    def left_out(self) -> int | None:
        """The output without coefficients of its own, where S picks all but one; else None."""
        if self.selected is None or self.basis.shape[1] != self.n_outputs - 1:
            return None
        return int((self.basis.sum(1) == 0).nonzero()[0])

    @cached_property
    def is_plain(self) -> bool:
        """Whether S is the identity."""
        return self.selected == slice(0, self.n_outputs) if isinstance(self.selected, slice) else False

    @cached_property
    def centered_products(self) -> list[Tensor]:
        """Of each group the products of the matrix's columns, each less its mean over the outputs, ``(r, r)``."""
        centered = [group.matrix - group.matrix.mean(0) for group in self.groups]
        return [m.mT @ m for m in centered]

    @property
    def has_constants(self) -> bool:
        """Whether ``to_products`` gives what the ones add to the outputs on its own."""
        return self.intercept and not self.is_uniform and not self.is_plain

    @property
    def _slopes(self) -> tuple[Group, ...]:
        """The groups beside the ones', for a map that is not uniform."""
        return self.groups[int(self.intercept) :]

    @cached_property
    def _loadings(self) -> list[Tensor]:
        """For each group of slopes the matrix ``(q, r_g)`` with ``S loading = H_g``."""
        return [solve_matrix(self.basis, g.matrix) for g in self._slopes]

    @cached_property
    def _shares(self) -> list[Tensor]:
        """For each group of slopes the matrix ``(r_0, r_g)`` by which intercepts make up for centering its columns."""
        return [solve_matrix(self.groups[0].matrix, g.matrix) for g in self.groups[1:]]

    def can_center(self) -> Tensor:
        """Return for which of the D columns beside the ones an intercept can make up, bool ``(D,)``."""
        found = torch.full((self.n_columns,), self.intercept and self.is_uniform)
        if self.intercept and not self.is_uniform:
            for group, share in zip(self.groups[1:], self._shares, strict=True):
                made = self.groups[0].matrix @ share
                found[group.columns] = torch.allclose(made, group.matrix, rtol=0.0, atol=RANK)
        return found[int(self.intercept) :]

    # between parameters and products with the data ---------------------------------------------------------------

    def split(self, theta: Tensor) -> list[Tensor]:
        """Return the parameters ``(..., P)`` group by group, ``(..., r_g, d_g)``."""
        parts = torch.split(theta, [r * d for r, d in self.shapes], -1)
        return [part.reshape(*theta.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def to_products(self, theta: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return K ``(q, D')`` and the constants a ``(C, 1)``, None where there are none of their own."""
        q, d = self.basis.shape[1], self.n_columns
        if self.is_uniform:
            return theta.view(q, d), None
        if self._matrix is None:
            return self.products_by_group(theta)
        both = self._matrix @ theta
        if both.shape[0] == q * d:
            return both.view(q, d), None
        return both[: q * d].view(q, d), both[q * d :, None]

    def from_products(self, slopes: Tensor, constants: Tensor | None) -> Tensor:
        """Return the adjoint of ``to_products``: gradients in K ``(q, D')`` and a ``(C,)`` to one in theta."""
        if self.is_uniform:
            return slopes.reshape(-1)
        if self._matrix is not None:
            flat = slopes.reshape(-1)
            return (flat if constants is None else torch.cat([flat, constants])) @ self._matrix
        parts = []
        if self.intercept:
            parts.append(self.groups[0].matrix.mT @ (slopes[:, 0] if constants is None else constants))
        for group, loading in zip(self._slopes, self._loadings, strict=True):
            parts.append((loading.mT @ slopes[:, group.columns]).reshape(-1))
        return torch.cat(parts)

    def outputs(self, products: Tensor, constants: Tensor | None) -> Tensor:
        """Return ``S u + a``, ``(C, rows)``, of products u = K x ``(q, rows)``."""
        if self.is_plain:
            return products
        if constants is not None or self.selected is None:
            basis = self.basis.to(products.dtype)
            return basis @ products if constants is None else torch.addmm(constants, basis, products)
        wide = products.new_zeros(self.n_outputs, products.shape[1])
        wide[self.selected] = products
        return wide

    def reduce(self, g: Tensor) -> Tensor:
        """Return ``S^T g``, ``(q, rows)``, of output gradients ``(C, rows)``."""
        if self.selected is None:
            return self.basis.to(g.dtype).mT @ g
        return g if self.is_plain else g[self.selected]

    def products_by_group(self, theta: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return K ``(..., q, D')`` and a ``(..., C, 1)`` or None, group by group, of theta ``(..., P)``."""
        parts = self.split(theta)
        slopes = theta.new_zeros(*theta.shape[:-1], self.basis.shape[1], self.n_columns)
        first = int(self.intercept)
        for group, loading, part in zip(self._slopes, self._loadings, parts[first:], strict=True):
            slopes[..., group.columns] = loading @ part
        constants = self.groups[0].matrix @ parts[0] if first else None
        if constants is not None and not self.has_constants:
            slopes[..., :1] = constants
            constants = None
        return slopes, constants

    @cached_property
    def _matrix(self) -> Tensor | None:
        """The matrix of ``to_products`` where it is small."""
        rows = self.basis.shape[1] * self.n_columns + (self.n_outputs if self.has_constants else 0)
        if rows * self.n_parameters > _MATRIX_ELEMENTS:
            return None
        slopes, constants = self.products_by_group(torch.eye(self.n_parameters, dtype=torch.float64))
        parts = [slopes.flatten(1)] if constants is None else [slopes.flatten(1), constants.flatten(1)]
        return torch.cat(parts, 1).mT.contiguous()

    def expand(self, theta: Tensor) -> Tensor:
        """Return the coefficients of all outputs, ``(..., C, D')``, a linear map of theta ``(..., P)``."""
        if self.is_uniform:
            return self._expand_table(theta.reshape(*theta.shape[:-1], *self.shapes[0]))
        full = theta.new_zeros(*theta.shape[:-1], self.n_outputs, self.n_columns)
        for group, part in zip(self.groups, self.split(theta), strict=True):
            full[..., group.columns] = group.matrix @ part
        return full

    def _expand_table(self, given: Tensor) -> Tensor:
        """Return the same for the parameters ``(..., q, D')`` of a uniform map."""
        if self.is_plain:
            return given
        if self.selected is None:
            return self.basis @ given
        shape, last = (*given.shape[:-2], self.n_outputs, self.n_columns), self.left_out
        if last is None:
            full = given.new_zeros(shape)
            full[..., self.selected, :] = given
            return full
        if given.ndim == 2 and given.dtype == torch.float64 and given.numel() <= SERIAL_ENTRIES:
            few, table = given.numpy(), np.empty(shape)  # whose calls take a quarter of the time of PyTorch's
            table[:last], table[last + 1 :], table[last] = few[:last], few[last:], 0.0
            return torch.from_numpy(table)
        # a product with a table of many columns takes ten times as long, an index for the others three times
        full = given.new_empty(shape)
        full[..., :last, :], full[..., last + 1 :, :] = given[..., :last, :], given[..., last:, :]
        full[..., last, :] = 0.0
        return full

    def relative_to_left_out(self, coef: Tensor, out: Tensor | None = None) -> Tensor:
        """Return coefficients ``(..., C, d)`` of the others relative to the output left out, ``(..., C - 1, d)``."""
        last = self.left_out
        assert last is not None
        if out is None:
            out = coef.new_empty(*coef.shape[:-2], coef.shape[-2] - 1, coef.shape[-1])
        torch.sub(coef[..., :last, :], coef[..., last : last + 1, :], out=out[..., :last, :])
        torch.sub(coef[..., last + 1 :, :], coef[..., last : last + 1, :], out=out[..., last:, :])
        return out

    def collapse(self, coef: Tensor) -> Tensor:
        """Return the parameters ``(P,)`` nearest to coefficients of all outputs ``(C, D')``; undoes ``expand``."""
        return torch.cat([solve_matrix(g.matrix, coef[:, g.columns]).reshape(-1) for g in self.groups])

    @cached_property
    def plans(self) -> dict[tuple[int, ...], Any]:
        """What the dense Hessian's sums have worked out for this map, by the entries they were given."""
        return {}

    # between standardized columns and the table's ----------------------------------------------------------------

    def to_table(self, theta: Tensor, center: Tensor, scale: Tensor) -> Tensor:
        """Turn parameters ``(..., P)`` of columns, less ``center`` ``(D,)`` over ``scale``, into the table's."""
        if self.is_uniform:
            if theta.dtype == torch.float64 and theta.numel() <= SERIAL_ENTRIES:
                return self._to_table_few(theta, center, scale)
            given, ones = theta.reshape(-1, self.n_columns), int(self.intercept)
            table = torch.empty_like(given)
            slopes = torch.div(given[:, ones:], scale, out=table[:, ones:])
            if ones:
                torch.addmv(given[:, 0], slopes, center, alpha=-1.0, out=table[:, 0])
            return table.view(theta.shape)
        center, scale = self._wide(center, 0.0), self._wide(scale, 1.0)
        parts = [part / scale[g.columns] for g, part in zip(self.groups, self.split(theta), strict=True)]
        if self.intercept:
            for group, share, part in zip(self.groups[1:], self._shares, parts[1:], strict=True):
                parts[0] = parts[0] - share @ (part @ center[group.columns][:, None])
        return torch.cat([part.flatten(-2) for part in parts], -1)

    def _to_table_few(self, theta: Tensor, center: Tensor, scale: Tensor) -> Tensor:
        """Return what ``to_table`` does for a uniform map, by NumPy, whose calls take half of the time."""
        table = theta.numpy().reshape(-1, self.n_columns).copy()
        slopes = table[:, int(self.intercept) :]
        slopes /= scale.numpy()
        if self.intercept:
            table[:, 0] -= slopes @ center.numpy()
        return torch.from_numpy(table).view(theta.shape)

    def gradient_to_table(self, gradient: Tensor, center: Tensor, scale: Tensor) -> Tensor:
        """Turn gradients ``(..., P)`` in parameters of standardized columns into those in the table's parameters."""
        center, scale = self._wide(center, 0.0), self._wide(scale, 1.0)
        parts = [part * scale[g.columns] for g, part in zip(self.groups, self.split(gradient), strict=True)]
        if self.intercept and self.is_uniform:
            parts[0] = parts[0] + parts[0][..., :1] * center
        elif self.intercept:
            for i, (group, share) in enumerate(zip(self.groups[1:], self._shares, strict=True), start=1):
                parts[i] = parts[i] + (share.mT @ parts[0]) * center[group.columns]
        return torch.cat([part.flatten(-2) for part in parts], -1)

    def per_parameter(self, column_values: Tensor) -> Tensor:
        """Return values of the D' columns ``(D',)`` repeated for every parameter, ``(P,)``."""
        return torch.cat([
            column_values[g.columns].expand(r, d).flatten() for g, (r, d) in zip(self.groups, self.shapes, strict=True)
        ])

    def _wide(self, values: Tensor, first: float) -> Tensor:
        return torch.cat([values.new_full((int(self.intercept),), first), values])
