r"""How many eigenvalues of a symmetric matrix are negative, zero and positive, with rounding accounted for.

:math:`B = L D L^\top + E` (Bunch and Kaufman 1977) has, by Sylvester's law, as many negative eigenvalues as D, but for
E. A bound on E is computed from the factors. If :math:`\tau \ge \|E\|`, then by Weyl's inequality the negative
eigenvalues of the factorization of :math:`B + \tau I` are negative ones of B, and the positive ones of
:math:`B - \tau I` positive ones of B. What is neither is zero within rounding: it is never given a sign.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson.linalg import equilibrate, rounding

_UNIT = 2.0**-53

_TRIES = 4
"""Shifts that are tried, each at least the bound of the one before: the bound hardly depends on the shift."""


class Inertia(NamedTuple):
    """Counts of eigenvalues by sign.

    Attributes:
        negative: Certainly negative.
        zero: Within rounding of zero, or exactly zero.
        positive: Certainly positive.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> negative, zero, positive = rp.diagnose(rp.Diagonal(torch.tensor([-1.0, 0.0, 2.0]))).inertia
        >>> negative, zero, positive
        (1, 1, 1)
    """

    negative: int
    zero: int
    positive: int


class Count(NamedTuple):
    """An inertia, whether every zero is exactly zero, and what counts as zero (beside a largest entry near one)."""

    inertia: Inertia
    exact: bool = True
    level: float = 0.0


class Scaled(NamedTuple):
    """A matrix whose rows have a largest entry near one, by powers of two: the change is exact and keeps all signs.

    Attributes:
        matrix: ``diag(scale) A diag(scale)``, ``(n, n)``, float64.
        scale: ``(n,)``.
        uncertainty: Bound on the norm of what the entries of ``matrix`` are unknown by.
    """

    matrix: Tensor
    scale: Tensor
    uncertainty: float

    @classmethod
    def of(cls, matrix: Tensor, *, by_all: bool = False) -> Scaled:
        """Scale a matrix ``(n, n)`` whose entries are known to the rounding of their element type.

        Where large entries stand in rows and columns that have small ones, too, the largest entries of all rows may be
        one already: ``by_all`` scales by all entries, whose largest one is then near one.

        Returns:
            The scaled matrix, with what it is unknown by.
        """
        whole = matrix.cpu().double()
        middle = (whole + whole.mT) / 2
        scale = _middle_scale(middle) if by_all else torch.exp2(equilibrate(middle).log2().round())
        rows = scale[:, None]
        found = rows * middle * rows.mT
        skew = float((rows * (whole - whole.mT) * rows.mT).norm()) / 2
        size = min(float(found.norm()), float(found.abs().sum(1).max())) if len(found) else 0.0
        return cls(found, scale, skew + rounding(len(found), matrix.dtype) * size)


def _middle_scale(matrix: Tensor) -> Tensor:
    r"""Return powers of two s that bring all :math:`s_i |a_{ij}| s_j` near each other, by least squares of logs."""
    used = matrix != 0
    logs = torch.where(used, matrix.abs().log2(), 0.0)
    weights = used.double()
    system = weights + torch.diag(weights.sum(1) + 1e-6)
    found = torch.linalg.solve(system, -logs.sum(1)).round()
    largest = (logs + found[:, None] + found).masked_fill(~used, -math.inf).max() if bool(used.any()) else found.sum()
    return torch.exp2(found - torch.floor(largest / 2))


def best_inertia(matrix: Tensor, scaled: Scaled) -> Count:
    """Return the inertia of a matrix that was scaled, by another scaling too where the first one hides a sign."""
    found = inertia(scaled)
    if found.exact:
        return found
    again = Scaled.of(matrix, by_all=True)
    if not bool(torch.isfinite(again.matrix).all()):  # entries too far apart for any scaling
        return found
    other = inertia(again)
    return other if other.inertia.zero < found.inertia.zero else found


def inertia(scaled: Scaled) -> Count:
    """Return the inertia of a scaled matrix; rows of zeros are exactly zero eigenvalues."""
    full = scaled.matrix.numpy()
    used = full.any(1)
    matrix = np.ascontiguousarray(full[np.ix_(used, used)])
    nothing, n = int((~used).sum()), len(matrix)
    if not n:
        return Count(Inertia(0, nothing, 0))
    off = matrix - np.diag(matrix.diagonal())
    if not off.any():
        signs = np.sign(matrix.diagonal())
        return Count(Inertia(int((signs < 0).sum()), nothing, int((signs > 0).sum())))
    negative, low = _certain(matrix, scaled.uncertainty)
    positive, high = _certain(-matrix, scaled.uncertainty)
    unclear = n - negative - positive
    return Count(Inertia(negative, nothing + unclear, positive), unclear == 0, max(low, high))


def _certain(matrix: NDArray[np.float64], uncertainty: float) -> tuple[int, float]:
    """Return how many eigenvalues are certainly negative, and the shift that showed it."""
    n = len(matrix)
    tau = uncertainty + 4 * n * _UNIT * float(np.abs(matrix).max())
    for _ in range(_TRIES):
        shifted = matrix.copy()
        shifted[np.diag_indices(n)] += tau
        count, error = _factorized(shifted)
        # adding tau rounds, too
        error += uncertainty + 2 * _UNIT * (float(np.abs(matrix.diagonal()).max()) + tau)
        if error <= tau:
            return count, tau
        tau = 1.1 * error
    return 0, np.inf


def _factorized(matrix: NDArray[np.float64]) -> tuple[int, float]:
    """Return the negative eigenvalues of the factor D and a bound on the norm of the factorization's error."""
    from scipy.linalg import ldl

    n = len(matrix)
    lower, middle, _ = ldl(matrix)
    residual = matrix - (lower @ middle) @ lower.T
    sizes = (np.abs(lower) @ np.abs(middle)) @ np.abs(lower).T
    gamma = (n + 6) * _UNIT / (1 - (n + 6) * _UNIT)
    error = float(np.linalg.norm(residual)) + gamma * float(np.linalg.norm(sizes)) * (1 + 1e-9)
    return _negative_blocks(middle), error * (1 + 2 * n * _UNIT) if np.isfinite(error) else np.inf


def _negative_blocks(middle: NDArray[np.float64]) -> int:
    """Count the negative eigenvalues of a matrix of 1 x 1 and 2 x 2 blocks, exactly."""
    count, i, n = 0, 0, len(middle)
    while i < n:
        if i + 1 < n and middle[i + 1, i] != 0:
            a, b, c = (Fraction(float(x)) for x in (middle[i, i], middle[i + 1, i], middle[i + 1, i + 1]))
            determinant = a * c - b * b
            count += 1 if determinant < 0 else 2 * (a + c < 0) if determinant > 0 else a + c < 0
            i += 2
        else:
            count += bool(middle[i, i] < 0)
            i += 1
    return count
