r"""The dense Hessian of a linear model: sums of output matrices times products of columns.

For symmetric output matrices :math:`A_n` (C, C) the sum :math:`\sum_n A_n \otimes x_n x_n^T` is wanted in the
parameters of :math:`f = S K x + a`. With one constraint matrix for all columns that is the Khatri-Rao product of
:math:`S^T A_n S` and the rows. With several, only :math:`S^T A_n S` (q, q) meets products of two columns, one weighted
matrix product for each of its entries; all that the intercepts have a part in are entries of

.. math:: V = \sum_n \mathrm{vec}(A_n)\, x_n^T ,

one thin product for all of them. So a constant parameter costs next to nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raphson.data import Block
from raphson.linalg import SymmetricOperator
from raphson.linear._khatri_rao import GivenPairs, KhatriRaoGram, OutputPairs, output_pairs
from raphson.linear._output_map import Columns, OutputMap, positions

_TILE_ELEMENTS = 2**17
"""Elements of one intermediate: it is made and consumed in the cache."""


@dataclass(frozen=True, eq=False)
class BasisGroup:
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
        basis_groups: Basis vectors by their columns.
        reduce: Takes the given entries to those of :math:`S^T A S`: a matrix ``(m, Q)``, or indices ``(m,)``.
        places: For two of these groups, g <= h, which reduced entries are theirs ``(m,)``, and row and column within
            the two ``(2, m)``.
        spread: Which given entry each of the (C, C) is, Q for none.
        order: Which coefficient of K, group by group, each slope in theta is ``(p,)``, or how it makes them up
            ``(p, m)``.
    """

    pairs: Tensor
    basis_groups: list[BasisGroup]
    reduce: Tensor
    places: dict[tuple[int, int], tuple[Tensor, Tensor]]
    spread: Tensor
    order: Tensor

    @classmethod
    def of(cls, output_map: OutputMap, pairs: Tensor) -> Plan:
        """Make the plan, or find the one made before.

        Args:
            output_map: The output_map, which keep it.
            pairs: The entries that will be given.

        Returns:
            The plan.
        """
        key = tuple(pairs.flatten().tolist())
        if key not in output_map.plans:
            output_map.plans[key] = cls._made(output_map, pairs)
        found: Plan = output_map.plans[key]
        return found

    @classmethod
    def _made(cls, output_map: OutputMap, pairs: Tensor) -> Plan:
        basis_groups = _basis_groups(output_map)
        reduced, mapping = congruence(output_map.basis, pairs)
        owner = {i: (g, a) for g, k in enumerate(basis_groups) for a, i in enumerate(k.members)}
        found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for position, (i, j) in enumerate(reduced.mT.tolist()):
            if i in owner and j in owner:
                (g, a), (h, b) = sorted((owner[i], owner[j]))
                found.setdefault((g, h), []).append((position, a, b))
        places = {}
        for both, entries in found.items():
            index, rows, columns = torch.tensor(entries).unbind(1)
            places[both] = index, torch.stack([rows, columns])
        c = output_map.n_outputs
        spread = np.full((c, c), pairs.shape[1])
        spread[tuple(pairs.numpy())] = spread[tuple(pairs.flip(0).numpy())] = np.arange(pairs.shape[1])
        return cls(
            pairs,
            basis_groups,
            _as_index(mapping),
            places,
            torch.from_numpy(spread),
            _slope_order(output_map, basis_groups),
        )


def dense_sum(
    output_map: OutputMap, parts: Iterable[tuple[Block, OutputPairs, Tensor | None]], element: torch.dtype
) -> Tensor:
    r"""Return :math:`\sum_n w_n\, A_n \otimes x_n x_n^T` in the parameters, ``(P, P)``.

    Args:
        output_map: How the parameters act on the outputs.
        parts: Blocks of rows with the entries of what ``map_pairs`` gives, and weights ``(rows,)`` or None.
        element: Element type of the sums; single precision is for uniform maps.

    Returns:
        The dense sum.
    """
    gram: KhatriRaoGram | MapGram | None = None
    for block, pairs, weights in parts:
        if isinstance(gram, KhatriRaoGram) or (gram is None and output_map.is_uniform):
            if gram is None:
                gram = KhatriRaoGram(pairs.pairs, output_map.basis.shape[1], output_map.n_columns, element)
            gram.add(block.features(), pairs, weights, block.products)
        else:
            gram = gram or MapGram(output_map, pairs.pairs)
            gram.add(block, pairs.entries(slice(0, block.rows.stop - block.rows.start), element, weights))
    assert gram is not None
    return gram.to_dense()


