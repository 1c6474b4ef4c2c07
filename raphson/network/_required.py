"""Whether what is given is an objective, as every curvature takes one."""

from __future__ import annotations

from typing import Any

from raphson._errors import InputError
from raphson.network._objective import Objective


def check_objective(given: Any) -> None:
    """Raise ``InputError`` for what is no objective: a model, say."""
    if not isinstance(given, Objective):
        name = type(given).__name__
        raise InputError(f"This takes an objective, and got a {name}: give rp.Objective(model, likelihood, data).")
