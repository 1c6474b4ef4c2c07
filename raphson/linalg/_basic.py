"""Symmetric operators of the simplest kinds: dense, diagonal, and a multiple of another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raphson._errors import IndefiniteError, InputError
from raphson.linalg._cholesky import solve_symmetric
from raphson.linalg._entry import is_near
from raphson.linalg._matrix import Matrix, ScaledColumns, spectral_factor
from raphson.linalg._operator import Eigh, LinearOperator, SlogDet, SymmetricOperator, columnwise, per_batch
from raphson.linalg._size import check_dense_size
from raphson.linalg._spectral import eigenvalue_power


@dataclass(frozen=True, eq=False)
class Dense(SymmetricOperator):
    """A symmetric operator stored as a tensor.

    Args:
        matrix: ``(*batch, n, n)``, symmetric; factorizations read its lower triangle.
        labels: Names of the ``n`` parameters.

    Raises:
        InputError: If the matrix is not square.

    Examples:
        >>> a = Dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> a @ torch.tensor([1.0, 0.0]), a.solve(torch.tensor([3.0, 0.0]))
        (tensor([2., 1.]), tensor([ 2.0000, -1.0000]))
    """

    _part = "matrix"
    matrix: Tensor

    def __post_init__(self) -> None:
        if self.matrix.ndim < 2 or self.matrix.shape[-1] != self.matrix.shape[-2]:
            raise InputError(
                f"Dense needs a square matrix (*batch, n, n), and got shape {tuple(self.matrix.shape)}. "
                f"Use Matrix for a rectangular one."
            )

    def mm(self, v: Tensor) -> Tensor:
        """Return ``A V`` for ``V`` of shape ``(*batch, n, k)``."""
        return self.matrix @ v

    def to_dense(self) -> Tensor:
        """Return the tensor itself."""
        return self.matrix

    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(*batch, n)``."""
        return self.matrix.diagonal(dim1=-2, dim2=-1)

    def eigh(self) -> Eigh:
        """Return the eigen-decomposition, eigenvalues ascending."""
        _refuse_skew(self.matrix)
        eigenvalues, vectors = torch.linalg.eigh(self.matrix)
        return Eigh(eigenvalues, Matrix(vectors))

    def slogdet(self) -> SlogDet:
        """Return the sign and the log absolute value of the determinant."""
        sign, logabsdet = torch.linalg.slogdet(self.matrix)
        return SlogDet(sign, logabsdet)

    def shift(self, c: float | Tensor) -> Dense:
        """Return ``A + c I``, for a number or one ``c`` per batch element."""
        identity = torch.eye(self.shape[-1], dtype=self.dtype, device=self.device)
        return replace(self, matrix=self.matrix + per_batch(c, self) * identity)

    def solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 b``: by Cholesky if definite, by LU if not, ``IndefiniteError`` if singular."""
        _refuse_skew(self.matrix)
        return columnwise(self, lambda columns: solve_symmetric(self.matrix, columns, labels=self.labels), b)

    def factor(self) -> LinearOperator:
        """Return ``S`` with ``S S^T = A``: the Cholesky factor if definite, by eigenvalues if singular."""
        _refuse_skew(self.matrix)
        lower, info = torch.linalg.cholesky_ex(self.matrix)
        return spectral_factor(self) if bool(info.any()) else Matrix(lower)


def _refuse_skew(matrix: Tensor) -> None:
    """Raise ``InputError`` for a matrix that is not symmetric, of which a factorization would read one triangle."""
    if not is_near(matrix) or not matrix.is_floating_point() or not matrix.numel():
        return
    skew = (matrix - matrix.mT).abs()
    if bool(skew.amax() > torch.finfo(matrix.dtype).eps ** 0.5 * matrix.abs().amax()):
        row, column = divmod(int(skew.argmax()) % matrix.shape[-1] ** 2, matrix.shape[-1])
        raise InputError(
            f"The matrix is not symmetric: entries ({row}, {column}) and ({column}, {row}) differ by "
            f"{float(skew.amax()):.2g}, and a symmetric operator is factorized by one triangle. Give (A + A.mT) / 2, "
            "or use Matrix."
        )


@dataclass(frozen=True, eq=False)
class Diagonal(SymmetricOperator):
    """A diagonal operator.

    Args:
        values: The diagonal, ``(*batch, n)``, of any sign.
        labels: Names of the ``n`` parameters.

    Examples:
        >>> Diagonal(torch.tensor([1.0, 2.0])).solve(torch.tensor([3.0, 3.0]))
        tensor([3.0000, 1.5000])
    """

    _part = "values"
    values: Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape ``(*batch, n, n)``."""
        return torch.Size((*self.values.shape, self.values.shape[-1]))

    def mv(self, v: Tensor) -> Tensor:
        """Return ``A v`` for ``v`` of shape ``(*batch, n)``."""
        return self.values * v

    def mm(self, v: Tensor) -> Tensor:
        """Return ``A V`` for ``V`` of shape ``(*batch, n, k)``."""
        return self.values.unsqueeze(-1) * v

    def to_dense(self) -> Tensor:
        """Return the ``(*batch, n, n)`` tensor."""
        check_dense_size(self.shape, self.dtype, "diagonal()")
        return torch.diag_embed(self.values)

    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(*batch, n)``."""
        return self.values

    def eigh(self) -> Eigh:
        """Return the eigen-decomposition in the order of the diagonal, with the identity as eigenvectors."""
        return Eigh(self.values, Diagonal(torch.ones_like(self.values)))

    def slogdet(self) -> SlogDet:
        """Return the sign and the log absolute value of the determinant."""
        return SlogDet(self.values.sign().prod(-1), self.values.abs().log().sum(-1))

    def shift(self, c: float | Tensor) -> Diagonal:
        """Return ``A + c I``, for a number or one ``c`` per batch element."""
        return replace(self, values=self.values + per_batch(c, self).squeeze(-1))

    def solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 b``; an entry of the diagonal that is zero is an ``IndefiniteError``."""
        zero = self.values == 0
        if bool(zero.any()):
            place = int(zero.reshape(-1, self.shape[-1]).any(0).nonzero()[0])
            who = f" ('{self.labels[place]}')" if self.labels else ""
            raise IndefiniteError(
                f"The diagonal operator is singular: entry {place}{who} is zero. Shift it by a positive constant."
            )
        return columnwise(self, lambda columns: columns / self.values.unsqueeze(-1), b)

    def power_mv(self, v: Tensor, p: float) -> Tensor:
        """Return ``A^p v``; a fractional ``p`` of an indefinite operator raises ``IndefiniteError``."""
        power = eigenvalue_power(self.values, p, 0.0).unsqueeze(-1)
        return columnwise(self, lambda columns: power * columns, v)

    def factor(self) -> Diagonal:
        """Return the diagonal of square roots; a negative entry raises ``IndefiniteError``."""
        return Diagonal(eigenvalue_power(self.values, 0.5, 0.0))


