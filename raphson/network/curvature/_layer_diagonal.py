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
from raphson.network.curvature.factors._output_factor import (
    Estimator,
    RecordedBatch,
    Sampling,
    columns,
    recorded_batches,
)
from raphson.network.curvature.factors._squared_gradients import squared_gradients, squared_table
from raphson.network.curvature.factors._unrecognized_gradients import UnrecognizedGradients
from raphson.network.layers._layer_calls import LayerCall, Linear, Lookup, Matmul, ParameterView, PositionLayout

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
    for recorded in recorded_batches(objective, sampling):
        groups = _groups(recorded.record.calls, recorded.record.unrecognized)
        plain = [number for _, (number, *more) in groups if not more and _is_plain(recorded, number)]
        squares: dict[int, Tensor] = {}
        unrecognized = _Unrecognized(objective, recorded)
        jobs = [([number], partial(_add_squares, squares, number, recorded)) for number in plain]
        jobs += [
            (numbers, partial(_add_squared, total, recorded, views, numbers, objective.space))
            for views, numbers in groups
            if numbers[0] not in plain or len(numbers) > 1
        ]
        for u in columns(objective, recorded, sampling):
            recorded.record.deliver(u, jobs)
            for name, rows in unrecognized(u):
                total[objective.space.slices[name]] += rows.square().sum((0, 1))
        for views, (number, *more) in groups:
            if number in squares and not more:
                for view, values in _from_squares(squares[number], recorded, number, views):
                    _add(total, objective.space, view, values)
    return total


def _is_plain(recorded: RecordedBatch, number: int) -> bool:
    """Whether a use is a linear layer with one position for each unit."""
    call = recorded.record.calls[number]
    return isinstance(call, Linear) and call.positions == recorded.sum_layouts[number].n


def _add_squares(
    squares: dict[int, Tensor], number: int, recorded: RecordedBatch, gradients: Mapping[int, Tensor]
) -> None:
    """Add squared output gradients ``(units, out)``, column by column: what they are needed for is linear in them."""
    call, g = recorded.record.calls[number], gradients[number]
    total = squares.setdefault(number, g.new_zeros(call.positions, call.shape[-1]))
    for column in call.rows(g):
        total.addcmul_(column, column)


def _from_squares(
    squares: Tensor, recorded: RecordedBatch, number: int, views: Sequence[ParameterView]
) -> Iterator[tuple[ParameterView, Tensor]]:
    call = recorded.record.calls[number]
    assert isinstance(call, Matmul)
    if call.weight is not None and call.weight in views:
        yield call.weight, squares.mT @ call.input().reshape(call.positions, -1).square()
    if call.bias is not None and call.bias in views:
        yield call.bias, squares.sum(0)


