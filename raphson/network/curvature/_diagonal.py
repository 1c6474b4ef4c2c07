r"""Exact Gauss-Newton diagonals and per-example gradients by the structure of layers.

A linear layer without sharing has the diagonal :math:`\sum_n (\sum_c g_{nc}^2) (a_n^2)^T`: the columns are added up
first, and what is left is one product of the size of a weight gradient. With sharing the weight gradient of each
example and column is formed, some at a time, and squared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from raphson.network._objective import Objective
from raphson.network._parameters import ParameterSpace
from raphson.network.curvature.factors._output_factor import Estimator, Sampling, Tapped, columns, tapped_batches
from raphson.network.curvature.factors._rest import RestGradients
from raphson.network.curvature.factors._squares import squared_gradients, squared_table
from raphson.network.layers._calls import Layout, Linear, Lookup, Matmul, Slot, Use

_CHUNK_ELEMENTS = 2**23
"""Entries of per-example gradients that are formed at a time."""


def layer_diagonal(
    objective: Objective,
    columns_kind: Estimator = "exact",
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Return the diagonal of :math:`\sum_{n,c} (J_n^T u_{nc})(J_n^T u_{nc})^T` for any model.

    Cost in units of a forward pass F, without sharing: 1 for the forward pass, 1 less the first layer for each of the
    C columns, and 1 for all squares together. With sharing one more for each column.

    Args:
        objective: The objective; scale and weights are included, :math:`\lambda` is not.
        columns_kind: ``"exact"`` for the expected Fisher information, ``"mc"`` for a sampled one, ``"empirical"``.
        samples: Number of samples for ``"mc"``.
        generator: Source of randomness for ``"mc"``.

    Returns:
        ``(P,)``.
    """
    sampling = Sampling(columns_kind, samples, generator)
    total = objective.space.empty().new_zeros(objective.n_parameters)
    for tapped in tapped_batches(objective, sampling):
        groups = _groups(tapped.taps.uses, tapped.taps.rest)
        plain = [number for _, (number, *more) in groups if not more and _is_plain(tapped, number)]
        squares: dict[int, Tensor] = {}
        rest = _Rest(objective, tapped)
        jobs = [([number], partial(_add_squares, squares, number, tapped)) for number in plain]
        jobs += [
            (numbers, partial(_add_squared, total, tapped, slots, numbers, objective.space))
            for slots, numbers in groups
            if numbers[0] not in plain or len(numbers) > 1
        ]
        for u in columns(objective, tapped, sampling):
            tapped.taps.deliver(u, jobs)
            for name, rows in rest(u):
                total[objective.space.slices[name]] += rows.square().sum((0, 1))
        for slots, (number, *more) in groups:
            if number in squares and not more:
                for slot, values in _from_squares(squares[number], tapped, number, slots):
                    _add(total, objective.space, slot, values)
    return total


def _is_plain(tapped: Tapped, number: int) -> bool:
    """Whether a use is a linear layer with one position for each unit."""
    use = tapped.taps.uses[number]
    return isinstance(use, Linear) and use.positions == tapped.sum_layouts[number].n


def _add_squares(squares: dict[int, Tensor], number: int, tapped: Tapped, gradients: Mapping[int, Tensor]) -> None:
    """Add squared output gradients ``(units, out)``, column by column: what they are needed for is linear in them."""
    use, g = tapped.taps.uses[number], gradients[number]
    total = squares.setdefault(number, g.new_zeros(use.positions, use.shape[-1]))
    for column in use.rows(g):
        total.addcmul_(column, column)


def _from_squares(squares: Tensor, tapped: Tapped, number: int, slots: Sequence[Slot]) -> Iterator[tuple[Slot, Tensor]]:
    use = tapped.taps.uses[number]
    assert isinstance(use, Matmul)
    if use.weight is not None and use.weight in slots:
        yield use.weight, squares.mT @ use.input().reshape(use.positions, -1).square()
    if use.bias is not None and use.bias in slots:
        yield use.bias, squares.sum(0)