@dataclass(frozen=True, eq=False)
class Scaled(SymmetricOperator):
    """A multiple of a symmetric operator, ``c A``.

    Args:
        operator: ``A``, ``(*batch, n, n)``.
        multiplier: ``c``, of any sign: a number, or a tensor with one for each batch element.
        labels: Names of the ``n`` parameters.

    Examples:
        >>> Scaled(Dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]])), 0.5).to_dense()
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]])
    """

    _part = "operator"
    operator: SymmetricOperator
    multiplier: float | Tensor

    @property
    def _c(self) -> Tensor:
        return per_batch(self.multiplier, self)

    def mv(self, v: Tensor) -> Tensor:
        """Return ``c A v`` for ``v`` of shape ``(*batch, n)``."""
        return self._c.squeeze(-1) * self.operator.mv(v)

    def mm(self, v: Tensor) -> Tensor:
        """Return ``c A V`` for ``V`` of shape ``(*batch, n, k)``."""
        return self._c * self.operator.mm(v)

    def to_dense(self) -> Tensor:
        """Return the ``(*batch, n, n)`` tensor."""
        return self._c * self.operator.to_dense()

    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(*batch, n)``."""
        return self._c.squeeze(-1) * self.operator.diagonal()

    def eigh(self) -> Eigh:
        """Return the eigen-decomposition, in the order of the operator's own."""
        eigenvalues, vectors = self.operator.eigh()
        return Eigh(self._c.squeeze(-1) * eigenvalues, vectors)

    def slogdet(self) -> SlogDet:
        """Return the sign and the log absolute value of the determinant."""
        c = self._c.squeeze(-1).squeeze(-1)
        n = self.shape[-1]
        sign, logabsdet = self.operator.slogdet()
        return SlogDet(sign * c.sign() ** n, logabsdet + n * c.abs().log())

    def shift(self, c: float | Tensor) -> SymmetricOperator:
        """Return ``c A + s I`` as ``c (A + (s / c) I)``, which keeps the structure of ``A``.

        Raises:
            IndefiniteError: If the multiplier is zero, which leaves no operator to shift.
        """
        if bool((self._c == 0).any()):
            raise IndefiniteError(
                "An operator with multiplier 0 keeps no structure to shift. "
                "Use Diagonal for a multiple of the identity."
            )
        ratio = per_batch(c, self) / self._c
        return replace(self, operator=self.operator.shift(ratio.squeeze(-1).squeeze(-1)))

    def solve(self, b: Tensor) -> Tensor:
        """Return ``(c A)^-1 b``; a multiplier of zero, or a singular operator, is an ``IndefiniteError``."""
        if bool((self._c == 0).any()):
            raise IndefiniteError("The operator is singular: its multiplier is zero.")
        return columnwise(self, lambda columns: self.operator.solve(columns / self._c), b)

    def factor(self) -> LinearOperator:
        """Return ``S`` with ``S S^T = c A``: the one of ``A`` times the root of ``c`` where ``c >= 0``."""
        if bool((self._c < 0).any()):
            return spectral_factor(self)
        root = self.operator.factor()
        scale = self._c.squeeze(-1).sqrt().expand(*root.shape[:-2], root.shape[-1])
        return ScaledColumns(root, scale)
