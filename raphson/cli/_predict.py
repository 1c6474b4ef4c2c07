"""``raphson predict``: a saved model and a table give a table of probabilities."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pandas as pd

import raphson as rp

from ._fit import offset_matrix

_SUFFIXES = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}


def run_predict(directory: Path, data: Path, out: Path) -> None:
    """Predict and write; the file appears whole or not at all.

    Args:
        directory: A saved model.
        data: The table.
        out: The file to write.

    Raises:
        InputError: If a file cannot be used or written, or the model was saved without its design.
    """
    kind = _SUFFIXES.get(out.suffix.lower())
    if kind is None:
        raise rp.InputError(f"--out {out}: the name must end in .csv or .parquet.")
    if not out.absolute().parent.is_dir():
        raise rp.InputError(f"--out {out}: the directory {out.absolute().parent} does not exist.")
    saved = rp.load(directory)
    if saved.design is None:
        raise rp.InputError(f"{directory} was saved without its design, so it cannot predict from a table.")
    frame = rp.read_table(data)
    matrix, names = saved.design.matrix(frame)
    model = saved.model
    offset = offset_matrix(saved.design.offsets(frame), len(model.classes_))
    probabilities = model.predict_proba(pd.DataFrame(matrix, columns=list(names)), offset=offset)
    result = pd.DataFrame({"predicted": model.classes_[probabilities.argmax(axis=1)]})
    for label, column in zip(model.classes_, probabilities.T, strict=True):
        result[f"probability[{label}]"] = column
    _write(result, out, kind)


def _write(result: pd.DataFrame, out: Path, kind: str) -> None:
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        if kind == "csv":
            result.to_csv(part, index=False)
        else:
            result.to_parquet(part, index=False)
        os.replace(part, out)
    except OSError as error:
        raise rp.InputError(f"--out {out} cannot be written: {error.strerror or error}.") from None
    finally:
        part.unlink(missing_ok=True)
