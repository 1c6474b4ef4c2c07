"""Labels of classes: checked, and numbered with each of them hashed once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import column_or_1d

from raphson._errors import InputError
from raphson.estimators.input._arrays import plain_values
from raphson.estimators.input._validate import REMEDY, check_length, missing_entries

Labels = NDArray[Any]

_INTEGERS = frozenset(np.dtype(code) for code in np.typecodes["AllInteger"])


def number_labels(y: Any, n_rows: int) -> tuple[Labels, NDArray[np.int64]]:
    """Return the sorted distinct labels ``(K,)`` and the position of each row's label among them ``(N,)``.

    Raises:
        InputError: If labels are missing, of the wrong number or shape, of mixed types, or fractional numbers.
    """
    if y is None:
        raise InputError("This estimator requires y to be passed, but the target y is None.")
    y = plain_values("y", y)
    if isinstance(y, list | tuple) and len({isinstance(label, str) for label in y}) == 2:
        y = np.array(y, dtype=object)  # else NumPy would make texts of the numbers
    shape = y.shape if hasattr(y, "shape") else np.asarray(y).shape
    if not shape:
        raise InputError(f"y should be a 1d array of one label per row, got {y!r:.60}.")
    if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
        raise InputError(
            f"y should be a 1d array, got an array of shape {shape} instead; the target is one label per "
            "row, not one column per class."
        )
    if getattr(getattr(y, "dtype", None), "kind", "O") == "c":
        raise InputError("Complex data not supported: y holds complex numbers, and a classifier needs labels.")
    if _is_hashed(y):  # a column of texts or categories does not become an array of 10^6 texts
        check_length("y", len(y), n_rows)
        return _hashed(y)
    numbers = getattr(y, "dtype", None) in _INTEGERS
    if not numbers:
        _refuse_missing(missing_entries(y))
    # of an array that is one column scikit-learn's check would find nothing more
    labels: Labels = y if type(y) is np.ndarray and y.ndim == 1 else column_or_1d(y, warn=True)
    check_length("y", len(labels), n_rows)
    if labels.dtype.kind == "f":
        _refuse_fractions(labels)
    if labels.dtype.kind in "iu" and np.can_cast(labels.dtype, np.int64):
        least = int(labels.min())
        if int(labels.max()) - least < max(1024, labels.size):
            shifted = labels.astype(np.int64) - least
            present = np.bincount(shifted) > 0
            classes = (np.flatnonzero(present) + least).astype(labels.dtype)
            return classes, shifted if present.all() else (np.cumsum(present) - 1)[shifted]
    return _hashed(labels)


def _is_hashed(y: Any) -> bool:
    if type(y) is np.ndarray:
        return y.ndim == 1 and y.dtype.kind == "O"
    import pandas as pd

    return isinstance(y, pd.Series) and isinstance(y.dtype, pd.StringDtype | pd.CategoricalDtype)


def _hashed(labels: Any) -> tuple[Labels, NDArray[np.int64]]:
    """Return what ``number_labels`` does; only distinct labels are looked at and sorted."""
    import pandas as pd

    codes, found = pd.factorize(labels)
    _refuse_missing(codes < 0)
    distinct = np.asarray(found, dtype=labels.dtype if isinstance(labels, np.ndarray) else None)
    if distinct.dtype.kind == "f":
        _refuse_fractions(distinct[codes])
    if distinct.dtype.kind == "O":
        kinds = set(map(type, distinct))
        if len(kinds) > 1 and any(issubclass(k, str) for k in kinds):
            names = ", ".join(sorted(k.__name__ for k in kinds))
            raise InputError(f"The target mixes types ({names}); make all labels text or all numbers.")
    classes, position = np.unique(distinct, return_inverse=True)
    return classes, position.astype(np.int64, copy=False)[codes]


def _refuse_missing(missing: NDArray[Any]) -> None:
    if missing.any():
        row = int(np.argmax(missing))
        raise InputError(
            f"Input y contains NaN: the target is missing in row {row} ({int(missing.sum())} such in all); {REMEDY}.",
            row=row,
        )


def _refuse_fractions(labels: Labels) -> None:
    finite = np.isfinite(labels)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InputError(f"Input y contains inf in row {row}; {REMEDY}.", row=row)
    whole = labels == np.floor(labels)
    if not whole.all():
        row = int(np.argmin(whole))
        # scikit-learn's own checks look for the words "Unknown label type"
        raise InputError(
            f"Unknown label type: continuous. The target holds fractions (row {row}: {labels[row]:g}); "
            "a classifier needs classes: cut the numbers into classes, or use a model for numbers.",
            row=row,
        )
