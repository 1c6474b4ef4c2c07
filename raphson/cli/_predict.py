"""``raphson predict``: a saved model and a table give a table of predictions."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import raphson as rp
from raphson.cli._classes import offset_matrix

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
    result = _predictions(saved.model, saved.design, rp.read_table(data))
    _write(result, out, kind)


def _predictions(model: Any, design: rp.Design, frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row per row of the table: class and probabilities, or mean and linear predictors."""
    offset = design.offsets(frame)
    table: Any = frame
    if getattr(model, "formula", None) is None:
        matrix, names = design.matrix(frame)
        table = pd.DataFrame(matrix, columns=list(names))
    if isinstance(model, rp.MultinomialLogisticRegression):
        offset = offset_matrix(offset, len(model.classes_))
        return _classes(model.predict_proba(table, offset=offset), model.classes_)
    offset = offset[:, 0] if offset is not None and offset.shape[1] == 1 else offset
    mean = model.predict(table, offset=offset)
    if model.levels_ is not None:
        shares = mean if mean.ndim == 2 else np.column_stack([1.0 - mean, mean])
        return _classes(shares, np.array(model.levels_, dtype=object))
    result = pd.DataFrame({"predicted": mean})
    for name, column in zip(model.output_names_, model.linear_predictors(table, offset=offset).T, strict=True):
        result[f"linear[{name}]"] = column
    return result


def _classes(shares: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    result = pd.DataFrame({"predicted": labels[shares.argmax(axis=1)]})
    for label, column in zip(labels, shares.T, strict=True):
        result[f"probability[{label}]"] = column
    return result


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
