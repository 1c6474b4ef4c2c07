"""What a user passes to ``fit`` and ``predict``: checked and made tensors, or refused in a clear sentence.

Messages count rows from 0 and say "row", of arrays and frames alike; the command line counts those of a file from 1 and
says "data row".
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data
from torch import Tensor

from raphson._errors import InputError
from raphson.data import ColumnSums, fused_sums
from raphson.estimators.input._arrays import plain_table, plain_values
from raphson.estimators.input._entries import refuse_kinds, unread_entry
from raphson.estimators.input._sparse import sound_sparse

LARGEST = 1e150
"""Of numbers to compute with: squares of larger ones overflow."""

_CACHED_ROWS = 4096
"""Rows of a frame that are copied at a time: they stay in the cache."""

_FEW_COLUMNS = 1000
"""Columns of a frame up to which it is copied column by column, which takes some microseconds each."""

_SUMS = 4096
"""Sums of squares that are added up side by side."""

REMEDY = "drop or impute those rows first"


def as_tensor(array: Any) -> Tensor:
    """Return a tensor on the memory of an array, which nothing here writes to; pandas has read-only ones."""
    if any(stride < 0 for stride in array.strides):  # reversed: no tensor can be
        array = np.ascontiguousarray(array)
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def feature_names(x: Any, n_features: int) -> Sequence[str]:
    """Return the column names of a frame, or ``x0, x1, ...``."""
    columns = getattr(x, "columns", None)
    if columns is not None and len(columns) == n_features:
        return [str(c) for c in columns]
    return _numbered_names(n_features)


def are_numbered(names: Sequence[str]) -> bool:
    """Return whether names are those of a table without names; to look for one among 7000 takes 60 microseconds."""
    return names is _numbered_names(len(names))


@functools.lru_cache(maxsize=8)
def _numbered_names(n_features: int) -> tuple[str, ...]:
    """Return ``x0, x1, ...``; cached, since those of 5000 columns take as long to make as ten passes over 200 rows."""
    return tuple(f"x{j}" for j in range(n_features))


def check_training_table(estimator: Any, x: Any, *, min_columns: int) -> tuple[Any, ColumnSums | None]:
    """Return what ``check_table`` does of the rows of a fit, and the sums of their columns if the check made them."""
    out = convert_table(estimator, x, min_columns=min_columns)
    return out, check_entries(out, x)


def convert_table(estimator: Any, x: Any, *, min_columns: int) -> Any:
    """Return the rows of a fit as a float64 array ``(N, D)`` or CSR matrix, for ``check_entries`` to look at."""
    return _converted(estimator, x, reset=True, min_columns=min_columns)


def check_entries(table: Any, given: Any, codes: Tensor | None = None, n_classes: int = 0) -> ColumnSums | None:
    """Refuse entries that are not finite or too large, and return the sums of the columns if that pass made them.

    Args:
        table: What ``convert_table`` returned for ``given``.
        given: What the user gave.
        codes: The class of each row ``(N,)``, for sums by class.
        n_classes: K.

    Returns:
        The sums, or None for sparse tables and those whose rows are not contiguous.
    """
    sums = None if sp.issparse(table) else fused_sums(as_tensor(table), codes, n_classes)
    _refuse_entries(table, given, None if sums is None else float(sums.squares.sum()), reset=True)
    return sums


def check_table(estimator: Any, x: Any, *, reset: bool, min_columns: int = 1) -> Any:
    """Return ``x`` as a float64 array ``(N, D)`` or CSR matrix, or raise an error naming row and column.

    An array of floats is not copied; ``reset`` is True in ``fit``, where scikit-learn records number and names of the
    features on the estimator.

    Entries that are text, missing or infinite are an ``InputError``, as are other columns than the estimator needs.
    """
    out = _converted(estimator, x, reset=reset, min_columns=min_columns)
    _refuse_entries(out, x, None, reset=reset)
    return out


def _converted(estimator: Any, x: Any, *, reset: bool, min_columns: int) -> Any:
    """Return ``x`` as a float64 array or CSR matrix whose entries were not looked at."""
    x = plain_table(x)
    if sp.issparse(x):
        x = sound_sparse(x)
    if hasattr(x, "columns") and not len(x.columns):  # scikit-learn looks for the type of a column
        x = np.empty((len(x), 0))
    if reset and _is_plain(x, min_columns):
        out = x
        estimator.n_features_in_ = x.shape[1]
        vars(estimator).pop("feature_names_in_", None)
    elif (columns := _number_columns(x, min_columns)) is not None:
        try:
            validate_data(estimator, x, reset=reset, skip_check_array=True)
        except ValueError as error:
            raise InputError(" ".join(str(error).split())) from None
        out = _by_rows(columns)
    else:
        refuse_kinds(x)
        if isinstance(x, np.ndarray) and x.dtype.kind == "O" and (missing := missing_entries(x)).any():
            x = x.copy()
            x[missing.reshape(x.shape)] = np.nan
        try:
            out = validate_data(
                estimator,
                x,
                reset=reset,
                accept_sparse="csr",
                dtype=np.float64,
                ensure_all_finite=False,
                ensure_min_features=min_columns,
            )
        except (ValueError, TypeError) as error:
            raise unread_entry(x) or InputError(" ".join(str(error).split())) from None
    return out


def _refuse_entries(out: Any, x: Any, squares: float | None, *, reset: bool) -> None:
    """Raise ``InputError`` where entries are not finite or too large; ``squares`` is the sum of theirs, if known."""
    values = out.data if sp.issparse(out) else out
    with np.errstate(all="ignore"):
        # one pass says that all is finite and small; else a second look
        squares = _sum_of_squares(values) if squares is None else squares
    if not squares < LARGEST**2:
        if not np.isfinite(values).all():
            _refuse_not_finite(out, feature_names(x, out.shape[1]))
        if reset and max(values.max(), -values.min()) > LARGEST:
            _refuse_large(out, feature_names(x, out.shape[1]))


def _sum_of_squares(values: NDArray[Any]) -> float:
    """Return the sum of squares of an array, which is not copied.

    Not by BLAS: its threads spin for a while after a call and would fight with PyTorch's for the cores. Added up in
    4096 sums side by side, which takes 0.24 ns an entry; one sum, each addition of which waits for the last, 0.42.
    """
    if not (values.flags.c_contiguous or values.flags.f_contiguous):  # part of a table: rows have gaps between them
        return float(np.einsum("ij,ij->j", values, values).sum())
    flat = values.ravel(order="K")
    whole = flat.size // _SUMS * _SUMS
    if not whole:
        return float(np.einsum("i,i->", flat, flat))
    rows, rest = flat[:whole].reshape(-1, _SUMS), flat[whole:]
    return float(np.einsum("ij,ij->j", rows, rows).sum() + np.einsum("i,i->", rest, rest))


def _is_plain(x: Any, min_columns: int) -> bool:
    """Return whether scikit-learn's checks, half a millisecond, would change nothing and find nothing."""
    known = type(x) is np.ndarray or (sp.issparse(x) and x.format == "csr")
    return bool(known and x.ndim == 2 and x.dtype == np.float64 and x.shape[0] > 0 and x.shape[1] >= min_columns)