def tap_example_gradients(objective: Objective, recorded: RecordedBatch, u: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield per-example gradients of a batch, some examples at a time.

    Args:
        objective: The objective.
        recorded: The batch.
        u: Output gradients ``(N, ..., C)``.

    Yields:
        The examples and their gradients ``(n, P)``.
    """
    space, n = objective.space, u.shape[0]
    gradients = recorded.record.gradients(u.unsqueeze(0))
    unrecognized = _Unrecognized(objective, recorded)(u.unsqueeze(0))
    step = max(1, _CHUNK_ELEMENTS // space.numel)
    places = {view: _places(view, space) for call in recorded.record.calls for view in (call.weight, call.bias) if view}
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        out = u.new_zeros(rows.stop - start, space.numel)
        for call, g, layout in zip(recorded.record.calls, gradients, recorded.example_layouts, strict=True):
            for view, values in call.example_gradients(g, layout, rows):
                if view.name not in recorded.record.unrecognized:
                    out.index_add_(1, places[view], values[0].flatten(1))
        for name, values in unrecognized:
            out[:, space.slices[name]] = values[0, rows]
        yield rows, out


def layer_gradient_norms(objective: Objective, recorded: RecordedBatch, u: Tensor) -> Tensor:
    r"""Return squared norms of the per-example gradients of a batch, without forming those of plain linear layers.

    A linear layer without sharing has :math:`\|g_n\|^2 (\|a_n\|^2 + 1)`; with P positions
    :math:`\sum_{p,q} (a_p^T a_q)(g_p^T g_q)` where that is cheaper than the gradient.

    Args:
        objective: The objective.
        recorded: The batch.
        u: Output gradients ``(N, ..., C)``.

    Returns:
        ``(N,)``.
    """
    gradients = dict(enumerate(recorded.record.gradients(u.unsqueeze(0))))
    total = u.new_zeros(u.shape[0])
    for views, numbers in _groups(recorded.record.calls, recorded.record.unrecognized):
        call, g = recorded.record.calls[numbers[0]], gradients[numbers[0]]
        layout = recorded.example_layouts[numbers[0]]
        if len(numbers) == 1 and isinstance(call, Matmul):
            total += _matmul_norms(call, g, layout, views)
            continue
        step = max(1, _CHUNK_ELEMENTS // max(1, sum(slot_numel(view) for view in views)))
        for start in range(0, u.shape[0], step):
            rows = slice(start, start + step)
            for _, values in _summed(
                recorded, gradients, views, numbers, recorded.example_layouts, objective.space, rows
            ):
                total[rows] += values[0].square().sum(-1)
    for _, values in _Unrecognized(objective, recorded)(u.unsqueeze(0)):
        total += values[0].square().sum(-1)
    return total


def _matmul_norms(call: Matmul, g: Tensor, layout: PositionLayout, views: Sequence[ParameterView]) -> Tensor:
    a, b = call.example_inputs(layout), call.example_outputs(g, layout)[:, 0]
    total = a.new_zeros(a.shape[0])
    if call.bias in views:
        total += b.sum(-1).square().sum((1, 2))
    if call.weight in views:
        p, (_, o, i) = a.shape[-1], call.weight_shape
        if p == 1:
            total += (a.square().sum((2, 3)) * b.square().sum((2, 3))).sum(1)
        elif p * (o + i) < o * i:
            total += ((a.mT @ a) * (b.mT @ b)).sum((1, 2, 3))
        else:
            total += (b @ a.mT).square().sum((1, 2, 3))
    return total


class _Unrecognized:
    """Gradients of the parameters outside of layers, by name."""

    def __init__(self, objective: Objective, recorded: RecordedBatch) -> None:
        self._names = [name for name in objective.space.names if name in recorded.record.unrecognized]
        self._gradients = UnrecognizedGradients(objective, recorded, self._names) if self._names else None

    def __call__(self, u: Tensor) -> list[tuple[str, Tensor]]:
        found = self._gradients(u) if self._gradients is not None else []
        return list(zip(self._names, found, strict=True))


def _groups(calls: Sequence[LayerCall], unrecognized: frozenset[str]) -> list[tuple[list[ParameterView], list[int]]]:
    """Return the uses that share a parameter together, with the slots they have in it.

    A use with a weight and a bias that are both its own is one group; a parameter with several uses, in whatever
    views, makes a group of all of them.
    """
    by_name: dict[str, set[int]] = {}
    for number, call in enumerate(calls):
        for view in (call.weight, call.bias):
            if view is not None and view.name not in unrecognized:
                by_name.setdefault(view.name, set()).add(number)
    found: list[tuple[list[ParameterView], list[int]]] = []
    alone: dict[int, list[ParameterView]] = {}
    for name, numbers in by_name.items():
        views = [
            s for i in sorted(numbers) for s in (calls[i].weight, calls[i].bias) if s is not None and s.name == name
        ]
        if len(views) == 1:
            alone.setdefault(next(iter(numbers)), []).extend(views)
        else:
            found.append((views, sorted(numbers)))
    return found + [(views, [number]) for number, views in alone.items()]


def _add_squared(
    total: Tensor,
    recorded: RecordedBatch,
    views: Sequence[ParameterView],
    numbers: Sequence[int],
    space: ParameterSpace,
    gradients: Mapping[int, Tensor],
) -> None:
    for view, values in _squared(recorded, gradients, views, numbers, space):
        _add(total, space, view, values)


def _squared(
    recorded: RecordedBatch,
    gradients: Mapping[int, Tensor],
    views: Sequence[ParameterView],
    numbers: Sequence[int],
    space: ParameterSpace,
) -> Iterator[tuple[ParameterView | str, Tensor]]:
    """Yield squared per-unit gradients summed over units and columns, for a slot or a whole parameter."""
    call, g, layout = recorded.record.calls[numbers[0]], gradients[numbers[0]], recorded.sum_layouts[numbers[0]]
    if len(numbers) == 1 and len({view.name for view in views}) == len(views):
        if isinstance(call, Matmul):
            u = call.example_outputs(g, layout)
            if call.weight in views:
                assert call.weight is not None
                yield call.weight, call.as_parameter(squared_gradients([recorded.independent_inputs(numbers[0])], [u]))
            if call.bias in views:
                assert call.bias is not None
                yield call.bias, u.sum(-1).square().sum((0, 1))
            return
        if isinstance(call, Lookup):
            yield views[0], squared_table(call, g, layout)
            return
    step = max(1, _CHUNK_ELEMENTS // max(1, g.shape[0] * sum(slot_numel(view) for view in views)))
    for start in range(0, layout.n, step):
        rows = slice(start, start + step)
        for name, values in _summed(recorded, gradients, views, numbers, recorded.sum_layouts, space, rows):
            yield name, values.square().sum((0, 1))


def _summed(
    recorded: RecordedBatch,
    gradients: Mapping[int, Tensor],
    views: Sequence[ParameterView],
    numbers: Sequence[int],
    layouts: Sequence[PositionLayout],
    space: ParameterSpace,
    rows: slice,
) -> list[tuple[str, Tensor]]:
    """Return gradients of whole parameters, summed over their uses and by layout over positions, ``(k, n, numel)``."""
    wanted = set(views)
    totals: dict[str, Tensor] = {}
    for i in numbers:
        for view, values in recorded.record.calls[i].example_gradients(gradients[i], layouts[i], rows):
            if view not in wanted:
                continue
            if view.name not in totals:
                totals[view.name] = values.new_zeros(*values.shape[:2], space.tensors[view.name].numel())
            index = view.index(space.tensors[view.name]).reshape(-1)
            totals[view.name].index_add_(2, index, values.flatten(2))
    return list(totals.items())


def slot_numel(view: ParameterView) -> int:
    """Return the number of entries of a view."""
    return torch.Size(view.size).numel()


def _places(view: ParameterView, space: ParameterSpace) -> Tensor:
    start: int = space.slices[view.name].start
    return view.index(space.tensors[view.name]).reshape(-1) + start


def _add(total: Tensor, space: ParameterSpace, view: ParameterView | str, values: Tensor) -> None:
    if isinstance(view, str):
        total[space.slices[view]] += values
    else:
        total.index_add_(0, _places(view, space), values.reshape(-1))
