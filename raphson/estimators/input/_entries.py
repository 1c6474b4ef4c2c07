"""Entries of a table that are no numbers: found by row and column, and refused in a sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from raphson._errors import InputError

_DATES = "derive numbers (a year, an age in days) from {}, or drop it"
_DATE_KINDS = ("datetime64", "datetime", "date", "timedelta64", "timedelta", "time", "period")
"""What pandas calls the objects of a column that are dates or times."""


class EntryError(InputError, TypeError):
    """An entry is an object that is no number; scikit-learn expects a ``TypeError`` of those."""


def refuse_kinds(x: Any) -> None:
    """Raise ``InputError`` for a table of other than two axes, and for one whose type says that it holds no numbers."""
    if hasattr(x, "columns"):
        _refuse_columns(x)
        return
    if not hasattr(x, "ndim") or not hasattr(x, "dtype"):
        return
    if x.ndim != 2:
        got = "scalar array" if x.ndim == 0 else f"{x.ndim}D array"
        # scikit-learn's checks look for "Reshape your data" and "Found array with dim 3"
        if x.ndim > 2:
            raise InputError(
                f"Found array with dim {x.ndim} (shape {tuple(x.shape)}), but a table has two axes, rows and columns; "
                "lay the others out as columns, X.reshape(len(X), -1)."
            )
        column = "X.to_frame()" if hasattr(x, "to_frame") else "X.reshape(-1, 1)"
        raise InputError(
            f"Expected 2D array, got {got} instead (shape {tuple(x.shape)}). Reshape your data: a single column is "
            f"{column}, a single row X.reshape(1, -1) of its array."
        )
    kind = getattr(x.dtype, "kind", "O")
    if kind in "mM":
        raise InputError(f"The table holds dates or times; {_DATES.format('them')}.")
    if kind == "c":
        raise InputError("Complex data not supported: X holds complex numbers; pass their real part, or both parts.")
    if kind == "O" and not sp.issparse(x):
        for j in range(x.shape[1]):
            _refuse_objects(x[:, j], f"Column 'x{j}'")


def _refuse_columns(x: Any) -> None:
    import pandas as pd

    for name in x.columns:
        column = x[name]
        if getattr(column, "ndim", 1) != 1:
            raise InputError(f"The table has more than one column named '{name}'; rename them.")
        dtype = column.dtype
        kind, where = getattr(dtype, "kind", "O"), f"Column '{name}'"
        if kind in "mM" or isinstance(dtype, pd.PeriodDtype):
            raise InputError(f"{where} holds dates or times; {_DATES.format('it')}.")
        if kind == "c":
            raise InputError(f"Complex data not supported: {where.lower()} holds complex numbers; pass real ones.")
        if isinstance(dtype, pd.CategoricalDtype | pd.IntervalDtype):
            what = "categories" if isinstance(dtype, pd.CategoricalDtype) else "intervals"
            raise InputError(
                f"{where} holds {what}, not numbers; code it with one column per level, say by raphson.Design.fit or a "
                "formula, or pass numbers if it stands for a quantity."
            )
        if kind in "biuf" or isinstance(dtype, pd.SparseDtype):
            continue
        _refuse_objects(column, where)


def _refuse_objects(column: Any, where: str) -> None:
    import pandas as pd

    found = pd.api.types.infer_dtype(column, skipna=True)
    if found in ("floating", "integer", "boolean", "decimal", "mixed-integer-float", "empty"):
        return
    if found in _DATE_KINDS:
        raise InputError(f"{where} holds dates or times; {_DATES.format('it')}.")
    is_frame = hasattr(column, "iloc")
    for row, value in enumerate(column):
        if isinstance(value, str) and is_frame:
            raise InputError(
                f"{where} holds text (row {row}: {value!r:.60}); code it as numbers, say with one "
                "column per level, or let raphson.Design.fit do that.",
                row=row,
            )
        if isinstance(value, np.datetime64 | np.timedelta64):  # which float() would count from 1970
            raise InputError(f"{where} holds a date or time in row {row}, {value}; {_DATES.format('it')}.", row=row)


def unread_entry(x: Any) -> InputError | None:
    """Return the error of the first entry that is no number, or None if there is none."""
    if sp.issparse(x):
        return None
    if hasattr(x, "columns"):
        columns = [(f"column '{name}'", list(x.iloc[:, j])) for j, name in enumerate(x.columns)]
    else:
        try:
            rows = [list(row) for row in x]
        except TypeError:
            return None
        width = len(rows[0]) if rows else 0
        odd = next((i for i, row in enumerate(rows) if len(row) != width), None)
        if odd is not None:
            return InputError(
                f"Input X, row {odd}, has {len(rows[odd])} entries and row 0 has {width}; a table has as many in each.",
                row=odd,
            )
        columns = [(f"column 'x{j}'", [row[j] for row in rows]) for j in range(width)]
    for where, values in columns:
        for row, value in enumerate(values):
            try:
                float(value)
            except (TypeError, ValueError) as error:
                if value is None or type(value).__name__ == "NAType":
                    continue
                message = f"Input X, row {row}, {where}: {value!r:.60} is not a number"
                if isinstance(error, TypeError):  # in the words that scikit-learn's checks look for
                    return EntryError(
                        f"{message}; an entry's float() argument must be a string or a real number.", row=row
                    )
                return InputError(f"{message}; code texts as numbers, say with one column per level.", row=row)
    return None
