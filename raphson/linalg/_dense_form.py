"""Symmetric operators that are more than products by their dense form only."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raphson.linalg._basic import Dense
from raphson.linalg._operator import Eigh, LinearOperator, SlogDet, SymmetricOperator


@dataclass(frozen=True, eq=False)
class DenseForm(SymmetricOperator):
    """A symmetric operator whose solves, spectrum, powers and factors are those of ``to_dense()``.

    A base for operators that are kept as data and multiplied: a member defines its shape, dtype and device, products,
    ``to_dense`` and ``diagonal``, and whatever else it can do without the dense form.
    """

    def eigh(self) -> Eigh:
        """Return the eigen-decomposition of the dense form, eigenvalues ascending."""
        return self._dense_form().eigh()

    def slogdet(self) -> SlogDet:
        """Return the sign and the log absolute value of the determinant, by the dense form."""
        return self._dense_form().slogdet()

    def shift(self, c: float | Tensor) -> SymmetricOperator:
        """Return ``A + c I`` in dense form."""
        return self._dense_form().shift(c)

    def solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 b`` by the dense form; ``IndefiniteError`` if singular."""
        return self._dense_form().solve(b)

    def factor(self) -> LinearOperator:
        """Return ``S`` with ``S S^T = A`` by the dense form."""
        return self._dense_form().factor()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the dense form as the tensors of a ``Dense``, which is what outlives the data."""
        return self._dense_form().state_dict()

    def _dense_form(self) -> Dense:
        return Dense(self.to_dense(), labels=self.labels)
