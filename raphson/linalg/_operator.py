"""The contract of every linear operator.

Two abstract classes: ``LinearOperator`` (rectangular, say a Jacobian) and ``SymmetricOperator`` (curvature).
Members are frozen dataclasses of tensors: no data loader, generator or module inside them. Batch dimensions come
first, so that ``(N, C, C)`` output Hessians and one ``(P, P)`` parameter Hessian are the same kind of thing.
Symmetric operators may be indefinite; nothing here clamps an eigenvalue.
"""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch
from torch import Tensor


class Eigh(NamedTuple):
    """Eigenvalues and orthonormal eigenvectors of a symmetric operator.

    Attributes:
        eigenvalues: ``(*batch, n)``; ascending for dense members, in Kronecker or block order otherwise.
        eigenvectors: Orthogonal operator ``(*batch, n, n)`` whose columns belong to ``eigenvalues`` in order.
    """

    eigenvalues: Tensor
    eigenvectors: LinearOperator


class SlogDet(NamedTuple):
    """Sign and log absolute value of a determinant, each of shape ``batch``."""

    sign: Tensor
    logabsdet: Tensor


class LinearOperator(abc.ABC):
    """A linear map of shape ``(*batch, m, n)`` that is known by its products."""

    @property
    @abc.abstractmethod
    def shape(self) -> torch.Size:
        """Shape ``(*batch, m, n)``."""

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype:
        """Element type of the products."""

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """Device on which the operator lives."""

    @abc.abstractmethod
    def mv(self, v: Tensor) -> Tensor:
        """Return ``A v`` for ``v`` of shape ``(*batch, n)``, as ``(*batch, m)``."""

    @abc.abstractmethod
    def rmv(self, v: Tensor) -> Tensor:
        """Return ``A^T v`` for ``v`` of shape ``(*batch, m)``, as ``(*batch, n)``."""

    @abc.abstractmethod
    def to_dense(self) -> Tensor:
        """Return the ``(*batch, m, n)`` tensor."""

    def mm(self, v: Tensor) -> Tensor:
        """Return ``A V`` for ``V`` of shape ``(*batch, n, k)``, as ``(*batch, m, k)``."""
        return torch.stack([self.mv(column) for column in v.unbind(-1)], dim=-1)

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.mv(v) if v.ndim == len(self.shape) - 1 else self.mm(v)


class SymmetricOperator(LinearOperator):
    """A symmetric map of shape ``(*batch, n, n)``, definite or not."""

    @abc.abstractmethod
    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(*batch, n)``."""

    @abc.abstractmethod
    def eigh(self) -> Eigh:
        """Return the eigen-decomposition."""

    @abc.abstractmethod
    def slogdet(self) -> SlogDet:
        """Return the sign and the log absolute value of the determinant."""

    @abc.abstractmethod
    def shift(self, c: float | Tensor) -> SymmetricOperator:
        """Return ``A + c I`` in the same structure."""

    @abc.abstractmethod
    def solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 b`` for ``b`` of shape ``(*batch, n)`` or ``(*batch, n, k)``."""

    @abc.abstractmethod
    def power_mv(self, v: Tensor, p: float) -> Tensor:
        """Return ``A^p v``; a fractional ``p`` of an indefinite operator raises ``IndefiniteError``."""

    @abc.abstractmethod
    def factor(self) -> LinearOperator:
        """Return ``S`` of shape ``(*batch, n, r)`` with ``S S^T = A``; an indefinite operator raises."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that determine the operator, by name."""

    def rmv(self, v: Tensor) -> Tensor:
        """Return ``A^T v``, which is ``A v``."""
        return self.mv(v)

    def trace(self) -> Tensor:
        """Return the trace, of shape ``batch``."""
        return self.diagonal().sum(-1)
