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
    """Return means ``(N, ...)``, with medians (nan where they are not known) for those that are not finite; warns.

    Without medians a mean that overflows stays infinite.
    """
    missing = ~np.isfinite(mean)
    if not missing.any():
        return mean
    if median is None and not np.isnan(mean).any():
        count, where = _rows_of(missing)
        warnings.warn(
            f"The mean is infinite in {where}: beyond the largest number, 1.8e308, or the distribution has none. "
            f"{'Its row is' if count == 1 else 'Such rows are'} far from those of the fit, or a column is in another "
            "unit.",
            RaphsonWarning,
            stacklevel=3,
        )
        return mean
    instead = "their medians are given" if median is not None else "nothing is given for them"
    _warn(missing, "mean", "one degree of freedom", instead)
    return np.where(missing, np.nan if median is None else median(), mean)


def finite_deviation(deviation: Array) -> Array:
    """Return standard deviations ``(N, ...)``, with nan for those that are not finite numbers; warns."""
    missing = ~np.isfinite(deviation)
    if missing.any():
        _warn(missing, "standard deviation", "two degrees of freedom", "none is given; intervals hold all the same")
    return np.where(missing, np.nan, deviation)


def _rows_of(missing: Array) -> tuple[int, str]:
    """Return how many rows have an entry that is missing, and which."""
    rows = missing.reshape(len(missing), -1).any(1)
    count, first = int(rows.sum()), int(rows.argmax())
    return count, f"row {first}" if count == 1 else f"{count} rows (the first is row {first})"


def _warn(missing: Array, what: str, tails: str, instead: str) -> None:
    count, where = _rows_of(missing)
    where = "any row" if count == len(missing) else where
    warnings.warn(
        f"The target has no finite {what} in {where} (tails as heavy as those of Student's t with {tails}): {instead}.",
        RaphsonWarning,
        stacklevel=4,
    )
