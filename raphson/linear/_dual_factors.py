"""Factors and solutions of matrices of few rows, in few calls."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import lapack

Array = NDArray[np.float64]

_SMALL = 64
"""Rows up to which LAPACK is called by way of SciPy, which then starts no threads that fight with PyTorch's."""

_FEW = 1000
"""Numbers of all right-hand sides up to which that holds for solutions: with more, a fit of 1.3 ms took 8 on two
threads."""


def solve(matrix: Array, right: Array) -> Array | None:
    """Return the solutions ``(m, N)`` for right-hand sides ``(m, N)``, None where a matrix is not positive definite."""
    if len(matrix) <= _SMALL and right.size <= _FEW:
        factor, info = lapack.dpotrf(matrix.T, 1, 0, 1)
        return None if info else lapack.dpotrs(factor, right.T, 1)[0].T
    factor, info = torch.linalg.cholesky_ex(torch.from_numpy(matrix))
    found: Array = torch.cholesky_solve(torch.from_numpy(right).mT, factor).mT.numpy()
    return None if int(info) else found


def invert_roots(matrices: Array) -> bool:
    """Turn matrices ``(K, N, N)`` into transposed inverses of their Cholesky factors; False where one has none."""
    if matrices.shape[1] <= _SMALL:
        for matrix in matrices:  # rows of a symmetric matrix are LAPACK's columns: all is done in place
            if lapack.dpotrf(matrix.T, 1, 1, 1)[1] or lapack.dtrtri(matrix.T, 1, 0, 1)[1]:
                return False
        return True
    factors, info = torch.linalg.cholesky_ex(torch.from_numpy(matrices))
    eye = torch.eye(matrices.shape[1], dtype=torch.float64)
    matrices[:] = torch.linalg.solve_triangular(factors, eye, upper=False).mT.numpy()
    return not bool(info.any())


def applied(halves: Array, v: Array) -> Array:
    """Return ``T_k T_k^T v_k`` ``(K, N)`` for ``(K, N, N)`` and vectors ``(K, N)``, or one for all ``(1, N)``."""
    found: Array = (halves @ (halves.transpose(0, 2, 1) @ v[:, :, None]))[:, :, 0]
    return found
