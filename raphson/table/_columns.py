"""How one column of a table becomes columns of numbers: as it is, or by treatment coding of its levels.

Columns come indexed by their row number in the table (the first is 1), which is what messages name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raphson._errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

_ID_LEVELS = 10
LARGEST_WHOLE = 2**53
"""Up to here a float64 holds each whole number exactly."""


@dataclass(frozen=True)
class Number:
    """A column of numbers, used as it is."""

    name: str

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the columns it becomes."""
        return (self.name,)

    def read(self, series: pd.Series[Any]) -> np.ndarray:
        """Return the numbers ``(N,)``, float64, of a column without missing values."""
        return to_numbers(series, self.name)

    def write(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """Write some rows of what ``read`` returned to their place in the matrix, ``(rows, 1)``."""
        out[:, 0] = numbers


@dataclass(frozen=True)
class Category:
    """A column of levels in treatment coding: one 0/1 column for each level but the first, the reference."""

    name: str
    levels: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the columns it becomes, in the usual ``name[T.level]`` form."""
        return tuple(f"{self.name}[T.{level}]" for level in self.levels[1:])

    def read(self, series: pd.Series[Any]) -> np.ndarray:
        """Return the positions of the levels ``(N,)`` of a column without missing values."""
        return level_codes(series, self.name, self.levels)

    def write(self, codes: np.ndarray, out: np.ndarray) -> None:
        """Write some rows of what ``read`` returned to their place in the matrix, ``(rows, levels - 1)``."""
        np.equal(codes[:, None], np.arange(1, len(self.levels)), out=out, casting="unsafe")


Column = Number | Category


def learn_column(series: pd.Series[Any], name: str) -> tuple[Column, str | None]:
    """Decide how a column is used: numbers as they are, anything else by treatment coding.

    Returns:
        The coding, and a sentence for the reader when the column is not simply used as it is.

    Raises:
        InputError: If the column holds dates, is entirely missing, mixes numbers with a few texts, or has so
            many levels that it names the rows.
    """
    import pandas as pd

    if not series.notna().any():
        raise InputError(f"column '{name}' is missing in every row; drop it.")
    dtype = series.dtype
    if pd.api.types.is_datetime64_any_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype):
        raise InputError(f"column '{name}' holds dates; derive numbers (a year, an age in days) from it, or drop it.")
    if isinstance(dtype, pd.CategoricalDtype):
        present = series.dropna()
        observed = set(present.unique())
        levels = tuple(level_text(c) for c in dtype.categories if c in observed)
        return _category(name, levels, "categories", len(present))
    if pd.api.types.is_bool_dtype(dtype):
        present = series.dropna()
        return _category(name, tuple(level_text(v) for v in sorted(present.unique())), "truth values", len(present))
    if pd.api.types.is_numeric_dtype(dtype):
        return Number(name), None
    return _learn_text(series, name)


def _learn_text(series: pd.Series[Any], name: str) -> tuple[Column, str | None]:
    import pandas as pd

    codes, found = pd.factorize(series)  # each cell is hashed once; what follows looks at the distinct ones
    unique, counts = list(found), np.bincount(codes + 1, minlength=len(found) + 1)[1:]  # missing cells have code -1
    n_rows = int(counts.sum())
    if all(isinstance(value, bool) for value in unique):
        return _category(name, tuple(level_text(v) for v in sorted(unique)), "truth values", n_rows)
    odd = next((value for value in unique if not isinstance(value, str | bool | int | float | np.number)), None)
    if odd is not None:
        raise InputError(f"column '{name}' holds values of type {type(odd).__name__}; use numbers or text, or drop it.")
    numeric = pd.to_numeric(pd.Series(unique, dtype=object), errors="coerce").notna().to_numpy()
    if numeric.all():
        return Number(name), f"{name}: numbers stored as text, used as numbers"
    if counts[numeric].sum() > 0.5 * n_rows:
        to_numbers(series, name)  # names the first cell that is not a number
    return _category(name, tuple(sorted(level_text(value) for value in unique)), "text", n_rows)


def _category(name: str, levels: tuple[str, ...], kind: str, n_rows: int) -> tuple[Column, str | None]:
    if len(levels) > max(_ID_LEVELS, n_rows // 2):
        raise InputError(
            f"column '{name}' is text with {len(levels)} different values in {n_rows} rows, so it names rows "
            "rather than groups them; drop it, or merge its values into fewer levels."
        )
    if len(levels) == 1:
        return Category(name, levels), f"{name}: {kind} with the single level '{levels[0]}', left out"
    return Category(name, levels), f"{name}: {kind} with {len(levels)} levels, coded against '{levels[0]}'"


def to_numbers(series: pd.Series[Any], name: str) -> np.ndarray:
    """Return a column as float64 ``(N,)``, missing values as NaN; float64 is not copied. Others are refused by row."""
    import pandas as pd

    if getattr(series.dtype, "kind", "O") in "mMc" or isinstance(series.dtype, pd.CategoricalDtype):
        raise InputError(f"column '{name}' must be numeric; it holds {series.dtype} values.")
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "iuf":
        values: np.ndarray = series.to_numpy().astype(np.float64, copy=False)
    else:
        values = _parsed(series, name)
    infinite = np.isinf(values)
    if infinite.any():
        row = int(series.index[int(infinite.argmax())])
        raise InputError(
            f"column '{name}', row {row}: the value is infinite; correct it or leave the cell empty.", row=row
        )
    return values


def _parsed(series: pd.Series[Any], name: str) -> np.ndarray:
    import pandas as pd

    numbers = pd.to_numeric(series, errors="coerce")
    values: np.ndarray = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    bad: np.ndarray = np.isnan(values) & series.notna().to_numpy()
    if bad.any():
        at = int(bad.argmax())
        row = int(series.index[at])
        rest = (
            "and no other cell is; numbers are needed here."
            if bad.sum() == series.notna().sum()
            else f"although the column is numeric ({bad.sum()} such of {len(series)}); correct it or leave the cell "
            "empty."
        )
        raise InputError(f"column '{name}', row {row}: '{series.iloc[at]}' is not a number, {rest}", row=row)
    return values


def level_text(value: Any) -> str:
    """Return a level as text; ``2.0`` and ``2`` are the same level, whichever way the file was read."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def level_codes(series: pd.Series[Any], name: str, levels: tuple[str, ...]) -> np.ndarray:
    """Return the position of each cell among the levels ``(N,)``, -1 where missing; an unknown one is refused."""
    import pandas as pd

    codes, unique = pd.factorize(series)
    position = {level: index for index, level in enumerate(levels)}
    kind = np.min_scalar_type(-max(2, len(levels)))  # a byte a row, for few levels
    known = np.array([position.get(level_text(value), -2) for value in unique] + [-1], dtype=kind)
    found: np.ndarray = known[codes]
    if (known == -2).any():
        refuse_level(series, int((found == -2).argmax()), name, levels)
    return found


def refuse_level(series: pd.Series[Any], position: int, name: str, levels: Sequence[Any]) -> None:
    """Raise ``InputError`` for a level, at a position of a column, that was not there in the fit."""
    shown = ", ".join(f"'{level}'" for level in levels[:8]) + (", ..." if len(levels) > 8 else "")
    level = level_text(series.iloc[position])
    row = int(series.index[position])
    raise InputError(
        f"column '{name}', row {row}: the level '{level}' was not in the fit (known: {shown}); correct it or fit again "
        "with it.",
        row=row,
    )


def refuse_inexact(series: pd.Series[Any], name: str) -> None:
    """Raise ``InputError`` for numbers that should tell rows apart and are too large to: neighbors are equal."""
    if getattr(series.dtype, "kind", "O") != "f":
        return
    values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    large = np.abs(values) > LARGEST_WHOLE
    if large.any():
        row = int(series.index[int(large.argmax())])
        raise InputError(
            f"column '{name}', row {row}: {values[large.argmax()]:.17g} is too large to be a level or a group, because "
            "numbers of that size are not exact; put a letter in front, so that they are texts.",
            row=row,
        )
