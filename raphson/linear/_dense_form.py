"""What a Hessian that is kept as data and multiplied does by its dense form: all but products and solves."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raphson.linalg import Dense, Eigh, LinearOperator, SlogDet, SymmetricOperator


@dataclass(frozen=True, eq=False)
class DenseForm(SymmetricOperator):
    """A symmetric operator whose spectrum, powers and factors are those of ``to_dense()``, ``(p, p)``."""

    def eigh(self) -> Eigh:
        """Return the eigen-decomposition of the dense form."""
        return Dense(self.to_dense()).eigh()

    def slogdet(self) -> SlogDet:
        """Return sign and log absolute value of the determinant, by the dense form."""
        return Dense(self.to_dense()).slogdet()

    def shift(self, c: float | Tensor) -> SymmetricOperator:
        """Return ``H + c I`` in dense form."""
        return Dense(self.to_dense()).shift(c)

    def power_mv(self, v: Tensor, p: float) -> Tensor:
        """Return ``H^p v`` by the dense form."""
        return Dense(self.to_dense()).power_mv(v, p)

    def factor(self) -> LinearOperator:
        """Return ``S`` with ``S S^T = H`` by the dense form."""
        return Dense(self.to_dense()).factor()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the dense form, which is what outlives the data."""
        return {"matrix": self.to_dense()}
