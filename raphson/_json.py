"""Values to JSON and back without loss: what plain JSON cannot hold is written as a tagged object.

JSON has no mapping with keys other than text, no NaN and no tuple. All three occur in what a fitted model
must remember (class weights by integer class, the state of a spline). A value of any other type is refused by
name; nothing is pickled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from raphson._errors import InputError

_TAGS = {"$pairs", "$float", "$tuple", "$array"}
_DTYPE = re.compile(r"object|[<>|=][biuf][1248]|[<>|=]U\d{1,6}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LARGEST = 1.7976931348623157e308
"""Whole numbers of JSON have no bound; those beyond float64 are no numbers here."""


def _refuse_surrogate(text: str, where: str) -> None:
    if _SURROGATE.search(text):
        raise InputError(
            f"{where} holds the text {text!r:.60}, which has half a character in it and cannot be written to a model "
            "file; read the table in the encoding that it has."
        )


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
    if isinstance(value, str):
        _refuse_surrogate(value, where)
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
            for key in value:
                _refuse_surrogate(key, where)
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

    Raises:
        InputError: If a tagged object does not hold what its tag says.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next((key for key in value if key in _TAGS), None)
    if tag is None:
        return {key: decode(item) for key, item in value.items()}
    held = value[tag]
    try:
        if tag == "$float" and isinstance(held, str):
            return float(held)
        if tag == "$tuple" and isinstance(held, list):
            return tuple(decode(item) for item in held)
        if tag == "$array" and isinstance(held, list) and _DTYPE.fullmatch(value["dtype"]):
            return np.array(decode(held), dtype=value["dtype"])
        if tag == "$pairs":
            return {decode(key): decode(item) for key, item in held}
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{tag} holds something else than it says; the file was changed.")


# What a file must hold, as checks that are put together: CHECK(value, name) raises InputError, which names the field.

Check = Callable[[Any, str], None]


def refuse(name: str, expected: str, value: Any) -> NoReturn:
    """Raise the error for a field that does not hold what it must.

    Args:
        name: The field.
        expected: What it must hold.
        value: What it holds.

    Raises:
        InputError: Always.
    """
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    raise InputError(f"the field '{name}' must be {expected}, not {shown}; the file was changed.")


def one_of(*values: Any) -> Check:
    """Return the check for one of the given values."""

    def check(value: Any, name: str) -> None:
        if not any(type(value) is type(known) and value == known for known in values):
            refuse(name, f"one of {', '.join(map(repr, values))}", value)

    return check


def instance(expected: str, *types: type, least: float | None = None, most: float = math.inf) -> Check:
    """Return the check for a value of a type (a truth value is no number), numbers within bounds."""

    def check(value: Any, name: str) -> None:
        fine = type(value) in types or (float in types and type(value) is int)
        if isinstance(value, str):
            fine = fine and not _SURROGATE.search(value)
        elif fine and isinstance(value, int | float) and not isinstance(value, bool):
            if least is not None:
                fine = least <= value <= most  # NaN is not
            elif isinstance(value, int):
                fine = abs(value) <= _LARGEST or float not in types
        if not fine:
            refuse(name, expected, value)

    return check


def maybe(check: Check) -> Check:
    """Return the check for None or what another check takes."""
    return lambda value, name: None if value is None else check(value, name)


def either(*checks: Check) -> Check:
    """Return the check for what one of several takes; the last one speaks if none does."""

    def check(value: Any, name: str) -> None:
        for first in checks[:-1]:
            try:
                return first(value, name)
            except InputError:
                continue
        return checks[-1](value, name)

    return check


def list_of(check: Check, types: tuple[type, ...] = (list,)) -> Check:
    """Return the check for a list whose items another check takes."""

    def each(value: Any, name: str) -> None:
        if not isinstance(value, list | tuple) or not isinstance(value, types):
            refuse(name, "a list", value)
        for position, item in enumerate(value):
            check(item, f"{name}[{position}]")

    return each


def map_of(check: Check, keys: Check | None = None) -> Check:
    """Return the check for a mapping, from texts unless said otherwise, whose values another check takes."""

    def each(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            refuse(name, "a mapping", value)
        for key, item in value.items():
            (keys or TEXT)(key, f"a key of {name}")
            check(item, f"{name}.{key}")

    return each


def record(fields: dict[str, Check], optional: bool = False) -> Check:
    """Return the check for a mapping with exactly these fields, or some of them."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            refuse(name, "a mapping", value)
        wrong = set(value) - set(fields) or (set() if optional else set(fields) - set(value))
        if wrong:
            refuse(name, f"a mapping with the fields {', '.join(fields)}", sorted(map(str, value)))
        for key, item in value.items():
            fields[key](item, f"{name}.{key}")

    return check


TEXT = instance("a text", str)
FINITE = instance("a finite number", float, least=-_LARGEST, most=_LARGEST)
FLAG = instance("true or false", bool)
WHOLE = instance("a whole number of at least 0", int, least=0, most=2**53)
NUMBER = instance("a number", float)
NONNEGATIVE = instance("a number of at least 0", float, least=0)
