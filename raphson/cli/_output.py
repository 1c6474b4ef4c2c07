"""Tables written to files, whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pandas as pd

import raphson as rp

_SUFFIXES = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}


def check_output(out: Path) -> None:
    """Check, before any work, that a file can be written: .csv or .parquet in a directory that is there."""
    if out.suffix.lower() not in _SUFFIXES:
        raise rp.InputError(f"--out {out}: the name must end in .csv or .parquet.")
    if not out.absolute().parent.is_dir():
        raise rp.InputError(f"--out {out}: the directory {out.absolute().parent} does not exist.")
    if out.exists() and not out.is_file():
        raise rp.InputError(f"--out {out}: there is something else than a file of that name.")


def write_table(table: pd.DataFrame, out: Path) -> None:
    """Write a table; the file appears whole or not at all, or there is an ``InputError``."""
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        if _SUFFIXES[out.suffix.lower()] == "csv":
            table.to_csv(part, index=False)
        else:
            table.to_parquet(part, index=False)
        os.replace(part, out)
    except OSError as error:
        raise rp.InputError(f"--out {out} cannot be written: {error.strerror or error}.") from None
    finally:
        part.unlink(missing_ok=True)
