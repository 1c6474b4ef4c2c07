"""The contract of every linear operator.

Two abstract classes: ``LinearOperator`` (rectangular, say a Jacobian) and ``SymmetricOperator`` (curvature).
Members are frozen dataclasses of tensors: no data loader, generator or module inside them. Batch dimensions
come first, so that ``(N, C, C)`` output Hessians and one ``(P, P)`` parameter Hessian are the same kind of
thing. Symmetric operators may be indefinite; nothing here clamps an eigenvalue.

A right-hand side ``v`` counts as a vector where it has fewer dimensions than the operator, and as a matrix of
columns otherwise; its batch dimensions broadcast against the operator's.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


class Eigh(NamedTuple):
    """Eigenvalues and orthonormal eigenvectors of a symmetric operator.

    Attributes:
        eigenvalues: ``(*batch, n)``; ascending for members that decompose a dense matrix, in the order of the
            structure otherwise (diagonal, Kronecker, blocks, and a scaled operator's own).
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

    def rmm(self, v: Tensor) -> Tensor:
        """Return ``A^T V`` for ``V`` of shape ``(*batch, m, k)``, as ``(*batch, n, k)``."""
        return torch.stack([self.rmv(column) for column in v.unbind(-1)], dim=-1)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that determine the operator, by name.

        Operators inside it appear as ``field.Kind.name``, or ``field.index.Kind.name`` in a tuple, and
        ``from_state_dict`` reads that back. Labels are text and are not included.
        """
        state: dict[str, Tensor] = {}
        for name, value in _contents(self):
            if isinstance(value, LinearOperator):
                prefix = f"{name}.{type(value).__name__}."
                state |= {prefix + key: tensor for key, tensor in value.state_dict().items()}
            else:
                state[name] = (
                    torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else (torch.as_tensor(value))
                )
        return state

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Self:
        """Return the operator with its floating-point tensors cast to ``dtype`` and moved to ``device``."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
            if isinstance(value, tuple):
                return tuple(move(item) for item in value)
            return value.to(dtype=dtype, device=device) if isinstance(value, LinearOperator) else value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})  # type: ignore[type-var,arg-type]

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.mv(v) if v.ndim < len(self.shape) else self.mm(v)


@dataclass(frozen=True, eq=False)
class SymmetricOperator(LinearOperator):
    """A symmetric map of shape ``(*batch, n, n)``, definite or not.

    Args:
        labels: Names of the ``n`` parameters, for messages and reports; None where there are none.
    """

    labels: tuple[str, ...] | None = field(default=None, kw_only=True, repr=False)

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
        """Return ``A + c I`` in the same structure, for a number or one ``c`` per batch element."""

    @abc.abstractmethod
    def solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 b`` for ``b`` of shape ``(*batch, n)`` or ``(*batch, n, k)``; singular raises."""

    @abc.abstractmethod
    def power_mv(self, v: Tensor, p: float) -> Tensor:
        """Return ``A^p v``; a fractional ``p`` of an indefinite operator raises ``IndefiniteError``."""

    @abc.abstractmethod
    def factor(self) -> LinearOperator:
        """Return ``S`` of shape ``(*batch, n, r)`` with ``S S^T = A``; an indefinite operator raises."""

    def rmv(self, v: Tensor) -> Tensor:
        """Return ``A^T v``, which is ``A v``."""
        return self.mv(v)

    def rmm(self, v: Tensor) -> Tensor:
        """Return ``A^T V``, which is ``A V``."""
        return self.mm(v)

    def trace(self) -> Tensor:
        """Return the trace, of shape ``batch``."""
        return self.diagonal().sum(-1)


def columnwise(operator: LinearOperator, function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """Return a function of columns ``(*batch, n, k)`` at ``v``, which may be one vector ``(*batch, n)``."""
    return function(v) if v.ndim >= len(operator.shape) else function(v.unsqueeze(-1)).squeeze(-1)


def per_batch(c: float | Tensor, operator: LinearOperator) -> Tensor:
    """Return a number, or one number per batch element, as ``(*batch, 1, 1)``, in the operator's dtype."""
    return torch.as_tensor(c, dtype=operator.dtype, device=operator.device)[..., None, None]


def _contents(operator: LinearOperator) -> list[tuple[str, Any]]:
    """Return ``(name, value)`` for what an operator holds, tuples opened, labels left out."""
    contents: list[tuple[str, Any]] = []
    for f in fields(operator):  # type: ignore[arg-type]
        value = getattr(operator, f.name)
        if f.name == "labels" or value is None:
            continue
        items = enumerate(value) if isinstance(value, tuple) else None
        contents += [(f"{f.name}.{i}", item) for i, item in items] if items else [(f.name, value)]
    return contents
