"""Likelihoods as plain data and back, so that a saved model needs no code in its files."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from raphson import likelihoods
from raphson._errors import InputError
from raphson.likelihoods import Likelihood, Link
from raphson.likelihoods._links import LINKS


def encode_likelihood(likelihood: Likelihood) -> dict[str, Any]:
    """Return a likelihood of the catalogue as its class name and arguments.

    Args:
        likelihood: The likelihood.

    Returns:
        What ``decode_likelihood`` takes.

    Raises:
        InputError: If it is made of functions, or of a class that is not in the catalogue.
    """
    name = type(likelihood).__name__
    if getattr(likelihoods, name, None) is not type(likelihood) or not dataclasses.is_dataclass(likelihood):
        raise InputError(f"A {name} cannot be saved: only likelihoods of the catalogue can be rebuilt without code.")
    fields = {field.name: getattr(likelihood, field.name) for field in dataclasses.fields(likelihood) if field.init}
    return {"class": name, "fields": {key: _encode(value, name) for key, value in fields.items()}}


def decode_likelihood(content: dict[str, Any]) -> Likelihood:
    """Return the likelihood that ``encode_likelihood`` was given.

    Args:
        content: What it returned.

    Returns:
        The likelihood.

    Raises:
        InputError: If the class is not in the catalogue.
    """
    cls = getattr(likelihoods, content["class"], None)
    if not (isinstance(cls, type) and issubclass(cls, Likelihood) and dataclasses.is_dataclass(cls)):
        raise InputError(f"The likelihood {content['class']!r} is not known to this version of raphson.")
    made: Likelihood = cls(**{key: _decode(value) for key, value in content["fields"].items()})
    return made


def _encode(value: Any, where: str) -> Any:
    if isinstance(value, Likelihood):
        return {"$likelihood": encode_likelihood(value)}
    if isinstance(value, Tensor):
        return {"$tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Link) and LINKS.get(value.name) is value:
        return value.name
    if isinstance(value, list | tuple):
        return [_encode(item, where) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"A {where} with a {type(value).__name__} of its own cannot be saved: it is code, not data.")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if isinstance(value, dict) and "$likelihood" in value:
        return decode_likelihood(value["$likelihood"])
    if isinstance(value, dict) and "$tensor" in value:
        return torch.tensor(value["$tensor"], dtype=getattr(torch, value["dtype"]))
    return value
