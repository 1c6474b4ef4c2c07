"""Targets of a likelihood: checked and made tensors, or refused in a clear sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.estimators.input._validate import REMEDY, as_tensor, check_length, missing_entries
from raphson.likelihoods import Likelihood


def check_response(y: Any, n_rows: int, likelihood: Likelihood) -> tuple[Tensor, int]:
    """Return targets as a tensor that the likelihood accepts, and the number of outputs they ask for.

    Args:
        y: ``(N,)``, or ``(N, M)`` and more axes where the likelihood says so; an ordered categorical counts its levels
            from 0.
        n_rows: Rows of X.
        likelihood: The likelihood.

    Returns:
        The targets, float64, or int64 where the likelihood wants labels; and C.

    Raises:
        InputError: If targets are missing, text, of the wrong number, or outside the support.
    """
    if y is None:
        raise InputError("This estimator requires y to be passed, but the target y is None.")
    values = _array(y)
    check_length("y", values.shape[0] if values.ndim else 0, n_rows)
    numeric = values.dtype.kind in "biu" or (values.dtype.kind == "f" and bool(np.isfinite(values.sum())))
    missing = np.zeros(0, dtype=bool) if numeric else missing_entries(values).reshape(n_rows, -1).any(1)
    if missing.any():
        raise InputError(
            f"Input y contains NaN: the target is missing in row {int(np.argmax(missing))} "
            f"({int(missing.sum())} such in all); {REMEDY}."
        )
    try:
        numbers = as_tensor(np.ascontiguousarray(values.astype(np.float64)))
    except (TypeError, ValueError):
        row, text = next(
            (i, v) for i, row in enumerate(values.reshape(n_rows, -1).tolist()) for v in row if not _is_number(v)
        )
        raise InputError(
            f"The target in row {row} is {text!r}, but {type(likelihood).__name__} needs "
            "numbers. Code ordered levels as 0, 1, 2, ... or as an ordered pandas categorical; for classes without "
            "order use MultinomialLogisticRegression."
        ) from None
    if numbers.ndim == 1 and _takes_labels(likelihood) and torch.equal(numbers, numbers.round()):
        numbers = numbers.long()
    c = likelihood.n_outputs(numbers)
    likelihood.check(numbers, c)
    return numbers, c


def _takes_labels(likelihood: Likelihood) -> bool:
    """Whether whole numbers are labels of classes to a likelihood, and not the same as the equal real ones."""
    zeros = torch.zeros(3)
    return likelihood.n_outputs(zeros.long()) != likelihood.n_outputs(zeros)


def ordered_levels(y: Any) -> tuple[str, ...] | None:
    """Return the names of the levels of an ordered pandas categorical, lowest first; None for other targets."""
    categories = getattr(y, "cat", None)
    return (
        tuple(str(level) for level in categories.categories) if categories is not None and categories.ordered else None
    )


def _array(y: Any) -> np.ndarray[Any, Any]:
    categories = getattr(y, "cat", None)
    if categories is not None and categories.ordered:
        codes: np.ndarray[Any, Any] = categories.codes.to_numpy().astype(np.float64)
        codes[codes < 0] = np.nan
        return codes
    if isinstance(y, Tensor):
        y = y.detach().cpu().numpy()
    array = np.asarray(y)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    return array


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