def _number_columns(x: Any, min_columns: int) -> list[NDArray[Any]] | None:
    """Return the columns of a frame of NumPy's numbers, of which scikit-learn makes two copies; else None.

    None for a frame of a single array of floats, which it does not copy, too.
    """
    if not hasattr(x, "columns") or not hasattr(x, "dtypes") or not 0 < len(x.columns) <= _FEW_COLUMNS or not len(x):
        return None
    if not x.columns.is_unique:
        return None
    kinds = list(x.dtypes)
    if len(kinds) < min_columns or not all(isinstance(k, np.dtype) and k.kind in "iuf" for k in kinds):
        return None
    columns = [x.iloc[:, j].to_numpy() for j in range(len(kinds))]
    is_one = columns[0].base is not None and all(column.base is columns[0].base for column in columns)
    return None if is_one and set(kinds) == {np.dtype(np.float64)} else columns


def _by_rows(columns: list[NDArray[Any]]) -> NDArray[np.float64]:
    """Return columns as a table ``(N, D)`` whose rows lie next to each other, as sums read it."""
    table = np.empty((len(columns[0]), len(columns)))
    for start in range(0, len(table), _CACHED_ROWS):
        part = slice(start, start + _CACHED_ROWS)
        for j, column in enumerate(columns):
            table[part, j] = column[part]
    return table


def _refuse_not_finite(x: Any, names: Sequence[str]) -> None:
    if sp.issparse(x):
        bad = np.flatnonzero(~np.isfinite(x.data))
        if bad.size == 0:
            return
        row = int(np.searchsorted(x.indptr, bad[0], side="right")) - 1
        column, value, count = int(x.indices[bad[0]]), x.data[bad[0]], bad.size
    else:
        where = np.argwhere(~np.isfinite(x))
        if len(where) == 0:
            return
        row, column = (int(i) for i in where[0])
        value, count = x[row, column], len(where)
    # scikit-learn's own checks look for the words NaN and inf
    what = "NaN (missing)" if np.isnan(value) else "inf (infinite)"
    raise InputError(
        f"Input X contains {what} in row {row}, column '{names[column]}' ({count} such in all); {REMEDY}.", row=row
    )


