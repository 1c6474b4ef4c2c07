"""Direct solution of dense symmetric systems: Cholesky if definite, LU if not, an error if singular."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raphson._errors import IndefiniteError


def rounding(n: int, dtype: torch.dtype) -> float:
    """Return what rounding typically leaves of a zero, relative to the ``n`` terms that add up to it."""
    return 4.0 * math.sqrt(n) * torch.finfo(dtype).eps


def cholesky(matrix: Tensor, *, labels: tuple[str, ...] | None = None) -> Tensor:
    r"""Return the lower Cholesky factor :math:`L` with :math:`L L^\top = A`.

    Args:
        matrix: Symmetric ``(*batch, n, n)``; the lower triangle is read.
        labels: Names of the ``n`` parameters, for the message.

    Returns:
        ``(*batch, n, n)``, lower triangular.

    Raises:
        IndefiniteError: If a leading minor is not positive; the message names the first one and its pivot.
    """
    lower: Tensor
    lower, info = torch.linalg.cholesky_ex(matrix)
    if not bool(info.any()):
        return lower
    element = int(info.reshape(-1).ne(0).nonzero()[0])
    minor = int(info.reshape(-1)[element])
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    pivot = _pivot(flat[element], minor)
    where = f" (batch element {element})" if flat.shape[0] > 1 else ""
    who = f", parameter '{labels[minor - 1]}'," if labels else ""
    raise IndefiniteError(
        f"The {matrix.shape[-1]} x {matrix.shape[-1]} matrix{where} is not positive definite: leading minor "
        f"{minor}{who} has pivot {pivot:.3e}. Shift it by a positive constant, use a Gauss-Newton or Fisher "
        f"approximation, or remove what makes it singular."
    )


def _pivot(matrix: Tensor, minor: int) -> float:
    """Return the pivot of a leading minor, given that all smaller ones are positive."""
    k = minor - 1
    row = torch.linalg.solve_triangular(
        torch.linalg.cholesky_ex(matrix[:k, :k])[0], matrix[k, :k].unsqueeze(-1), upper=False
    )
    return float(matrix[k, k] - (row * row).sum())


def cholesky_solve(lower: Tensor, b: Tensor) -> Tensor:
    """Return ``(L L^T)^-1 B`` for ``B`` of shape ``(*batch, n, k)``, batch dimensions broadcast."""
    half: Tensor = torch.linalg.solve_triangular(lower, b, upper=False)
    x: Tensor = torch.linalg.solve_triangular(lower.mT, half, upper=True)
    return x


def solve_symmetric(matrix: Tensor, b: Tensor) -> Tensor:
    """Solve dense symmetric systems, definite or not.

    Both tests for singularity are invariant to a rescaling of the parameters, so columns at scales 1e24 and
    1e-24 are not mistaken for collinear ones.

    Args:
        matrix: Symmetric ``(*batch, n, n)``.
        b: Right-hand sides ``(*batch, n, k)``.

    Returns:
        ``(*batch, n, k)``.

    Raises:
        IndefiniteError: If a matrix is singular to working precision or not finite.
    """
    n = matrix.shape[-1]
    threshold = rounding(n, matrix.dtype)
    lower, info = torch.linalg.cholesky_ex(matrix)
    if not bool(info.any()):
        # The squared pivot over the diagonal is the share of a parameter that those before it do not explain.
        share = lower.diagonal(dim1=-2, dim2=-1).square() / matrix.diagonal(dim1=-2, dim2=-1)
        _refuse_singular(share <= threshold, n)
        return cholesky_solve(lower, b)
    if not bool(matrix.isfinite().all()):
        raise IndefiniteError(f"The {n} x {n} matrix to solve with holds NaN or infinity.")
    scale = matrix.abs().amax(-1).rsqrt()
    _refuse_singular(scale.isinf(), n)
    factors, pivots = torch.linalg.lu_factor(scale.unsqueeze(-1) * matrix * scale.unsqueeze(-2))
    diagonal = factors.diagonal(dim1=-2, dim2=-1).abs()
    _refuse_singular(diagonal <= threshold * diagonal.amax(-1, keepdim=True), n)
    x: Tensor = torch.linalg.lu_solve(factors, pivots, scale.unsqueeze(-1) * b)
    return scale.unsqueeze(-1) * x


def _refuse_singular(null: Tensor, n: int) -> None:
    """Refuse a matrix with a null pivot.

    Args:
        null: Which pivots are null, ``(*batch, n)``.
        n: Size of the matrix, for the message.

    Raises:
        IndefiniteError: If any is.
    """
    if bool(null.any()):
        raise IndefiniteError(
            f"The {n} x {n} matrix to solve with is singular to working precision in "
            f"{int(null.any(-1).sum())} batch element(s). Shift it by a positive constant, add a penalty, "
            f"or remove collinear parameters."
        )
