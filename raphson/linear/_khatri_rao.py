r"""The Hessian of a linear model as one Khatri-Rao product.

With output Hessians :math:`A_n` (C, C) and rows :math:`x_n` (D'), the sum

.. math:: H = \sum_n A_n \otimes x_n x_n^T

repeats every number up to four times, because both factors are symmetric. With :math:`a_n` the :math:`q = C(C+1)/2`
distinct entries of :math:`A_n` its blocks are one product, :math:`X^T [a_1 \odot X, \ldots, a_q \odot X]`. It holds
for any :math:`A_n`, indefinite ones too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raphson.linalg import Diagonal, DiagonalPlusLowRank, EqualBlocks, SymmetricOperator
from raphson.linear._compiled import is_built, pair_sums

_TILE_ELEMENTS = 2**19
"""Elements of one intermediate; it is made and consumed in the cache."""


class OutputPairs(Protocol):
    """The distinct entries of batched output Hessians, given for some rows at a time."""

    @property
    def pairs(self) -> Tensor:
        """Row and column of each entry that is not zero by structure, ``(2, q)``, row <= column."""

    def entries(self, rows: slice, dtype: torch.dtype, weights: Tensor | None) -> Tensor:
        """Return the entries of some rows times their weights, ``(q, rows)``."""


class KhatriRaoGram:
    r"""Accumulates :math:`\sum_n A_n \otimes x_n x_n^T` over blocks of examples.

    Args:
        pairs: ``(2, q)`` entries of the output Hessians that are kept, row <= column.
        n_outputs: C.
        n_features: D'.
        dtype: Element type of the sums.
    """

    def __init__(self, pairs: Tensor, n_outputs: int, n_features: int, dtype: torch.dtype) -> None:
        self.pairs = pairs
        self.n_outputs = n_outputs
        self.n_features = n_features
        size = pairs.shape[1] * n_features
        self._rows = max(128, 2 ** ((_TILE_ELEMENTS // (size + 1)).bit_length() - 1))
        self._total = torch.zeros(size, n_features, dtype=dtype)
        self._memory = self._total.new_empty(0)

    def add(self, x: Tensor, output: OutputPairs, weights: Tensor | None = None) -> None:
        """Add features ``(D', rows)`` with their output Hessians."""
        dtype, size = self._total.dtype, self._total.shape[0]
        if is_built(x) and x.dtype == dtype:
            self._total += pair_sums(x, output.entries(slice(None), dtype, weights)).view_as(self._total)
            return
        # the same memory for all rows: fresh pages cost more than what is written to them
        if self._memory.shape[0] < size * min(self._rows, x.shape[1]):
            self._memory = self._total.new_empty(size * min(self._rows, x.shape[1]))
        for start in range(0, x.shape[1], self._rows):
            rows = slice(start, min(start + self._rows, x.shape[1]))
            a = output.entries(rows, dtype, None if weights is None else weights[rows])
            stacked = self._memory[: size * a.shape[1]].view(a.shape[0], x.shape[0], a.shape[1])
            torch.mul(a[:, None], x[:, rows], out=stacked)
            self._total.addmm_(stacked.view(size, -1), x[:, rows].mT)

    def blocks(self) -> Tensor:
        """Return the sums per pair, ``(q, D', D')``."""
        return self._total.view(self.pairs.shape[1], self.n_features, self.n_features)

    def to_dense(self) -> Tensor:
        r"""Return the sum of :math:`A_n \otimes x_n x_n^T` as ``(C D', C D')``, class by class."""
        c, d = self.n_outputs, self.n_features
        blocks = self.blocks()
        out = blocks.new_zeros(c, d, c, d)
        k, l = self.pairs  # noqa: E741
        out[k, :, l, :] = blocks
        out[l, :, k, :] = blocks
        return out.view(c * d, c * d)


@functools.lru_cache(maxsize=32)
def triangle(d: int) -> Tensor:
    """Return row and column of the upper triangle row by row, ``(2, d (d + 1) / 2)``."""
    return torch.triu_indices(d, d)


@dataclass(frozen=True)
class GivenPairs:
    """Entries given in full: ``values`` ``(q, rows)`` at ``pairs``."""

    pairs: Tensor
    values: Tensor

    def entries(self, rows: slice, dtype: torch.dtype, weights: Tensor | None) -> Tensor:  # noqa: D102
        values = self.values[:, rows].to(dtype)
        return values if weights is None else values * weights.to(dtype)


@dataclass(frozen=True)
class LowRankPairs:
    """Entries of ``diag(d) + sign U U^T``: ``diagonal`` ``(C, rows)``, ``factor`` ``(r, C, rows)``."""

    diagonal: Tensor | None
    factor: Tensor
    sign: int

    @property
    def pairs(self) -> Tensor:  # noqa: D102
        return triangle(self.factor.shape[1])

    def entries(self, rows: slice, dtype: torch.dtype, weights: Tensor | None) -> Tensor:  # noqa: D102
        total: Tensor | None = None
        w = None if weights is None else weights.to(dtype)
        i, j = self.pairs
        for column in self.factor[..., rows].to(dtype):
            left = column if w is None else column * w
            part = torch.index_select(-left if self.sign < 0 else left, 0, i).mul_(torch.index_select(column, 0, j))
            total = part if total is None else total.add_(part)
        assert total is not None
        if self.diagonal is not None:
            d = self.diagonal[:, rows].to(dtype)
            total[_diagonal_index(d.shape[0])] += d if w is None else d * w
        return total


@functools.lru_cache(maxsize=32)
def _diagonal_index(d: int) -> Tensor:
    i, j = triangle(d)
    return torch.nonzero(i == j)[:, 0]


def output_pairs(hessian: SymmetricOperator, keep: slice | Tensor | None = None) -> OutputPairs:
    """Return the distinct entries of output Hessians ``(rows, C, C)`` among kept outputs, not zero by structure."""
    if keep is None and isinstance(hessian, EqualBlocks) and hessian.blocks.ndim == 4:
        m, k = hessian.blocks.shape[1:3]
        pairs, places = _block_pairs(m, k)
        # likelihoods store one entry of the blocks after the other, so that this is a view
        return GivenPairs(pairs, hessian.blocks.movedim(0, -1).reshape(m * k * k, -1)[places])
    keep = slice(None) if keep is None else keep
    if isinstance(hessian, Diagonal):
        d = hessian.diagonal().mT[keep]
        index = torch.arange(d.shape[0])
        return GivenPairs(torch.stack([index, index]), d)
    if isinstance(hessian, DiagonalPlusLowRank):
        return LowRankPairs(hessian.diag.mT[keep], hessian.low_rank.permute(2, 1, 0)[:, keep], hessian.sign)
    dense = hessian.to_dense().permute(1, 2, 0)[keep][:, keep]
    pairs = triangle(dense.shape[0])
    return GivenPairs(pairs, dense[pairs[0], pairs[1]])


@functools.lru_cache(maxsize=32)
def _block_pairs(m: int, k: int) -> tuple[Tensor, Tensor]:
    """Return the entries ``(2, m k (k + 1) / 2)``, row <= column, of m blocks ``(k, k)``, and where they are stored."""
    i, j = triangle(k)
    block = torch.arange(m)[:, None]
    pairs = torch.stack([(block * k + i).flatten(), (block * k + j).flatten()])
    return pairs, (block * (k * k) + i * k + j).flatten()


def score_pairs(scores: Tensor) -> OutputPairs:
    """Return the entries of ``g g^T`` for output gradients ``(C, rows)``."""
    return LowRankPairs(None, scores[None], 1)
