"""Powers of eigenvalues, some of which are zero up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from raphson._errors import IndefiniteError
from raphson.linalg._cholesky import rounding


def rounding_level(eigenvalues: Tensor, terms: Tensor | None = None) -> Tensor:
    """Return what rounding in a decomposition typically turns a zero eigenvalue into, ``(*batch, 1)``.

    ``terms`` is the size of what was added up to the diagonal, ``(*batch, n)``, where that may have cancelled.
    """
    level = rounding(eigenvalues.shape[-1], eigenvalues.dtype)
    largest = eigenvalues.abs().amax(-1, keepdim=True)
    return level * (largest if terms is None else torch.maximum(largest, terms.amax(-1, keepdim=True)))


def eigenvalue_power(eigenvalues: Tensor, p: float, level: Tensor | float) -> Tensor:
    """Return ``lambda ** p``, zero for an eigenvalue up to ``level`` under a positive fractional ``p``.

    Raises:
        IndefiniteError: For a fractional power of a negative eigenvalue or a negative power of a zero one.
    """
    zero = eigenvalues.abs() <= level
    if p < 0 and bool(zero.any()):
        raise IndefiniteError(
            f"The operator is singular (smallest absolute eigenvalue {float(eigenvalues.abs().min()):.3e}), "
            f"so it has no power {p:g}. Shift it by a positive constant first."
        )
    if float(p).is_integer():
        return eigenvalues**p
    if bool(((eigenvalues < 0) & ~zero).any()):
        raise IndefiniteError(
            f"The operator is not positive semi-definite: its smallest eigenvalue is "
            f"{float(eigenvalues.min()):.3e}, so it has no real power {p:g}. Use a Gauss-Newton matrix or "
            f"the expected information, or shift it first."
        )
    return torch.where(zero, 0.0, eigenvalues.clamp_min(0.0) ** p)
