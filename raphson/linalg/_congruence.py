"""The chain rule of a second derivative under elementwise maps, ``D A D + diag(v)``, in the structure of ``A``.

Zero times infinity is zero: a flat map hides what is behind it, however steep that is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from torch import Tensor

from raphson.linalg._basic import Dense, Diagonal, Scaled
from raphson.linalg._equal_blocks import EqualBlocks, EqualBlocksMatrix
from raphson.linalg._low_rank import DiagonalPlusLowRank
from raphson.linalg._matrix import Matrix, ScaledColumns
from raphson.linalg._operator import LinearOperator, SymmetricOperator
from raphson.linalg._size import check_dense_size
from raphson.linalg._sum import Sum


@dataclass(frozen=True, eq=False)
class ScaledRows(LinearOperator):
    """A diagonal times an operator, ``diag(s) A``.

    Args:
        operator: ``A``, ``(*batch, m, n)``.
        scale: ``s``, ``(*batch, m)``.
    """

    _part = "operator"
    operator: LinearOperator
    scale: Tensor

    def mv(self, v: Tensor) -> Tensor:
        return self.scale * self.operator.mv(v)

    def rmv(self, v: Tensor) -> Tensor:
        return self.operator.rmv(self.scale * v)

    def mm(self, v: Tensor) -> Tensor:
        return self.scale.unsqueeze(-1) * self.operator.mm(v)

    def rmm(self, v: Tensor) -> Tensor:
        return self.operator.rmm(self.scale.unsqueeze(-1) * v)

    def to_dense(self) -> Tensor:
        return self.scale.unsqueeze(-1) * self.operator.to_dense()


def scaled_rows(operator: LinearOperator, scale: Tensor) -> LinearOperator:
    """Return ``diag(s) A``, s ``(*batch, m)``, as an operator of the kind of ``A`` where that holds its entries."""
    if isinstance(operator, Diagonal):
        return replace(operator, values=_times(operator.values, scale))
    if isinstance(operator, Matrix):
        return replace(operator, matrix=_times(operator.matrix, scale.unsqueeze(-1)))
    if isinstance(operator, EqualBlocksMatrix):
        return replace(operator, blocks=_times(operator.blocks, _by_block(scale, operator.blocks).unsqueeze(-1)))
    if isinstance(operator, ScaledColumns):
        return replace(operator, operator=scaled_rows(operator.operator, scale))
    return ScaledRows(operator, scale)


@singledispatch
def congruence(operator: SymmetricOperator, scale: Tensor) -> SymmetricOperator:
    """Return ``diag(s) A diag(s)``, s ``(*batch, n)``, in the structure of ``A``, or dense where that has none here."""
    check_dense_size(operator.shape, operator.dtype, "an operator whose structure rescaling keeps")
    return congruence(Dense(operator.to_dense(), labels=operator.labels), scale)


@congruence.register
def _(operator: Dense, scale: Tensor) -> SymmetricOperator:
    return replace(operator, matrix=_both_sides(operator.matrix, scale))


@congruence.register
def _(operator: Diagonal, scale: Tensor) -> SymmetricOperator:
    return replace(operator, values=_times(_times(operator.values, scale), scale))


@congruence.register
def _(operator: EqualBlocks, scale: Tensor) -> SymmetricOperator:
    return replace(operator, blocks=_both_sides(operator.blocks, _by_block(scale, operator.blocks)))


@congruence.register
def _(operator: DiagonalPlusLowRank, scale: Tensor) -> SymmetricOperator:
    return replace(operator, diag=operator.diag * scale.square(), low_rank=operator.low_rank * scale.unsqueeze(-1))


@congruence.register
def _(operator: Scaled, scale: Tensor) -> SymmetricOperator:
    return replace(operator, operator=congruence(operator.operator, scale))


@congruence.register
def _(operator: Sum, scale: Tensor) -> SymmetricOperator:
    return replace(operator, operators=tuple(congruence(term, scale) for term in operator.operators))


@singledispatch
def plus_diagonal(operator: SymmetricOperator, values: Tensor) -> SymmetricOperator:
    """Return ``A + diag(v)``, v ``(*batch, n)``, in the structure of ``A``, a ``Sum`` where that holds no diagonal."""
    return Sum((operator, Diagonal(values)), labels=operator.labels)


@plus_diagonal.register
def _(operator: Dense, values: Tensor) -> SymmetricOperator:
    return replace(operator, matrix=_plus_diagonal(operator.matrix, values))


@plus_diagonal.register
def _(operator: Diagonal, values: Tensor) -> SymmetricOperator:
    return replace(operator, values=operator.values + values)


@plus_diagonal.register
def _(operator: EqualBlocks, values: Tensor) -> SymmetricOperator:
    return replace(operator, blocks=_plus_diagonal(operator.blocks, _by_block(values, operator.blocks)))


@plus_diagonal.register
def _(operator: DiagonalPlusLowRank, values: Tensor) -> SymmetricOperator:
    return replace(operator, diag=operator.diag + values)


@plus_diagonal.register
def _(operator: Scaled, values: Tensor) -> SymmetricOperator:
    c = operator.multiplier
    if isinstance(c, Tensor) or not c:
        return Sum((operator, Diagonal(values)), labels=operator.labels)
    return replace(operator, operator=plus_diagonal(operator.operator, values / c))


def _plus_diagonal(matrix: Tensor, values: Tensor) -> Tensor:
    return torch.diagonal_scatter(matrix, matrix.diagonal(dim1=-2, dim2=-1) + values, dim1=-2, dim2=-1)


def _both_sides(matrix: Tensor, scale: Tensor) -> Tensor:
    return _times(_times(matrix, scale.unsqueeze(-1)), scale.unsqueeze(-2))


def _times(x: Tensor, scale: Tensor) -> Tensor:
    return torch.where((x == 0) | (scale == 0), 0.0, x * scale)


def _by_block(v: Tensor, blocks: Tensor) -> Tensor:
    """Return ``(*batch, M a)`` as ``(*batch, M, a)``, the rows of blocks ``(*batch, M, a, b)``."""
    return v.reshape(*v.shape[:-1], *blocks.shape[-3:-1])
