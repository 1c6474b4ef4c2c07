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
        InputError: If the kind is not one of this package, a tensor is missing, or another one is there.

    Examples:
        >>> import torch
        >>> from raphson.linalg import Dense
        >>> from_state_dict("Dense", Dense(torch.eye(2)).state_dict()) @ torch.ones(2)
        tensor([1., 1.])
    """
    kinds = {found.__name__: found for found in _stored(LinearOperator)}  # type: ignore[type-abstract]
    if kind not in kinds:
        raise InputError(
            f"There is no operator of kind '{kind}' to load; the kinds are {', '.join(sorted(kinds))}. Of an operator "
            "of a network's layers give type(op.operator).__name__."
        )
    names = [f.name for f in fields(kinds[kind]) if f.name != "labels"]  # type: ignore[arg-type]
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"The saved '{key}' of a {kind} is a {type(tensor).__name__}, and a tensor belongs there.")
        if key.split(".")[0] not in names:
            raise InputError(f"The saved {kind} has '{key}', and its parts are {', '.join(names)}. {_REMEDY}")
    values: dict[str, Any] = {}
    for f in fields(kinds[kind]):  # type: ignore[arg-type]
        if f.name == "labels":
            continue
        part = _below(f.name, tensors)
        if not part:
            raise InputError(f"The saved {kind} lacks its part '{f.name}'. {_REMEDY}")
        value = _value(f"{kind}: {f.name}", part)
        values[f.name] = int(value) if f.type == "int" else value
    if labels is not None:
        values["labels"] = labels
    return kinds[kind](**values)


_REMEDY = "Was it written by this version, for an operator of this kind?"


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


def _value(name: str, part: dict[str, Tensor]) -> Any:
    """Return the tensor, the operator or the tuple of operators that a part describes."""
    if "" in part:
        return part[""]
    heads = {key.split(".")[0] for key in part}
    if all(head.isdigit() for head in heads):
        numbers = sorted(map(int, heads))
        missing = next((i for i, number in enumerate(numbers) if i != number), None)
        if missing is not None:
            raise InputError(f"The saved {name} lacks its operator {missing} (there are {numbers}). {_REMEDY}")
        return tuple(_value(f"{name}.{i}", _below(str(i), part)) for i in numbers)
    if len(heads) > 1:
        raise InputError(f"The saved {name} is of several kinds, {', '.join(sorted(heads))}. {_REMEDY}")
    head = heads.pop()
    return from_state_dict(head, _below(head, part))
