"""``raphson fit --resume``: a fit that begins at the coefficients of the model in ``--save DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import raphson as rp


def model_before(directory: Path | None) -> rp.Saved | None:
    """Return the model that a fit goes on from; None where the directory holds none yet.

    Raises:
        InputError: If there is no directory to look in, or its model cannot be read.
    """
    if directory is None:
        raise rp.InputError("--resume goes on from the model in --save DIR; say which directory.")
    if not directory.exists() or not any(directory.iterdir()):
        return None
    return rp.load(directory)


def resumed(model: Any, before: rp.Saved, design: rp.Design, y: np.ndarray, directory: Path | None) -> Any:
    """Return an estimator with the arguments of ``model`` that starts at the coefficients of a saved one.

    Raises:
        InputError: If the saved model has other columns, classes or another likelihood than this fit.
    """
    old = before.model
    differs = None
    if before.design is None or before.design.names != design.names or before.design.target != design.target:
        differs = "other columns"
    elif type(old) is not type(model) or repr(_of(old, "likelihood")) != repr(_of(model, "likelihood")):
        differs = "another likelihood"
    elif _of(old, "formula") != _of(model, "formula") or before.design.fit_intercept != design.fit_intercept:
        differs = "other formulas"
    elif hasattr(old, "classes_") and not np.array_equal(old.classes_, np.unique(y)):
        differs = "other classes"
    if differs is not None:
        raise rp.InputError(
            f"--resume: the model in {directory} has {differs} than this fit; leave --resume out, or save elsewhere."
        )
    return old.set_params(**model.get_params(deep=False) | {"warm_start": True})


def _of(model: Any, name: str) -> Any:
    return getattr(model, name, None)
