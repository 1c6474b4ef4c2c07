"""A likelihood by its name, as on the command line."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

import numpy as np

from raphson._errors import InputError
from raphson.likelihoods import Categorical, Command, Likelihood, commands


def find_command(name: str) -> Command | None:
    """Return what the command line knows of a likelihood's name; None for ``"categorical"``.

    Args:
        name: In any spelling, ``student_t`` for ``student-t``.

    Returns:
        The command.

    Raises:
        InputError: If there is none.
    """
    known, asked = commands(), name.strip().lower().replace("_", "-").replace(" ", "-")
    if asked == "categorical":
        return None
    if asked in known:
        return known[asked][1]
    near = difflib.get_close_matches(asked, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"choose one of categorical, {', '.join(known)}."
    raise InputError(f"There is no likelihood called {name!r}; {hint}")


def named_likelihood(name: str, y: Any, censored: bool) -> Likelihood:
    """Return the likelihood of a name for given targets.

    Args:
        name: The name.
        y: Targets, whose number of levels an ordinal likelihood takes.
        censored: Whether targets are pairs of time and event.

    Returns:
        The likelihood.

    Raises:
        InputError: If there is no such name, or it needs to be told more.
    """
    command = find_command(name)
    if command is None:
        return Categorical()
    kind, _ = commands()[command.name]
    if command.target == "successes" and np.ndim(y) != 2:
        raise InputError(
            f"The likelihood {name!r} counts successes out of how many? Pass rp.Binomial(trials=N), or targets of two "
            "columns, successes and failures."
        )
    number = 0
    if command.target == "ordered":
        number = len(y.cat.categories) if hasattr(y, "cat") else len(np.unique(np.asarray(y)))
    found = kind(**command.arguments) if command.target == "successes" else command.make(kind, number)
    return replace(found, censored=True) if censored and hasattr(found, "censored") else found  # type: ignore[type-var]
