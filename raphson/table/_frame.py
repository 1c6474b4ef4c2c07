"""Columns of Arrow as a data frame: checked, a few at a time, without holding the table twice."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from raphson._errors import InputError
from raphson.table._columns import LARGEST_WHOLE

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

_GROUP_BYTES = 1 << 23
"""Of the columns that are in memory twice, as Arrow and pandas hold them; all at once were 0.6 tables of 10^6 rows."""


def check_table(file: Path, schema: Any, n_rows: int) -> None:
    """Raise ``InputError`` unless there are rows, and each column has a name of its own and one value a cell."""
    import pyarrow as pa

    _check_names(file, schema.names)
    if n_rows == 0:
        raise InputError(f"{file} has a header and no rows.")
    for field in schema:
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            raise InputError(f"{file}: column '{field.name}' is not text in UTF-8; save the file in that encoding.")
        if pa.types.is_nested(field.type):
            raise InputError(f"{file}: column '{field.name}' holds lists or records; a table needs one value a cell.")


def _check_names(file: Path, names: list[str]) -> None:
    for position, name in enumerate(names, start=1):
        if not name.strip():
            raise InputError(
                f"{file}: column {position} has no name in the header; name it, or remove it "
                "(pandas writes such a column unless told index=False, R unless told row.names=FALSE)."
            )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{file}: the column name '{twice[0]}' occurs more than once; rename one of them.")


def column_groups(schema: Any, n_rows: int) -> list[list[str]]:
    """Return names of neighboring columns that are read, and become a part of the frame, together."""
    names = schema.names
    width = max(1, _GROUP_BYTES // (8 * n_rows))
    return [names[start : start + width] for start in range(0, len(names), width)]


def to_frame(file: Path, table: Any) -> pd.DataFrame:
    """Return columns as a frame whose numbers are the system's memory; Arrow's own pool keeps what it is given back."""
    import pyarrow as pa

    for position, field in enumerate(table.schema):
        if pa.types.is_decimal(field.type):
            table = table.set_column(position, field.name, table.column(position).cast(pa.float64()))
    try:
        exact = {}
        for name, field in zip(table.schema.names, table.schema, strict=True):
            # beside missing values, integers become floats, in which neighbors beyond 2^53 are equal
            if pa.types.is_integer(field.type) and table[name].null_count and has_large_whole(table[name]):
                unsigned = pa.types.is_unsigned_integer(field.type)
                exact[name] = table[name].to_pandas(integer_object_nulls=True).astype("UInt64" if unsigned else "Int64")
        frame = table.to_pandas(ignore_metadata=True, memory_pool=pa.system_memory_pool())
        for name, column in exact.items():
            frame[name] = column
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{file} cannot be read ({first_line(error)}).") from None
    return frame


def joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Return one frame of the columns of several, without copying them."""
    import pandas as pd
    import pyarrow as pa

    frame = parts[0] if len(parts) == 1 else pd.concat(parts, axis=1)
    pa.default_memory_pool().release_unused()
    return frame


def has_large_whole(column: Any) -> bool:
    """Return whether a column of numbers has whole ones alone, some of which a float64 may not hold exactly."""
    import numpy as np
    import pyarrow.compute as pc

    least, most = pc.min_max(column).values()
    if least.is_valid and -LARGEST_WHOLE < least.as_py() <= most.as_py() < LARGEST_WHOLE:
        return False
    values = np.asarray(column.to_pandas())
    with np.errstate(invalid="ignore"):
        return bool((np.abs(values) >= LARGEST_WHOLE).any() and (values[np.isfinite(values)] % 1 == 0).all())


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
