"""Which parameters of a network belong together in a block, and which uses make up the block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from raphson.network._parameters import ParameterSpace
from raphson.network.layers._calls import Affine, Linear, Lookup, Matmul, Slot, Use
from raphson.network.layers._record import Taps

Bias = Literal["joint", "separate"]


@dataclass(eq=False)
class KroneckerPlan:
    """A weight with the uses it has, and the bias that shares its block.

    Attributes:
        weight: The weight, in the orientation of its first use.
        uses: Numbers of the uses.
        flipped: For each use whether it sees the transpose.
        bias: The bias in the block, or None.
    """

    weight: Slot
    uses: list[int] = field(default_factory=list)
    flipped: list[bool] = field(default_factory=list)
    bias: Slot | None = None


@dataclass(eq=False)
class BiasPlan:
    """A bias in a block of its own."""

    bias: Slot
    uses: list[int] = field(default_factory=list)


@dataclass(eq=False)
class RowPlan:
    """Small parameters whose per-example gradients are formed: scales and shifts."""

    slots: tuple[Slot, ...]
    uses: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Plan:
    """The blocks of a network.

    Attributes:
        weights: Kronecker blocks.
        biases: Separate biases.
        rows: Scales and shifts.
        rest: Parameters with a use that was not recognized, or with views that overlap.
    """

    weights: list[KroneckerPlan]
    biases: list[BiasPlan]
    rows: list[RowPlan]
    rest: list[str]


def make_plan(space: ParameterSpace, taps: Taps, bias: Bias) -> Plan:
    """Return the blocks that the uses of a forward pass ask for."""
    rest = _conflicts(space, taps.uses) | set(taps.rest)
    weights: dict[Slot, KroneckerPlan] = {}
    biases: dict[Slot, BiasPlan] = {}
    rows: dict[tuple[Slot, ...], RowPlan] = {}
    owners: dict[Slot, set[Slot | None]] = {}
    for use in taps.uses:
        if isinstance(use, Matmul) and use.bias is not None:
            owners.setdefault(use.bias, set()).add(_known(weights, use))
            _see_weight(weights, use, rest)
    weights.clear()
    for number, use in enumerate(taps.uses):
        if isinstance(use, Affine):
            slots = tuple(slot for slot in (use.weight, use.bias) if slot is not None and slot.name not in rest)
            if slots:
                rows.setdefault(slots, RowPlan(slots)).uses.append(number)
            continue
        plan = _see_weight(weights, use, rest, number)
        if use.bias is None or use.bias.name in rest:
            continue
        if bias == "joint" and plan is not None and len(owners[use.bias]) == 1:
            plan.bias = use.bias
        else:
            biases.setdefault(use.bias, BiasPlan(use.bias)).uses.append(number)
    _part(taps.uses, weights, biases)
    return Plan(
        list(weights.values()), list(biases.values()), list(rows.values()), [n for n in space.names if n in rest]
    )


def _known(weights: dict[Slot, KroneckerPlan], use: Use) -> Slot | None:
    """Return the orientation in which a use's weight was met first."""
    slot = use.weight
    if slot is not None and slot not in weights and isinstance(use, Linear) and slot.transposed() in weights:
        return slot.transposed()
    return slot


def _see_weight(
    weights: dict[Slot, KroneckerPlan], use: Use, rest: set[str], number: int | None = None
) -> KroneckerPlan | None:
    slot = _known(weights, use)
    if slot is None or slot.name in rest:
        return None
    plan = weights.setdefault(slot, KroneckerPlan(slot))
    if number is not None:
        plan.uses.append(number)
        plan.flipped.append(isinstance(use, Lookup) or slot != use.weight)
    return plan


def _part(uses: Sequence[Use], weights: dict[Slot, KroneckerPlan], biases: dict[Slot, BiasPlan]) -> None:
    """Take a bias out of its weight's block where the weight has uses without it, or from the other side."""
    for plan in weights.values():
        alike = all(uses[i].bias == plan.bias for i in plan.uses) and not any(plan.flipped)
        if plan.bias is not None and not alike:
            numbers = [i for i in plan.uses if uses[i].bias == plan.bias]
            biases.setdefault(plan.bias, BiasPlan(plan.bias)).uses.extend(numbers)
            plan.bias = None


def _conflicts(space: ParameterSpace, uses: Sequence[Use]) -> set[str]:
    """Return the parameters with different views that overlap, or with a view that repeats entries."""
    claims: dict[str, dict[tuple[str, Slot], Use]] = {}
    for use in uses:
        for role, slot in (("weight", use.weight), ("bias", use.bias)):
            if slot is None:
                continue
            known = claims.setdefault(slot.name, {})
            # a table and a linear layer share a block, whichever way round they see the weight
            kind = "row" if isinstance(use, Affine) else role
            key = (kind, slot)
            if isinstance(use, Linear) and key not in known and (kind, slot.transposed()) in known:
                key = (kind, slot.transposed())
            if isinstance(use, Affine):
                key = (f"row {use.weight} {use.bias}", slot)
            known.setdefault(key, use)
    found = set()
    for name, known in claims.items():
        parameter = space.tensors[name]
        slots = [slot for _, slot in known]
        if len(slots) == 1 and slots[0].is_whole(parameter):
            continue
        times = torch.zeros(parameter.numel(), dtype=torch.long, device=parameter.device)
        for slot in slots:
            places = slot.index(parameter).reshape(-1)
            times.index_add_(0, places, torch.ones_like(places))
        if bool((times > 1).any()):
            found.add(name)
    return found
