"""Rectangular operators: a tensor, an operator with scaled columns, operators side by side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raphson.linalg._operator import LinearOperator, SymmetricOperator
from raphson.linalg._size import check_dense_size
from raphson.linalg._spectral import eigenvalue_power, rounding_level


@dataclass(frozen=True, eq=False)
class Matrix(LinearOperator):
    """A rectangular operator stored as a tensor.

    Args:
        matrix: ``(*batch, m, n)``.

    Examples:
        >>> root = Matrix(torch.tensor([[1.0], [2.0]]))
        >>> root @ torch.tensor([3.0]), root.rmv(torch.tensor([1.0, 1.0]))
        (tensor([3., 6.]), tensor([3.]))
    """

    _part = "matrix"
    matrix: Tensor

    def mm(self, v: Tensor) -> Tensor:
        """Return ``A V`` for ``V`` of shape ``(*batch, n, k)``."""
        return self.matrix @ v

    def rmm(self, v: Tensor) -> Tensor:
        """Return ``A^T V`` for ``V`` of shape ``(*batch, m, k)``."""
        return self.matrix.mT @ v

    def to_dense(self) -> Tensor:
        """Return the tensor itself."""
        return self.matrix


@dataclass(frozen=True, eq=False)
class ScaledColumns(LinearOperator):
    """An operator times a diagonal, ``A diag(s)``.

    Args:
        operator: ``A``, ``(*batch, m, n)``.
        scale: ``s``, ``(*batch, n)``.
    """

    _part = "operator"
    operator: LinearOperator
    scale: Tensor

    def mv(self, v: Tensor) -> Tensor:
        return self.operator.mv(self.scale * v)

    def rmv(self, v: Tensor) -> Tensor:
        return self.scale * self.operator.rmv(v)

    def mm(self, v: Tensor) -> Tensor:
        return self.operator.mm(self.scale.unsqueeze(-1) * v)

    def rmm(self, v: Tensor) -> Tensor:
        return self.scale.unsqueeze(-1) * self.operator.rmm(v)

    def to_dense(self) -> Tensor:
        return self.operator.to_dense() * self.scale.unsqueeze(-2)


@dataclass(frozen=True, eq=False)
class SideBySide(LinearOperator):
    """Operators side by side, ``[A_1 A_2 ...]``: the square-root factor of a sum.

    Args:
        operators: One or more, ``(*batch, m, n_i)`` with batch and ``m`` in common.
    """

    _part = "operators"
    operators: tuple[LinearOperator, ...]

    @cached_property
    def shape(self) -> torch.Size:
        """Shape ``(*batch, m, n_1 + n_2 + ...)``."""
        return torch.Size((*self.operators[0].shape[:-1], sum(self._widths())))

    def mm(self, v: Tensor) -> Tensor:
        parts = torch.split(v, self._widths(), dim=-2)
        products = [op.mm(part) for op, part in zip(self.operators, parts, strict=True)]
        return torch.stack(products).sum(0)

    def rmm(self, v: Tensor) -> Tensor:
        """Return the ``A_i^T V``, one below the other, for ``V`` of shape ``(*batch, m, k)``."""
        return torch.cat([op.rmm(v) for op in self.operators], dim=-2)

    def to_dense(self) -> Tensor:
        check_dense_size(self.shape, self.dtype, "its products mv and rmv")
        return torch.cat([op.to_dense() for op in self.operators], dim=-1)

    def _widths(self) -> list[int]:
        return [op.shape[-1] for op in self.operators]


def spectral_factor(operator: SymmetricOperator) -> LinearOperator:
    """Return ``Q diag(lambda^(1/2))``, whose product with its transpose is the operator."""
    eigenvalues, vectors = operator.eigh()
    return ScaledColumns(vectors, eigenvalue_power(eigenvalues, 0.5, rounding_level(eigenvalues, operator._terms())))
