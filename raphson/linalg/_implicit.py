"""Operators that are known by a function: products without any stored matrix."""

from __future__ import annotations

import abc
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from raphson._errors import IndefiniteError, InputError, RaphsonError
from raphson.linalg._basic import Dense
from raphson.linalg._dense_form import DenseForm
from raphson.linalg._krylov import CGStatus, cg
from raphson.linalg._operator import LinearOperator, SymmetricOperator, columnwise, per_batch
from raphson.linalg._size import check_dense_size

_BLOCK = 64
"""Columns of the identity that go into one product: more take memory, fewer take calls."""

Function = Callable[[Tensor], Tensor]


class _Functions(LinearOperator, abc.ABC):
    """What an operator made of functions cannot do, in one sentence each.

    Its shape, dtype and device are those of ``_like``, a tensor of that shape that takes no memory.
    """

    _part = "_like"
    _like: Tensor

    def state_dict(self) -> dict[str, Tensor]:
        """Refuse by an ``InputError``: a function cannot be saved."""
        raise InputError(f"An implicit operator is a function and cannot be saved. Save {self._stored()}.")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        """Refuse to pickle functions that cannot be: what pickle says of them names neither operator nor remedy."""
        try:
            pickle.dumps([value for value in vars(self).values() if callable(value)])
        except Exception as error:
            raise TypeError(
                f"An implicit operator is a function of data and cannot be pickled. Pickle {self._stored()} instead."
            ) from error
        return object.__reduce_ex__(self, protocol)

    def _stored(self) -> str:
        kind = "Dense" if isinstance(self, SymmetricOperator) else "Matrix"
        return f"{kind}(op.to_dense())"


def _like(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device).expand(torch.Size(shape))


