"""How much memory the table of a file takes at least, known before it is read."""

from __future__ import annotations

from pathlib import Path

_LONGEST_NUMBER = 25
"""Characters of a number in a CSV file, its separator included; in memory it takes eight bytes."""

_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4", ".br")


def least_bytes(path: str | Path) -> int:
    """Return a lower bound on the memory of a file's table: 0 where nothing is known.

    Args:
        path: A file that ``read_table`` takes.

    Returns:
        The bytes.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if not file.is_file() or suffix in _COMPRESSED:
        return 0
    if suffix not in (".parquet", ".pq"):
        return file.stat().st_size * 8 // _LONGEST_NUMBER
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema, rows = pq.read_schema(file), pq.read_metadata(file).num_rows
    except (pa.ArrowException, OSError):  # read_table says what is wrong
        return 0
    return int(rows) * sum(int(field.type.bit_width) // 8 for field in schema if _is_number(field.type))


def _is_number(kind: object) -> bool:
    import pyarrow.types as types

    return bool(types.is_integer(kind) or types.is_floating(kind))
