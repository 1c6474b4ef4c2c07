"""The inverse of a dense Hessian as a map, by a Cholesky factor, shifted until it is positive definite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Inverse = Callable[[Tensor], Tensor]
"""A map ``v -> H^-1 v`` of vectors ``(p,)``, exact or approximate."""


def inverse_map(hessian: Tensor, factor: Tensor | None = None) -> Inverse:
    """Factorize a Hessian by Cholesky, shifted by a multiple of its diagonal until it is positive definite.

    Args:
        hessian: ``(p, p)``; the factorization runs in its element type.
        factor: Its Cholesky factor, if that is at hand.

    Returns:
        The map ``v -> H^-1 v`` for ``v`` of shape ``(p,)``, which keeps the element type of ``v``.
    """
    found = cholesky(hessian) if factor is None else factor
    lower = _shifted_cholesky(hessian) if found is None else found

    def solve(v: Tensor) -> Tensor:
        right = v if v.dtype == lower.dtype else v.to(lower.dtype)
        solution = torch.cholesky_solve(right.unsqueeze(1), lower).squeeze(1)
        return solution if v.dtype == lower.dtype else solution.to(v.dtype)

    return solve


def cholesky(hessian: Tensor) -> Tensor | None:
    """Return the Cholesky factor of a matrix, or None if it is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(hessian)
    return None if int(info) else factor


def _shifted_cholesky(hessian: Tensor) -> Tensor:
    """Factorize ``H + t diag|H|`` with the smallest tried t that makes it positive definite; I for H not finite."""
    if not bool(torch.isfinite(hessian).all()):
        return torch.eye(hessian.shape[0], dtype=hessian.dtype)
    eps = torch.finfo(hessian.dtype).eps
    diagonal = hessian.diagonal().abs()
    diagonal = diagonal.clamp_min(float(diagonal.max()) * eps + torch.finfo(hessian.dtype).tiny)
    shift = 4.0 * eps * hessian.shape[0]
    while True:
        factor = cholesky(hessian + torch.diag(shift * diagonal))
        if factor is not None and bool(torch.isfinite(factor.diagonal()).all()):
            return factor
        shift *= 10.0
