"""Operators from the tensors that determine them, without pickling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from inspect import isabstract
from typing import Any

from torch import Tensor

from raphson._errors import InputError
from raphson.linalg._operator import LinearOperator


def from_state_dict(
    kind: str, tensors: Mapping[str, Tensor], *, labels: tuple[str, ...] | None = None
) -> LinearOperator:
    """Rebuild an operator from what ``state_dict`` returned.

    Args:
        kind: Name of its class, ``type(op).__name__``.
        tensors: What ``op.state_dict()`` returned, perhaps by way of a file.
        labels: Names of the parameters, which a ``state_dict`` does not hold.

    Returns:
        The operator.

    Raises:
        InputError: If the kind is not one of this package, or a tensor is missing.

    Examples:
        >>> import torch
        >>> from raphson.linalg import Dense
        >>> from_state_dict("Dense", Dense(torch.eye(2)).state_dict()) @ torch.ones(2)
        tensor([1., 1.])
    """
    kinds = {found.__name__: found for found in _stored(LinearOperator)}  # type: ignore[type-abstract]
    if kind not in kinds:
        raise InputError(f"There is no operator of kind '{kind}' to load; the kinds are {', '.join(sorted(kinds))}.")
    values: dict[str, Any] = {}
    for f in fields(kinds[kind]):  # type: ignore[arg-type]
        if f.name == "labels":
            continue
        part = _below(f.name, tensors)
        if not part:
            raise InputError(f"The saved {kind} lacks its part '{f.name}'. Was the file written by this version?")
        value = _value(part)
        values[f.name] = int(value) if f.type == "int" else value
    if labels is not None:
        values["labels"] = labels
    return kinds[kind](**values)


def _stored(kind: type[LinearOperator]) -> Iterator[type[LinearOperator]]:
    """Yield the classes of this package whose fields determine the operator; a file names no others."""
    for member in kind.__subclasses__():
        yield from _stored(member)
        own = member.__module__.startswith("raphson.linalg.") and is_dataclass(member)
        if own and not isabstract(member) and member.state_dict is LinearOperator.state_dict:
            yield member


def _below(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under a name, by the rest of their names, which is empty for the name itself."""
    found = {key.removeprefix(name + "."): tensor for key, tensor in tensors.items() if key.startswith(name + ".")}
    return {"": tensors[name]} if name in tensors else found


def _value(part: dict[str, Tensor]) -> Any:
    """Return the tensor, the operator or the tuple of operators that a part describes."""
    if "" in part:
        return part[""]
    head = next(iter(part)).split(".")[0]
    if not head.isdigit():
        return from_state_dict(head, _below(head, part))
    count = 1 + max(int(key.split(".")[0]) for key in part)
    return tuple(_value(_below(str(i), part)) for i in range(count))
