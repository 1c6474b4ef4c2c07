"""``raphson fit`` of classes: a ``MultinomialLogisticRegression``."""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
import pandas as pd

import raphson as rp
from raphson.cli._options import FitOptions
from raphson.cli._resume import resumed
from raphson.table import LARGEST_WHOLE, TrainingData

_MANY_NUMBERS = 20
_PLACES = ("first", "last", "none")
"""What --reference says without the name of a class."""


def fit_classes(
    design: rp.Design, data: TrainingData, options: FitOptions, before: rp.Saved | None = None
) -> tuple[Any, list[str]]:
    """Return a fitted multinomial model, and sentences on it; options that do not suit the classes are refused."""
    assert data.y is not None
    large = np.abs(data.y) > LARGEST_WHOLE if data.y.dtype.kind == "f" else np.zeros(1, dtype=bool)
    if large.any():
        row = int(large.argmax())
        raise rp.InputError(
            f"column '{design.target}', row {row}: {data.y[row]:.17g} is too large to be a class, because numbers of "
            "that size are not exact; put a letter in front, so that they are texts.",
            row=row,
        )
    if data.y.dtype.kind == "f":
        raise rp.InputError(
            f"the target '{design.target}' holds fractional numbers; a categorical target needs classes."
        )
    # most fits need no list of classes, which takes a pass over the rows that the fit makes, too
    named = options.reference not in _PLACES
    is_number = data.y.dtype.kind in "iu"
    needed = named or is_number or data.weights is not None or data.offset is not None
    classes = np.sort(pd.unique(data.y)) if needed else data.y[:0]
    _refuse_classes_without_weight(data, classes, options.weights)
    notes = []
    if is_number and len(classes) > _MANY_NUMBERS:
        notes.append(f"{design.target}: {len(classes)} different whole numbers, each taken as a class of its own")
    model = rp.MultinomialLogisticRegression(
        l2=options.l2,
        penalty=options.penalty,
        fit_intercept=design.fit_intercept,
        reference=_reference(options.reference, classes),
        tol=options.tol,
        max_iter=options.max_iter,
        progress=options.progress,
    )
    if before is not None:
        model = resumed(model, before, design, data.y, options.save)
    x = pd.DataFrame(data.x, columns=list(data.names), copy=False)
    model.fit(x, data.y, sample_weight=data.weights, offset=offset_matrix(data.offset, len(classes)))
    return model, notes


def offset_matrix(offset: np.ndarray | None, n_classes: int) -> np.ndarray | None:
    """Return offsets as ``(N, K)``; a single column for two classes belongs to the second, others are refused."""
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
        row = int(np.argmax(data.y == label))
        raise rp.InputError(
            f"column '{column}': every row of the class '{label}' has weight 0 (the first is row {row}); give those "
            "rows weight, or take them out of the table.",
            row=row,
        )


def _reference(asked: str, classes: np.ndarray) -> Any:
    if asked in _PLACES:
        return None if asked == "none" else asked
    by_text = {str(label): label for label in classes}
    if asked in by_text:
        return by_text[asked]
    near = difflib.get_close_matches(asked, by_text, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the classes are {', '.join(list(by_text)[:12])}."
    raise rp.InputError(f"--reference: there is no class '{asked}'; {hint}")


def class_table(shares: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Return the likeliest class of each row and the probabilities ``(N, K)`` of all."""
    result = pd.DataFrame({"predicted": labels[shares.argmax(axis=1)]})
    for label, column in zip(labels, shares.T, strict=True):
        result[f"probability[{label}]"] = column
    return result
