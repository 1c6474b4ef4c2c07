"""Block-diagonal operators with blocks of unequal size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg._operator import Eigh, LinearOperator, SlogDet, SymmetricOperator, columnwise
from raphson.linalg._size import check_dense_size


class _Blocks(LinearOperator):
    """What block-diagonal operators have in common, symmetric or not."""

    _part = "blocks"
    blocks: tuple[LinearOperator, ...]

    @cached_property
    def shape(self) -> torch.Size:
        """Shape ``(*batch, m_1 + m_2 + ..., n_1 + n_2 + ...)``."""
        rows, columns = (sum(op.shape[i] for op in self.blocks) for i in (-2, -1))
        return torch.Size((*self.blocks[0].shape[:-2], rows, columns))

    def mm(self, v: Tensor) -> Tensor:
        """Return ``A V`` for ``V`` of shape ``(*batch, n, k)``."""
        return _each([op.mm for op in self.blocks], self._sizes(), v)

    def to_dense(self) -> Tensor:
        """Return the ``(*batch, m, n)`` tensor."""
        check_dense_size(self.shape, self.dtype, "its blocks or its products mv and mm")
        dense = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        row = column = 0
        for op in self.blocks:
            m, n = op.shape[-2:]
            dense[..., row : row + m, column : column + n] = op.to_dense()
            row, column = row + m, column + n
        return dense

    def _sizes(self) -> list[int]:
        return [op.shape[-1] for op in self.blocks]


@dataclass(frozen=True, eq=False)
class BlockDiagonalMatrix(_Blocks):
    """A block-diagonal operator of rectangular blocks.

    Args:
        blocks: One or more, ``(*batch, m_i, n_i)`` with the batch in common.
    """

    blocks: tuple[LinearOperator, ...]

    def rmm(self, v: Tensor) -> Tensor:
        return _each([op.rmm for op in self.blocks], [op.shape[-2] for op in self.blocks], v)


@dataclass(frozen=True, eq=False)
class BlockDiagonal(_Blocks, SymmetricOperator):
    """A block-diagonal operator of symmetric blocks, each with a structure of its own.

    Args:
        blocks: One or more, ``(*batch, n_i, n_i)`` with the batch in common.
        labels: Names of the ``n_1 + n_2 + ...`` parameters.

    Raises:
        InputError: If there are none or their batch dimensions differ.

    Examples:
        >>> from raphson.linalg import Dense, Diagonal
        >>> a = Dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> blocks = BlockDiagonal((Diagonal(torch.ones(1)), a))
        >>> blocks.diagonal(), blocks @ torch.tensor([1.0, 1.0, 0.0])
        (tensor([1., 2., 2.]), tensor([1., 2., 1.]))
    """

    blocks: tuple[SymmetricOperator, ...]

    def __post_init__(self) -> None:
        batches = {tuple(op.shape[:-2]) for op in self.blocks}
        if len(batches) != 1:
            raise InputError(
                f"BlockDiagonal needs one or more blocks with the same batch dimensions, and got "
                f"{len(self.blocks)} with {sorted(batches)}."
            )

    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(*batch, n)``."""
        return torch.cat([op.diagonal() for op in self.blocks], dim=-1)

    def eigh(self) -> Eigh:
        """Return the eigen-decomposition, block by block."""
        parts = [op.eigh() for op in self.blocks]
        vectors = BlockDiagonalMatrix(tuple(part.eigenvectors for part in parts))
        return Eigh(torch.cat([part.eigenvalues for part in parts], dim=-1), vectors)

    def slogdet(self) -> SlogDet:
        """Return the sign and the log absolute value of the determinant."""
        parts = [op.slogdet() for op in self.blocks]
        sign = torch.stack([part.sign for part in parts]).prod(0)
        return SlogDet(sign, torch.stack([part.logabsdet for part in parts]).sum(0))

    def shift(self, c: float | Tensor) -> BlockDiagonal:
        """Return ``A + c I``, for a number or one ``c`` per batch element."""
        return replace(self, blocks=tuple(op.shift(c) for op in self.blocks))

    def solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 b``; ``IndefiniteError`` if a block is singular."""
        solves = [op.solve for op in self.blocks]
        return columnwise(self, lambda columns: _each(solves, self._sizes(), columns), b)

    def power_mv(self, v: Tensor, p: float) -> Tensor:
        """Return ``A^p v``; a fractional ``p`` of an indefinite operator raises ``IndefiniteError``."""
        # Block by block, because rounding in a large block says nothing about the zeros of a small one.
        powers = [_power(op, p) for op in self.blocks]
        return columnwise(self, lambda columns: _each(powers, self._sizes(), columns), v)

    def factor(self) -> BlockDiagonalMatrix:
        """Return the block-diagonal ``S`` with ``S S^T = A``; an indefinite block raises."""
        return BlockDiagonalMatrix(tuple(op.factor() for op in self.blocks))


def _power(operator: SymmetricOperator, p: float) -> Callable[[Tensor], Tensor]:
    return lambda v: operator.power_mv(v, p)


def _each(functions: Sequence[Callable[[Tensor], Tensor]], sizes: list[int], v: Tensor) -> Tensor:
    """Return the functions of the successive slices of ``V``, ``(*batch, n, k)``, one below the other."""
    parts = torch.split(v, sizes, dim=-2)
    return torch.cat([f(part) for f, part in zip(functions, parts, strict=True)], dim=-2)
