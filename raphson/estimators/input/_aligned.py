"""Arguments with row labels of their own: refused where the labels say that rows do not belong together.

Rows go together by position, as in scikit-learn. Two pandas objects that name their rows, with the same names in other
places, contradict that: one of them was sorted, shuffled or filtered without the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raphson._errors import InputError


def row_index(x: Any) -> Any:
    """Return the row labels of a pandas object, or None."""
    index = getattr(x, "index", None)
    return index if hasattr(x, "iloc") and hasattr(index, "equals") and hasattr(index, "isin") else None


def check_index(index: Any, values: Any, name: str, of: str = "X") -> None:
    """Refuse row labels that contradict the order of the rows.

    Labels that are equal, have nothing in common, or were reset on one side (0, 1, 2, ...) to others than the same ones
    are fine. The same labels in another order are not, nor are two selections that overlap.

    Args:
        index: Row labels of the table, or None.
        values: What goes with it; looked at if it is a pandas object.
        name: What to call it.
        of: What to call the table.

    Raises:
        InputError: They do; the message names the first row.
    """
    other = row_index(values)
    if index is None or other is None or len(index) != len(other) or index.equals(other):
        return
    shared = other.isin(index)
    if not shared.any():
        return
    complete = bool(shared.all() and index.isin(other).all())
    if not complete and (_is_counted(index) or _is_counted(other)):
        return
    row = next(i for i, (one, two) in enumerate(zip(index, other, strict=True)) if one != two)
    what = "the row labels of {of} in another order" if complete else "other row labels than {of}, some of them common"
    raise InputError(
        f"{name} has {what.format(of=of)} (row {row} is {_shown(index[row])} in {of} and {_shown(other[row])} in "
        f"{name}), so rows taken by position would not belong together. Sort it as {of} is, {name}.loc[{of}.index]; if "
        f"its rows are in the order of {of} as they stand, pass {name}.to_numpy().",
        row=row,
    )


def check_columns(values: Any, names: Sequence[str], what: str) -> None:
    """Raise ``InputError`` for a frame with a column for each output, named as these are, in another order."""
    given = [str(name) for name in getattr(values, "columns", ())] if hasattr(values, "iloc") else []
    if given != list(names) and sorted(given) == sorted(names):
        at = next(i for i, (one, two) in enumerate(zip(given, names, strict=True)) if one != two)
        raise InputError(
            f"The columns of {what} are in another order than the outputs of the model: column {at} is '{given[at]}' "
            f"where '{names[at]}' stands. Order them, {what}[{list(names)!r:.200}]; or pass {what}.to_numpy() if they "
            "are in that order as they stand."
        )


def _is_counted(index: Any) -> bool:
    """Return whether labels are 0, 1, 2, ..., as of rows that were given none."""
    import pandas as pd

    return bool(index.equals(pd.RangeIndex(len(index))))


def _shown(label: Any) -> str:
    label = label.item() if hasattr(label, "item") and not hasattr(label, "isoformat") else label
    return f"{label!r:.40}" if isinstance(label, str | int | float | tuple) else f"{label!s:.40}"
