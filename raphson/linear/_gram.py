r"""The dense Hessian of a linear model: sums of output matrices times products of columns.

For symmetric output matrices :math:`A_n` (C, C) the sum :math:`\sum_n J_n^T A_n J_n` is wanted in the parameters of
:math:`f = \sum_g H_g \Theta_g x_g`. With one constraint matrix for all columns it is the Khatri-Rao product of
:math:`H^T A_n H` and the rows. With several, every two groups of columns have a part of their own, in which only
:math:`H_g^T A_n H_h` meets products of two columns, one weighted matrix product for each of its entries that is not
zero by structure. So a constant parameter, whose column is the ones, costs next to nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raphson.data import Block
from raphson.linalg import SymmetricOperator
from raphson.linear._khatri_rao import GivenPairs, KhatriRaoGram, OutputPairs, output_pairs
from raphson.linear._output_map import OutputMap

_TILE_ELEMENTS = 2**17
"""Elements of one intermediate: it is made and consumed in the cache."""


class Part(NamedTuple):
    """What two groups of columns, g <= h, take of the given entries of output matrices.

    Attributes:
        reduce: Takes the given entries to those of :math:`H_g^T A H_h`: a matrix ``(m, Q)``, or indices ``(m,)``.
        places: Their rows and columns, ``(2, m)``; those of the upper triangle where g is h.
    """

    reduce: Tensor
    places: Tensor


def dense_sum(
    output_map: OutputMap, parts: Iterable[tuple[Block, OutputPairs, Tensor | None]], element: torch.dtype
) -> Tensor:
    r"""Return :math:`\sum_n w_n\, J_n^T A_n J_n`, ``(P, P)``, of what ``map_pairs`` gives for blocks."""
    gram: KhatriRaoGram | MapGram | None = None
    for block, pairs, weights in parts:
        if isinstance(gram, KhatriRaoGram) or (gram is None and output_map.is_uniform):
            if gram is None:
                gram = KhatriRaoGram(pairs.pairs, output_map.basis.shape[1], output_map.n_columns, element)
            gram.add(block.features(), pairs, weights)
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
    pairs, mapping = congruence(output_map.basis, output_map.basis, given.pairs, triangular=True)
    return GivenPairs(pairs, mapping @ given.entries(slice(None), torch.float64, None))


class MapGram:
    r"""Accumulates :math:`\sum_n J_n^T A_n J_n` for a map that is not uniform.

    What the ones have a part in are entries of :math:`\sum_n \mathrm{vec}(A_n)\, x_n^T`, one thin product.

    Args:
        output_map: How the parameters act on the outputs.
        pairs: ``(2, Q)`` entries of :math:`A_n` that are given, row <= column.
    """

    def __init__(self, output_map: OutputMap, pairs: Tensor) -> None:
        self.output_map = output_map
        self._parts = _parts(output_map, pairs)
        self._ones: Tensor | None = None
        self._own: dict[int, KhatriRaoGram] = {}
        self._cross: dict[tuple[int, int], Tensor] = {}
        for (g, h), part in self._slopes():
            (r, d), (_, e) = output_map.shapes[g], output_map.shapes[h]
            if g == h:
                self._own[g] = KhatriRaoGram(part.places, r, d, torch.float64)
            else:
                self._cross[g, h] = torch.zeros(part.places.shape[1], d, e, dtype=torch.float64)

    def _slopes(self) -> list[tuple[tuple[int, int], Part]]:
        return [(both, part) for both, part in self._parts.items() if both[0] or not self.output_map.intercept]

    def add(self, block: Block, entries: Tensor) -> None:
        """Add a block of rows with the given entries of its matrices, weights included, ``(Q, rows)``."""
        groups = self.output_map.groups
        if self.output_map.intercept:
            ones = block.adjoint(entries)
            self._ones = ones if self._ones is None else self._ones.add_(ones)
        x: Tensor | None = None
        for (g, h), (reduce, places) in self._slopes():
            x = block.features() if x is None else x
            own, left = _reduced(reduce, entries), x[groups[g].columns]
            if g == h:
                self._own[g].add(left, GivenPairs(places, own))
            else:
                _add_rectangles(self._cross[g, h], own, left, x[groups[h].columns])

    def to_dense(self) -> Tensor:
        """Return the sum as ``(P, P)``, group by group."""
        starts = [0, *itertools.accumulate(r * d for r, d in self.output_map.shapes)]
        out = torch.zeros(starts[-1], starts[-1], dtype=torch.float64)
        for (g, h), (reduce, places) in self._parts.items():
            (r, d), (s, e) = self.output_map.shapes[g], self.output_map.shapes[h]
            rows, columns = slice(starts[g], starts[g + 1]), slice(starts[h], starts[h + 1])
            if g in self._own and g == h:
                out[rows, rows] = self._own[g].to_dense()
                continue
            if (g, h) in self._cross:
                sums = self._cross[g, h]
            else:
                assert self._ones is not None
                sums = _reduced(reduce, self._ones[:, self.output_map.groups[h].columns])[:, None]
            rectangle = sums
            if r * s > 1:
                rectangle = out.new_zeros(r, d, s, e)
                rectangle[places[0], :, places[1], :] = sums
                if g == h:
                    rectangle[places[1], :, places[0], :] = sums
            out[rows, columns] = rectangle.view(r * d, s * e)
            if g != h:
                out[columns, rows] = out[rows, columns].mT
        return out


def constant_sum(
    output_map: OutputMap, blocks: Iterable[tuple[Block, Tensor | None]], matrix: Tensor, element: torch.dtype
) -> Tensor:
    r"""Return :math:`\sum_n w_n\, J_n^T A J_n`, ``(P, P)``, of one matrix A ``(C, C)`` for all rows."""
    gram = KhatriRaoGram(torch.zeros(2, 1, dtype=torch.long), 1, output_map.n_columns, element)
    for block, weights in blocks:
        x = block.features()
        gram.add(x, GivenPairs(gram.pairs, x.new_ones(1, x.shape[1])), weights)
    products, matrix, groups = gram.blocks()[0], matrix.to(element), output_map.groups
    return torch.cat([
        torch.cat(
            [
                torch.kron(g.matrix.to(element).mT @ matrix @ h.matrix.to(element), products[g.columns][:, h.columns])
                for h in groups
            ],
            1,
        )
        for g in groups
    ])


def _parts(output_map: OutputMap, pairs: Tensor) -> dict[tuple[int, int], Part]:
    """Return what every two groups take of the given entries; the map caches it for all blocks and points."""
    key = tuple(pairs.flatten().tolist())
    if key not in output_map.plans:
        found = {}
        for h, right in enumerate(output_map.groups):
            for g, left in enumerate(output_map.groups[: h + 1]):
                places, mapping = congruence(left.matrix, right.matrix, pairs, triangular=g == h)
                if places.shape[1]:
                    found[g, h] = Part(_as_index(mapping), places)
        output_map.plans[key] = found
    known: dict[tuple[int, int], Part] = output_map.plans[key]
    return known


def congruence(left: Tensor, right: Tensor, pairs: Tensor, *, triangular: bool) -> tuple[Tensor, Tensor]:
    """Return the places ``(2, m)`` in :math:`L^T A R` that can differ from zero, and the map ``(m, Q)`` to them."""
    # NumPy, whose calls on a few numbers cost a third of PyTorch's
    k, l = pairs.numpy()  # noqa: E741
    a, b = left.numpy(), right.numpy()
    i, j = np.triu_indices(a.shape[1]) if triangular else np.indices((a.shape[1], b.shape[1])).reshape(2, -1)
    whole = a[k].T[i] * b[l].T[j] + np.where(k != l, a[l].T[i] * b[k].T[j], 0.0)
    kept = (whole != 0).any(1)
    return torch.from_numpy(np.stack([i[kept], j[kept]])), torch.from_numpy(whole[kept])


def _as_index(matrix: Tensor) -> Tensor:
    """Return a matrix each row of which is a unit vector as their positions, another one as it is."""
    unit = (matrix != 0).sum(1) == 1
    if bool(unit.all()) and bool((matrix.sum(1) == 1).all()):
        return matrix.argmax(1)
    return matrix


def _reduced(reduce: Tensor, entries: Tensor) -> Tensor:
    return entries[reduce] if reduce.ndim == 1 else reduce @ entries


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
