"""A likelihood by its name, as on the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from raphson._errors import InputError
from raphson.likelihoods import Categorical, Likelihood, command_name, commands, make_likelihood


def named_likelihood(name: str, y: Any, censored: bool) -> Likelihood:
    """Return the likelihood of a name, with the number of levels and the censoring that the targets have.

    Raises:
        InputError: If there is no such name, or it needs to be told more.
    """
    name = command_name(name)
    if name == "categorical":
        return Categorical()
    _, command = commands()[name]
    if command.target == "successes" and np.ndim(y) != 2:
        raise InputError(
            f"The likelihood {name!r} counts successes out of how many? Pass rp.Binomial(trials=N), or targets of two "
            "columns, successes and failures."
        )
    number = 0
    if command.target == "ordered":
        number = len(y.cat.categories) if hasattr(y, "cat") else len(np.unique(np.asarray(y)))
    found = make_likelihood(name, number)
    return replace(found, censored=True) if censored and hasattr(found, "censored") else found  # type: ignore[type-var]
