r"""The prior: independent normal parameters with mean 0, and one precision for each group of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.laplace._arguments import positive_number

Per = Literal["all", "layer", "tensor"]


@dataclass(frozen=True, eq=False)
class Prior:
    r"""Precisions :math:`\delta_g` of groups of parameters.

    Args:
        keys: A name for each group.
        values: :math:`\delta`, ``(G,)``.
        group: The group of each parameter, ``(P,)``.
    """

    keys: tuple[str, ...]
    values: Tensor
    group: Tensor

    @cached_property
    def vector(self) -> Tensor:
        """The precision of each parameter, ``(P,)``."""
        return self.values[self.group]

    @cached_property
    def sizes(self) -> Tensor:
        """Number of parameters in each group, ``(G,)``."""
        return self.sums(torch.ones_like(self.vector))

    @property
    def described(self) -> float | dict[str, float]:
        """One number, or one for each layer or tensor by name."""
        if self.keys == (_ALL,):
            return float(self.values[0])
        return dict(zip(self.keys, self.values.tolist(), strict=True))

    def sums(self, v: Tensor) -> Tensor:
        """Return the sums of ``(P,)`` over the groups, ``(G,)``."""
        return v.new_zeros(len(self.keys)).index_add_(0, self.group, v)

    def with_values(self, values: Tensor) -> Prior:
        """Return the prior with other precisions ``(G,)``."""
        return replace(self, values=values)

    def of_entries(self, entries: Tensor) -> Prior:
        """Return the prior of some of the parameters, by number."""
        return replace(self, group=self.group[entries])


_ALL = "all parameters"


def make_prior(
    names: Sequence[str], sizes: Sequence[int], given: float | Tensor | Mapping[str, float], like: Tensor
) -> Prior:
    """Return a prior with one precision, or with those of layers or tensors by name.

    Args:
        names: Names of the tensors.
        sizes: Their numbers of entries.
        given: A number, or numbers by name of a tensor or prefix up to a dot; every tensor must have one.
        like: Gives type and device.

    Raises:
        InputError: A precision is not positive and finite, or names and parameters do not match.
    """
    if not isinstance(given, Mapping):
        value = torch.as_tensor(given) if isinstance(given, Tensor | list | tuple) else given
        if isinstance(value, Tensor) and value.numel() != 1:
            raise InputError(
                f"prior_precision has shape {tuple(value.shape)}: give one number, or a dictionary of numbers by name "
                f"of a layer or tensor ({', '.join(names[:3])}, ...)."
            )
        return _of_keys([_ALL] * len(names), [_ALL], [_positive(_ALL, value)], sizes, like)
    keys, values = list(given), [_positive(key, value) for key, value in given.items()]
    for key in keys:
        if not any(name == key or name.startswith(f"{key}.") for name in names):
            raise InputError(f"prior_precision names '{key}', but the parameters are {', '.join(names)}.")
    owners = []
    for name in names:
        found = [key for key in keys if key == name or name.startswith(f"{key}.")]
        if not found:
            raise InputError(
                f"prior_precision has no value for the parameter '{name}': name it, or the layer that it is in, or "
                "give one number for all."
            )
        owners.append(max(found, key=len))
    unused = [key for key in keys if key not in owners]
    if unused:
        raise InputError(f"prior_precision names '{unused[0]}', but the parameters are {', '.join(names)}.")
    return _of_keys(owners, keys, values, sizes, like)


def regrouped(prior: Prior, names: Sequence[str], sizes: Sequence[int], per: Per) -> Prior:
    """Return the prior with a precision for ``"all"``, each ``"layer"`` (tensors of one module) or each ``"tensor"``.

    The precision of a new group is the geometric mean over its parameters.

    Raises:
        InputError: ``per`` is none of the three.
    """
    if per not in get_args(Per):
        raise InputError(f"per is {per!r}, but a prior precision is for 'all', each 'layer' or each 'tensor'.")
    owners = {
        "all": [_ALL] * len(names),
        "layer": [name.rpartition(".")[0] or name for name in names],
        "tensor": list(names),
    }[per]
    keys = list(dict.fromkeys(owners))
    new = _of_keys(owners, keys, [1.0] * len(keys), sizes, prior.values)
    return new.with_values((new.sums(prior.vector.log()) / new.sizes.clamp_min(1)).exp())


def parts_modules(prior: Prior, names: Sequence[str], sizes: Sequence[int]) -> bool:
    """Whether tensors of one module, a weight and its bias, have precisions of their own."""
    starts = torch.tensor([0, *sizes[:-1]], device=prior.group.device).cumsum(0)
    owners = dict[str, set[int]]()
    for name, group in zip(names, prior.group[starts].tolist(), strict=True):
        owners.setdefault(name.rpartition(".")[0], set()).add(group)
    return any(len(groups) > 1 for groups in owners.values())


def _of_keys(
    owners: Sequence[str], keys: Sequence[str], values: Sequence[float], sizes: Sequence[int], like: Tensor
) -> Prior:
    numbers = torch.tensor([keys.index(owner) for owner in owners], device=like.device)
    group = numbers.repeat_interleave(torch.tensor(sizes, device=like.device))
    return Prior(tuple(keys), torch.tensor(values, dtype=like.dtype, device=like.device), group)


def _positive(name: str, value: Any) -> float:
    why = " With an average loss, a weight decay of l2 is the prior precision W * l2, for data of total weight W."
    return positive_number(f"The prior precision of {name}", value, why)
