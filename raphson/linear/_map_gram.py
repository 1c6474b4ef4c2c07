r"""Sums of outer products of a constrained linear model: output matrices times products of columns.

For symmetric output matrices :math:`A_n` (C, C), the sum :math:`\sum_n A_n \otimes x_n x_n^T` is wanted in the free
parameters of :math:`f = S K x + a`. Of the slopes only :math:`S^T A_n S` (q, q) meets products of two columns, one
weighted matrix product for each of its entries; all that the intercepts have a part in are entries of

.. math:: V = \sum_n \mathrm{vec}(A_n)\, x_n^T ,

one thin product for all of them. So a constant parameter costs next to nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raphson.data import Block
from raphson.linear._khatri_rao import GivenPairs, KhatriRaoGram
from raphson.linear._output_map import Constraints, column_positions

_TILE_ELEMENTS = 2**17
"""Elements of one intermediate: it is made and consumed in the cache."""

Columns = slice | Tensor


@dataclass(frozen=True, eq=False)
class Kin:
    """Basis vectors of S with the same columns.

    Attributes:
        members: Their positions, ascending.
        columns: The columns ``(d,)``, slice or indices.
        n_columns: d.
    """

    members: list[int]
    columns: Columns
    n_columns: int


@dataclass(frozen=True, eq=False)
class Plan:
    """How the given entries of output matrices are summed; the same for every block and every point.

    Attributes:
        pairs: ``(2, Q)`` entries that are given, row <= column.
        kin: Basis vectors by their columns.
        reduce: Takes the given entries to those of :math:`S^T A S`: a matrix ``(m, Q)``, or indices ``(m,)``.
        places: For two kin, g <= h, which reduced entries are theirs ``(m,)``, and row and column within the two
            ``(2, m)``.
        spread: Which given entry each of the (C, C) is, Q for none.
        order: Which coefficient of K, kin by kin, each slope in theta is ``(p,)``, or how it makes them up ``(p, m)``.
    """

    pairs: Tensor
    kin: list[Kin]
    reduce: Tensor
    places: dict[tuple[int, int], tuple[Tensor, Tensor]]
    spread: Tensor
    order: Tensor

    @classmethod
    def of(cls, constraints: Constraints, pairs: Tensor) -> Plan:
        """Make the plan, or find the one made before.

        Args:
            constraints: The constraints, which keep it.
            pairs: The entries that will be given.

        Returns:
            The plan.
        """
        key = tuple(pairs.flatten().tolist())
        if key not in constraints.plans:
            constraints.plans[key] = cls._made(constraints, pairs)
        found: Plan = constraints.plans[key]
        return found

    @classmethod
    def _made(cls, constraints: Constraints, pairs: Tensor) -> Plan:
        kin = _kin(constraints)
        reduced, mapping = congruence(constraints.basis, pairs)
        owner = {i: (g, a) for g, k in enumerate(kin) for a, i in enumerate(k.members)}
        found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for position, (i, j) in enumerate(reduced.mT.tolist()):
            if i in owner and j in owner:
                (g, a), (h, b) = sorted((owner[i], owner[j]))
                found.setdefault((g, h), []).append((position, a, b))
        places = {}
        for both, entries in found.items():
            index, rows, columns = torch.tensor(entries).unbind(1)
            places[both] = index, torch.stack([rows, columns])
        c = constraints.n_outputs
        spread = np.full((c, c), pairs.shape[1])
        spread[tuple(pairs.numpy())] = spread[tuple(pairs.flip(0).numpy())] = np.arange(pairs.shape[1])
        return cls(pairs, kin, _as_index(mapping), places, torch.from_numpy(spread), _slope_order(constraints, kin))


class ConstrainedGram:
    r"""Accumulates :math:`\sum_n A_n \otimes x_n x_n^T` in the free parameters.

    Args:
        constraints: How the parameters act on the outputs.
        pairs: ``(2, Q)`` entries of :math:`A_n` that are given, row <= column.
    """

    def __init__(self, constraints: Constraints, pairs: Tensor) -> None:
        self.constraints = constraints
        self.plan = Plan.of(constraints, pairs)
        self._sums: Tensor | None = None
        self._own: dict[int, KhatriRaoGram] = {}
        self._cross: dict[tuple[int, int], Tensor] = {}
        kin = self.plan.kin
        for (g, h), (index, local) in self.plan.places.items():
            d, e, r = kin[g].n_columns, kin[h].n_columns, len(kin[g].members)
            if g == h:
                self._own[g] = KhatriRaoGram(local, r, d, torch.float64)
            else:
                self._cross[g, h] = torch.zeros(index.shape[0], d, e, dtype=torch.float64)

    def add(self, block: Block, entries: Tensor) -> None:
        """Add a block of rows with the given entries of its matrices, weights included, ``(Q, rows)``."""
        if self.constraints.intercept:
            sums = block.adjoint(entries)
            self._sums = sums if self._sums is None else self._sums.add_(sums)
        if not self.plan.places:
            return
        x, reduce = block.features(), self.plan.reduce
        entries = entries[reduce] if reduce.ndim == 1 else reduce @ entries
        for (g, h), (index, local) in self.plan.places.items():
            own = entries if index.shape[0] == entries.shape[0] else entries[index]
            left, right = x[self.plan.kin[g].columns], x[self.plan.kin[h].columns]
            if (g, h) in self._cross:
                _add_rectangles(self._cross[g, h], own, left, right)
            else:
                self._own[g].add(left, GivenPairs(local, own))

    def to_dense(self) -> Tensor:
        """Return the sum as ``(p, p)``."""
        slopes = self._slopes()
        if not self.constraints.intercept:
            return slopes
        corner, side = self._with_intercepts()
        return torch.cat([torch.cat([corner, side], 1), torch.cat([side.mT, slopes], 1)])

    def _slopes(self) -> Tensor:
        """Return the part of two slopes."""
        kin, order = self.plan.kin, self.plan.order
        sizes = [len(k.members) * k.n_columns for k in kin]
        out = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
        tiles = [torch.split(row, sizes, 1) for row in torch.split(out, sizes, 0)]
        for (g, h), (_, local) in self.plan.places.items():
            if g == h:
                tiles[g][g].copy_(self._own[g].to_dense())
                continue
            d, e, r, s = kin[g].n_columns, kin[h].n_columns, len(kin[g].members), len(kin[h].members)
            rectangle = self._cross[g, h]
            if r * s > 1:
                rectangle = rectangle.new_zeros(r, d, s, e)
                rectangle[local[0], :, local[1], :] = self._cross[g, h]
            tiles[g][h].copy_(rectangle.view(r * d, s * e))
            tiles[h][g].copy_(tiles[g][h].mT)
        return out[order][:, order] if order.ndim == 1 else order @ out @ order.mT

    def _with_intercepts(self) -> tuple[Tensor, Tensor]:
        """Return the part of two intercepts ``(r_0, r_0)``, and that of intercepts and slopes ``(r_0, p - r_0)``."""
        assert self._sums is not None
        c, d = self.constraints.n_outputs, self.constraints.n_columns
        padded = torch.cat([self._sums, self._sums.new_zeros(1, d)])
        sums = padded[self.plan.spread.view(-1)].view(c, c, d)
        left, *slopes = self.constraints.groups
        rows = (left.matrix.mT @ sums.view(c, -1)).view(-1, c, d)
        sides = [(g.matrix.mT @ rows[:, :, g.columns]).flatten(1) for g in slopes]
        side = torch.cat(sides, 1) if sides else rows.new_zeros(rows.shape[0], 0)
        return rows[:, :, 0] @ left.matrix, side


def congruence(t: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the linear map from entries of a symmetric A to those of :math:`T^T A T`.

    Args:
        t: T, ``(C, R)``.
        pairs: ``(2, Q)`` entries of A that are given, row <= column; the others are zero.

    Returns:
        The entries of the product that are not zero by structure, ``(2, m)``, row <= column, and the matrix ``(m, Q)``.
    """
    # NumPy, whose calls on a few numbers cost a third of PyTorch's
    k, l = pairs.numpy()  # noqa: E741
    i, j = np.triu_indices(t.shape[1])
    left, right = t.numpy()[k].T, t.numpy()[l].T
    whole = left[i] * right[j] + np.where(k != l, right[i] * left[j], 0.0)
    kept = (whole != 0).any(1)
    return torch.from_numpy(np.stack([i[kept], j[kept]])), torch.from_numpy(whole[kept])


