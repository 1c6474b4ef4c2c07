"""``raphson check`` and ``raphson diagnose``: a saved model and the table it was fitted to."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import raphson as rp
from raphson.cli._classes import offset_matrix
from raphson.cli._rows import in_file


def run_check(directory: Path, data: Path, within: float) -> int:
    """Print how far a saved model is from the exact optimum on the table that it was fitted to.

    Returns:
        Exit code: 0 if every coefficient is certified to be ``within`` that many standard errors, 1 otherwise.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", rp.RaphsonWarning)
        model = _attached(directory, data)
    other = [str(one.message) for one in caught if one.category is rp.RaphsonWarning]
    bound = model.solution_.error_bound
    print(bound.sentence)
    if other:
        print(" ".join(other))
        return 1
    if not bound.certified:
        return 1
    if bound.largest > within:
        print(f"This is more than the {within:g} asked for: was the model fitted to this table?")
        return 1
    return 0


def run_diagnose(directory: Path, data: Path, *, json: bool) -> None:
    """Print the diagnosis of a saved model on the table that it was fitted to, or its JSON."""
    found = rp.diagnose(_attached(directory, data))
    print(found.to_json() if json else found)


def _attached(directory: Path, data: Path) -> Any:
    """Return a saved model with the rows of a table."""
    saved = rp.load(directory)
    model, design = saved.model, saved.design
    if isinstance(model, rp.BayesianMLP):
        raise rp.InputError(
            f"{directory} is a network, which has no exact optimum to compare with; its curvature is in the report "
            "that 'raphson fit --model mlp:... --report FILE' writes."
        )
    if design is None or design.target is None:
        raise rp.InputError(f"{directory} was saved without its design, so it cannot read a table.")
    frame = rp.read_table(data)
    with in_file(frame.index):
        training = design.training(frame)
    used = in_file(frame.index[training.rows])
    y: Any = training.y
    table: Any = pd.DataFrame(training.x, columns=list(training.names), copy=False)
    if getattr(model, "formula", None) is not None:
        table = frame.iloc[training.rows].reset_index(drop=True)
    del frame  # its coded rows are enough, and a large table is not held twice
    if isinstance(model, rp.MultinomialLogisticRegression):
        offset = offset_matrix(training.offset, len(model.classes_))
        with used:
            return model.attach(table, y, training.weights, offset)
    if model.levels_ is not None:
        y = pd.Series(pd.Categorical([str(value) for value in y], categories=model.levels_, ordered=True))
    elif training.event is not None:
        y = np.column_stack([y, training.event])
    offset = training.offset
    offset = offset[:, 0] if offset is not None and offset.shape[1] == 1 else offset
    with used:
        return model.attach(table, y, training.weights, offset)
