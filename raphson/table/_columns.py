"""How one column of a table becomes columns of numbers: as it is, or by treatment coding of its levels.

Columns come indexed by their row number in the table (the first is 1), which is what messages name.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raphson._errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

_ID_LEVELS = 10
_MARKED = re.compile(r"\s*[-+(]?\s*[^\w\s]?\s*\d[\d.,' \u00a0]*\s*[^\w\s]?\)?\s*")
"""A number with a percent or currency sign, or separators of thousands."""
LARGEST_WHOLE = 2**53
"""Up to here a float64 holds each whole number exactly."""

_LOST = 1e6
"""Range of a column, in steps of its numbers, below which rounding shows in results."""


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
    refuse_dates(series, name)
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


def refuse_dates(series: pd.Series[Any], name: str, what: str = "column") -> None:
    """Raise ``InputError`` for a column of dates or times, of NumPy's, Arrow's or Python's types."""
    import pandas as pd

    kind = getattr(series.dtype, "kind", "O")
    held = kind in "mM" or isinstance(series.dtype, pd.PeriodDtype)
    if not held and series.dtype == object:
        present = series.notna().to_numpy()
        first = series.iloc[int(present.argmax())] if present.any() else None
        held = isinstance(first, datetime.date | datetime.time | datetime.timedelta)
    if held:
        what = "column" if what == "column" else f"the {what}"
        raise InputError(f"{what} '{name}' holds dates; derive numbers (a year, an age in days) from it, or drop it.")


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


def refuse_same_text(name: str, levels: Sequence[Any]) -> None:
    """Raise ``InputError`` for a level that is a number and one that is the same number as text."""
    texts = [level_text(level) for level in levels]
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise InputError(
            f"column '{name}' has the level {twice} both as a number and as text; make all of its values texts, "
            ".astype(str), or all numbers."
        )


def _category(name: str, levels: tuple[str, ...], kind: str, n_rows: int) -> tuple[Column, str | None]:
    refuse_same_text(name, levels)
    if len(levels) > max(_ID_LEVELS, n_rows // 2):
        written = [level for level in levels if _MARKED.fullmatch(level)]
        if len(written) > len(levels) / 2:
            raise InputError(
                f"column '{name}' holds numbers written with other signs ('{written[0]}'), so they are texts; take out "
                "percent and currency signs and separators of thousands."
            )
        raise InputError(
            f"column '{name}' is text with {len(levels)} different values in {n_rows} rows, so it names rows "
            "rather than groups them; drop it, or merge its values into fewer levels."
        )
    if len(levels) == 1:
        return Category(name, levels), f"{name}: {kind} with the single level '{levels[0]}', left out"
    note = f"{name}: {kind} with {len(levels)} levels, coded against '{levels[0]}'"
    return Category(name, levels), note + nearly_equal(levels)


def nearly_equal(levels: Sequence[Any]) -> str:
    """Return what to add to a note where two levels differ in spaces or case alone: they are probably one."""
    seen: dict[str, str] = {}
    for level in map(str, levels):
        other = seen.setdefault(" ".join(level.split()).casefold(), level)
        if other != level:
            return f"; '{other}' and '{level}' differ in spaces or case only, and count as two"
    return ""


def to_numbers(series: pd.Series[Any], name: str) -> np.ndarray:
    """Return a column as float64 ``(N,)``, missing values as NaN; float64 is not copied. Others are refused by row."""
    import pandas as pd

    if getattr(series.dtype, "kind", "O") in "mMc" or isinstance(series.dtype, pd.CategoricalDtype):
        raise InputError(f"column '{name}' must be numeric; it holds {series.dtype} values.")
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "iuf":
        values: np.ndarray = series.to_numpy().astype(np.float64, copy=False)
    else:
        values = _parsed(series, name)
    if getattr(series.dtype, "kind", "O") in "iu":
        _refuse_lost(values, name)
    infinite = np.isinf(values)
    if infinite.any():
        row = int(series.index[int(infinite.argmax())])
        raise InputError(
            f"column '{name}', row {row}: the value is infinite; correct it or leave the cell empty.", row=row
        )
    return values


def _refuse_lost(values: np.ndarray, name: str) -> None:
    """Raise ``InputError`` for whole numbers so large, and so near each other, that float64 has no digits for them."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return
    low, high = float(finite.min()), float(finite.max())
    size = max(abs(low), abs(high))
    if size > LARGEST_WHOLE and 0 < high - low < _LOST * np.spacing(size):
        raise InputError(
            f"column '{name}' holds whole numbers about {high:.6g} that differ by {high - low:.3g} at most, but are "
            f"exact to {np.spacing(size):g} only when they are computed with. Are they names of rows? Drop the column; "
            "or subtract what all have in common before the table is written."
        )


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
