"""Parameter groups as parts of one vector: step sizes and weight decays entry by entry, where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.optim._options import not_negative

OPTIONS = ("lr", "weight_decay")
"""What groups may have of their own."""

_SHOWN = 4
"""Names in the line of a group; of more the first and the last are shown."""

Groups = list[dict[str, Any]]
"""Parameter groups as torch has them."""


def group_names(params: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Return the parameters of all groups together, and the groups with names in the place of tensors.

    Args:
        params: What was given: None, names, a dictionary of tensors, or groups ``{"params": names, ...}``.

    Returns:
        Names, None or tensors for a model; and groups, empty where there is one for all.

    Raises:
        InputError: A group has no names.
    """
    if params is None or isinstance(params, str | Mapping):
        return params, []
    found = list(params)
    if any(isinstance(one, Tensor) for one in found):
        raise InputError(
            "params holds tensors, but curvature belongs to layers, which tensors do not tell: give names or prefixes "
            "of names, as in params=['head'], or leave it out for all."
        )
    if not found or not isinstance(found[0], dict):
        return found, []
    names: list[str] = []
    for group in found:
        own = group.get("params")
        own = [own] if isinstance(own, str) else list(own or ())
        if not own or not all(isinstance(name, str) for name in own):
            raise InputError(
                "A parameter group needs 'params' with names, or prefixes of names, of the model's parameters, as in "
                "{'params': ['head'], 'lr': 0.1}: curvature belongs to layers, which tensors do not tell."
            )
        unknown = set(group) - {"params", "initial_lr", *OPTIONS}
        if unknown:
            raise InputError(
                f"A parameter group has the option '{min(unknown)}', but its options are {' and '.join(OPTIONS)}; "
                "all others are the optimizer's."
            )
        for option in OPTIONS:
            not_negative(f"{option} of the group of {own[0]!r}", group.get(option, 0.0))
        names += own
    return names, found


def torch_groups(tensors: Mapping[str, Tensor], groups: Sequence[dict[str, Any]]) -> Groups:
    """Return groups of tensors for ``torch.optim.Optimizer``, from groups of names (``group_names``).

    Raises:
        InputError: A parameter is in two groups.
    """
    if not groups:
        return [{"params": list(tensors.values()), "names": list(tensors)}]
    owner: dict[str, int] = {}
    for i, group in enumerate(groups):
        own = [group["params"]] if isinstance(group["params"], str) else group["params"]
        for want in own:
            for name in tensors:
                if name == want or name.startswith(f"{want}."):
                    if owner.setdefault(name, i) != i:
                        raise InputError(f"Parameter '{name}' is in two groups: name it in one.")
    return [
        {
            **group,
            "params": [tensors[n] for n in tensors if owner[n] == i],
            "names": [n for n in tensors if owner[n] == i],
        }
        for i, group in enumerate(groups)
    ]


def checked_groups(groups: Groups) -> None:
    """Raise ``InputError`` for a group whose options were set to what makes no sense, or that has no names."""
    for i, group in enumerate(groups):
        if "names" not in group:
            raise InputError(
                "Parameter groups of KFAC are made with it, by names: KFAC(model, likelihood, [{'params': ['head']}, "
                "...]). add_param_group(...) cannot tell which layers its tensors belong to."
            )
        for option in OPTIONS:
            not_negative(f"{option} of group {i} ({group['names'][0]!r})", float(group[option]))


def group_lines(groups: Groups) -> list[str]:
    """Return a line for each group: its options and its parameters."""
    lines = []
    for i, group in enumerate(groups):
        names = group["names"]
        shown = ", ".join(names) if len(names) <= _SHOWN else f"{names[0]}, ..., {names[-1]}"
        options = ", ".join(f"{option} {float(group[option]):g}" for option in OPTIONS)
        lines.append(f"  group {i}: {options}; {len(names)} parameter{'s' * (len(names) != 1)}: {shown}")
    return lines


class GroupValues:
    """Values of an option of each group, times parts of a vector.

    Args:
        slices: Where each parameter lies.
        groups: The groups, with ``names``.
    """

    def __init__(self, slices: Mapping[str, slice], groups: Groups) -> None:
        self._groups = groups
        self._places = [[slices[name] for name in group["names"]] for group in groups]

    def common(self, option: str) -> float | None:
        """Return the value that all groups have; None where they differ."""
        values = {float(group[option]) for group in self._groups}
        return values.pop() if len(values) == 1 else None

    def times(self, option: str, v: Tensor) -> Tensor:
        """Return a vector ``(P,)`` times the option's value of each parameter's group; itself where all are 1."""
        common = self.common(option)
        if common is not None:
            return v if common == 1.0 else v * common
        out = torch.empty_like(v)
        for group, places in zip(self._groups, self._places, strict=True):
            for place in places:
                torch.mul(v[place], float(group[option]), out=out[place])
        return out

    def at(self, option: str, name: str) -> float:
        """Return the option's value for a parameter."""
        return next(float(group[option]) for group in self._groups if name in group["names"])
