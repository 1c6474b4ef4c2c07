"""An operator whose parameters come in another order than the structure has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg._operator import Eigh, LinearOperator, SlogDet, SymmetricOperator, columnwise
from raphson.linalg._size import check_dense_size


@dataclass(frozen=True, eq=False)
class PermutedRows(LinearOperator):
    """A rectangular operator with its rows in another order: row ``index[i]`` is row ``i`` of the operator.

    Args:
        operator: ``(*batch, m, n)``.
        index: ``(m,)`` integers, a permutation of ``0 .. m - 1``.
    """

    _part = "operator"
    operator: LinearOperator
    index: Tensor

    def mv(self, v: Tensor) -> Tensor:
        return _scatter(self.operator.mv(v), self.index, -1)

    def rmv(self, v: Tensor) -> Tensor:
        return self.operator.rmv(v.index_select(-1, self.index))

    def mm(self, v: Tensor) -> Tensor:
        return _scatter(self.operator.mm(v), self.index, -2)

    def rmm(self, v: Tensor) -> Tensor:
        return self.operator.rmm(v.index_select(-2, self.index))

    def to_dense(self) -> Tensor:
        return _scatter(self.operator.to_dense(), self.index, -2)


@dataclass(frozen=True, eq=False)
class Permuted(SymmetricOperator):
    r"""A symmetric operator with its parameters in another order, :math:`P^\top A P`.

    Parameter ``index[i]`` of the result is parameter ``i`` of the operator: a layer's Kronecker product runs over
    the rows of ``[W b]``, while the parameters are all of ``W`` and then ``b``.

    Args:
        operator: ``A``, ``(*batch, n, n)``.
        index: ``(n,)`` integers, a permutation of ``0 .. n - 1``.
        labels: Names of the ``n`` parameters, in the order of the result.

    Raises:
        InputError: If ``index`` is not a permutation.

    >>> from raphson.linalg import Diagonal
    >>> Permuted(Diagonal(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([2, 0, 1])).diagonal()
    tensor([2., 3., 1.])
    """

    _part = "operator"
    operator: SymmetricOperator
    index: Tensor

    def __post_init__(self) -> None:
        n = self.operator.shape[-1]
        valid = self.index.shape == (n,) and not self.index.is_floating_point()
        if not valid or not bool((torch.bincount(self.index.clamp(0), minlength=n) == 1).all()):
            raise InputError(
                f"Permuted needs index to hold each of 0 .. {n - 1} once, and got "
                f"a tensor of shape {tuple(self.index.shape)} that does not."
            )

    def mv(self, v: Tensor) -> Tensor:
        """Return the product for ``v`` of shape ``(*batch, n)``."""
        return _scatter(self.operator.mv(v.index_select(-1, self.index)), self.index, -1)

    def mm(self, v: Tensor) -> Tensor:
        """Return the product for ``V`` of shape ``(*batch, n, k)``."""
        return _scatter(self.operator.mm(v.index_select(-2, self.index)), self.index, -2)

    def to_dense(self) -> Tensor:
        """Return the ``(*batch, n, n)`` tensor."""
        check_dense_size(self.shape, self.dtype, "its products mv and mm")
        return _scatter(_scatter(self.operator.to_dense(), self.index, -1), self.index, -2)

    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(*batch, n)``."""
        return _scatter(self.operator.diagonal(), self.index, -1)

    def trace(self) -> Tensor:
        """Return the trace, of shape ``batch``."""
        return self.operator.trace()

    def eigh(self) -> Eigh:
        """Return the eigen-decomposition, eigenvalues in the order of the operator's own."""
        eigenvalues, vectors = self.operator.eigh()
        return Eigh(eigenvalues, PermutedRows(vectors, self.index))

    def slogdet(self) -> SlogDet:
        """Return the sign and the log absolute value of the determinant."""
        return self.operator.slogdet()

    def shift(self, c: float | Tensor) -> Permuted:
        """Return the operator plus ``c I``, for a number or one ``c`` per batch element."""
        return replace(self, operator=self.operator.shift(c))

    def solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 b``; ``IndefiniteError`` if the operator is singular."""
        return columnwise(self, lambda columns: self._within(self.operator.solve, columns), b)

    def power_mv(self, v: Tensor, p: float) -> Tensor:
        """Return ``A^p v``; a fractional ``p`` of an indefinite operator raises ``IndefiniteError``."""

        def power(columns: Tensor) -> Tensor:
            return self.operator.power_mv(columns, p)

        return columnwise(self, lambda columns: self._within(power, columns), v)

    def factor(self) -> PermutedRows:
        """Return ``S`` with ``S S^T = A``; an indefinite operator raises ``IndefiniteError``."""
        return PermutedRows(self.operator.factor(), self.index)

    def _within(self, function: Callable[[Tensor], Tensor], columns: Tensor) -> Tensor:
        return _scatter(function(columns.index_select(-2, self.index)), self.index, -2)


def _scatter(t: Tensor, index: Tensor, dim: int) -> Tensor:
    """Return the tensor whose entry ``index[i]`` along a dimension is entry ``i`` of ``t``."""
    return torch.empty_like(t).index_copy_(dim if dim >= 0 else t.ndim + dim, index, t)
