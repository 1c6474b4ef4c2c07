r"""Kronecker products, and the eigenvalue-corrected form that EKFAC and damping need.

Vectors are row-major: :math:`A \otimes B` acts on ``v.reshape(a, b)`` as :math:`A V B^\top`. A layer with
weight ``(out, in)`` therefore has the curvature ``Kronecker((outputs, inputs))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg._basic import Diagonal
from raphson.linalg._matrix import Matrix, ScaledColumns
from raphson.linalg._operator import Eigh, LinearOperator, SlogDet, SymmetricOperator, columnwise, per_batch
from raphson.linalg._size import check_dense_size
from raphson.linalg._spectral import eigenvalue_power, rounding_level


class _Product(LinearOperator):
    """What Kronecker products have in common, symmetric or not."""

    _part = "factors"
    factors: tuple[LinearOperator, ...]

    @cached_property
    def shape(self) -> torch.Size:
        """Shape ``(*batch, m_1 m_2 ..., n_1 n_2 ...)``."""
        rows, columns = (math.prod(op.shape[i] for op in self.factors) for i in (-2, -1))
        return torch.Size((*self.factors[0].shape[:-2], rows, columns))

    def mm(self, v: Tensor) -> Tensor:
        """Return ``A V`` for ``V`` of shape ``(*batch, n, k)``."""
        return _apply([op.mm for op in self.factors], self._sizes(), v)

    def to_dense(self) -> Tensor:
        """Return the ``(*batch, m, n)`` tensor."""
        check_dense_size(self.shape, self.dtype, "its products mv and rmv")
        return _kron([op.to_dense() for op in self.factors])

    def _sizes(self) -> list[int]:
        return [op.shape[-1] for op in self.factors]


@dataclass(frozen=True, eq=False)
class KroneckerMatrix(_Product):
    r"""A Kronecker product of rectangular operators, :math:`A_1 \otimes A_2 \otimes \dots`.

    Args:
        factors: Two or more, ``(*batch, m_i, n_i)``.
    """

    factors: tuple[LinearOperator, ...]

    def rmm(self, v: Tensor) -> Tensor:
        return _apply([op.rmm for op in self.factors], [op.shape[-2] for op in self.factors], v)


@dataclass(frozen=True, eq=False)
class Kronecker(_Product, SymmetricOperator):
    r"""A Kronecker product of symmetric operators, :math:`A_1 \otimes A_2 \otimes \dots`.

    Everything is computed factor by factor (Van Loan 2000, "The ubiquitous Kronecker product").

    Args:
        factors: Two or more, ``(*batch, n_i, n_i)`` with the batch in common.
        labels: Names of the ``n_1 n_2 ...`` parameters.

    Raises:
        InputError: If there are fewer than two or their batch dimensions differ.

    >>> a = Diagonal(torch.tensor([1.0, 2.0]))
    >>> Kronecker((a, a)).diagonal()
    tensor([1., 2., 2., 4.])
    """

    factors: tuple[SymmetricOperator, ...]

    def __post_init__(self) -> None:
        batches = {tuple(op.shape[:-2]) for op in self.factors}
        if len(self.factors) < 2 or len(batches) != 1:
            raise InputError(
                f"Kronecker needs two or more factors with the same batch dimensions, and got "
                f"{len(self.factors)} with {sorted(batches)}."
            )

    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(*batch, n)``."""
        return _kron([op.diagonal().unsqueeze(-1) for op in self.factors]).squeeze(-1)

    def trace(self) -> Tensor:
        """Return the product of the traces, of shape ``batch``."""
        return torch.stack([op.trace() for op in self.factors]).prod(0)

    def eigh(self) -> Eigh:
        """Return the eigen-decomposition in Kronecker order."""
        parts = [op.eigh() for op in self.factors]
        eigenvalues = _kron([part.eigenvalues.unsqueeze(-1) for part in parts]).squeeze(-1)
        return Eigh(eigenvalues, KroneckerMatrix(tuple(part.eigenvectors for part in parts)))

    def slogdet(self) -> SlogDet:
        """Return the sign and the log absolute value of the determinant."""
        n = self.shape[-1]
        sign = torch.ones(self.shape[:-2], dtype=self.dtype, device=self.device)
        logabsdet = torch.zeros_like(sign)
        for op in self.factors:
            part, times = op.slogdet(), n // op.shape[-1]
            sign, logabsdet = sign * part.sign**times, logabsdet + times * part.logabsdet
        return SlogDet(sign, logabsdet)

    def shift(self, c: float | Tensor) -> SymmetricOperator:
        """Return ``A + c I`` in the eigenbasis of ``A``, for a number or one ``c`` per batch element; ``A`` for 0."""
        return self.in_eigenbasis().shift(c)

    def in_eigenbasis(self) -> KroneckerEigen:
        """Return ``A`` in its eigenbasis."""
        eigenvalues, vectors = self.eigh()
        grid = eigenvalues.reshape(*self.shape[:-2], *self._sizes())
        bases = vectors.factors if isinstance(vectors, KroneckerMatrix) else ()
        return KroneckerEigen(bases, grid, labels=self.labels)

    def solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 b``; ``IndefiniteError`` if a factor is singular."""
        solves = [op.solve for op in self.factors]
        return columnwise(self, lambda columns: _apply(solves, self._sizes(), columns), b)

    def power_mv(self, v: Tensor, p: float) -> Tensor:
        """Return ``A^p v``; a fractional ``p`` of an indefinite operator raises ``IndefiniteError``."""
        if float(p).is_integer():
            return SymmetricOperator.power_mv(self, v, p)
        cleaned = self._cleaned()
        power = eigenvalue_power(cleaned.eigenvalues, p, 0.0).unsqueeze(-1)
        vectors = cleaned.eigenvectors
        return columnwise(self, lambda columns: vectors.mm(power * vectors.rmm(columns)), v)

    def factor(self) -> ScaledColumns:
        """Return ``S`` with ``S S^T = A``; an indefinite operator raises ``IndefiniteError``."""
        cleaned = self._cleaned()
        root = eigenvalue_power(cleaned.eigenvalues, 0.5, 0.0)
        return ScaledColumns(cleaned.eigenvectors, root)

    def _cleaned(self) -> Eigh:
        """Return the eigen-decomposition with zeros for those eigenvalues of a factor that are rounding.

        Factor by factor, because a product of small eigenvalues that are well determined can be far below the
        rounding of the largest product.
        """
        parts = [op.eigh() for op in self.factors]
        values = [torch.where(w.abs() <= rounding_level(w), 0.0, w) for w in (part.eigenvalues for part in parts)]
        vectors = KroneckerMatrix(tuple(part.eigenvectors for part in parts))
        return Eigh(_kron([w.unsqueeze(-1) for w in values]).squeeze(-1), vectors)


@dataclass(frozen=True, eq=False)
class KroneckerEigen(SymmetricOperator):
    r"""A symmetric operator with a Kronecker-structured eigenbasis, :math:`Q \mathrm{diag}(\lambda) Q^\top`.

    Here :math:`Q = Q_1 \otimes Q_2 \otimes \dots` and the eigenvalues are free, which holds a damped product
    and the eigenvalue-corrected K-FAC (George et al. 2018, "Fast approximate natural gradient descent
    in a Kronecker-factored eigenbasis"). Eigenvalues are taken as given: only an exact zero is singular.

    Args:
        eigenvectors: Orthogonal ``Q_i``, ``(*batch, n_i, n_i)``.
        eigenvalues: ``(*batch, n_1, n_2, ...)``, of any sign.
        labels: Names of the ``n_1 n_2 ...`` parameters.

    Raises:
        InputError: If the shapes disagree.

    Examples:
        >>> from raphson.linalg import Diagonal
        >>> q = Diagonal(torch.ones(2))
        >>> KroneckerEigen((q, q), torch.tensor([[1.0, 2.0], [3.0, 4.0]])).solve(torch.full((4,), 12.0))
        tensor([12.,  6.,  4.,  3.])
    """

    _part = "eigenvalues"
    eigenvectors: tuple[LinearOperator, ...]
    eigenvalues: Tensor

    def __post_init__(self) -> None:
        sizes = tuple(q.shape[-1] for q in self.eigenvectors)
        if not sizes or self.eigenvalues.shape[-len(sizes) :] != sizes:
            raise InputError(
                f"KroneckerEigen needs eigenvalues (*batch, {', '.join(map(str, sizes))}) for its "
                f"eigenvectors, and got {tuple(self.eigenvalues.shape)}."
            )

    @cached_property
    def shape(self) -> torch.Size:
        """Shape ``(*batch, n, n)``."""
        return self._vectors.shape

    def mm(self, v: Tensor) -> Tensor:
        """Return ``A V`` for ``V`` of shape ``(*batch, n, k)``."""
        return self._with(self._flat, v)

    def to_dense(self) -> Tensor:
        """Return the ``(*batch, n, n)`` tensor."""
        vectors = self._vectors.to_dense()
        return (vectors * self._flat.unsqueeze(-2)) @ vectors.mT

    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(*batch, n)``: the squared eigenvectors times the eigenvalues."""
        return KroneckerMatrix(tuple(_squared(q) for q in self.eigenvectors)).mv(self._flat)

    def trace(self) -> Tensor:
        """Return the sum of the eigenvalues, of shape ``batch``."""
        return self._flat.sum(-1)

    def eigh(self) -> Eigh:
        """Return the eigen-decomposition in Kronecker order."""
        return Eigh(self._flat, self._vectors)

    def slogdet(self) -> SlogDet:
        """Return the sign and the log absolute value of the determinant."""
        return Diagonal(self._flat).slogdet()

    def shift(self, c: float | Tensor) -> KroneckerEigen:
        """Return ``A + c I``, for a number or one ``c`` per batch element."""
        shifted = self._flat + per_batch(c, self).squeeze(-1)
        return replace(self, eigenvalues=shifted.reshape(self.eigenvalues.shape))

    def solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 b``; ``IndefiniteError`` if an eigenvalue is zero."""
        return self.power_mv(b, -1)

    def power_mv(self, v: Tensor, p: float) -> Tensor:
        """Return ``A^p v``; a fractional ``p`` of an indefinite operator raises ``IndefiniteError``."""
        return columnwise(self, lambda columns: self._with(self._power(p), columns), v)

    def factor(self) -> ScaledColumns:
        """Return ``S`` with ``S S^T = A``; an indefinite operator raises ``IndefiniteError``."""
        return ScaledColumns(self._vectors, self._power(0.5))

    @property
    def _flat(self) -> Tensor:
        return self.eigenvalues.flatten(-len(self.eigenvectors))

    @cached_property
    def _vectors(self) -> KroneckerMatrix:
        return KroneckerMatrix(self.eigenvectors)

    def _power(self, p: float) -> Tensor:
        """Return the powers of the eigenvalues; to a positive power, one within rounding counts as zero."""
        level = 0.0 if p < 0 else rounding_level(self._flat)
        return eigenvalue_power(self._flat, p, level)

    def _with(self, eigenvalues: Tensor, v: Tensor) -> Tensor:
        """Return ``Q diag(lambda) Q^T V`` with other eigenvalues, ``(*batch, n)``."""
        return self._vectors.mm(eigenvalues.unsqueeze(-1) * self._vectors.rmm(v))


def _apply(functions: Sequence[Callable[[Tensor], Tensor]], sizes: list[int], v: Tensor) -> Tensor:
    """Return ``(*batch, m_1 m_2 ..., k)``: one linear function ``n_i -> m_i`` along each axis that the rows have."""
    k = v.shape[-1]
    before = 1
    for i, (function, size) in enumerate(zip(functions, sizes, strict=True)):
        after = math.prod(sizes[i + 1 :]) * k
        grid = v.reshape(*v.shape[:-2], before, size, after).movedim(-2, -3)
        result = function(grid.flatten(-2))
        v = result.reshape(*result.shape[:-1], before, after).movedim(-3, -2)
        before *= result.shape[-2]
        v = v.reshape(*v.shape[:-3], -1, k)
    return v


def _kron(factors: list[Tensor]) -> Tensor:
    """Return the Kronecker product of tensors ``(*batch, m_i, n_i)``."""
    product = factors[0]
    for factor in factors[1:]:
        grid = product[..., :, None, :, None] * factor[..., None, :, None, :]
        product = grid.flatten(-4, -3).flatten(-2)
    return product


def _squared(operator: LinearOperator) -> LinearOperator:
    """Return the operator with squared entries."""
    if isinstance(operator, Diagonal):
        return Diagonal(operator.values.square())
    return Matrix(operator.to_dense().square())
