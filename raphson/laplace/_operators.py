r"""A curvature with a multiple and a prior on its diagonal, in its structure: :math:`c\,A + \operatorname{diag}(v)`."""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg import (
    BlockDiagonal,
    Dense,
    Diagonal,
    DiagonalPlusLowRank,
    EqualBlocks,
    KroneckerEigen,
    SymmetricOperator,
    cholesky,
    cholesky_solve,
    plus_diagonal,
)
from raphson.network import LayerOperator


@singledispatch
def combined(operator: SymmetricOperator, c: float, v: Tensor) -> SymmetricOperator:
    """Return ``c A + diag(v)``, c > 0 and ``v`` ``(n,)``; an operator without a structure for it becomes dense."""
    return combined(Dense(operator.to_dense(), labels=operator.labels), c, v)


@combined.register
def _(operator: Dense, c: float, v: Tensor) -> SymmetricOperator:
    return plus_diagonal(replace(operator, matrix=operator.matrix * c), v)


@combined.register
def _(operator: Diagonal, c: float, v: Tensor) -> SymmetricOperator:
    return replace(operator, values=operator.values * c + v)


@combined.register
def _(operator: DiagonalPlusLowRank, c: float, v: Tensor) -> SymmetricOperator:
    return replace(operator, diag=operator.diag * c + v, low_rank=operator.low_rank * c**0.5)


@combined.register
def _(operator: EqualBlocks, c: float, v: Tensor) -> SymmetricOperator:
    return plus_diagonal(replace(operator, blocks=operator.blocks * c), v)


@combined.register
def _(operator: KroneckerEigen, c: float, v: Tensor) -> SymmetricOperator:
    if bool((v != v[0]).any()):
        raise InputError(
            "A Kronecker block has one prior precision, and its weight and bias were given two: give one for the layer."
        )
    return replace(operator, eigenvalues=operator.eigenvalues * c + v[0])


@combined.register
def _(operator: BlockDiagonal, c: float, v: Tensor) -> SymmetricOperator:
    parts = _of_blocks(v, operator)
    return replace(operator, blocks=tuple(combined(b, c, p) for b, p in zip(operator.blocks, parts, strict=True)))


@combined.register
def _(operator: LayerOperator, c: float, v: Tensor) -> SymmetricOperator:
    parts = _of_blocks(v[operator.order()], operator)
    return replace(operator, blocks=tuple(combined(b, c, p) for b, p in zip(operator.blocks, parts, strict=True)))


def _of_blocks(v: Tensor, operator: BlockDiagonal | LayerOperator) -> tuple[Tensor, ...]:
    """Return the parts of a vector, in the order of the blocks' rows, that belong to each block."""
    return torch.split(v, [block.shape[-1] for block in operator.blocks])


@singledispatch
def inverse_diagonal(operator: SymmetricOperator) -> Tensor:
    """Return the diagonal of the inverse of a positive definite operator, ``(n,)``."""
    return inverse_diagonal(Dense(operator.to_dense(), labels=operator.labels))


@inverse_diagonal.register
def _(operator: Dense) -> Tensor:
    eye = torch.eye(operator.shape[-1], dtype=operator.dtype, device=operator.device)
    lower = cholesky(operator.matrix, labels=operator.labels)
    inverse: Tensor = torch.linalg.solve_triangular(lower, eye, upper=False)
    return inverse.square().sum(0)


@inverse_diagonal.register
def _(operator: Diagonal) -> Tensor:
    return operator.values.reciprocal()


@inverse_diagonal.register
def _(operator: DiagonalPlusLowRank) -> Tensor:
    scaled = operator.low_rank / operator.diag.unsqueeze(-1)
    r = scaled.shape[-1]
    capacitance = torch.eye(r, dtype=scaled.dtype, device=scaled.device) + operator.low_rank.mT @ scaled
    half: Tensor = torch.linalg.solve_triangular(cholesky(capacitance), scaled.mT, upper=False)
    return operator.diag.reciprocal() - half.square().sum(0)


@inverse_diagonal.register
def _(operator: EqualBlocks) -> Tensor:
    eye = torch.eye(operator.blocks.shape[-1], dtype=operator.dtype, device=operator.device)
    return cholesky_solve(cholesky(operator.blocks), eye).diagonal(dim1=-2, dim2=-1).reshape(-1)


@inverse_diagonal.register
def _(operator: KroneckerEigen) -> Tensor:
    return replace(operator, eigenvalues=operator.eigenvalues.reciprocal()).diagonal()


@inverse_diagonal.register
def _(operator: BlockDiagonal) -> Tensor:
    return torch.cat([inverse_diagonal(block) for block in operator.blocks])


@inverse_diagonal.register
def _(operator: LayerOperator) -> Tensor:
    rows = torch.cat([inverse_diagonal(block) for block in operator.blocks])
    return torch.empty_like(rows).index_copy_(0, operator.order(), rows)


def spectrum(operator: SymmetricOperator, group: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return eigenvalues ``(n,)`` with the group of the diagonal that is added to each, where groups keep eigenvectors.

    ``group`` ``(n,)`` is that of each parameter; None where parameters of different groups share eigenvectors.
    """
    if isinstance(operator, LayerOperator):
        parts = _of_blocks(group[operator.order()], operator)
        found = [spectrum(block, part) for block, part in zip(operator.blocks, parts, strict=True)]
        if any(one is None for one in found):
            return None
        return torch.cat([one[0] for one in found if one]), torch.cat([one[1] for one in found if one])
    if isinstance(operator, Diagonal):
        return operator.values, group
    if isinstance(operator, DiagonalPlusLowRank) or bool((group != group[0]).any()):
        return None
    if isinstance(operator, KroneckerEigen):
        return operator.eigenvalues.reshape(-1), group
    if isinstance(operator, EqualBlocks):
        return torch.linalg.eigvalsh(operator.blocks).reshape(-1), group
    return torch.linalg.eigvalsh(operator.to_dense()), group
