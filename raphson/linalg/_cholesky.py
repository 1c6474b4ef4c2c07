"""Direct solution of dense symmetric systems: Cholesky if definite, LU if not, an error if singular.

Half precision, which PyTorch does not decompose, goes through single precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from raphson._errors import IndefiniteError
from raphson.linalg._entry import HALF


def rounding(n: int, dtype: torch.dtype) -> float:
    """Return what rounding typically leaves of a zero, relative to the ``n`` terms that add up to it."""
    return 4.0 * math.sqrt(n) * torch.finfo(dtype).eps


def cholesky(matrix: Tensor, *, labels: tuple[str, ...] | None = None) -> Tensor:
    """Return the lower Cholesky factor of a symmetric ``(*batch, n, n)``, whose lower triangle is read.

    Raises:
        IndefiniteError: If a leading minor is not positive; the message names the first one and its pivot.
    """
    if matrix.dtype in HALF:
        return cholesky(matrix.float(), labels=labels).to(matrix.dtype)
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
        f"{minor}{who} has pivot {pivot:.3e}. Shift it by a positive constant, use a Gauss-Newton matrix or "
        f"the expected information, or remove what makes it singular."
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
    if lower.dtype in HALF:
        return cholesky_solve(lower.float(), b.float()).to(lower.dtype)
    inner: Tensor = torch.linalg.solve_triangular(lower, b, upper=False)
    x: Tensor = torch.linalg.solve_triangular(lower.mT, inner, upper=True)
    return x


def solve_symmetric(
    matrix: Tensor, b: Tensor, *, labels: tuple[str, ...] | None = None, terms: Tensor | None = None
) -> Tensor:
    """Return solutions of dense symmetric systems ``(*batch, n, n)``, definite or not, for ``b`` ``(*batch, n, k)``.

    The test for singularity is invariant to a rescaling of the parameters, so columns at scales 1e24 and
    1e-24 are not mistaken for collinear ones. A matrix that is singular to working precision raises
    ``IndefiniteError`` too. ``terms`` is the size of what was added up to the diagonal, ``(*batch, n)``, where that
    canceled.

    Raises:
        IndefiniteError: If an entry of a matrix is NaN or infinite.
    """
    if matrix.dtype in HALF:
        terms = None if terms is None else terms.float()
        return solve_symmetric(matrix.float(), b.float(), labels=labels, terms=terms).to(matrix.dtype)
    if not bool(matrix.isfinite().all()):
        n = matrix.shape[-1]
        raise IndefiniteError(f"The {n} x {n} matrix to solve with holds NaN or infinity.")
    lower, info = torch.linalg.cholesky_ex(matrix)
    if not bool(info.any()):
        scale = matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
        _refuse_singular(lambda v: cholesky_solve(lower, v), matrix, scale, labels, terms)
        return cholesky_solve(lower, b)
    scale = equilibrate(matrix)
    column = scale.unsqueeze(-1)
    factors, pivots, _ = torch.linalg.lu_factor_ex(column * matrix * column.mT)
    # A pivot of exactly zero would turn the null vector, which the error reports, into infinity.
    factors.diagonal(dim1=-2, dim2=-1).masked_fill_(
        factors.diagonal(dim1=-2, dim2=-1) == 0, torch.finfo(matrix.dtype).eps
    )

    def solve(v: Tensor) -> Tensor:
        x: Tensor = torch.linalg.lu_solve(factors, pivots, column * v)
        return column * x

    _refuse_singular(solve, matrix, scale, labels, terms)
    return solve(b)


def equilibrate(matrix: Tensor) -> Tensor:
    """Return ``s``, ``(*batch, n)``, for which the rows of ``diag(s) A diag(s)`` have a largest entry near 1.

    Ruiz (2001), "A scaling algorithm to equilibrate both rows and columns norms in matrices"; the error in
    the exponent halves with each of the ten steps. A row of zeros keeps its scale.
    """
    scale = torch.ones_like(matrix[..., 0])
    for _ in range(10):
        largest = (scale.unsqueeze(-1) * matrix * scale.unsqueeze(-2)).abs().amax(-1)
        scale = torch.where(largest > 0, scale / largest.sqrt(), scale)
    return scale


def _refuse_singular(
    solve: Callable[[Tensor], Tensor],
    matrix: Tensor,
    scale: Tensor,
    labels: tuple[str, ...] | None,
    terms: Tensor | None,
) -> None:
    """Refuse a matrix that is singular to working precision once ``scale`` ``(*batch, n)`` has made parameters equal.

    Three steps of inverse (``solve``, perhaps by factors of a singular matrix) and of direct iteration find the
    smallest and the largest absolute eigenvalue. Pivots would not do: the smallest one can be far above the smallest
    eigenvalue. The largest entries of the null vector say which labels to report; ``terms`` is as in
    ``solve_symmetric``.

    Raises:
        IndefiniteError: If a matrix is singular.
    """
    n = matrix.shape[-1]
    column = scale.unsqueeze(-1)
    high = torch.arange(1.0, n + 1, dtype=matrix.dtype, device=matrix.device).cos().unsqueeze(-1)
    low = high
    for _ in range(3):
        high = column * (matrix @ (column * (high / high.norm(dim=-2, keepdim=True))))
        low = solve(low / low.norm(dim=-2, keepdim=True) / column) / column
    largest = high.norm(dim=(-2, -1))
    if terms is not None:
        largest = torch.maximum(largest, (scale.square() * terms).amax(-1))
    singular = ~(1 / low.norm(dim=(-2, -1)) > rounding(n, matrix.dtype) * largest)
    if not bool(singular.any()):
        return
    who = f" in {int(singular.sum())} batch element(s)" if singular.ndim else ""
    if labels:
        vector = low[singular][0].squeeze(-1).abs()
        names = [label for label, weight in zip(labels, vector / vector.max(), strict=True) if weight > 0.1]
        who += f", along a combination of {', '.join(names[:8])}"
    raise IndefiniteError(
        f"The {n} x {n} matrix to solve with is singular to working precision{who}. Shift it by a positive "
        f"constant, add a penalty, or remove collinear parameters."
    )
