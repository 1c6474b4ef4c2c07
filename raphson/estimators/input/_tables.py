"""One table for several parameters: the union of their columns, each kept once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from raphson._errors import InputError
from raphson.estimators.input._validate import check_length, feature_names

if TYPE_CHECKING:
    import pandas as pd

Columns = dict[str, tuple[str, ...]]


def is_tables(x: Any) -> bool:
    """Return whether this is a dictionary of tables; a sparse dictionary of keys is a mapping, too."""
    return isinstance(x, Mapping) and not sp.issparse(x)


def merge_tables(tables: Mapping[str, Any]) -> tuple[Any, Columns]:
    """Return the union of the columns of several tables, and for each parameter the names of its columns there.

    Columns of one name and the same values are one column; where the values differ, the later ones get the name of
    their parameter in front.

    Raises:
        InputError: If there is no table, or they are sparse, or of different lengths.
    """
    if not tables:
        raise InputError("X is an empty dictionary; give at least one parameter a table.")
    union: dict[str, Any] = {}
    used: Columns = {}
    n_rows: int | None = None
    for parameter, table in tables.items():
        names, values = _columns(parameter, table)
        n_rows = values[0] if n_rows is None else n_rows
        check_length(f"the table of '{parameter}'", values[0], n_rows)
        own = []
        for name, column in zip(names, values[1], strict=True):
            unique = name if name not in union or _same(union[name], column) else f"{parameter}: {name}"
            union[unique] = column
            own.append(unique)
        used[parameter] = tuple(own)
    return _joined(union, n_rows or 0), used


def new_table(tables: Mapping[str, Any], used: Columns) -> Any:
    """Return the union of new tables, with the columns that ``merge_tables`` returned at the fit.

    Raises:
        InputError: If a parameter's table is absent, or has another number of columns.
    """
    union: dict[str, Any] = {}
    n_rows = 0
    for parameter, own in used.items():
        if parameter not in tables:
            raise InputError(f"X has no table for the parameter '{parameter}', which was fitted with one.")
        names, (n_rows, values) = _columns(parameter, tables[parameter])
        if len(values) != len(own):
            raise InputError(
                f"The table of '{parameter}' has {len(values)} columns, but was fitted with {len(own)}: "
                f"{', '.join(own)}."
            )
        _check_names(parameter, names, own, hasattr(tables[parameter], "columns"))
        for name, column in zip(own, values, strict=True):
            union.setdefault(name, column)
    return _joined(union, n_rows)


def _check_names(parameter: str, names: Sequence[str], own: tuple[str, ...], is_frame: bool) -> None:
    """Raise ``InputError`` for a frame with other columns than the fit's, or the same in another order."""
    known = [name.removeprefix(f"{parameter}: ") for name in own]
    if not is_frame or list(names) == known or known == list(feature_names(None, len(known))):
        return
    at = next(i for i, (one, two) in enumerate(zip(names, known, strict=True)) if one != two)
    how = "in another order than" if sorted(names) == sorted(known) else "other ones than"
    raise InputError(
        f"The columns of the table of '{parameter}' are {how} at the fit: column {at} is '{names[at]}' where "
        f"'{known[at]}' stood. Select them by name, X['{parameter}'][{known!r:.200}]."
    )


def _joined(union: dict[str, Any], n_rows: int) -> pd.DataFrame | np.ndarray[Any, Any]:
    import pandas as pd

    # scikit-learn does not take a frame without columns
    return pd.DataFrame(union, index=range(n_rows)) if union else np.empty((n_rows, 0))


def _columns(parameter: str, table: Any) -> tuple[Sequence[str], tuple[int, list[Any]]]:
    if sp.issparse(table):
        raise InputError(f"The table of '{parameter}' is sparse; with a table per parameter give dense ones.")
    if hasattr(table, "columns"):
        columns = [table.iloc[:, j].reset_index(drop=True) for j in range(table.shape[1])]
        return [str(name) for name in table.columns], (table.shape[0], columns)
    array = np.asarray(table)
    if array.ndim != 2:
        raise InputError(
            f"The table of '{parameter}' has shape {array.shape}, but a table has rows and columns; a single column "
            "is array.reshape(-1, 1)."
        )
    return feature_names(array, array.shape[1]), (array.shape[0], list(array.T))


def _same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))
