"""``raphson predict``: a saved model and a table give a table of predictions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import typer

import raphson as rp
from raphson.cli._classes import class_table, offset_matrix
from raphson.cli._network import network_predictions
from raphson.cli._output import check_output, write_table
from raphson.cli._rows import in_file


def run_predict(directory: Path, data: Path, out: Path) -> None:
    """Predict and write; the file appears whole or not at all."""
    check_output(out)
    saved = rp.load(directory)
    if saved.design is None:
        raise rp.InputError(f"{directory} was saved without its design, so it cannot predict from a table.")
    frame = rp.read_table(data)
    with in_file(range(len(frame))), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", rp.RaphsonWarning)
        result = _predictions(saved.model, saved.design, frame)
    write_table(result, out)
    for sentence in dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, rp.RaphsonWarning)):
        typer.echo(f"- {sentence}")


def _predictions(model: Any, design: rp.Design, frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row per row of the table: class and probabilities, or mean and linear predictors."""
    offset = design.offsets(frame)
    table: Any = frame
    if getattr(model, "formula", None) is None:
        matrix, names = design.matrix(frame)
        table = pd.DataFrame(matrix, columns=list(names), copy=False)
    if isinstance(model, rp.MultinomialLogisticRegression):
        offset = offset_matrix(offset, len(model.classes_))
        return class_table(model.predict_proba(table, offset=offset), model.classes_)
    if not isinstance(model, rp.VectorGLM):
        return network_predictions(model, table)
    offset = offset[:, 0] if offset is not None and offset.shape[1] == 1 else offset
    mean = model.predict(table, offset=offset)
    if model.levels_ is not None:
        shares = mean if mean.ndim == 2 else np.column_stack([1.0 - mean, mean])
        return class_table(shares, np.array(model.levels_, dtype=object))
    result = pd.DataFrame({"predicted": mean})
    for name, column in zip(model.output_names_, model.linear_predictors(table, offset=offset).T, strict=True):
        result[f"linear[{name}]"] = column
    return result