@dataclass(frozen=True, eq=False, init=False)
class Implicit(_Functions, DenseForm):
    """A symmetric operator that is known by its products.

    Whatever needs the entries (``to_dense``, ``diagonal``, ``eigh``, ``slogdet``) takes one product for each
    parameter and is refused above a limit of size; ``solve`` runs conjugate gradients.

    Args:
        matvec: The product of a vector, ``(*batch, n) -> (*batch, n)``.
        shape: ``(*batch, n, n)``, or ``n`` for ``(n, n)``.
        dtype: Element type of the vectors.
        device: Device of the vectors.
        matmat: The product of columns, ``(*batch, n, k) -> (*batch, n, k)``; None to call ``matvec`` on each.
        labels: Names of the ``n`` parameters.

    Raises:
        InputError: If the shape is not square.

    Examples:
        >>> twice = Implicit(lambda v: 2 * v, 3, torch.float32)
        >>> twice @ torch.ones(3), twice.solve(torch.ones(3))
        (tensor([2., 2., 2.]), tensor([0.5000, 0.5000, 0.5000]))
    """

    _product: Function
    _products: Function | None
    _like: Tensor
    _precision: torch.dtype

    def __init__(
        self,
        matvec: Function,
        shape: int | Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        matmat: Function | None = None,
        labels: tuple[str, ...] | None = None,
    ) -> None:
        size = torch.Size((shape, shape) if isinstance(shape, int) else shape)
        if len(size) < 2 or size[-1] != size[-2]:
            raise InputError(f"Implicit needs a square shape (*batch, n, n), and got {tuple(size)}.")
        functions = dict(_product=matvec, _products=matmat)
        for name, value in dict(functions, labels=labels, _like=_like(size, dtype, device), _precision=dtype).items():
            object.__setattr__(self, name, value)

    def mv(self, v: Tensor) -> Tensor:
        """Return ``A v`` for ``v`` of shape ``(*batch, n)``."""
        return self._product(v)

    def mm(self, v: Tensor) -> Tensor:
        """Return ``A V`` for ``V`` of shape ``(*batch, n, k)``."""
        if self._products is not None:
            return self._products(v)
        return torch.stack([self._product(column) for column in v.unbind(-1)], dim=-1)

    def to_dense(self) -> Tensor:
        """Return the ``(*batch, n, n)`` tensor, by one product for each parameter."""
        return torch.cat([columns for _, columns in self._identity_products()], dim=-1)

    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(*batch, n)``, by one product for each parameter."""
        parts = [
            columns[..., start : start + columns.shape[-1], :].diagonal(dim1=-2, dim2=-1)
            for start, columns in self._identity_products()
        ]
        return torch.cat(parts, dim=-1)

    def shift(self, c: float | Tensor) -> Implicit:
        """Return ``A + c I``, for a number or one ``c`` per batch element."""
        shift = per_batch(c, self)
        return Implicit(
            lambda v: self.mv(v) + shift.squeeze(-1) * v,
            self.shape,
            self.dtype,
            self.device,
            matmat=lambda v: self.mm(v) + shift * v,
            labels=self.labels,
        )

    def solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 b`` by conjugate gradients, to a relative residual of ``eps^(2/3)``.

        A direction of non-positive curvature raises ``IndefiniteError``.
        """
        return columnwise(self, self._solve_columns, b)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Implicit:
        """Return the operator on vectors of another type or device, which are converted for each product."""
        other = Implicit(
            lambda v: self.mv(v.to(self.device, self.dtype)).to(v),
            self.shape,
            dtype or self.dtype,
            device or self.device,
            matmat=lambda v: self.mm(v.to(self.device, self.dtype)).to(v),
            labels=self.labels,
        )
        # what was once rounded to half precision is not known better afterwards
        coarser = max(self._precision, other.dtype, key=lambda known: torch.finfo(known).eps)
        object.__setattr__(other, "_precision", coarser)
        return other

    def _dense_form(self) -> Dense:
        dense = self.to_dense()
        return Dense((dense + dense.mT) / 2, labels=self.labels)

    def _identity_products(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the first index and the products of blocks of columns of the identity."""
        check_dense_size(self.shape, self.dtype, "products, cg for a solve, or an estimator of trace or diagonal")
        n = self.shape[-1]
        for start in range(0, n, _BLOCK):
            width = min(_BLOCK, n - start)
            columns = torch.zeros((*self.shape[:-1], width), dtype=self.dtype, device=self.device)
            columns[..., start : start + width, :] = torch.eye(width, dtype=self.dtype, device=self.device)
            yield start, self.mm(columns)

    def _solve_columns(self, b: Tensor) -> Tensor:
        """Return ``A^-1 B``: every column ``(*batch, n, k)`` of every batch element is a right-hand side of its own.

        Raises:
            IndefiniteError: If a direction of non-positive curvature is met.
            RaphsonError: If the residual does not reach the tolerance.
        """
        b = b.expand(*self.shape[:-2], *b.shape[-2:])
        first = b.movedim(-2, 0)

        def product(v: Tensor) -> Tensor:
            return self.mm(v.reshape(first.shape).movedim(0, -2)).movedim(-2, 0).reshape(v.shape)

        rhs, tol = first.flatten(1), torch.finfo(self._precision).eps ** (2 / 3)
        result = cg(product, rhs, tol=tol)
        if result.status is CGStatus.NEGATIVE_CURVATURE:
            raise IndefiniteError(
                f"Conjugate gradients met a direction with Rayleigh quotient {result.curvature:.3e}: the "
                f"operator is indefinite or singular. Shift it by a positive constant, or use a Gauss-Newton "
                f"approximation."
            )
        # The recurrence may lose the residual: for a singular operator the solution grows without bound.
        residual = (rhs - product(result.x)).norm(dim=0)
        if not bool((residual <= 100 * tol * rhs.norm(dim=0)).all()):
            raise RaphsonError(
                f"Conjugate gradients did not converge in {result.iterations} iterations: the operator is "
                f"singular or badly conditioned. Shift it by a positive constant, or call cg with a "
                f"preconditioner."
            )
        return result.x.reshape(first.shape).movedim(0, -2)


@dataclass(frozen=True, eq=False, init=False)
class ImplicitRectangular(_Functions):
    """A rectangular operator that is known by its products and those of its transpose.

    Args:
        matvec: ``(*batch, n) -> (*batch, m)``.
        rmatvec: ``(*batch, m) -> (*batch, n)``.
        shape: ``(*batch, m, n)``.
        dtype: Element type of the vectors.
        device: Device of the vectors.

    Examples:
        >>> total = ImplicitRectangular(lambda v: v.sum(-1, keepdim=True), lambda u: u.expand(3), (1, 3), torch.float32)
        >>> total @ torch.ones(3), total.rmv(torch.ones(1))
        (tensor([3.]), tensor([1., 1., 1.]))
    """

    _product: Function
    _transposed: Function
    _like: Tensor

    def __init__(
        self,
        matvec: Function,
        rmatvec: Function,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        values = dict(_product=matvec, _transposed=rmatvec, _like=_like(shape, dtype, device))
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def mv(self, v: Tensor) -> Tensor:
        return self._product(v)

    def rmv(self, v: Tensor) -> Tensor:
        return self._transposed(v)

    def to_dense(self) -> Tensor:
        """Return the ``(*batch, m, n)`` tensor, by one product for each column or row, the fewer of them."""
        check_dense_size(self.shape, self.dtype, "its products mv and rmv")
        m, n = self.shape[-2:]
        eye = torch.eye(min(m, n), dtype=self.dtype, device=self.device)
        eye = eye.expand(*self.shape[:-2], *eye.shape)
        return self.mm(eye) if n <= m else self.rmm(eye).mT

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> ImplicitRectangular:
        """Return the operator on vectors of another type or device, which are converted for each product."""
        return ImplicitRectangular(
            lambda v: self.mv(v.to(self.device, self.dtype)).to(v),
            lambda v: self.rmv(v.to(self.device, self.dtype)).to(v),
            self.shape,
            dtype or self.dtype,
            device or self.device,
        )
