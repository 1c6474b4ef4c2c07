"""Reading a table from a CSV or Parquet file, with one clear sentence when the file cannot be used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raphson._errors import InputError
from raphson.table._csv import read_csv
from raphson.table._frame import check_table, column_groups, first_line, joined, to_frame

if TYPE_CHECKING:
    import pandas as pd

_PARQUET = (".parquet", ".pq")


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a CSV or Parquet file into a data frame.

    A name that ends in ``.parquet`` or ``.pq`` is Parquet. Anything else is CSV in UTF-8 with a header line,
    maybe compressed, separated by comma, semicolon, tab or bar (found from the header); where no comma
    separates, numbers may have a decimal comma. Empty cells and the usual marks (``NA``, ``NaN``, ``null``)
    are missing.

    Args:
        path: The file.

    Returns:
        The table, one row per record.

    Raises:
        InputError: If the file is missing, empty, truncated, ragged or not in UTF-8, or if a column name is
            missing or occurs twice.
    """
    file = Path(path)
    if not file.exists():
        raise InputError(f"{file} does not exist; check the path.")
    if file.is_dir():
        raise InputError(f"{file} is a directory; give a CSV or Parquet file.")
    if not file.is_file():
        raise InputError(f"{file} is no ordinary file; write the table to a file first.")
    try:
        size = file.stat().st_size
        with file.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"{file} cannot be opened: {error.strerror}.") from None
    if size == 0:
        raise InputError(f"{file} is empty; give a table with a header and at least one row.")
    return _read_parquet(file) if file.suffix.lower() in _PARQUET else read_csv(file)


def _read_parquet(file: Path) -> pd.DataFrame:
    import pyarrow.parquet as pq

    try:
        source = pq.ParquetFile(file, pre_buffer=False)  # else the whole file is in memory beside its columns
    except Exception as error:  # a damaged file may show as any of many errors
        raise InputError(_parquet_problem(file, error)) from None
    with source:
        schema = source.schema_arrow
        check_table(file, schema, source.metadata.num_rows)
        groups = column_groups(schema, source.metadata.num_rows)
        if any(name[: end.start()] in schema.names for name in schema.names for end in re.finditer(r"\.", name)):
            groups = [schema.names]  # of 'a' and 'a.b' PyArrow takes the first for a path, at whose end the second is

        def part(group: list[str]) -> Any:
            try:
                table = source.read(None if len(group) == len(schema) else group)
                table.validate(full=True)
                return table
            except Exception as error:
                raise InputError(_parquet_problem(file, error)) from None

        return joined([to_frame(file, part(group)) for group in groups])


def _parquet_problem(file: Path, error: Exception) -> str:
    return f"{file} cannot be read as Parquet; it is truncated or not Parquet ({first_line(error)})."
