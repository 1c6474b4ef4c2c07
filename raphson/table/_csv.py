"""CSV in UTF-8 to a data frame: separator and decimal mark are found, a file that cannot be used is one sentence."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from raphson._errors import InputError
from raphson.table._frame import check_table, column_groups, first_line, has_large_whole, joined, to_frame

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

_SAMPLE_BYTES = 1 << 16
_SEARCHED_BYTES = 1 << 20


def read_csv(file: Path) -> pd.DataFrame:
    """Return the table of a CSV file; ``InputError`` if it cannot be used."""
    import pyarrow as pa

    try:
        with pa.input_stream(str(file)) as stream:
            sample = stream.read(_SAMPLE_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read ({first_line(error)}).") from None
    _refuse_other_kinds(file, sample)
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
    types = _sample_types(sample, separator, point)
    attempts = ([(True, types)] if types else []) + [(True, {}), (False, {})]
    table = _parse_csv(file, separator, point, quoted, attempts)
    large = [
        name
        for name, column in zip(table.schema.names, table.columns, strict=True)
        if pa.types.is_floating(column.type) and has_large_whole(column)
    ]
    # Whole numbers beyond int64 were read as floats, where neighbors are equal; beyond uint64 they stay so.
    exact: dict[str, Any] = {}
    for name in large if len(set(table.schema.names)) == table.num_columns else []:
        try:
            table = _parse_csv(file, separator, point, quoted, [(True, exact | {name: pa.uint64()})])
        except InputError:
            continue
        exact[name] = pa.uint64()
    check_table(file, table.schema, table.num_rows)
    parts, pool = [], pa.default_memory_pool()
    for group in column_groups(table.schema, table.num_rows):
        part, table = table.select(group), table.drop_columns(group)
        parts.append(to_frame(file, part))
        del part
        pool.release_unused()  # the columns that were made pandas' own
    return joined(parts)


_KINDS = {
    b"PK\x03\x04": "a ZIP archive, such as an Excel or OpenDocument table",
    b"\xd0\xcf\x11\xe0": "an old Excel table",
    b"PAR1": "Parquet; its name must end in .parquet",
    b"ARROW1": "an Arrow or Feather file",
    b"\x1f\x8b": "compressed by gzip; its name must end in .gz",
    b"$FL2": "an SPSS table",
    b"<stata_dta>": "a Stata table",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"%PDF": "a PDF document",
}


def _refuse_other_kinds(file: Path, sample: bytes) -> None:
    """Raise ``InputError`` for a file that is no text in UTF-8, by its first bytes, and for one without a header."""
    kind = next((name for start, name in _KINDS.items() if sample.startswith(start)), None)
    if kind is None and file.suffix.lower() == ".json" and sample.lstrip()[:1] in (b"{", b"["):
        kind = "JSON"
    if kind is not None:
        raise InputError(f"{file} is {kind}; save the table as CSV in UTF-8, or as Parquet.")
    if not sample.strip():
        raise InputError(f"{file} holds empty lines only; give a table with a header and at least one row.")


def _may_have_quotes(file: Path, sample: bytes) -> bool:
    """Return False where no cell is quoted, so that each line is a record, which is read faster."""
    with file.open("rb", buffering=0) as raw:  # not mapped: pages of the file would count as memory of the process
        if raw.read(len(sample)) != sample:  # compressed
            return True
        raw.seek(0)
        held = bytearray(_SEARCHED_BYTES)
        while size := raw.readinto(held):
            if held.find(b'"', 0, size) >= 0:
                return True
        return False


def _parse_csv(
    file: Path, separator: str, point: str, quoted: bool, attempts: list[tuple[bool, dict[str, Any]]]
) -> Any:
    """Return what the first attempt that succeeds reads; each has or has not threads, and knows types of columns.

    Row numbers in messages exist only in a read without threads, so a failed read is repeated to name it.

    Raises:
        InputError: If no attempt succeeds.
    """
    import pyarrow as pa
    import pyarrow.csv as csv

    parse = csv.ParseOptions(delimiter=separator, newlines_in_values=quoted)
    for threads, types in attempts:
        try:
            return csv.read_csv(
                str(file),
                read_options=csv.ReadOptions(use_threads=threads),
                parse_options=parse,
                convert_options=csv.ConvertOptions(strings_can_be_null=True, decimal_point=point, column_types=types),
            )
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            message = first_line(error)
    raise InputError(_csv_problem(file, message))


def _sample_types(sample: bytes, separator: str, point: str) -> dict[str, Any]:
    """Return the types that the columns have in the first records of a file; none where these cannot be told.

    A column whose type is given is converted as the file is read; to find its type, PyArrow holds the text of the whole
    file beside what it made of it (of 10^6 rows three tables in memory in place of one, and twice the time).
    """
    import pyarrow as pa
    import pyarrow.csv as csv

    if len(sample) < _SAMPLE_BYTES:  # the whole file, of which nothing is large
        return {}
    lines = sample[: sample.rfind(b"\n") + 1]
    try:
        first = csv.read_csv(
            pa.py_buffer(lines),
            read_options=csv.ReadOptions(use_threads=False),
            parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=b'"' in lines),
            convert_options=csv.ConvertOptions(strings_can_be_null=True, decimal_point=point),
        )
    except (pa.ArrowException, UnicodeDecodeError):
        return {}
    names = first.schema.names
    if len(set(names)) < len(names):
        return {}
    return {field.name: field.type for field in first.schema if not pa.types.is_null(field.type)}


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
    counts = Counter({mark: bare.count(mark.encode()) for mark in ",;\t|"})
    mark, count = counts.most_common(1)[0]
    return mark if count else ","


def _decimal_point(sample: bytes, separator: str) -> str:
    """Return the decimal mark: a comma only where none separates, and cells hold ``1,5`` and none ``1.5``."""
    if separator == ",":
        return "."
    mark = re.escape(separator).encode()
    number = rb"(?:%s|\n)[ \"]*[-+]?\d+%s\d+(?:[eE][-+]?\d+)?[ \"]*(?=%s|\r?\n|\Z)"
    comma, point = (re.search(number % (mark, decimal, mark), sample) for decimal in (rb",", rb"\."))
    return "," if comma and not point else "."
