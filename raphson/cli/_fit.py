"""``raphson fit``: table, design, estimator, report, in this order."""

from __future__ import annotations

import difflib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

import raphson as rp
from raphson.cli._likelihoods import CATEGORICAL, find_name, suited_name
from raphson.cli._regression import complete_in_all, fit_regression, split_formulas
from raphson.cli._render import render
from raphson.saved import check_target
from raphson.table import TrainingData

_MANY_NUMBERS = 20


@dataclass(frozen=True)
class FitOptions:
    """Arguments of ``raphson fit``, by the names of its options."""

    data: Path
    target: str | None
    formula: tuple[str, ...]
    likelihood: str | None
    levels: str | None
    trials: int | None
    weights: str | None
    offset: tuple[str, ...]
    drop: tuple[str, ...]
    missing: str
    l2: float
    reference: str
    covariance: Literal["observed", "expected", "sandwich"] | None
    groups: str | None
    level: float
    max_iter: int
    tol: float
    save: Path | None
    quiet: bool
    progress: bool


def run_fit(options: FitOptions) -> int:
    """Fit, print, save.

    Args:
        options: What was asked for.

    Returns:
        Exit code: 0 if the result is usable, 1 if the fit did not converge or the classes are separated.

    Raises:
        InputError: If the options contradict each other or the data cannot be used.
    """
    name = None if options.likelihood is None else find_name(options.likelihood)
    formula, named = split_formulas(options.formula)
    if options.target is None and not any(_names_target(text) for text in (formula or "", *named.values())):
        raise rp.InputError("say what to predict: --target COLUMN, or --formula 'COLUMN ~ ...'.")
    if not 0 < options.level < 1:
        raise rp.InputError(f"--level is a probability between 0 and 1, such as 0.95, not {options.level:g}.")
    if options.groups is not None and options.covariance not in (None, "sandwich"):
        raise rp.InputError("--groups gives clustered standard errors; use it with --covariance sandwich.")
    if options.l2 > 0 and options.covariance in ("observed", "expected"):
        raise rp.InputError(
            f"--covariance {options.covariance} does not go with --l2: the inverse information is not the "
            "sampling covariance of penalized estimates; use --covariance sandwich, or no penalty."
        )
    if options.save is not None:
        check_target(options.save)
    frame = rp.read_table(options.data)
    target = options.target or next((_left(text) for text in named.values() if _names_target(text)), None)
    design = rp.Design.fit(
        frame,
        target,
        formula,
        weights=options.weights,
        offset=options.offset,
        groups=options.groups,
        drop=options.drop,
        missing=options.missing,
    )
    notes = list(design.notes)
    if named:
        frame, more = complete_in_all(frame, design, named, options)
        notes += more
    data = design.training(frame)
    assert data.y is not None
    if name is None:
        name, why = suited_name(data.y, design.target or "")
        notes += [why] if why else []
    with warnings.catch_warnings():
        # What the fit warns of is in the notes of its summary, and in the exit code.
        warnings.simplefilter("ignore")
        if name == CATEGORICAL:
            if named or options.levels or options.trials:
                what = f"--formula {next(iter(named))}=..." if named else "--levels" if options.levels else "--trials"
                raise rp.InputError(f"{what} does not go with classes; say with --likelihood what the target is.")
            model, more = _fit_classes(design, data, options)
        else:
            if options.reference != "first":
                raise rp.InputError(f"--reference is a class, and '{name}' has none.")
            model, more = fit_regression(frame, design, data, name, named, options)
        notes += more
        summary = model.summary(kind=options.covariance, level=options.level, groups=data.groups)
    heading = f"{design.target} = {{}}" if name == CATEGORICAL else f"{{}} of {design.target}"
    try:
        if not options.quiet:
            render(summary, [*notes, *summary.notes], heading)
    finally:  # a reader of the pipe that leaves early does not cost the model
        if options.save is not None:
            rp.save(model, options.save, design)
    if model.solution_.converged:
        return 0
    render_problem(model.solution_.status.sentence, summary.notes, options.quiet)
    return 1


def _fit_classes(design: rp.Design, data: TrainingData, options: FitOptions) -> tuple[Any, list[str]]:
    """Return the fitted multinomial model, and sentences on it."""
    assert data.y is not None
    if data.y.dtype.kind == "f":
        raise rp.InputError(
            f"the target '{design.target}' holds fractional numbers; a categorical target needs classes."
        )
    classes = np.unique(data.y)
    _refuse_classes_without_weight(data, classes, options.weights)
    notes = []
    if data.y.dtype.kind in "iu" and len(classes) > _MANY_NUMBERS:
        notes.append(f"{design.target}: {len(classes)} different whole numbers, each taken as a class of its own")
    model = rp.MultinomialLogisticRegression(
        l2=options.l2,
        fit_intercept=design.fit_intercept,
        reference=_reference(options.reference, classes),
        tol=options.tol,
        max_iter=options.max_iter,
        progress=options.progress,
    )
    x = pd.DataFrame(data.x, columns=list(data.names))
    model.fit(x, data.y, sample_weight=data.weights, offset=offset_matrix(data.offset, len(classes)))
    return model, notes


def _left(formula: str) -> str:
    return formula.split("~")[0].strip(" `")


def _names_target(formula: str) -> bool:
    return "~" in formula and _left(formula) != ""


def render_problem(sentence: str, notes: Any, quiet: bool) -> None:
    """Say on standard error why the result is not usable.

    Args:
        sentence: The status of the fit.
        notes: Notes of the summary; shown only where they were not printed already.
        quiet: Whether nothing was printed.
    """
    import sys

    detail = " ".join(notes) if quiet else ""
    print(f"raphson: this fit is not usable. {sentence} {detail}".rstrip(), file=sys.stderr)


def offset_matrix(offset: np.ndarray | None, n_classes: int) -> np.ndarray | None:
    """Return offsets as ``(N, K)``; a single column for two classes belongs to the second.

    Args:
        offset: ``(N, M)`` or None.
        n_classes: K.

    Returns:
        ``(N, K)`` or None.

    Raises:
        InputError: If there is another number of columns.
    """
    if offset is None or offset.shape[1] == n_classes:
        return offset
    if offset.shape[1] == 1 and n_classes == 2:
        return np.column_stack([np.zeros(len(offset)), offset[:, 0]])
    raise rp.InputError(
        f"--offset was given {offset.shape[1]} times for {n_classes} classes; give it once per class, in sorted order."
    )


def _refuse_classes_without_weight(data: TrainingData, classes: np.ndarray, column: str | None) -> None:
    if data.weights is None or data.y is None:
        return
    for label in np.setdiff1d(classes, data.y[data.weights > 0]):
        row = int(data.rows[np.argmax(data.y == label)]) + 1
        raise rp.InputError(
            f"column '{column}': every row of the class '{label}' has weight 0 (the first is data row "
            f"{row}); give those rows weight, or take them out of the table."
        )


def _reference(asked: str, classes: np.ndarray) -> Any:
    if asked == "none":
        return None
    if asked in ("first", "last"):
        return asked
    by_text = {str(label): label for label in classes}
    if asked in by_text:
        return by_text[asked]
    near = difflib.get_close_matches(asked, by_text, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the classes are {', '.join(list(by_text)[:12])}."
    raise rp.InputError(f"--reference: there is no class '{asked}'; {hint}")
