r"""The Hessian of a linear model with constraint matrices at one point, kept as the data and the output Hessians.

Its dense form is a ``ConstrainedGram`` of the output Hessians; nothing of the size (C D')^2 is formed where outputs
share coefficients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raphson.data import Block
from raphson.linalg import Dense, EqualBlocks, SymmetricOperator, check_dense_size
from raphson.linear._dense_form import DenseForm
from raphson.linear._khatri_rao import GivenPairs, OutputPairs, output_pairs, triangle
from raphson.linear._map_gram import ConstrainedGram
from raphson.linear._output_map import Constraints

Part = tuple[Block, SymmetricOperator, Tensor | None]


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
            change = block.predict(slopes)
            if not self.constraints.plain:
                change = basis @ change
            if constants is not None:
                change = change + constants
            change = output.mv(change.mT).mT
            if weights is not None:
                change = change * weights
            sums = change.sum(1) if constants is not None else None
            reduced = change if self.constraints.plain else basis.mT @ change
            part = self.constraints.from_products(block.adjoint(reduced), sums)
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
        c = self.constraints.n_outputs
        parts = ((block, _given(output, c), weights) for block, output, weights in self.parts())
        return dense_sum(self.constraints, parts, self.total_weight, self.penalty, self.kept)

    def alike(self, n_separate: int = 1) -> Tensor:
        """Return the ``(p, p)`` tensor there would be if every row had the mean of the output Hessians.

        Args:
            n_separate: Outputs are dealt out to so many parameters in turn; entries between two of them are left out.

        Returns:
            The tensor.
        """
        c = self.constraints.n_outputs
        total, n, pairs = torch.zeros((), dtype=torch.float64), 0.0, torch.zeros(2, 0, dtype=torch.long)
        for block, output, weights in self.parts():
            given, rows = _given(output, c), _rows(block)
            total = total + given.entries(rows, torch.float64, weights).sum(1)
            n, pairs = n + (rows.stop if weights is None else float(weights.sum())), given.pairs
        i, j = pairs
        same = GivenPairs(pairs, torch.where(i % n_separate == j % n_separate, total / n, 0.0)[:, None])
        parts = ((block, _Repeated(same), weights) for block, _, weights in self.parts())
        return dense_sum(self.constraints, parts, self.total_weight, self.penalty, self.kept)

    def diagonal(self) -> Tensor:
        """Return the diagonal of the dense form, ``(p,)``."""
        return self.to_dense().diagonal()

    def solve(self, b: Tensor) -> Tensor:
        """Return ``H^-1 b`` by the dense form."""
        return Dense(self.to_dense()).solve(b)


def dense_sum(
    constraints: Constraints,
    parts: Iterable[tuple[Block, OutputPairs, Tensor | None]],
    total_weight: float,
    penalty: Tensor | None,
    kept: Tensor | None,
) -> Tensor:
    """Return the dense Hessian of given output Hessians.

    Args:
        constraints: How the parameters act on the outputs.
        parts: Blocks with the entries of their output Hessians and their weights.
        total_weight: W.
        penalty: What is added to the diagonal, ``(P,)``, or None.
        kept: The parameters that are free, indices ``(p,)``; None for all.

    Returns:
        ``(p, p)``.
    """
    gram: ConstrainedGram | None = None
    for block, given, weights in parts:
        if gram is None:
            gram = ConstrainedGram(constraints, given.pairs)
        gram.add(block, given.entries(_rows(block), torch.float64, weights))
    assert gram is not None
    total = gram.to_dense().div_(total_weight)
    if penalty is not None:
        total.diagonal().add_(penalty)
    return total if kept is None else total[kept][:, kept]


@dataclass(frozen=True, eq=False)
class _Repeated:
    """Entries ``(q, 1)`` that are those of every row."""

    one: GivenPairs

    @property
    def pairs(self) -> Tensor:
        return self.one.pairs

    def entries(self, rows: slice, dtype: torch.dtype, weights: Tensor | None) -> Tensor:
        values = self.one.values.to(dtype)
        return values.expand(-1, rows.stop - rows.start) if weights is None else values * weights.to(dtype)


def _rows(block: Block) -> slice:
    return slice(0, block.rows.stop - block.rows.start)


def _given(output: SymmetricOperator, n_outputs: int) -> OutputPairs:
    """Return the entries of batched output Hessians that are not zero by structure."""
    if not isinstance(output, EqualBlocks) or output.blocks.ndim != 4:
        return output_pairs(output, slice(0, n_outputs))
    m, k = output.blocks.shape[1:3]
    pairs, places = _block_pairs(m, k)
    # likelihoods store one entry of the blocks after the other, so that this is a view
    return GivenPairs(pairs, output.blocks.movedim(0, -1).reshape(m * k * k, -1)[places])


@functools.lru_cache(maxsize=32)
def _block_pairs(m: int, k: int) -> tuple[Tensor, Tensor]:
    """Return the entries ``(2, m k (k + 1) / 2)``, row <= column, of m blocks ``(k, k)``, and where they are stored."""
    i, j = triangle(k)
    block = torch.arange(m)[:, None]
    pairs = torch.stack([(block * k + i).flatten(), (block * k + j).flatten()])
    return pairs, (block * (k * k) + i * k + j).flatten()