def tap_example_gradients(objective: Objective, tapped: Tapped, u: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield per-example gradients of a batch, some examples at a time.

    Args:
        objective: The objective.
        tapped: The batch.
        u: Output gradients ``(N, ..., C)``.

    Yields:
        The examples and their gradients ``(n, P)``.
    """
    space, n = objective.space, u.shape[0]
    gradients = tapped.taps.gradients(u.unsqueeze(0))
    rest = _Rest(objective, tapped)(u.unsqueeze(0))
    step = max(1, _CHUNK_ELEMENTS // space.numel)
    places = {slot: _places(slot, space) for use in tapped.taps.uses for slot in (use.weight, use.bias) if slot}
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        out = u.new_zeros(rows.stop - start, space.numel)
        for use, g, layout in zip(tapped.taps.uses, gradients, tapped.example_layouts, strict=True):
            for slot, values in use.example_gradients(g, layout, rows):
                if slot.name not in tapped.taps.rest:
                    out.index_add_(1, places[slot], values[0].flatten(1))
        for name, values in rest:
            out[:, space.slices[name]] = values[0, rows]
        yield rows, out


def tap_gradient_norms(objective: Objective, tapped: Tapped, u: Tensor) -> Tensor:
    r"""Return squared norms of the per-example gradients of a batch, without forming those of plain linear layers.

    A linear layer without sharing has :math:`\|g_n\|^2 (\|a_n\|^2 + 1)`; with P positions
    :math:`\sum_{p,q} (a_p^T a_q)(g_p^T g_q)` where that is cheaper than the gradient.

    Args:
        objective: The objective.
        tapped: The batch.
        u: Output gradients ``(N, ..., C)``.

    Returns:
        ``(N,)``.
    """
    gradients = dict(enumerate(tapped.taps.gradients(u.unsqueeze(0))))
    total = u.new_zeros(u.shape[0])
    for slots, numbers in _groups(tapped.taps.uses, tapped.taps.rest):
        use, g = tapped.taps.uses[numbers[0]], gradients[numbers[0]]
        layout = tapped.example_layouts[numbers[0]]
        if len(numbers) == 1 and isinstance(use, Matmul):
            total += _matmul_norms(use, g, layout, slots)
            continue
        step = max(1, _CHUNK_ELEMENTS // max(1, sum(slot_numel(slot) for slot in slots)))
        for start in range(0, u.shape[0], step):
            rows = slice(start, start + step)
            for _, values in _summed(tapped, gradients, slots, numbers, tapped.example_layouts, objective.space, rows):
                total[rows] += values[0].square().sum(-1)
    for _, values in _Rest(objective, tapped)(u.unsqueeze(0)):
        total += values[0].square().sum(-1)
    return total


def _matmul_norms(use: Matmul, g: Tensor, layout: Layout, slots: Sequence[Slot]) -> Tensor:
    a, b = use.example_inputs(layout), use.example_outputs(g, layout)[:, 0]
    total = a.new_zeros(a.shape[0])
    if use.bias in slots:
        total += b.sum(-1).square().sum((1, 2))
    if use.weight in slots:
        p, (_, o, i) = a.shape[-1], use.weight_shape
        if p == 1:
            total += (a.square().sum((2, 3)) * b.square().sum((2, 3))).sum(1)
        elif p * (o + i) < o * i:
            total += ((a.mT @ a) * (b.mT @ b)).sum((1, 2, 3))
        else:
            total += (b @ a.mT).square().sum((1, 2, 3))
    return total


class _Rest:
    """Gradients of the parameters outside of layers, by name."""

    def __init__(self, objective: Objective, tapped: Tapped) -> None:
        self._names = [name for name in objective.space.names if name in tapped.taps.rest]
        self._gradients = RestGradients(objective, tapped, self._names) if self._names else None

    def __call__(self, u: Tensor) -> list[tuple[str, Tensor]]:
        found = self._gradients(u) if self._gradients is not None else []
        return list(zip(self._names, found, strict=True))


def _groups(uses: Sequence[Use], rest: frozenset[str]) -> list[tuple[list[Slot], list[int]]]:
    """Return the uses that share a parameter together, with the slots they have in it.

    A use with a weight and a bias that are both its own is one group; a parameter with several uses, in whatever
    views, makes a group of all of them.
    """
    by_name: dict[str, set[int]] = {}
    for number, use in enumerate(uses):
        for slot in (use.weight, use.bias):
            if slot is not None and slot.name not in rest:
                by_name.setdefault(slot.name, set()).add(number)
    found: list[tuple[list[Slot], list[int]]] = []
    alone: dict[int, list[Slot]] = {}
    for name, numbers in by_name.items():
        slots = [s for i in sorted(numbers) for s in (uses[i].weight, uses[i].bias) if s is not None and s.name == name]
        if len(slots) == 1:
            alone.setdefault(next(iter(numbers)), []).extend(slots)
        else:
            found.append((slots, sorted(numbers)))
    return found + [(slots, [number]) for number, slots in alone.items()]


def _add_squared(
    total: Tensor,
    tapped: Tapped,
    slots: Sequence[Slot],
    numbers: Sequence[int],
    space: ParameterSpace,
    gradients: Mapping[int, Tensor],
) -> None:
    for slot, values in _squared(tapped, gradients, slots, numbers, space):
        _add(total, space, slot, values)


def _squared(
    tapped: Tapped,
    gradients: Mapping[int, Tensor],
    slots: Sequence[Slot],
    numbers: Sequence[int],
    space: ParameterSpace,
) -> Iterator[tuple[Slot | str, Tensor]]:
    """Yield squared per-unit gradients summed over units and columns, for a slot or a whole parameter."""
    use, g, layout = tapped.taps.uses[numbers[0]], gradients[numbers[0]], tapped.sum_layouts[numbers[0]]
    if len(numbers) == 1 and len({slot.name for slot in slots}) == len(slots):
        if isinstance(use, Matmul):
            u = use.example_outputs(g, layout)
            if use.weight in slots:
                assert use.weight is not None
                yield use.weight, use.as_slot(squared_gradients([tapped.unit_inputs(numbers[0])], [u]))
            if use.bias in slots:
                assert use.bias is not None
                yield use.bias, u.sum(-1).square().sum((0, 1))
            return
        if isinstance(use, Lookup):
            yield slots[0], squared_table(use, g, layout)
            return
    step = max(1, _CHUNK_ELEMENTS // max(1, g.shape[0] * sum(slot_numel(slot) for slot in slots)))
    for start in range(0, layout.n, step):
        rows = slice(start, start + step)
        for name, values in _summed(tapped, gradients, slots, numbers, tapped.sum_layouts, space, rows):
            yield name, values.square().sum((0, 1))


def _summed(
    tapped: Tapped,
    gradients: Mapping[int, Tensor],
    slots: Sequence[Slot],
    numbers: Sequence[int],
    layouts: Sequence[Layout],
    space: ParameterSpace,
    rows: slice,
) -> list[tuple[str, Tensor]]:
    """Return gradients of whole parameters, summed over their uses and by layout over positions, ``(k, n, numel)``."""
    wanted = set(slots)
    totals: dict[str, Tensor] = {}
    for i in numbers:
        for slot, values in tapped.taps.uses[i].example_gradients(gradients[i], layouts[i], rows):
            if slot not in wanted:
                continue
            if slot.name not in totals:
                totals[slot.name] = values.new_zeros(*values.shape[:2], space.tensors[slot.name].numel())
            index = slot.index(space.tensors[slot.name]).reshape(-1)
            totals[slot.name].index_add_(2, index, values.flatten(2))
    return list(totals.items())


def slot_numel(slot: Slot) -> int:
    """Return the number of entries of a view."""
    return torch.Size(slot.size).numel()


def _places(slot: Slot, space: ParameterSpace) -> Tensor:
    start: int = space.slices[slot.name].start
    return slot.index(space.tensors[slot.name]).reshape(-1) + start


def _add(total: Tensor, space: ParameterSpace, slot: Slot | str, values: Tensor) -> None:
    if isinstance(slot, str):
        total[space.slices[slot]] += values
    else:
        total.index_add_(0, _places(slot, space), values.reshape(-1))
