"""A likelihood by its name, which one suits a target, and targets as a likelihood takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

import raphson as rp
from raphson.likelihoods import Command

CATEGORICAL = "categorical"
MANY_LEVELS = 30
"""Whole numbers with more levels than this are counts or measurements; with fewer, classes."""


def suited_name(y: np.ndarray, column: str) -> tuple[str, str | None]:
    """Return a likelihood by what the target ``(N,)`` holds, and a sentence that says so, None for classes."""
    if y.dtype.kind not in "iuf":
        return CATEGORICAL, None
    levels = np.sort(pd.unique(y))
    if y.dtype.kind in "iu" and len(levels) <= MANY_LEVELS:
        return CATEGORICAL, None
    if y.dtype.kind in "iu" and levels[0] >= 0:
        name, what = "poisson", f"{len(levels)} different whole numbers, taken as counts"
    else:
        name, what = "gaussian", "numbers"
    return name, f"likelihood {name} for {column} ({what}); --likelihood chooses another"


def prepare_target(
    y: np.ndarray, choice: Command, column: str, given: str | None, trials: int | None
) -> tuple[Any, int, str | None]:
    """Return targets as the likelihood takes them, how many levels or trials, and a sentence on text without an order.

    ``given`` has levels in order, separated by commas, ``trials`` what successes are out of.

    Raises:
        InputError: If the levels are text without an order, or other than ``given``, or not two where two are needed,
            or successes without a number of trials.
    """
    name = choice.name
    if choice.target == "successes" and trials is None:
        raise rp.InputError(
            f"--likelihood {name}: column '{column}' holds successes out of how many? Say it with --trials N; where "
            "rows differ, use VectorGLM with two columns, successes and failures."
        )
    if choice.target != "successes" and trials is not None:
        raise rp.InputError(f"--trials is the number of trials of the binomial; '{name}' has none.")
    if choice.target in ("numbers", "successes"):
        if given is not None:
            raise rp.InputError(f"--levels orders the levels of an ordinal target; '{name}' has numbers.")
        return y, trials or 0, None
    found = list(dict.fromkeys(str(value) for value in np.sort(pd.unique(y))))
    levels = found
    if given is not None:
        levels = [level.strip() for level in given.split(",")]
        odd = [level for level in found if level not in levels]
        if odd or len(set(levels)) < len(levels):
            problem = f"'{odd[0]}' is missing" if odd else "a level is named twice"
            raise rp.InputError(f"--levels: {problem}; column '{column}' has {', '.join(found)}.")
    elif choice.target == "ordered" and y.dtype.kind not in "iuf":
        raise rp.InputError(
            f"column '{column}' is text, whose order is not known; say it, lowest first, with --levels "
            f'"{",".join(found)}" in the right order.'
        )
    if choice.target == "two" and len(levels) != 2:
        raise rp.InputError(
            f"column '{column}' has {len(levels)} levels ({', '.join(levels[:6])}), but '{name}' needs two; use "
            "--likelihood categorical or ordinal."
        )
    note = f"{column}: levels in the order {' < '.join(levels)}" if y.dtype.kind not in "iuf" else None
    ordered = pd.Series(pd.Categorical([str(value) for value in y], categories=levels, ordered=True))
    return ordered, len(levels), note
