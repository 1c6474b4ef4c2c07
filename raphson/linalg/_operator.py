"""The contract of every linear operator.

Two abstract classes: ``LinearOperator`` (rectangular, say a Jacobian) and ``SymmetricOperator`` (curvature).
Members are frozen dataclasses of tensors: no data loader, generator or module inside them. Batch dimensions
come first, so that ``(N, C, C)`` output Hessians and one ``(P, P)`` parameter Hessian are the same kind of
thing. Symmetric operators may be indefinite; nothing here clamps an eigenvalue.

A right-hand side ``v`` counts as a vector where it has fewer dimensions than the operator, and as a matrix of
columns otherwise; its batch dimensions broadcast against the operator's.

What every member owes its callers is done around its methods, once, when the class is made (``_entry``): right-hand
sides of the wrong length or type are refused by name, NumPy arrays are taken and given back, SciPy is told the element
type in NumPy's terms, and what PyTorch does not decompose in half precision is decomposed in single.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg._entry import as_numpy, guard, numpy_type
from raphson.linalg._spectral import eigenvalue_power, rounding_level

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator


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
    """A linear map of shape ``(*batch, m, n)`` that is known by its products.

    A member defines ``mv`` or ``mm`` and, where it is not symmetric, ``rmv`` or ``rmm``; the other one follows.

    Examples:
        >>> from raphson.linalg import Dense
        >>> a = Dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> a.shape, a @ torch.ones(2), a @ np.ones(2, dtype=np.float32)
        (torch.Size([2, 2]), tensor([3., 3.]), array([3., 3.], dtype=float32))
    """

    _part: ClassVar[str]
    """The field (a tensor, an operator, or a tuple of operators) that has the operator's dtype, device and shape."""

    def __init_subclass__(cls) -> None:
        guard(cls)
        if "__repr__" not in vars(cls):  # else a dataclass would list its numbers, thousands of them
            cls.__repr__ = LinearOperator.__repr__  # type: ignore[method-assign]

    @property
    def shape(self) -> torch.Size:
        """Shape ``(*batch, m, n)``."""
        return self._first.shape

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the products."""
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        """Device on which the operator lives."""
        return self._first.device

    @property
    def _first(self) -> Tensor | LinearOperator:
        part: Tensor | LinearOperator | tuple[LinearOperator, ...] = getattr(self, self._part)
        return part[0] if isinstance(part, tuple) else part

    @abc.abstractmethod
    def to_dense(self) -> Tensor:
        """Return the ``(*batch, m, n)`` tensor."""

    def mv(self, v: Tensor) -> Tensor:
        """Return ``A v`` for ``v`` of shape ``(*batch, n)``, as ``(*batch, m)``."""
        return self.mm(v.unsqueeze(-1)).squeeze(-1)

    def rmv(self, v: Tensor) -> Tensor:
        """Return ``A^T v`` for ``v`` of shape ``(*batch, m)``, as ``(*batch, n)``."""
        return self.rmm(v.unsqueeze(-1)).squeeze(-1)

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
                # a number is kept exactly, whatever the type and the device of the operator
                number = torch.float64 if isinstance(value, float) else None
                state[name] = value if isinstance(value, Tensor) else torch.tensor(value, dtype=number, device="cpu")
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

    def as_scipy(self) -> ScipyOperator:
        """Return the operator as one of SciPy, which takes and gives NumPy arrays.

        SciPy's functions take the operator itself, too (``eigsh(op)``, ``aslinearoperator(op)``).

        Raises:
            InputError: If the operator has batch dimensions.

        >>> from raphson.linalg import Diagonal
        >>> from scipy.sparse.linalg import eigsh
        >>> print(eigsh(Diagonal(torch.arange(5.0)), 1, return_eigenvectors=False).round(4))
        [4.]
        """
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        if len(self.shape) > 2:
            raise InputError(f"SciPy has no operators with batch dimensions, and this has shape {tuple(self.shape)}.")
        return ScipyOperator(
            tuple(self.shape),
            matvec=self.matvec,
            rmatvec=self.rmatvec,
            matmat=self.mm,
            rmatmat=self.rmm,
            dtype=numpy_type(self.dtype),
        )

    def matvec(self, v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return ``A v`` for SciPy, which asks by this name and hands over columns as ``(n, 1)``, too."""
        return cast(np.ndarray[Any, Any], self.mv(np.reshape(v, -1)))  # type: ignore[arg-type]

    def rmatvec(self, v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return ``A^T v`` for SciPy."""
        return cast(np.ndarray[Any, Any], self.rmv(np.reshape(v, -1)))  # type: ignore[arg-type]

    def __repr__(self) -> str:
        where = "" if self.device.type == "cpu" else f" on {self.device}"
        return f"<{type(self).__name__} {' x '.join(map(str, self.shape))}, {self.dtype}{where}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(as_numpy(self.to_dense()), dtype=dtype, copy=copy)

    def __matmul__(self, v: Tensor) -> Tensor:
        # a list has no axes, and is refused by the product
        return self.mv(v) if getattr(v, "ndim", 0) < len(self.shape) else self.mm(v)


guard(LinearOperator)  # type: ignore[type-abstract]


@dataclass(frozen=True, eq=False)
class SymmetricOperator(LinearOperator):
    """A symmetric map of shape ``(*batch, n, n)``, definite or not.

    Args:
        labels: Names of the ``n`` parameters, for messages and reports; None where there are none.

    Examples:
        >>> from raphson.linalg import Dense
        >>> a = Dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> a.trace(), a.shift(1.0).diagonal(), a.power_mv(torch.ones(2), -1)
        (tensor(4.), tensor([3., 3.]), tensor([0.3333, 0.3333]))
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

    def _terms(self) -> Tensor | None:
        """Return the size of what was added up to the diagonal, ``(*batch, n)``, where it may cancel; else None."""
        return None

    def power_mv(self, v: Tensor, p: float) -> Tensor:
        """Return ``A^p v``: by products or solves for an integer ``p``, by the eigen-decomposition otherwise.

        Args:
            v: ``(*batch, n)`` or ``(*batch, n, k)``.
            p: Exponent; a fractional one of an indefinite operator raises ``IndefiniteError``.

        Returns:
            The shape of ``v``.
        """
        if float(p).is_integer():
            for _ in range(abs(int(p))):
                v = self @ v if p > 0 else self.solve(v)
            return v
        eigenvalues, vectors = self.eigh()
        power = eigenvalue_power(eigenvalues, p, rounding_level(eigenvalues, self._terms())).unsqueeze(-1)
        return columnwise(self, lambda u: vectors.mm(power * vectors.rmm(u)), v)

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
    if isinstance(c, int | float):  # written on the device, not copied to it
        return torch.full((1, 1), c, dtype=operator.dtype, device=operator.device)
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