def _kin(constraints: Constraints) -> list[Kin]:
    uses = torch.zeros(constraints.basis.shape[1], constraints.n_columns, dtype=torch.bool)
    for group, loading in zip(constraints.groups[int(constraints.intercept) :], constraints.loadings, strict=True):
        uses[:, group.columns] |= (loading != 0).any(1, keepdim=True)
    members: dict[tuple[bool, ...], list[int]] = {}
    for i, used in enumerate(uses.tolist()):
        members.setdefault(tuple(used), []).append(i)
    found = []
    for used_columns, which in members.items():
        columns = list(itertools.compress(range(constraints.n_columns), used_columns))
        if columns:
            found.append(Kin(which, column_positions(columns), len(columns)))
    return found


def _slope_order(constraints: Constraints, kin: list[Kin]) -> Tensor:
    if not kin:
        return torch.zeros(0, dtype=torch.long)
    first = sum(r * d for r, d in constraints.shapes[: int(constraints.intercept)])
    k = constraints.products_by_group(torch.eye(constraints.n_parameters, dtype=torch.float64)[first:])[0]
    return _as_index(torch.cat([k[:, i, one.columns] for one in kin for i in one.members], 1))


def _as_index(matrix: Tensor) -> Tensor:
    """Return a matrix each row of which is a unit vector as their positions, another one as it is."""
    unit = (matrix != 0).sum(1) == 1
    if bool(unit.all()) and bool((matrix.sum(1) == 1).all()):
        return matrix.argmax(1)
    return matrix


def _add_rectangles(total: Tensor, a: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left diag(a_i) right^T`` for every row of a ``(m, rows)`` to ``total`` ``(m, d, e)``."""
    if left.shape[0] > right.shape[0]:
        _add_rectangles(total.mT, a, right, left)
        return
    m, d, e = total.shape
    n = a.shape[1]
    step = min(n, max(128, _TILE_ELEMENTS // max(1, m * d)))
    memory, products = left.new_empty(m * d * step), total.new_zeros(m * d, e)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        stacked = memory[: m * d * (rows.stop - start)].view(m, d, -1)
        torch.mul(a[:, None, rows], left[:, rows], out=stacked)
        products.addmm_(stacked.view(m * d, -1), right[:, rows].mT)
    total += products.view(m, d, e)
