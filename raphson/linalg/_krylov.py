"""Krylov methods, which need products only: conjugate gradients and the Lanczos process."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg._entry import is_near, single
from raphson.linalg._operator import LinearOperator

Product = LinearOperator | Callable[[Tensor], Tensor]
"""An operator, or a function that takes and returns tensors of the shape of the right-hand side."""


class CGStatus(enum.Enum):
    """How a run of conjugate gradients ended."""

    CONVERGED = "Every residual is below the tolerance."
    MAX_ITERATIONS = "The iteration limit was reached before the residual fell below the tolerance."
    NEGATIVE_CURVATURE = "A direction along which the operator is not positive was met: it is indefinite or singular."


class CGResult(NamedTuple):
    """Outcome of ``cg``.

    Attributes:
        x: The solution, or the last iterate before the run ended, in the shape of the right-hand side.
        iterations: Number of products with the operator after the initial residual.
        residual_norm: Norm of ``b - A x`` by column, ``(k,)``, or a scalar for one right-hand side.
        status: How the run ended.
        direction: For negative curvature, the direction ``(n,)``, or the directions by column ``(n, k)`` with
            zero where there is none; None otherwise.
        curvature: For negative curvature, the smallest Rayleigh quotient ``d^T A d / d^T d`` met; None
            otherwise.
    """

    x: Tensor
    iterations: int
    residual_norm: Tensor
    status: CGStatus
    direction: Tensor | None = None
    curvature: float | None = None


def cg(
    operator: Product,
    b: Tensor,
    *,
    preconditioner: Product | None = None,
    tol: float = 1e-6,
    max_iter: int | None = None,
    x0: Tensor | None = None,
) -> CGResult:
    r"""Solve :math:`A X = B` for a positive definite operator by preconditioned conjugate gradients.

    Every column has a recurrence of its own and stops on its own; one product serves all of them. The run
    ends at the first direction of non-positive curvature (Steihaug 1983), which a Newton method can go along.

    Args:
        operator: ``A``, ``(n, n)``.
        b: ``(n,)``, or ``(n, k)`` for several right-hand sides.
        preconditioner: Positive definite approximation of the inverse of ``A``.
        tol: Residual norm to reach, relative to that of ``b``, or to the first one where ``b`` is zero.
        max_iter: Limit of iterations; None for ``10 n``.
        x0: Start, in the shape of ``b``; None for zero.

    Returns:
        The solution and how the run ended.

    Examples:
        >>> from raphson.linalg import Dense
        >>> a = Dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> found = cg(a, torch.tensor([3.0, 3.0]))
        >>> found.x, found.iterations, found.status.name
        (tensor([1., 1.]), 1, 'CONVERGED')
    """
    x = torch.zeros_like(b) if x0 is None else x0.clone()
    r = b.clone() if x0 is None else b - _apply(operator, x)
    target = tol * torch.where(_norm(b) > 0, _norm(b), _norm(r))
    limit = 10 * b.shape[0] if max_iter is None else max_iter
    if b.ndim == 1:
        return _cg_one(operator, preconditioner, x, r, float(target), limit)
    eps = torch.finfo(b.dtype).eps
    z = r if preconditioner is None else _apply(preconditioner, r)
    d, rz = z, _dot(r, z)
    iterations = 0
    active = ~(_norm(r) <= target)  # A residual of NaN is no convergence.
    while bool(active.any()):
        if iterations == limit:
            return CGResult(x, iterations, _norm(r), CGStatus.MAX_ITERATIONS)
        product = _apply(operator, d)
        iterations += 1
        curvature = _dot(d, product)
        # Rounding leaves d^T A d known to eps |d| |A d| only: below that it shows no positive curvature.
        bad = active & ~(curvature > eps * _norm(d) * _norm(product))
        if bool(bad.any()):
            quotient = (curvature / _dot(d, d))[bad].min()
            return CGResult(
                x,
                iterations,
                _norm(r),
                CGStatus.NEGATIVE_CURVATURE,
                torch.where(bad, d, 0.0),
                float(quotient.detach()),
            )
        step = torch.where(active, rz / curvature, 0.0)
        x.addcmul_(step, d)
        r = torch.addcmul(r, step, product, value=-1.0)
        active = ~(_norm(r) <= target)
        z = r if preconditioner is None else _apply(preconditioner, r)
        rz_next = _dot(r, z)
        d = torch.addcmul(z, torch.where(active, rz_next / rz, 0.0), d)
        rz = rz_next
    return CGResult(x, iterations, _norm(r), CGStatus.CONVERGED)


def _cg_one(
    operator: Product, preconditioner: Product | None, x: Tensor, r: Tensor, target: float, limit: int
) -> CGResult:
    """Run the recurrence of ``cg`` for one right-hand side, with its scalars as numbers: a third of the calls."""
    eps = torch.finfo(r.dtype).eps
    d, rz, iterations = r, 0.0, 0
    while True:
        residual, before = _norm(r), rz
        if preconditioner is None:
            z = r
            size, rz = _numbers(residual, torch.dot(r, r))
        else:
            (size,) = _numbers(residual)
        if size <= target:
            return CGResult(x, iterations, residual, CGStatus.CONVERGED)
        if iterations == limit:
            return CGResult(x, iterations, residual, CGStatus.MAX_ITERATIONS)
        if preconditioner is not None:
            z = _apply(preconditioner, r)
            (rz,) = _numbers(torch.dot(r, z))
        d = torch.add(z, d, alpha=rz / before if before else 0.0)
        product = _apply(operator, d)
        iterations += 1
        curvature, length, other = _numbers(torch.dot(d, product), _norm(d), _norm(product))
        # Rounding leaves d^T A d known to eps |d| |A d| only: below that it shows no positive curvature.
        if not curvature > eps * length * other:
            quotient = curvature / float(torch.dot(d, d))
            return CGResult(x, iterations, residual, CGStatus.NEGATIVE_CURVATURE, d, quotient)
        step = rz / curvature
        x.add_(d, alpha=step)
        r.sub_(product, alpha=step)


class Lanczos(NamedTuple):
    """A Krylov basis ``Q`` with ``A Q = Q T + residual q e_m^T``.

    Attributes:
        alpha: Diagonal of the tridiagonal ``T``, ``(m,)``.
        beta: Off-diagonal of ``T``, ``(m - 1,)``.
        basis: Orthonormal ``Q``, ``(n, m)``.
        residual: Norm of what the last product adds outside the basis; zero if the basis is invariant.
    """

    alpha: Tensor
    beta: Tensor
    basis: Tensor
    residual: Tensor

    def tridiagonal(self) -> Tensor:
        """Return ``T``, ``(m, m)``, in single precision at least."""
        alpha, beta = single(self.alpha), single(self.beta)
        return torch.diag(alpha) + torch.diag(beta, 1) + torch.diag(beta, -1)


def lanczos(operator: Product, v0: Tensor, steps: int, *, reorthogonalize: bool = True) -> Lanczos:
    """Run the Lanczos process (Golub and Van Loan, *Matrix Computations*, section 10.1).

    Args:
        operator: Symmetric ``A``, ``(n, n)``.
        v0: Start, ``(n,)``, not zero.
        steps: Number of products at most; fewer if the space is exhausted.
        reorthogonalize: Whether to keep the basis orthogonal to working precision, at ``8 n m`` flops a step.

    Returns:
        The tridiagonal matrix and the basis, with ``m <= steps``.

    Examples:
        >>> from raphson.linalg import Diagonal
        >>> found = lanczos(Diagonal(torch.tensor([1.0, 3.0])), torch.tensor([1.0, 1.0]), 2)
        >>> found.alpha, found.beta
        (tensor([2.0000, 2.0000]), tensor([1.0000]))
    """
    q = v0 / v0.norm()
    basis = [q]
    alpha: list[Tensor] = []
    beta: list[Tensor] = []
    scale = torch.zeros((), dtype=v0.dtype, device=v0.device)
    while True:
        w = _apply(operator, q)
        scale = torch.maximum(scale, w.norm())
        alpha.append(q @ w)
        w = w - alpha[-1] * q
        if beta:
            w = w - beta[-1] * basis[-2]
        if reorthogonalize:
            stacked = torch.stack(basis, dim=1)
            for _ in range(2):  # Twice is enough (Kahan and Parlett).
                w = w - stacked @ (stacked.mT @ w)
        residual = w.norm()
        exhausted = residual <= 10 * torch.finfo(v0.dtype).eps * v0.shape[0] ** 0.5 * scale
        residual = residual.masked_fill(exhausted, 0.0)
        if len(alpha) == min(steps, v0.shape[0]) or not bool(residual > 0):
            off = torch.stack(beta) if beta else v0.new_zeros(0)
            return Lanczos(torch.stack(alpha), off, torch.stack(basis, dim=1), residual)
        beta.append(residual)
        q = w / residual
        basis.append(q)


class ExtremeEigenvalues(NamedTuple):
    """Smallest and largest eigenvalue as far as a Krylov space shows them.

    Attributes:
        smallest: Smallest Ritz value: an upper bound of the smallest eigenvalue.
        largest: Largest Ritz value: a lower bound of the largest eigenvalue.
        smallest_error: An eigenvalue lies within this distance of ``smallest``.
        largest_error: An eigenvalue lies within this distance of ``largest``.
    """

    smallest: float
    largest: float
    smallest_error: float
    largest_error: float


def extreme_eigenvalues(
    operator: LinearOperator, *, steps: int = 100, generator: torch.Generator | None = None
) -> ExtremeEigenvalues:
    """Estimate the extreme eigenvalues of a symmetric operator by Lanczos from a random start.

    The errors are residual norms of the Ritz vectors (Parlett 1998, *The Symmetric Eigenvalue Problem*): they
    bound the distance to some eigenvalue, which is the extreme one unless the start misses it.

    Args:
        operator: ``(n, n)``.
        steps: Number of products at most.
        generator: Source of the random start, on any device.

    Returns:
        The two Ritz values with their error bounds.

    Examples:
        >>> from raphson.linalg import Diagonal
        >>> found = extreme_eigenvalues(Diagonal(torch.arange(1.0, 6.0).double()))
        >>> round(found.smallest, 6), round(found.largest, 6)
        (1.0, 5.0)
    """
    run = lanczos(operator, random_vector(operator, generator), steps)
    ritz, vectors = torch.linalg.eigh(run.tridiagonal())
    errors = run.residual * vectors[-1].abs()
    return ExtremeEigenvalues(float(ritz[0]), float(ritz[-1]), float(errors[0]), float(errors[-1]))


def random_vector(operator: LinearOperator, generator: torch.Generator | None = None) -> Tensor:
    """Return a standard normal vector ``(n,)`` for an operator, drawn where the generator lives."""
    device = operator.device if generator is None else generator.device
    drawn = torch.randn(operator.shape[-1], dtype=operator.dtype, device=device, generator=generator)
    return drawn.to(operator.device)


def _apply(operator: Product, v: Tensor) -> Tensor:
    if isinstance(operator, LinearOperator):
        return operator @ v
    given: Any = operator
    if not callable(given):
        what = " Wrap a matrix as rp.Dense(matrix)." if hasattr(operator, "shape") else ""
        raise InputError(
            f"This takes an operator, or a function of a vector, and got a {type(operator).__name__}.{what}"
        )
    return operator(v)


def _numbers(*values: Tensor) -> list[float]:
    """Return numbers that a device has together: each look means to wait for it."""
    return [float(v) for v in values] if is_near(values[0]) else torch.stack(values).cpu().tolist()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)


def _norm(a: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(a, dim=0)
    return norm
