"""Predictions of distributions without a mean or variance: Student's t with one or two degrees of freedom, Cauchy's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raphson._errors import RaphsonWarning

Array = NDArray[Any]


def finite_mean(mean: Array, median: Callable[[], Array] | None) -> Array:
    """Return means, with medians in place of those that are not finite numbers, and warn of these.

    Args:
        mean: ``(N, ...)``.
        median: Gives medians, ``(N, ...)``; None where they are not known, and nan stands for them.

    Returns:
        ``(N, ...)``.
    """
    missing = ~np.isfinite(mean)
    if not missing.any():
        return mean
    instead = "their medians are given" if median is not None else "nothing is given for them"
    warnings.warn(
        f"The target has no finite mean in {_rows(missing)} (tails as heavy as those of Student's t with one degree of "
        f"freedom): {instead}.",
        RaphsonWarning,
        stacklevel=3,
    )
    return np.where(missing, np.nan if median is None else median(), mean)


def finite_deviation(deviation: Array) -> Array:
    """Return standard deviations, nan in place of those that are not finite numbers, and warn of these.

    Args:
        deviation: ``(N, ...)``.

    Returns:
        ``(N, ...)``.
    """
    missing = ~np.isfinite(deviation)
    if not missing.any():
        return deviation
    warnings.warn(
        f"The target has no finite standard deviation in {_rows(missing)} (tails as heavy as those of Student's t with "
        "two degrees of freedom): none is given; intervals hold all the same.",
        RaphsonWarning,
        stacklevel=3,
    )
    return np.where(missing, np.nan, deviation)


def _rows(missing: Array) -> str:
    rows = missing.reshape(len(missing), -1).any(1)
    if rows.all():
        return "any row"
    count = int(rows.sum())
    return f"row {int(rows.argmax())}" if count == 1 else f"{count} rows (the first is row {int(rows.argmax())})"
