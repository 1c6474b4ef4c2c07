"""The inverse of a dense Hessian as a map, by a Cholesky factor, shifted until it is positive definite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy.linalg import lapack
from torch import Tensor

Inverse = Callable[[Tensor], Tensor]
"""A map ``v -> H^-1 v`` of vectors ``(p,)``, exact or approximate."""

_SMALL = 64
"""Rows up to which LAPACK is called by way of SciPy: for 28 rows factor and solve take 13 us, through PyTorch 42.

From about 100 rows in double precision OpenBLAS starts threads of its own, which fight with PyTorch's: a fit with 153
coefficients then takes 88 ms on two threads in place of 17."""

_LAPACK: dict[torch.dtype, tuple[Any, Any]] = {
    torch.float64: (lapack.dpotrf, lapack.dpotrs),
    torch.float32: (lapack.spotrf, lapack.spotrs),
}


class Cholesky:
    """A lower Cholesky factor of a symmetric matrix ``(p, p)``, if it has one.

    Args:
        matrix: Positive definite or not; its lower triangle is read.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.dtype = matrix.dtype
        self._factor: Any = None
        self._small = matrix.shape[0] <= _SMALL and matrix.device.type == "cpu" and matrix.dtype in _LAPACK
        if self._small:
            # rows of a symmetric matrix are its columns, which is what LAPACK reads
            factor, info = _LAPACK[self.dtype][0](matrix.numpy().T, 1, 0, 0)
        else:
            factor, info = torch.linalg.cholesky_ex(matrix)
        if not int(info):
            self._factor = factor

    @property
    def exists(self) -> bool:
        """Whether the matrix is positive definite."""
        return self._factor is not None

    def solve(self, v: Tensor) -> Tensor:
        """Return the solution ``(p,)`` for a right-hand side ``(p,)``, in its element type."""
        right = v if v.dtype == self.dtype else v.to(self.dtype)
        if self._small:
            found = torch.from_numpy(_LAPACK[self.dtype][1](self._factor, right.numpy(), 1)[0])
        else:
            found = torch.cholesky_solve(right.unsqueeze(1), self._factor).squeeze(1)
        return found if v.dtype == self.dtype else found.to(v.dtype)


def inverse_map(hessian: Tensor, factor: Cholesky | None = None) -> Inverse:
    """Return ``v -> H^-1 v`` by Cholesky, of H shifted by its diagonal until it is positive definite."""
    factor = factor or Cholesky(hessian)
    return factor.solve if factor.exists else _shifted_cholesky(hessian)


def _shifted_cholesky(hessian: Tensor) -> Inverse:
    """Factorize ``H + t diag|H|`` with the smallest tried t that makes it positive definite; I for H not finite."""
    if not bool(torch.isfinite(hessian).all()):
        return lambda v: v
    eps = torch.finfo(hessian.dtype).eps
    diagonal = hessian.diagonal().abs()
    diagonal = diagonal.clamp_min(float(diagonal.max()) * eps + torch.finfo(hessian.dtype).tiny)
    shift = 4.0 * eps * hessian.shape[0]
    while True:
        factor = Cholesky(hessian + torch.diag(shift * diagonal))
        if factor.exists:
            return factor.solve
        shift *= 10.0