def map_pairs(output_map: OutputMap, hessian: SymmetricOperator) -> OutputPairs:
    """Return the entries of output Hessians ``(rows, C, C)`` that ``dense_sum`` takes.

    Those are the entries of :math:`S^T A S` for a uniform map, all entries for another one.
    """
    if not output_map.is_uniform:
        return output_pairs(hessian)
    if output_map.selected is not None:
        return output_pairs(hessian, None if output_map.is_plain else output_map.selected)
    given = output_pairs(hessian)
    pairs, mapping = congruence(output_map.basis, given.pairs)
    return GivenPairs(pairs, mapping @ given.entries(slice(None), torch.float64, None))


class MapGram:
    r"""Accumulates :math:`\sum_n A_n \otimes x_n x_n^T` for a map that is not uniform.

    Args:
        output_map: How the parameters act on the outputs.
        pairs: ``(2, Q)`` entries of :math:`A_n` that are given, row <= column.
    """

    def __init__(self, output_map: OutputMap, pairs: Tensor) -> None:
        self.output_map = output_map
        self.plan = Plan.of(output_map, pairs)
        self._sums: Tensor | None = None
        self._own: dict[int, KhatriRaoGram] = {}
        self._cross: dict[tuple[int, int], Tensor] = {}
        basis_groups = self.plan.basis_groups
        for (g, h), (index, local) in self.plan.places.items():
            d, e, r = basis_groups[g].n_columns, basis_groups[h].n_columns, len(basis_groups[g].members)
            if g == h:
                self._own[g] = KhatriRaoGram(local, r, d, torch.float64)
            else:
                self._cross[g, h] = torch.zeros(index.shape[0], d, e, dtype=torch.float64)

    def add(self, block: Block, entries: Tensor) -> None:
        """Add a block of rows with the given entries of its matrices, weights included, ``(Q, rows)``."""
        if self.output_map.intercept:
            sums = block.adjoint(entries)
            self._sums = sums if self._sums is None else self._sums.add_(sums)
        if not self.plan.places:
            return
        x, reduce = block.features(), self.plan.reduce
        entries = entries[reduce] if reduce.ndim == 1 else reduce @ entries
        for (g, h), (index, local) in self.plan.places.items():
            own = entries if index.shape[0] == entries.shape[0] else entries[index]
            left, right = x[self.plan.basis_groups[g].columns], x[self.plan.basis_groups[h].columns]
            if (g, h) in self._cross:
                _add_rectangles(self._cross[g, h], own, left, right)
            else:
                self._own[g].add(left, GivenPairs(local, own))

    def to_dense(self) -> Tensor:
        """Return the sum as ``(p, p)``."""
        slopes = self._slopes()
        if not self.output_map.intercept:
            return slopes
        corner, side = self._with_intercepts()
        return torch.cat([torch.cat([corner, side], 1), torch.cat([side.mT, slopes], 1)])

    def _slopes(self) -> Tensor:
        """Return the part of two slopes."""
        basis_groups, order = self.plan.basis_groups, self.plan.order
        sizes = [len(k.members) * k.n_columns for k in basis_groups]
        out = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
        tiles = [torch.split(row, sizes, 1) for row in torch.split(out, sizes, 0)]
        for (g, h), (_, local) in self.plan.places.items():
            if g == h:
                tiles[g][g].copy_(self._own[g].to_dense())
                continue
            d, e, r, s = (
                basis_groups[g].n_columns,
                basis_groups[h].n_columns,
                len(basis_groups[g].members),
                len(basis_groups[h].members),
            )
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
        c, d = self.output_map.n_outputs, self.output_map.n_columns
        padded = torch.cat([self._sums, self._sums.new_zeros(1, d)])
        sums = padded[self.plan.spread.view(-1)].view(c, c, d)
        left, *slopes = self.output_map.groups
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


def _basis_groups(output_map: OutputMap) -> list[BasisGroup]:
    uses = torch.zeros(output_map.basis.shape[1], output_map.n_columns, dtype=torch.bool)
    for columns, loading in output_map.slope_loadings():
        uses[:, columns] |= (loading != 0).any(1, keepdim=True)
    members: dict[tuple[bool, ...], list[int]] = {}
    for i, used in enumerate(uses.tolist()):
        members.setdefault(tuple(used), []).append(i)
    found = []
    for used_columns, which in members.items():
        own = list(itertools.compress(range(output_map.n_columns), used_columns))
        if own:
            found.append(BasisGroup(which, positions(own), len(own)))
    return found


def _slope_order(output_map: OutputMap, basis_groups: list[BasisGroup]) -> Tensor:
    if not basis_groups:
        return torch.zeros(0, dtype=torch.long)
    first = sum(r * d for r, d in output_map.shapes[: int(output_map.intercept)])
    k = output_map.products_by_group(torch.eye(output_map.n_parameters, dtype=torch.float64)[first:])[0]
    return _as_index(torch.cat([k[:, i, one.columns] for one in basis_groups for i in one.members], 1))


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
