"""Rows of a table: numbered as messages count them, complete or refused, and the columns that have a role."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import numpy as np

from raphson._errors import InputError
from raphson.table._columns import LARGEST_WHOLE, to_numbers
from raphson.table._expression import shown
from raphson.table._foreign import remedy

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


def numbered(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with rows numbered from 0, as messages count them, and its column names: texts, each once."""
    if not hasattr(frame, "set_axis"):
        how = "to_pandas() makes one of it" if hasattr(frame, "to_pandas") else "make one, pandas.DataFrame(...)"
        raise InputError(f"the table is a {type(frame).__name__}, and a pandas frame is needed; {how}.")
    names = list(frame.columns)
    odd = next((name for name in names if not isinstance(name, str)), None)
    if odd is not None:
        raise InputError(f"the column name {odd!r} is not text; name the columns of the table by text.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the column name '{twice}' occurs more than once; rename one of them.")
    return frame.set_axis(range(len(frame)), axis=0), names


def require(name: str, names: Sequence[str]) -> None:
    """Raise ``InputError`` unless a table has a column; the message names one that is spelled nearly the same."""
    if name in names:
        return
    if (instead := remedy(name)) is not None:
        raise InputError(f"there is no column '{shown(name)}'; {instead}.")
    near = difflib.get_close_matches(name, names, n=1) or [
        other for other in names if other.casefold() == name.casefold()
    ]
    known = ", ".join(f"'{other}'" for other in names[:12]) + (", ..." if len(names) > 12 else "")
    hint = f"did you mean '{near[0]}'?" if near else f"the columns are {known}."
    raise InputError(f"there is no column '{shown(name)}'; {hint}")


def complete(frame: pd.DataFrame, needed: Sequence[str]) -> pd.DataFrame:
    """Return a table numbered from 0; a column that is needed and not there, or has a missing value, is refused."""
    frame, names = numbered(frame)
    for name in needed:
        require(name, names)
    refuse_missing(frame, needed)
    return frame


def refuse_missing(frame: pd.DataFrame, needed: Sequence[str]) -> None:
    """Raise ``InputError`` for the first missing value in some columns."""
    for name in needed:
        absent = frame[name].isna().to_numpy()
        if absent.any():
            row = int(absent.argmax())
            raise InputError(
                f"column '{name}', row {row}: the value is missing "
                f"({int(absent.sum())} such in all); fill it in or leave the row out.",
                row=row,
            )


def complete_rows(frame: pd.DataFrame, needed: list[str], missing: str) -> tuple[np.ndarray, list[str]]:
    """Return positions of the rows without a missing value in ``needed``, and a note if there are others.

    Raises:
        InputError: If there is no complete row, or an incomplete one and ``missing`` is ``"error"``, not ``"drop"``.
    """
    if missing not in ("drop", "error"):
        raise InputError(f"missing must be 'drop' or 'error', not '{missing}'.")
    absent = {name: mask for name in needed if (mask := frame[name].isna().to_numpy()).any()}
    if not absent:
        return np.arange(len(frame)), []
    incomplete = np.logical_or.reduce(list(absent.values()))
    per_column = ", ".join(f"{name} {int(mask.sum())}" for name, mask in absent.items())
    if missing == "error":
        row = int(incomplete.argmax())
        column = next(name for name, mask in absent.items() if mask[row])
        raise InputError(
            f"column '{column}', row {row}: the value is missing (rows with missing values: "
            f"{int(incomplete.sum())}; {per_column}); fill in the values or let the rows be dropped.",
            row=row,
        )
    if incomplete.all():
        raise InputError(f"every row has a missing value ({per_column}); drop the columns that are mostly missing.")
    note = f"{int(incomplete.sum())} of {len(frame)} rows left out for missing values ({per_column})"
    return np.flatnonzero(~incomplete), [note]


def at_rows(table: Any, rows: np.ndarray) -> Any:
    """Return the rows of a frame or column at increasing positions; not a copy where these are all."""
    return table if len(rows) == len(table) else table.iloc[rows]


def weight_numbers(series: pd.Series[Any], name: str) -> np.ndarray:
    """Return weights ``(N,)``; a negative one, or none that is positive, is an ``InputError``."""
    values = to_numbers(series, name)
    if (values < 0).any():
        at = int((values < 0).argmax())
        row = int(series.index[at])
        raise InputError(f"column '{name}', row {row}: the weight {values[at]:g} is negative.", row=row)
    if not (values > 0).any():
        raise InputError(f"column '{name}': no weight is positive.")
    return values


def event_numbers(series: pd.Series[Any], name: str) -> np.ndarray:
    """Return whether events were seen, 1 or 0, ``(N,)``; another value is an ``InputError``."""
    values = to_numbers(series, name)
    if not np.isin(values, (0.0, 1.0)).all():
        at = int((~np.isin(values, (0.0, 1.0))).argmax())
        row = int(series.index[at])
        raise InputError(
            f"column '{name}', row {row}: an event is 1 (seen) or 0 (censored), not {values[at]:g}.", row=row
        )
    return values


def plain(series: pd.Series[Any]) -> np.ndarray:
    """Return a complete column ``(N,)``; whole numbers that became floats are integers again, if they are exact."""
    import pandas as pd

    if isinstance(series.dtype, pd.StringDtype):  # one text for each level, not for each row
        codes, levels = pd.factorize(series)
        texts: np.ndarray = np.asarray(levels, dtype=object)[codes]
        return texts
    values = np.asarray(series.to_numpy())
    if values.dtype.kind == "f" and (np.abs(values) <= LARGEST_WHOLE).all() and (values == np.round(values)).all():
        return values.astype(np.int64)
    return values
