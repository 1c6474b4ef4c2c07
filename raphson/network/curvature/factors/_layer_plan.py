"""Which parameters of a network belong together in a block, and which layer calls make up the block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from raphson.network._parameters import ParameterSpace
from raphson.network.layers._layer_calls import Affine, LayerCall, Linear, Lookup, Matmul
from raphson.network.layers._layer_record import LayerRecord
from raphson.network.layers._parameter_view import ParameterView

Bias = Literal["joint", "separate"]


@dataclass(eq=False)
class KroneckerPlan:
    """A weight with the layer calls that it has, and the bias that shares its block.

    Attributes:
        weight: The weight, in the orientation of its first call.
        calls: Numbers of the calls.
        flipped: For each call whether it sees the transpose.
        bias: The bias in the block, or None.
    """

    weight: ParameterView
    calls: list[int] = field(default_factory=list)
    flipped: list[bool] = field(default_factory=list)
    bias: ParameterView | None = None


@dataclass(frozen=True, eq=False)
class PlanPart:
    """What makes up one block.

    Attributes:
        views: The parameters in it, the weight first; none for a parameter outside recognized layers.
        numbers: The calls.
        weight: Its Kronecker block, or None.
        unrecognized: The name of a parameter outside recognized layers, or None.
    """

    views: tuple[ParameterView, ...]
    numbers: tuple[int, ...]
    weight: KroneckerPlan | None = None
    unrecognized: str | None = None

    def names(self, space: ParameterSpace) -> str:
        """Return the names of its parameters, as a layered operator has them."""
        return self.unrecognized or view_names(self.views, space)

    def first(self, space: ParameterSpace) -> int:
        """Return where its first parameter begins in the vector of all."""
        if self.unrecognized is not None:
            return int(space.slices[self.unrecognized].start)
        return int(space.slices[self.views[0].name].start) + self.views[0].offset


@dataclass(eq=False)
class LayerPlan:
    """The blocks of a network.

    Attributes:
        weights: Kronecker blocks.
        biases: Biases in blocks of their own, with the numbers of their calls.
        affine: Scales and shifts, whose per-example gradients are formed, with the numbers of their calls.
        unrecognized: Parameters that are used outside recognized layers, or with views that overlap.
    """

    weights: list[KroneckerPlan]
    biases: dict[ParameterView, list[int]]
    affine: dict[tuple[ParameterView, ...], list[int]]
    unrecognized: list[str]

    def parts(self, space: ParameterSpace) -> list[PlanPart]:
        """Return what makes up each block, in the order of the blocks of a layered operator."""
        parts = [
            PlanPart(tuple(v for v in (one.weight, one.bias) if v is not None), tuple(one.calls), one)
            for one in self.weights
        ]
        parts += [PlanPart((bias,), tuple(numbers)) for bias, numbers in self.biases.items()]
        parts += [PlanPart(views, tuple(numbers)) for views, numbers in self.affine.items()]
        parts += [PlanPart((), (), unrecognized=name) for name in self.unrecognized]
        return sorted(parts, key=lambda part: part.first(space))


def view_names(views: Sequence[ParameterView], space: ParameterSpace) -> str:
    """Return the names of parameters, or parts of them, that share a block."""
    return ", ".join(view.label(space.tensors[view.name]) for view in views)


def make_plan(space: ParameterSpace, record: LayerRecord, bias: Bias) -> LayerPlan:
    """Return the blocks that the layer calls of a forward pass ask for."""
    unrecognized = _conflicts(space, record.calls) | set(record.unrecognized)
    weights: dict[ParameterView, KroneckerPlan] = {}
    biases: dict[ParameterView, list[int]] = {}
    affine: dict[tuple[ParameterView, ...], list[int]] = {}
    owners: dict[ParameterView, set[ParameterView | None]] = {}
    for call in record.calls:
        if isinstance(call, Matmul) and call.bias is not None:
            owners.setdefault(call.bias, set()).add(_known(weights, call))
            _see_weight(weights, call, unrecognized)
    weights.clear()
    for number, call in enumerate(record.calls):
        if isinstance(call, Affine):
            views = tuple(v for v in (call.weight, call.bias) if v is not None and v.name not in unrecognized)
            if views:
                affine.setdefault(views, []).append(number)
            continue
        plan = _see_weight(weights, call, unrecognized, number)
        if call.bias is None or call.bias.name in unrecognized:
            continue
        alone = plan is not None and plan.bias in (None, call.bias)  # a tied weight may come with several biases
        if bias == "joint" and plan is not None and alone and len(owners[call.bias]) == 1:
            plan.bias = call.bias
        else:
            biases.setdefault(call.bias, []).append(number)
    _part(record.calls, weights, biases)
    return LayerPlan(list(weights.values()), biases, affine, [n for n in space.names if n in unrecognized])


def _known(weights: dict[ParameterView, KroneckerPlan], call: LayerCall) -> ParameterView | None:
    """Return the orientation in which a call's weight was met first."""
    view = call.weight
    if view is not None and view not in weights and isinstance(call, Linear) and view.transposed() in weights:
        return view.transposed()
    return view


def _see_weight(
    weights: dict[ParameterView, KroneckerPlan], call: LayerCall, unrecognized: set[str], number: int | None = None
) -> KroneckerPlan | None:
    view = _known(weights, call)
    if view is None or view.name in unrecognized:
        return None
    plan = weights.setdefault(view, KroneckerPlan(view))
    if number is not None:
        plan.calls.append(number)
        plan.flipped.append(isinstance(call, Lookup) or view != call.weight)
    return plan


def _part(
    calls: Sequence[LayerCall], weights: dict[ParameterView, KroneckerPlan], biases: dict[ParameterView, list[int]]
) -> None:
    """Take a bias out of its weight's block where the weight has calls without it, or from the other side."""
    for plan in weights.values():
        in_all = all(calls[i].bias == plan.bias for i in plan.calls) and not any(plan.flipped)
        if plan.bias is not None and not in_all:
            numbers = [i for i in plan.calls if calls[i].bias == plan.bias]
            biases.setdefault(plan.bias, []).extend(numbers)
            plan.bias = None


def _conflicts(space: ParameterSpace, calls: Sequence[LayerCall]) -> set[str]:
    """Return the parameters with different views that overlap, or with a view that repeats entries."""
    claims: dict[str, dict[tuple[str, ParameterView], LayerCall]] = {}
    for call in calls:
        for role, view in (("weight", call.weight), ("bias", call.bias)):
            if view is None:
                continue
            known = claims.setdefault(view.name, {})
            # a table and a linear layer share a block, whichever way round they see the weight
            kind = "row" if isinstance(call, Affine) else role
            key = (kind, view)
            if isinstance(call, Linear) and key not in known and (kind, view.transposed()) in known:
                key = (kind, view.transposed())
            if isinstance(call, Affine):
                key = (f"row {call.weight} {call.bias}", view)
            known.setdefault(key, call)
    found = set()
    for name, known in claims.items():
        parameter = space.tensors[name]
        views = [view for _, view in known]
        if len(views) == 1 and views[0].is_whole(parameter):
            continue
        times = torch.zeros(parameter.numel(), dtype=torch.long, device=parameter.device)
        for view in views:
            places = view.index(parameter).reshape(-1)
            times.index_add_(0, places, torch.ones_like(places))
        if bool((times > 1).any()):
            found.add(name)
    return found
