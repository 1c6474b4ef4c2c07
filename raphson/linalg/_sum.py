"""The sum of symmetric operators."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raphson._errors import IndefiniteError, InputError
from raphson.linalg._basic import Dense, Diagonal
from raphson.linalg._cholesky import solve_symmetric
from raphson.linalg._low_rank import DiagonalPlusLowRank
from raphson.linalg._matrix import SideBySide
from raphson.linalg._operator import Eigh, LinearOperator, SlogDet, SymmetricOperator, columnwise, per_batch
from raphson.linalg._size import check_dense_size


@dataclass(frozen=True, eq=False)
class Sum(SymmetricOperator):
    """A sum of symmetric operators, ``A_1 + A_2 + ...``.

    Products, diagonals and factors need the summands only. Solves, determinants and spectra use the structure
    of a sum of diagonals and low-rank terms of one sign, and the dense form otherwise, up to a limit of size.

    Args:
        operators: One or more of the same shape, ``(*batch, n, n)``.
        labels: Names of the ``n`` parameters.

    Raises:
        InputError: If there are none or the shapes differ.

    Examples:
        >>> from raphson.linalg import Dense, Diagonal
        >>> Sum((Dense(torch.ones(2, 2)), Diagonal(torch.tensor([1.0, 2.0])))).to_dense()
        tensor([[2., 1.],
                [1., 3.]])
    """

    _part = "operators"
    operators: tuple[SymmetricOperator, ...]

    def __post_init__(self) -> None:
        shapes = {tuple(op.shape) for op in self.operators}
        if len(shapes) != 1:
            raise InputError(f"Sum needs one or more operators of the same shape, and got {sorted(shapes)}.")

    def mv(self, v: Tensor) -> Tensor:
        """Return ``A v`` for ``v`` of shape ``(*batch, n)``."""
        return _total([op.mv(v) for op in self.operators])

    def mm(self, v: Tensor) -> Tensor:
        """Return ``A V`` for ``V`` of shape ``(*batch, n, k)``."""
        return _total([op.mm(v) for op in self.operators])

    def to_dense(self) -> Tensor:
        """Return the ``(*batch, n, n)`` tensor."""
        check_dense_size(self.shape, self.dtype, "products, cg for a solve and lanczos for a spectrum")
        return _total([op.to_dense() for op in self.operators])

    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(*batch, n)``."""
        return _total([op.diagonal() for op in self.operators])

    def eigh(self) -> Eigh:
        """Return the eigen-decomposition: that of the structure of the sum, or of its dense form."""
        return self._collapsed().eigh()

    def slogdet(self) -> SlogDet:
        """Return the sign and the log absolute value of the determinant."""
        return self._collapsed().slogdet()

    def shift(self, c: float | Tensor) -> Sum:
        """Return ``A + c I``, as a sum with a multiple of the identity."""
        for i, op in enumerate(self.operators):
            if isinstance(op, Diagonal | DiagonalPlusLowRank):
                return replace(self, operators=(*self.operators[:i], op.shift(c), *self.operators[i + 1 :]))
        values = per_batch(c, self).squeeze(-1).expand(self.shape[:-1])
        return replace(self, operators=(*self.operators, Diagonal(values)))

    def solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 b``; ``IndefiniteError`` if singular to working precision."""
        whole = self._collapsed()
        if not isinstance(whole, Dense):
            return whole.solve(b)
        terms = self._terms()
        return columnwise(self, lambda v: solve_symmetric(whole.matrix, v, labels=self.labels, terms=terms), b)

    def _terms(self) -> Tensor:
        """Return the sum of the sizes of diagonals: what is left of large terms is known to their precision only."""
        return _total([op.diagonal().abs() for op in self.operators])

    def power_mv(self, v: Tensor, p: float) -> Tensor:
        """Return ``A^p v``; a fractional ``p`` of an indefinite operator raises ``IndefiniteError``."""
        if not (p > 0 and float(p).is_integer()):
            whole = self._collapsed()
            if not isinstance(whole, Dense):
                return whole.power_mv(v, p)
        return SymmetricOperator.power_mv(self, v, p)

    def factor(self) -> LinearOperator:
        """Return ``[S_1 S_2 ...]`` with ``S_i S_i^T = A_i``, or that of the dense form if one has none."""
        try:
            return SideBySide(tuple(op.factor() for op in self.operators))
        except IndefiniteError:
            return Dense(self.to_dense()).factor()

    def _collapsed(self) -> SymmetricOperator:
        """Return the sum as one operator, structured where the sum of the structures is again one."""
        low_rank = [op for op in self.operators if isinstance(op, DiagonalPlusLowRank)]
        diagonal = [op for op in self.operators if isinstance(op, Diagonal)]
        signs = {op.sign for op in low_rank}
        if len(low_rank) + len(diagonal) < len(self.operators) or len(signs) > 1:
            return Dense(self.to_dense(), labels=self.labels)
        values = _total([*(op.values for op in diagonal), *(op.diag for op in low_rank)])
        if not low_rank:
            return Diagonal(values, labels=self.labels)
        columns = torch.cat([op.low_rank for op in low_rank], dim=-1)
        return DiagonalPlusLowRank(values, columns, signs.pop(), labels=self.labels)


def _total(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
