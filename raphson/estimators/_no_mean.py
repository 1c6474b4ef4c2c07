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
    """Return means ``(N, ...)``, with medians (nan where they are not known) for those that are not finite; warns."""
    missing = ~np.isfinite(mean)
    if not missing.any():
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


def _warn(missing: Array, what: str, tails: str, instead: str) -> None:
    rows = missing.reshape(len(missing), -1).any(1)
    count, first = int(rows.sum()), int(rows.argmax())
    where = f"row {first}" if count == 1 else f"{count} rows (the first is row {first})"
    warnings.warn(
        f"The target has no finite {what} in {'any row' if rows.all() else where} (tails as heavy as those of "
        f"Student's t with {tails}): {instead}.",
        RaphsonWarning,
        stacklevel=4,
    )
