"""Block-diagonal operators whose blocks have one size and lie in one tensor.

The output Hessian of several responses with several parameters each (mean and scale, say) is of this kind: a
batch of them stays one tensor, and every method is one batched call, with no Python loop over blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg._basic import Dense
from raphson.linalg._operator import Eigh, LinearOperator, SlogDet, SymmetricOperator, columnwise, per_batch
from raphson.linalg._size import check_dense_size


class _Blocks(LinearOperator):
    """What block-diagonal operators of one size of block have in common, symmetric or not."""

    _part = "blocks"
    blocks: Tensor

    @cached_property
    def shape(self) -> torch.Size:
        """Shape ``(*batch, M a, M b)``."""
        *batch, m, a, b = self.blocks.shape
        return torch.Size((*batch, m * a, m * b))

    def mv(self, v: Tensor) -> Tensor:
        """Return ``A v`` for ``v`` of shape ``(*batch, M b)``."""
        return _mv(self.blocks, v)

    def mm(self, v: Tensor) -> Tensor:
        """Return ``A V`` for ``V`` of shape ``(*batch, M b, k)``."""
        return _mm(self.blocks, v)

    def to_dense(self) -> Tensor:
        """Return the ``(*batch, M a, M b)`` tensor."""
        check_dense_size(self.shape, self.dtype, "its blocks or its products mv and mm")
        same = torch.eye(self.blocks.shape[-3], dtype=torch.bool, device=self.device)[:, None, :, None]
        return torch.where(same, self.blocks.unsqueeze(-2), self.blocks.new_zeros(())).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class EqualBlocksMatrix(_Blocks):
    """A block-diagonal operator of rectangular blocks of one size.

    Args:
        blocks: ``(*batch, M, a, b)``.
    """

    blocks: Tensor

    def rmv(self, v: Tensor) -> Tensor:
        return _mv(self.blocks.mT, v)

    def rmm(self, v: Tensor) -> Tensor:
        return _mm(self.blocks.mT, v)


@dataclass(frozen=True, eq=False)
class EqualBlocks(_Blocks, SymmetricOperator):
    """A block-diagonal operator of ``M`` symmetric blocks of one size ``k``, stored as one tensor.

    Args:
        blocks: ``(*batch, M, k, k)``, each symmetric, definite or not.
        labels: Names of the ``M k`` parameters.

    Raises:
        InputError: If the last two dimensions differ.

    Examples:
        >>> blocks = EqualBlocks(torch.tensor([[[2.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]]]))
        >>> blocks @ torch.ones(4)
        tensor([3., 3., 1., 1.])
    """

    blocks: Tensor

    def __post_init__(self) -> None:
        if self.blocks.ndim < 3 or self.blocks.shape[-1] != self.blocks.shape[-2]:
            raise InputError(
                f"EqualBlocks needs a tensor of square blocks (*batch, M, k, k), and got shape "
                f"{tuple(self.blocks.shape)}."
            )

    @property
    def _each(self) -> Dense:
        return Dense(self.blocks)

    def diagonal(self) -> Tensor:
        return self.blocks.diagonal(dim1=-2, dim2=-1).flatten(-2)

    def eigh(self) -> Eigh:
        """Return the eigen-decomposition, block by block."""
        eigenvalues, vectors = torch.linalg.eigh(self.blocks)
        return Eigh(eigenvalues.flatten(-2), EqualBlocksMatrix(vectors))

    def slogdet(self) -> SlogDet:
        sign, logabsdet = self._each.slogdet()
        return SlogDet(sign.prod(-1), logabsdet.sum(-1))

    def shift(self, c: float | Tensor) -> EqualBlocks:
        per_block = per_batch(c, self).squeeze(-1).expand(self.blocks.shape[:-2])
        return replace(self, blocks=self._each.shift(per_block).to_dense())

    def solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 b``; ``IndefiniteError`` if a block is singular."""
        return self._by_block(self._each.solve, b)

    def power_mv(self, v: Tensor, p: float) -> Tensor:
        """Return ``A^p v``; a fractional ``p`` of an indefinite operator raises ``IndefiniteError``."""
        return self._by_block(lambda columns: self._each.power_mv(columns, p), v)

    def factor(self) -> EqualBlocksMatrix:
        """Return the block-diagonal ``S`` with ``S S^T = A``; an indefinite block raises."""
        return EqualBlocksMatrix(self._each.factor().to_dense())

    def _by_block(self, function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        def apply(columns: Tensor) -> Tensor:
            return _joined(function(_split(columns, *self.blocks.shape[-3:-1])))

        return columnwise(self, apply, v)


def _split(columns: Tensor, m: int, k: int) -> Tensor:
    """Return ``(*batch, M k, r)`` as ``(*batch, M, k, r)``."""
    return columns.reshape(*columns.shape[:-2], m, k, columns.shape[-1])


def _joined(columns: Tensor) -> Tensor:
    return columns.flatten(-3, -2)


def _mv(blocks: Tensor, v: Tensor) -> Tensor:
    # a sum of products: batched matrix products of blocks this small are calls, not arithmetic
    m, _, b = blocks.shape[-3:]
    return (blocks * v.reshape(*v.shape[:-1], m, 1, b)).sum(-1).flatten(-2)


def _mm(blocks: Tensor, columns: Tensor) -> Tensor:
    return _joined(blocks @ _split(columns, blocks.shape[-3], blocks.shape[-1]))
