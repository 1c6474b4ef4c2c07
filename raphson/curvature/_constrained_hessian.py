r"""The Hessian of a linear model with constraint matrices at one point, kept as the data and the output Hessians.

In the reduced predictors :math:`u = (u_1, \ldots, u_G)` the output Hessian is :math:`A_n = T^T H_n T`, and the block of
two groups is

.. math:: \tfrac1W \sum_n w_n\, (A_n)_{gh} \otimes x_{n,g} x_{n,h}^T .

Each block costs one matrix product; nothing of the size (C D')^2 is formed where outputs share coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raphson.curvature._constraints import Constraints
from raphson.curvature._dense_form import DenseForm
from raphson.curvature._khatri_rao import GivenPairs, KhatriRaoGram, output_pairs
from raphson.data import Block
from raphson.linalg import Dense
from raphson.linalg._operator import SymmetricOperator
from raphson.linalg._size import check_dense_size

Part = tuple[Block, SymmetricOperator, Tensor | None]

_TILE_ELEMENTS = 2**19

_ONE_TILE = 23
"""A group with one predictor and up to this many columns is multiplied whole: its symmetry would save no time."""


class GroupGram:
    r"""Accumulates :math:`\sum_n (A_n)_{gh} \otimes x_{n,g} x_{n,h}^T` for all pairs of groups.

    Args:
        constraints: Groups of columns.
        pairs: ``(2, Q)`` entries of :math:`A_n` that are given, row <= column.
    """

    def __init__(self, constraints: Constraints, pairs: Tensor) -> None:
        self.constraints = constraints
        self._own: dict[int, tuple[Tensor, KhatriRaoGram]] = {}
        self._cross: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
        for (g, h), (index, local) in constraints.places(pairs).items():
            r, d = constraints.shapes[g]
            if g == h and (r > 1 or d > _ONE_TILE):
                self._own[g] = index, KhatriRaoGram(local, r, d, torch.float64)
            else:
                total = torch.zeros(index.shape[0], d, constraints.shapes[h][1], dtype=torch.float64)
                self._cross[g, h] = index, local, total

    def add(self, block: Block, entries: Tensor) -> None:
        """Add a block of rows with the given entries of its matrices, weights included, ``(Q, rows)``."""
        x = block.features()
        parts = [x[group.columns] for group in self.constraints.groups]
        for g, (index, gram) in self._own.items():
            gram.add(parts[g], GivenPairs(gram.pairs, entries[index]))
        for (g, h), (index, _, total) in self._cross.items():
            _add_rectangles(total, entries[index], parts[g], parts[h])

    def to_dense(self) -> Tensor:
        """Return the sum as ``(p, p)``."""
        sizes = [r * d for r, d in self.constraints.shapes]
        out = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
        tiles = [torch.split(row, sizes, 1) for row in torch.split(out, sizes, 0)]
        for g, (_, gram) in self._own.items():
            tiles[g][g].copy_(gram.to_dense())
        for (g, h), (_, local, total) in self._cross.items():
            (r, d), (s, e) = self.constraints.shapes[g], self.constraints.shapes[h]
            rectangle = total.new_zeros(r, d, s, e)
            rectangle[local[0], :, local[1], :] = total
            tiles[g][h].copy_(rectangle.view(r * d, s * e))
            tiles[h][g].copy_(rectangle.view(r * d, s * e).mT)
        return out


def _add_rectangles(total: Tensor, a: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left diag(a_i) right^T`` for every row of a ``(m, rows)`` to ``total`` ``(m, d, e)``."""
    if left.shape[0] > right.shape[0]:
        _add_rectangles(total.mT, a, right, left)
        return
    m, d, e = total.shape
    step = max(128, _TILE_ELEMENTS // max(1, m * d))
    for start in range(0, a.shape[1], step):
        rows = slice(start, start + step)
        stacked = a[:, None, rows] * left[:, rows]
        total += (stacked.view(m * d, -1) @ right[:, rows].mT).view(m, d, e)


@dataclass(frozen=True, eq=False)
class ConstrainedHessian(DenseForm):
    """Hessian of a linear model in its free parameters, ``(p, p)``.

    Attributes:
        parts: Yields ``(block, output Hessians (rows, C, C), weights (rows,) or None)`` over all the data, anew at each
            call.
        constraints: How the parameters act on the outputs.
        total_weight: W.
        penalty: What is added to the diagonal, ``(p,)``, or None.
        kept: The parameters that are free, indices ``(p',)``; None for all.
    """

    parts: Callable[[], Iterator[Part]]
    constraints: Constraints
    total_weight: float
    penalty: Tensor | None
    kept: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape ``(p, p)``."""
        p = self.constraints.n_parameters if self.kept is None else self.kept.shape[0]
        return torch.Size((p, p))

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the products."""
        return torch.float64

    @property
    def device(self) -> torch.device:
        """Device on which the operator lives."""
        return self.constraints.reduced.device

    def mv(self, v: Tensor) -> Tensor:
        """Return ``H v`` for ``v`` of shape ``(p,)``, without forming H."""
        theta = v
        if self.kept is not None:
            theta = v.new_zeros(self.constraints.n_parameters)
            theta[self.kept] = v
        slopes, constants = self.constraints.to_products(theta)
        basis = self.constraints.basis
        total: Tensor | None = None
        for block, output, weights in self.parts():
            change = basis @ block.predict(slopes)
            if constants is not None:
                change = change + constants
            change = output.mv(change.mT).mT
            if weights is not None:
                change = change * weights
            sums = change.sum(1) if constants is not None else None
            part = self.constraints.from_products(block.adjoint(basis.mT @ change), sums)
            total = part if total is None else total.add_(part)
        assert total is not None
        total /= self.total_weight
        if self.penalty is not None:
            total += self.penalty * theta
        return total if self.kept is None else total[self.kept]

    def to_dense(self) -> Tensor:
        """Return the ``(p, p)`` tensor, group by group; it is made once."""
        return self._dense

    @cached_property
    def _dense(self) -> Tensor:
        check_dense_size(self.shape, self.dtype, "its products mv, which need no such array")
        gram: GroupGram | None = None
        for block, output, weights in self.parts():
            given = output_pairs(output, slice(0, self.constraints.n_outputs))
            if gram is None:
                reduced, mapping = self.constraints.congruence(given.pairs)
                gram = GroupGram(self.constraints, reduced)
            entries = given.entries(slice(0, block.rows.stop - block.rows.start), torch.float64, weights)
            gram.add(block, mapping @ entries)
        assert gram is not None
        total = gram.to_dense().div_(self.total_weight)
        if self.penalty is not None:
            total.diagonal().add_(self.penalty)
        return total if self.kept is None else total[self.kept][:, self.kept]

    def diagonal(self) -> Tensor:
        """Return the diagonal of the dense form, ``(p,)``."""
        return self.to_dense().diagonal()

    def solve(self, b: Tensor) -> Tensor:
        """Return ``H^-1 b`` by the dense form."""
        return Dense(self.to_dense()).solve(b)
