"""Values to JSON and back without loss: what plain JSON cannot hold is written as a tagged object.

JSON has no mapping with keys other than text, no NaN and no tuple. All three occur in what a fitted model
must remember (class weights by integer class, the state of a spline). A value of any other type is refused by
name; nothing is pickled.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from raphson._errors import InputError

_TAGS = {"$pairs", "$float", "$tuple", "$array"}


def encode(value: Any, where: str) -> Any:
    """Return ``value`` as something ``json.dumps`` writes and ``decode`` restores exactly.

    Args:
        value: None, bool, number, text, or lists, tuples, dictionaries and NumPy arrays of those.
        where: What the value is, for the error message.

    Returns:
        The JSON-able value.

    Raises:
        InputError: If the value, or one inside it, has another type.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [encode(item, where) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [encode(item, where) for item in value]}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufUO":
        items = encode(value.tolist(), where)
        return {"$array": items, "dtype": "object" if value.dtype.kind == "O" else value.dtype.str}
    if isinstance(value, dict):
        if all(type(key) is str and key not in _TAGS for key in value):
            return {key: encode(item, where) for key, item in value.items()}
        return {"$pairs": [[encode(key, where), encode(item, where)] for key, item in value.items()]}
    raise InputError(
        f"{where} holds a value of type {type(value).__name__}, which cannot be written to a model file; "
        "use numbers, text, and lists, dictionaries or arrays of them."
    )


def decode(value: Any) -> Any:
    """Return what ``encode`` was given.

    Args:
        value: A value read by ``json.loads``.

    Returns:
        The restored value.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return float(value["$float"])
    if "$tuple" in value:
        return tuple(decode(item) for item in value["$tuple"])
    if "$array" in value:
        return np.array(decode(value["$array"]), dtype=value["dtype"])
    if "$pairs" in value:
        return {decode(key): decode(item) for key, item in value["$pairs"]}
    return {key: decode(item) for key, item in value.items()}
