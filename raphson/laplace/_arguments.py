"""Numbers that callers give: what they must be, in one sentence."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from raphson._errors import InputError


def positive_number(name: str, value: Any, why: str = "") -> float:
    """Return a number; ``InputError`` unless it is positive and finite, with a sentence ``why`` behind."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not (math.isfinite(found) and found > 0):
        shown = f"{value:g}" if isinstance(value, Real) else repr(value)
        raise InputError(f"{name} is {shown}, but it must be a positive finite number.{why}")
    return found


def whole_number(name: str, value: Any) -> int:
    """Return a number; ``InputError`` unless it is a whole number from 1 on."""
    if not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name} is {value!r}, but it must be a whole number, 1 or more.")
    return int(value)
