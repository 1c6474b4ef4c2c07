"""A likelihood as plain values and back: its class by name, its fields as numbers, text and lists."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._catalogue import catalogue
from raphson.likelihoods._likelihood import Likelihood
from raphson.likelihoods._links import LINKS, Link


def to_description(likelihood: Likelihood) -> dict[str, Any]:
    """Return a likelihood as a dictionary of plain values, of which ``from_description`` makes an equal one.

    Raises:
        InputError: If it is made from code (a function, a link or class of your own), which is not written to files.
    """
    kind = type(likelihood)
    if catalogue().get(kind.__name__) is not kind:
        raise InputError(f"{kind.__name__} is a likelihood of your own code, which cannot be written to a model file.")
    values = {field.name: _plain(getattr(likelihood, field.name), kind) for field in fields(likelihood) if field.init}  # type: ignore[arg-type]
    return {"class": kind.__name__, "fields": values}


def from_description(value: dict[str, Any]) -> Likelihood:
    """Return the likelihood that ``to_description`` described.

    Raises:
        InputError: If there is no such class, or it has no such fields.
    """
    name = value["class"]
    kind = catalogue().get(str(name))
    if kind is None:
        raise InputError(f"There is no likelihood '{name}'; the model file was changed, or written by a newer raphson.")
    try:
        return kind(**{key: _restored(item) for key, item in value["fields"].items()})
    except TypeError as error:
        raise InputError(f"The likelihood {name} of the model file cannot be made: {error}.") from None


def _plain(value: Any, kind: type) -> Any:
    if isinstance(value, Likelihood):
        return {"$likelihood": to_description(value)}
    if isinstance(value, Tensor):
        return {"$tensor": value.detach().cpu().tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Link) and LINKS.get(value.name) is value:
        return value.name
    if isinstance(value, list | tuple):
        return [_plain(item, kind) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(
        f"{kind.__name__} holds a {type(value).__name__}, which is code of your own and cannot be written to a model "
        "file."
    )


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_restored(item) for item in value)
    if isinstance(value, dict) and "$likelihood" in value:
        return from_description(value["$likelihood"])
    if isinstance(value, dict) and "$tensor" in value:
        return torch.tensor(value["$tensor"], dtype=getattr(torch, value["dtype"]))
    return value
