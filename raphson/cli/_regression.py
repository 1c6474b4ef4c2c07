"""``raphson fit --likelihood``: a ``VectorGLM``, with one formula or one for each parameter."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

import raphson as rp
from raphson.cli._likelihoods import prepare_target
from raphson.cli._options import FitOptions, split_formulas
from raphson.cli._resume import resumed
from raphson.likelihoods import commands, make_likelihood
from raphson.table import TrainingData, split_formula, split_offsets

_LARGEST_TARGET = 1e150
"""Squares of larger numbers overflow."""


def complete_in_all(
    frame: pd.DataFrame, design: rp.Design, formulas: dict[str, str], options: FitOptions
) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows that are complete in all columns that the formulas read, and sentences on both."""
    rows, notes = [design.training(frame).rows], list[str]()
    for parameter, text in formulas.items():
        try:
            own = rp.Design.fit(
                frame, design.target, split_formula(text)[1], drop=options.drop, missing=options.missing
            )
        except rp.InputError as error:
            raise rp.InputError(f"--formula {parameter}=...: {error}", row=error.row) from None
        rows.append(own.training(frame).rows)
        notes += own.notes
    common = reduce(np.intersect1d, rows)
    return frame.iloc[common], notes


def fit_regression(
    frame: pd.DataFrame,
    design: rp.Design,
    data: TrainingData,
    name: str,
    named: dict[str, str],
    options: FitOptions,
    before: rp.Saved | None = None,
) -> tuple[Any, list[str]]:
    """Return a fitted likelihood by its name, and sentences on it; the rows are complete in all columns used."""
    _, choice = commands()[name]
    target = design.target or ""
    assert data.y is not None
    y, number, note = prepare_target(data.y, choice, target, options.levels, options.trials)
    if isinstance(y, np.ndarray) and y.dtype.kind in "iuf":
        y = y.astype(np.float64) if y.dtype.kind == "u" else y
        large = np.abs(y.astype(np.float64)) > _LARGEST_TARGET
        if large.any():
            row = int(large.argmax())
            raise rp.InputError(
                f"column '{target}', row {row}: {y[row]:g} is too large to compute with; change the unit of the "
                "column.",
                row=row,
            )
    likelihood = make_likelihood(name, number, options.link)
    if data.event is not None:
        if not hasattr(likelihood, "censored"):
            raise rp.InputError(f"column '{design.event}' says which times are censored, which '{name}' does not take.")
        likelihood, y = replace(likelihood, censored=True), np.column_stack([y, data.event])  # type: ignore[type-var]
    settings: dict[str, Any] = {
        "l2": options.l2,
        "penalty": options.penalty,
        "tol": options.tol,
        "max_iter": options.max_iter,
        "progress": options.progress,
    }
    offset = data.offset[:, 0] if data.offset is not None and data.offset.shape[1] == 1 else data.offset
    notes = [note] if note else []
    if not named:
        x = pd.DataFrame(data.x, columns=list(data.names), copy=False)
        model = rp.VectorGLM(likelihood, constraints=choice.constraints, fit_intercept=design.fit_intercept, **settings)
        if before is not None:
            model = resumed(model, before, design, data.y, options.save)
        return model.fit(x, y, sample_weight=data.weights, offset=offset), notes
    if choice.target == "ordered":
        raise rp.InputError(
            f"--formula {next(iter(named))}=...: the levels of '{name}' share their slopes; give one formula."
        )
    first = likelihood.parameters[0]
    main = split_formulas(options.formula)[0]
    formulas = ({} if first in named else {first: split_offsets(split_formula(main or ".")[1])[0]}) | {
        p: split_formula(t)[1] for p, t in named.items()
    }
    given = (design.weights, design.groups, design.event, options.exposure)
    # what `.` stands for: all columns without a role
    roles = {role for role in (*given, *design.offset, target, *options.drop) if role}
    model = rp.VectorGLM(likelihood, formula=formulas, **settings)
    if before is not None:
        model = resumed(model, before, design, data.y, options.save)
    table = frame.drop(columns=list(roles)).reset_index(drop=True)
    return model.fit(table, y, sample_weight=data.weights, offset=offset), notes
