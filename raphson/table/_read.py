"""Reading a table from a CSV or Parquet file, with one clear sentence when the file cannot be used."""

from __future__ import annotations

import mmap
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raphson._errors import InputError
from raphson.table._columns import LARGEST_WHOLE

if TYPE_CHECKING:
    import pandas as pd

_PARQUET = (".parquet", ".pq")
_SAMPLE_BYTES = 1 << 16


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a CSV or Parquet file into a data frame.

    A name that ends in ``.parquet`` or ``.pq`` is Parquet. Anything else is CSV in UTF-8 with a header line,
    maybe compressed, separated by comma, semicolon or tab (found from the header); between semicolons,
    numbers may have a decimal comma. Empty cells and the usual marks (``NA``, ``NaN``, ``null``) are missing.

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
    table = _read_parquet(file) if file.suffix.lower() in _PARQUET else _read_csv(file)
    _check_names(file, table.schema.names)
    if table.num_rows == 0:
        raise InputError(f"{file} has a header and no rows.")
    return _to_frame(file, table)


def _read_parquet(file: Path) -> Any:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, pre_buffer=False)  # else the whole file is in memory beside its columns
        table.validate(full=True)
        return table
    except Exception as error:  # a damaged file may show as any of many errors
        raise InputError(
            f"{file} cannot be read as Parquet; it is truncated or not Parquet ({_first_line(error)})."
        ) from None


def _read_csv(file: Path) -> Any:
    import pyarrow as pa

    try:
        with pa.input_stream(str(file)) as stream:
            sample = stream.read(_SAMPLE_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read ({_first_line(error)}).") from None
    header = sample.lstrip(b"\r\n").splitlines()[:1] or [b""]
    try:
        header[0].decode()
    except UnicodeDecodeError:
        raise InputError(f"{file}: the header is not text in UTF-8; save the file in that encoding.") from None
    if b"\0" in sample:
        raise InputError(f"{file} holds zero bytes, so it is not text in UTF-8; save the file in that encoding.")
    separator = _separator(sample)
    point = _decimal_point(sample, separator)
    quoted = _may_have_quotes(file, sample)
    table = _parse_csv(file, separator, point, quoted, {})
    large = [
        name
        for name, column in zip(table.schema.names, table.columns, strict=True)
        if pa.types.is_floating(column.type) and _has_large_whole(column)
    ]
    # Whole numbers beyond int64 were read as floats, where neighbors are equal; beyond uint64 they stay so.
    for name in large if len(set(table.schema.names)) == table.num_columns else []:
        try:
            table = _parse_csv(file, separator, point, quoted, {name: pa.uint64()})
        except InputError:
            continue
    return table


def _has_large_whole(column: Any) -> bool:
    import numpy as np
    import pyarrow.compute as pc

    least, most = pc.min_max(column).values()
    if least.is_valid and -LARGEST_WHOLE < least.as_py() <= most.as_py() < LARGEST_WHOLE:
        return False
    values = np.asarray(column.to_pandas())
    with np.errstate(invalid="ignore"):
        return bool((np.abs(values) >= LARGEST_WHOLE).any() and (values[np.isfinite(values)] % 1 == 0).all())


def _may_have_quotes(file: Path, sample: bytes) -> bool:
    """Return False where no cell is quoted, so that each line is a record, which is read faster."""
    with file.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as held:
        compressed = held[: len(sample)] != sample
        return compressed or held.find(b'"') >= 0


def _parse_csv(file: Path, separator: str, point: str, quoted: bool, types: dict[str, Any]) -> Any:
    import pyarrow as pa
    import pyarrow.csv as csv

    parse = csv.ParseOptions(delimiter=separator, newlines_in_values=quoted)
    convert = csv.ConvertOptions(strings_can_be_null=True, decimal_point=point, column_types=types)
    # Row numbers in messages exist only in a single-threaded read, so a failed read is repeated to name it.
    for threads in (True, False):
        try:
            return csv.read_csv(
                str(file),
                read_options=csv.ReadOptions(use_threads=threads),
                parse_options=parse,
                convert_options=convert,
            )
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            message = _first_line(error)
    raise InputError(_csv_problem(file, message))


def _csv_problem(file: Path, message: str) -> str:
    ragged = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", message)
    if ragged:
        row, expected, got = (int(group) for group in ragged.groups())
        return (
            f"{file}, data row {row - 1}: {got} fields where the header has {expected}; "
            "a separator is missing or too many, or a text that contains one lacks its quotes."
        )
    return f"{file} cannot be read as CSV ({message})."


def _separator(sample: bytes) -> str:
    """Return the separator that occurs most often in the header line, outside quotes."""
    header = sample.lstrip(b"\r\n").splitlines()[:1] or [b""]
    bare = re.sub(rb'"[^"]*"', b"", header[0])
    counts = Counter({mark: bare.count(mark.encode()) for mark in ",;\t"})
    mark, count = counts.most_common(1)[0]
    return mark if count else ","


def _decimal_point(sample: bytes, separator: str) -> str:
    """Return the decimal mark: a comma only in a semicolon-separated file that has ``1,5`` and no ``1.5``."""
    if separator != ";":
        return "."
    comma = re.search(rb";\s*-?\d+,\d+\s*(;|\r?\n)", sample)
    point = re.search(rb";\s*-?\d+\.\d+\s*(;|\r?\n)", sample)
    return "," if comma and not point else "."


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


def _to_frame(file: Path, table: Any) -> pd.DataFrame:
    import pyarrow as pa

    for name, field in zip(table.schema.names, table.schema, strict=True):
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            raise InputError(f"{file}: column '{name}' is not text in UTF-8; save the file in that encoding.")
        if pa.types.is_decimal(field.type):
            position = table.schema.get_field_index(name)
            table = table.set_column(position, name, table.column(name).cast(pa.float64()))
        elif pa.types.is_nested(field.type):
            raise InputError(f"{file}: column '{name}' holds lists or records; a table needs one value a cell.")
    try:
        exact = {}
        for name, field in zip(table.schema.names, table.schema, strict=True):
            # beside missing values, integers become floats, in which neighbors beyond 2^53 are equal
            if pa.types.is_integer(field.type) and table[name].null_count and _has_large_whole(table[name]):
                unsigned = pa.types.is_unsigned_integer(field.type)
                exact[name] = table[name].to_pandas(integer_object_nulls=True).astype("UInt64" if unsigned else "Int64")
        frame = table.to_pandas(ignore_metadata=True, self_destruct=True)  # the table is not used after this
        for name, column in exact.items():
            frame[name] = column
        del table
        pa.default_memory_pool().release_unused()
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{file} cannot be read ({_first_line(error)}).") from None
    return frame


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