def _refuse_large(x: Any, names: Sequence[str]) -> None:
    entries = x.tocoo() if sp.issparse(x) else None
    large = np.abs(x if entries is None else entries.data) > LARGEST
    first = np.argwhere(large)[0]
    row, column = first if entries is None else (entries.row[first[0]], entries.col[first[0]])
    value = x[row, column]
    raise InputError(
        f"Input X, row {int(row)}, column '{names[column]}': {value:g} is too large to compute with; change the unit "
        "of the column.",
        row=int(row),
    )


def missing_entries(values: Any) -> NDArray[Any]:
    """Return which entries are missing, all axes laid out in one."""
    import pandas as pd

    return np.asarray(pd.isna(values)).reshape(-1)


def _numbers(name: str, values: Any) -> Tensor:
    """Return an argument as a float64 tensor; what is missing is NaN, and dates and complex numbers are none."""
    values = plain_values(name, values)
    try:
        array = np.asarray(values)
        if array.dtype.kind in "mMc":
            what = "complex numbers" if array.dtype.kind == "c" else "dates or times"
            raise InputError(f"{name} must be an array of numbers, but holds {what}.")
        if array.dtype.kind == "O":
            array = array.copy()
            array[missing_entries(array).reshape(array.shape)] = np.nan
        return as_tensor(np.asarray(array, dtype=np.float64))
    except InputError:
        raise
    except (ValueError, TypeError):
        shown = " ".join(repr(values).split())
        raise InputError(f"{name} must be an array of numbers, got something else: {shown:.80}.") from None


def check_weights(weights: Any, n_rows: int) -> Tensor | None:
    """Return sample weights as ``(N,)`` float64, or raise an ``InputError`` naming the row; None stays None."""
    if weights is None:
        return None
    w = _numbers("sample_weight", weights)
    if w.ndim == 0:
        w = w.expand(n_rows).clone()
    if w.ndim != 1:
        raise InputError(f"Sample weights must be 1D array or scalar, got an array of shape {tuple(w.shape)}.")
    check_length("sample_weight", w.shape[0], n_rows)
    bad = ~torch.isfinite(w) | (w < 0)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise InputError(
            f"sample_weight is {float(w[row]):g} in row {row}; weights must be finite and not negative. "
            "Use 0 to leave a row out.",
            row=row,
        )
    if not bool((w > 0).any()):
        raise InputError("Every sample_weight is zero, so there is nothing to fit.")
    check_size_of_weights(w, "sample_weight")
    return w


def check_size_of_weights(weights: Tensor, name: str) -> None:
    """Raise ``InputError`` where weights are so small or large that their sum, or its square, is no number."""
    largest = float(weights.max())
    if not 1.0 / LARGEST <= largest <= LARGEST:
        how = "small" if largest < 1.0 else "large"
        raise InputError(
            f"The largest {name} is {largest:g}, too {how} to compute with; divide all of them by it: a common factor "
            "changes no coefficient."
        )


def check_offset(offset: Any, n_rows: int, n_outputs: int) -> Tensor | None:
    """Return an offset as ``(N, C)`` float64, or raise an ``InputError`` naming the row; None stays None."""
    if offset is None:
        return None
    o = _numbers("offset", offset)
    if o.ndim == 1 and n_outputs == 1:
        o = o[:, None]
    check_length("offset", o.shape[0] if o.ndim else 0, n_rows)
    if o.ndim != 2 or o.shape[1] != n_outputs:
        raise InputError(
            f"The offset has shape {tuple(o.shape)}; it is added to the linear predictors, one column per "
            f"class, so it must be ({n_rows}, {n_outputs})."
        )
    bad = ~torch.isfinite(o).all(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise InputError(f"The offset is not finite in row {row}; {REMEDY}.", row=row)
    return o


def check_length(name: str, found: int, n_rows: int) -> None:
    """Raise ``InputError`` unless an argument has one entry per row."""
    if found != n_rows:
        raise InputError(
            f"Found input variables with inconsistent numbers of samples: {name} has {found} rows, X has "
            f"{n_rows} rows; pass one entry per row."
        )
