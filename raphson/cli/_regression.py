"""``raphson fit --likelihood``: a ``VectorGLM``, with one formula or one for each parameter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import raphson as rp
from raphson.cli._likelihoods import prepare_target
from raphson.likelihoods import commands
from raphson.table import TrainingData

if TYPE_CHECKING:
    from raphson.cli._fit import FitOptions

_NAMED = re.compile(r"\s*([\w|]+(?:\[\d+\])?)\s*=\s*([^~]*~.*)", re.DOTALL)


def split_formulas(formulas: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Return the formula without a parameter's name, and those with one.

    Args:
        formulas: Such as ``"y ~ x1"`` and ``"log_scale=~ x1"``.

    Returns:
        The first kind, or None, and the second by parameter.

    Raises:
        InputError: If there are two for the same.
    """
    main: list[str] = []
    named: dict[str, str] = {}
    for text in formulas:
        found = _NAMED.fullmatch(text)
        if found is None:
            main.append(text)
        elif found[1] in named:
            raise rp.InputError(f"--formula: the parameter '{found[1]}' has two formulas; give one.")
        else:
            named[found[1]] = found[2]
    if len(main) > 1:
        raise rp.InputError(
            f"--formula: '{main[0]}' and '{main[1]}' both name no parameter; write the second as 'log_scale=~ x1', say."
        )
    return (main[0] if main else None), named


def complete_in_all(
    frame: pd.DataFrame, design: rp.Design, formulas: dict[str, str], options: FitOptions
) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows that are complete in every column that the formulas of parameters read.

    Args:
        frame: The table.
        design: The design of the main formula, with the roles of columns.
        formulas: Formulas by parameter.
        options: What was asked for.

    Returns:
        The rows, and sentences on how columns are coded and how many rows are left out.

    Raises:
        InputError: If a formula cannot be used; the message names its parameter.
    """
    rows, notes = [design.training(frame).rows], list[str]()
    for parameter, text in formulas.items():
        try:
            own = rp.Design.fit(frame, design.target, _right(text), drop=options.drop, missing=options.missing)
        except rp.InputError as error:
            raise rp.InputError(f"--formula {parameter}=...: {error}") from None
        rows.append(own.training(frame).rows)
        notes += own.notes
    common = reduce(np.intersect1d, rows)
    return frame.iloc[common], notes


def fit_regression(
    frame: pd.DataFrame, design: rp.Design, data: TrainingData, name: str, named: dict[str, str], options: FitOptions
) -> tuple[Any, list[str]]:
    """Fit the named likelihood.

    Args:
        frame: The table, rows complete in all columns used.
        design: The design of the main formula.
        data: What it makes of the table.
        name: A key of ``raphson.likelihoods.commands()``.
        named: Formulas by parameter.
        options: What was asked for.

    Returns:
        The fitted model, and sentences on it.

    Raises:
        InputError: If the target does not suit the likelihood, or formulas by parameter do not.
    """
    kind, choice = commands()[name]
    target = design.target or ""
    assert data.y is not None
    y, number, note = prepare_target(data.y, choice, target, options.levels, options.trials)
    likelihood = choice.make(kind, number)
    settings: dict[str, Any] = {
        "l2": options.l2,
        "tol": options.tol,
        "max_iter": options.max_iter,
        "progress": options.progress,
    }
    offset = data.offset[:, 0] if data.offset is not None and data.offset.shape[1] == 1 else data.offset
    notes = [note] if note else []
    if not named:
        x = pd.DataFrame(data.x, columns=list(data.names))
        model = rp.VectorGLM(likelihood, constraints=choice.constraints, fit_intercept=design.fit_intercept, **settings)
        return model.fit(x, y, sample_weight=data.weights, offset=offset), notes
    if choice.target == "ordered":
        raise rp.InputError(
            f"--formula {next(iter(named))}=...: the levels of '{name}' share their slopes; give one formula."
        )
    first = likelihood.parameters[0]
    main = split_formulas(options.formula)[0]
    formulas = ({} if first in named else {first: _right(main or ".")}) | {p: _right(t) for p, t in named.items()}
    # what `.` stands for: all columns without a role
    roles = {role for role in (design.weights, design.groups, *design.offset, target, *options.drop) if role}
    model = rp.VectorGLM(likelihood, formula=formulas, **settings)
    table = frame.drop(columns=list(roles)).reset_index(drop=True)
    return model.fit(table, y, sample_weight=data.weights, offset=offset), notes


def _right(formula: str) -> str:
    """Return the right side; the target has its own place."""
    return formula.rpartition("~")[2].strip() or formula
