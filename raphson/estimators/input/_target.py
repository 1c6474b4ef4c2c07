"""Targets of a likelihood: checked and made tensors, or refused in a clear sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.estimators.input._arrays import plain_values
from raphson.estimators.input._validate import LARGEST, REMEDY, as_tensor, check_length, missing_entries
from raphson.likelihoods import Likelihood, Ordinal


def check_target(y: Any, n_rows: int, likelihood: Likelihood) -> tuple[Tensor, int]:
    """Return targets as a tensor that the likelihood accepts, float64 or int64 for labels, and the number of outputs.

    Raises:
        InputError: If targets are missing, text, of the wrong number, or outside the support.
    """
    if y is None:
        raise InputError("This estimator requires y to be passed, but the target y is None.")
    y = plain_values("y", y)
    if np.ndim(y) == 0:
        raise InputError(f"y is {y!r:.60}, but there is one target per row; pass an array of {n_rows} entries.")
    values = _array(y)
    check_length("y", values.shape[0] if values.ndim else 0, n_rows)
    if values.dtype.kind in "mMc":
        what = "complex numbers" if values.dtype.kind == "c" else "dates"
        raise InputError(f"The targets are {what}, but {type(likelihood).__name__} needs real numbers; derive some.")
    numeric = values.dtype.kind in "biu" or (values.dtype.kind == "f" and bool(np.isfinite(values.sum())))
    missing = np.zeros(0, dtype=bool) if numeric else missing_entries(values).reshape(n_rows, -1).any(1)
    if missing.any():
        row = int(np.argmax(missing))
        raise InputError(
            f"Input y contains NaN: the target is missing in row {row} ({int(missing.sum())} such in all); {REMEDY}.",
            row=row,
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
            "order use MultinomialLogisticRegression.",
            row=row,
        ) from None
    greatest = max(abs(float(end)) for end in torch.aminmax(numbers)) if numbers.numel() else 0.0
    if 0.0 < greatest < 1.0 / LARGEST:
        raise InputError(
            f"The targets are at most {greatest:g} in size, too small to compute with: their squares are zero. Change "
            "their unit."
        )
    if greatest > LARGEST:
        large = (numbers.abs() > LARGEST).reshape(n_rows, -1).any(1)
        row = int(large.nonzero()[0])
        if not bool(torch.isfinite(numbers[row]).all()):
            raise InputError(f"The target in row {row} is infinite; {REMEDY}.", row=row)
        raise InputError(
            f"The target in row {row} is {float(numbers[row].abs().max()):g} in size, too large to compute with; "
            "change its unit.",
            row=row,
        )
    if numbers.ndim == 1 and takes_labels(likelihood) and torch.equal(numbers, numbers.round()):
        numbers = numbers.long()
    c = likelihood.n_outputs(numbers)
    likelihood.check(numbers, c)
    return numbers, c


def takes_labels(likelihood: Likelihood) -> bool:
    """Whether whole numbers are labels of classes to a likelihood, and not the same as the equal real ones."""
    zeros = torch.zeros(3)
    return likelihood.n_outputs(zeros.long()) != likelihood.n_outputs(zeros)


def level_codes(y: Any, likelihood: Likelihood, known: tuple[str, ...] | None = None) -> tuple[Any, Any]:
    """Return levels counted from 0, and their names, lowest first; None where they were counted from 0, or are none.

    Raises:
        InputError: If a level is not among those known.
    """
    names = known or ordered_levels(y)
    if names is None and isinstance(likelihood, Ordinal):
        names = _whole_levels(_array(y), likelihood.n_levels)
    if names is None:
        return y, None
    held = getattr(y, "cat", None)
    if known is None and held is not None:
        return y, names
    values = np.asarray(y)
    if held is None and values.dtype.kind not in "OUS" and known is not None and not _all_numbers(known):
        return y, names  # numbers, where the levels of the fit are texts: counted from 0
    position = {name: float(i) for i, name in enumerate(names)}
    texts = [_level_text(value) for value in values.reshape(-1)]
    odd = next((i for i, text in enumerate(texts) if text not in position), None)
    if odd is not None:
        raise InputError(
            f"The target in row {odd} is {texts[odd]!r}; the levels of the fit are {', '.join(names)}.", row=odd
        )
    return np.array([position[text] for text in texts]), names


def _whole_levels(values: np.ndarray[Any, Any], n_levels: int) -> tuple[str, ...] | None:
    """Return the names of levels that are whole numbers, but not 0 .. J - 1; None if there are not J of them."""
    if values.ndim != 1 or values.dtype.kind not in "iuf" or not np.isfinite(values).all() or not len(values):
        return None
    found = np.unique(values)
    if (found != np.round(found)).any() or (found[0] >= 0 and found[-1] < n_levels):
        return None
    if found[-1] - found[0] == n_levels - 1:
        found = np.arange(found[0], found[-1] + 1)
    return tuple(_level_text(value) for value in found) if len(found) == n_levels else None


def _level_text(value: Any) -> str:
    is_whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if is_whole else str(value)


def _all_numbers(names: tuple[str, ...]) -> bool:
    return all(_is_number(name) for name in names)


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
