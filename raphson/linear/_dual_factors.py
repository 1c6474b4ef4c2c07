"""Solutions with matrices of few rows, in few calls."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import lapack

Array = NDArray[np.float64]

_SMALL = 64
"""Rows up to which LAPACK is called by way of SciPy, which then starts no threads that fight with PyTorch's, as it does
for more than some ten right-hand sides."""


def solve(matrix: Array, right: Array) -> Array | None:
    """Return the solutions ``(m, N)`` for a few right-hand sides, None where a matrix is not positive definite."""
    if len(matrix) <= _SMALL:
        factor, info = lapack.dpotrf(matrix.T, 1, 0, 1)
        return None if info else lapack.dpotrs(factor, right.T, 1)[0].T
    factor, info = torch.linalg.cholesky_ex(torch.from_numpy(matrix))
    found: Array = torch.cholesky_solve(torch.from_numpy(right).mT, factor).mT.numpy()
    return None if int(info) else found
