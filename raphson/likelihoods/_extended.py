"""Means of exponential families in NumPy's extended precision: 64 bits of mantissa on x86, 113 on ARM under Linux."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Extended = NDArray[np.longdouble]
Floats = TypeVar("Floats", NDArray[np.longdouble], NDArray[np.float64])


class ConcordanceTerm(NamedTuple):
    r"""A function of one linear form of a row's outputs, :math:`\phi(w^\top f)`, that is a term of its loss.

    Its third derivative is at most :math:`(b + 2 / s)` times its second one at a point whose distance from the end of
    the function's domain is s, as that of :math:`-\log s` (b = 0) and :math:`-\log(1 - e^{-s})` (b = 1: the ratio is
    :math:`\coth(s / 2) \le 1 + 2 / s`) is; a distance that is infinite leaves b alone.

    Attributes:
        weights: w of each row, ``(N, C)``.
        base: b.
        distance: s of each row at the outputs, ``(N,)``.
    """

    weights: NDArray[np.float64]
    base: float
    distance: NDArray[np.float64]


def extended_logit_gradient(f: Extended, positive: Tensor, negative: Tensor) -> Extended:
    """Return ``negative sigma(f) - positive sigma(-f)`` for weights of the two labels, shaped as outputs."""
    above, below = (w.reshape(f.shape).double().cpu().numpy() for w in (positive, negative))
    found: Extended = below * partition_mean("logistic", f) - above * partition_mean("logistic", -f)
    return found


def partition_mean(partition: Literal["softmax", "logistic", "exponential"], f: Floats) -> Floats:
    """Return the gradient of a partition function at outputs ``(..., C)``, within a few units of the last place."""
    if partition == "exponential":
        found: Floats = np.exp(f)
        return found
    if partition == "softmax":
        terms: Floats = np.exp(f - f.max(axis=-1, keepdims=True))
        shares: Floats = terms / terms.sum(axis=-1, keepdims=True)
        return shares
    small: Floats = np.exp(-np.abs(f))
    either: Floats = np.where(f >= 0, 1 / (1 + small), small / (1 + small))
    return either
