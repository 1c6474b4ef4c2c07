r"""Extreme eigenvalues of an operator that is only multiplied, with a bound that fails with a stated probability."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from raphson.linalg import SymmetricOperator, lanczos, random_vector, rounding

FAILURE = 1e-6
"""Probability that a random start hides an eigenvalue beyond the bound."""

_BASIS_ELEMENTS = 2**28


class Extremes(NamedTuple):
    """What a Krylov space shows of both ends of a spectrum.

    Attributes:
        smallest: Smallest Ritz value, an upper bound of the smallest eigenvalue.
        largest: Largest Ritz value, a lower bound of the largest eigenvalue.
        smallest_vector: Its Ritz vector, ``(n,)``, of length one.
        largest_vector: Its Ritz vector.
        smallest_residual: Norm of ``A v - theta v``.
        largest_residual: The same for the largest.
        margin: With probability ``1 - failure`` no eigenvalue is further beyond the Ritz values than this.
        failure: That probability; 0 where the Krylov space is the whole space.
        steps: Products.
    """

    smallest: float
    largest: float
    smallest_vector: Tensor
    largest_vector: Tensor
    smallest_residual: float
    largest_residual: float
    margin: float
    failure: float
    steps: int


def extremes(operator: SymmetricOperator, steps: int, generator: torch.Generator | None) -> Extremes:
    r"""Run Lanczos from a random start and bound what it may have missed.

    For m steps from a uniformly random direction and any :math:`\varepsilon` in (0, 1),

    .. math:: P\{\theta_\min - \lambda_\min > \varepsilon (\lambda_\max - \lambda_\min)\}
        \le 1.648 \sqrt n\, e^{-\sqrt\varepsilon (2 m - 1)}

    and likewise at the other end (Kuczynski and Wozniakowski 1992, theorem 4.2).

    Args:
        operator: Symmetric ``(n, n)``.
        steps: Products at most.
        generator: Source of the random start; None for a fixed one.

    Returns:
        Both ends.
    """
    n = operator.shape[-1]
    if generator is None:
        generator = torch.Generator(operator.device).manual_seed(0)
    steps = max(2, min(steps, n, _BASIS_ELEMENTS // n))
    run = lanczos(operator, random_vector(operator, generator), steps)
    m = len(run.alpha)
    ritz, vectors = torch.linalg.eigh(run.tridiagonal().double())
    ends = (run.basis @ vectors[:, [0, -1]].to(run.basis)).mT
    residuals = float(run.residual) * vectors[-1, [0, -1]].abs()
    low, high = float(ritz[0]), float(ritz[-1])
    noise = rounding(n, operator.dtype) * max(abs(low), abs(high))
    root = math.log(2 * 1.648 * math.sqrt(n) / FAILURE) / (2 * m - 1)
    share = root**2
    # the spread of the spectrum is at most that of the Ritz values over 1 - 2 share
    margin = share / (1 - 2 * share) * (high - low) if share < 0.5 else math.inf
    whole = m == n
    return Extremes(
        low,
        high,
        ends[0] / ends[0].norm(),
        ends[1] / ends[1].norm(),
        float(residuals[0]) + noise,
        float(residuals[1]) + noise,
        noise if whole else margin + noise,
        0.0 if whole else FAILURE,
        m,
    )
