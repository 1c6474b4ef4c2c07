r"""Exact Gauss-Newton diagonals and norms of per-example gradients by the structure of layers.

A linear layer with one position for each example has the diagonal :math:`\sum_n (\sum_c g_{nc}^2) (a_n^2)^T`: squared
gradients are added up first, and what is left is one product of the size of a weight gradient. With shared weights the
weight gradient of each example and vector is formed, some at a time, and squared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from raphson.likelihoods import hessian_diagonal
from raphson.network._objective import Objective
from raphson.network._parameters import ParameterSpace
from raphson.network.curvature.factors._output_factor import (
    KINDS,
    Estimator,
    OutputDraw,
    flat_rows,
    output_factors,
    sampled_factors,
    sampling_of,
)
from raphson.network.curvature.factors._recorded_batches import RecordedBatch, recorded_batches
from raphson.network.curvature.factors._squared_gradients import squared_gradients, squared_table
from raphson.network.curvature.factors._unrecognized_gradients import UnrecognizedGradients
from raphson.network.layers._layer_calls import LayerCall, Linear, Lookup, Matmul
from raphson.network.layers._parameter_view import ParameterView, PositionLayout

_CHUNK_ELEMENTS = 2**23
"""Entries of per-example gradients that are formed at a time."""


def layer_diagonal(
    objective: Objective,
    estimator: Estimator = "exact",
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    draw: OutputDraw | None = None,
) -> Tensor:
    r"""Return the diagonal of :math:`\sum_{n,c} (J_n^T u_{nc})(J_n^T u_{nc})^T`, ``(P,)``, for any model.

    The vectors are those of ``draw`` where it is given, position by position, and of the estimator elsewhere.

    Cost in units of a forward pass F, without sharing: 1 for the forward pass, 1 less the first layer for each of the
    C vectors of the output factor, and 1 for all squared gradients together. With sharing one more for each vector.
    A layer that makes the outputs has the diagonals of the output Hessians, and needs no vectors.
    """
    sampling = sampling_of(objective, estimator, samples, generator)
    space = objective.space
    total = space.empty().new_zeros(objective.n_parameters)
    for recorded in recorded_batches(objective, sampling.mixed):
        groups = _groups(recorded.record.calls, recorded.record.unrecognized)
        plain = [number for _, (number, *more) in groups if not more and _is_plain(recorded, number)]
        squared: dict[int, Tensor] = {}
        unrecognized = UnrecognizedGradients(objective, recorded)
        last = recorded.record.at_output
        if draw is None and sampling.exact and last in plain:
            rows, y, weights = flat_rows(objective, recorded.batch, recorded.record.output.detach())
            kind = KINDS[sampling.estimator]
            squared[last] = hessian_diagonal(objective.likelihood, rows, y, kind) * weights.unsqueeze(-1)
        below = [number for number in plain if number not in squared]
        jobs = [([number], partial(_add_squared_outputs, squared, number, recorded)) for number in below]
        jobs += [
            (numbers, partial(_add_squared, total, recorded, views, numbers, space))
            for views, numbers in groups
            if numbers[0] not in plain or len(numbers) > 1
        ]
        factors = (
            sampled_factors(objective, recorded, draw)
            if draw
            else output_factors(objective, recorded, sampling, outer=False)
        )
        for u in factors if jobs or recorded.record.unrecognized else ():
            recorded.record.deliver(u, jobs)
            for name, rows in unrecognized(u).items():
                total[space.slices[name]] += rows.square().sum((0, 1))
        for views, (number, *more) in groups:
            if number in squared and not more:
                for view, values in _from_squared_outputs(squared[number], recorded, number, views):
                    view.add(total[space.slices[view.name]], space.tensors[view.name], values)
    return total


def _is_plain(recorded: RecordedBatch, number: int) -> bool:
    """Whether a call is a linear layer with one position for each example."""
    call = recorded.record.calls[number]
    return isinstance(call, Linear) and call.positions == recorded.sum_layouts[number].n


def _add_squared_outputs(
    squared: dict[int, Tensor], number: int, recorded: RecordedBatch, gradients: Mapping[int, Tensor]
) -> None:
    """Add squared output gradients ``(N, out)``, vector by vector: what they are needed for is linear in them."""
    call, g = recorded.record.calls[number], gradients[number]
    total = squared.setdefault(number, g.new_zeros(call.positions, call.shape[-1]))
    for row in call.rows(g):
        total.addcmul_(row, row)


def _from_squared_outputs(
    squared: Tensor, recorded: RecordedBatch, number: int, views: Sequence[ParameterView]
) -> Iterator[tuple[ParameterView, Tensor]]:
    call = recorded.record.calls[number]
    assert isinstance(call, Matmul)
    if call.weight is not None and call.weight in views:
        yield call.weight, squared.mT @ call.input().reshape(call.positions, -1).square()
    if call.bias is not None and call.bias in views:
        yield call.bias, squared.sum(0)


def layer_gradient_norms(objective: Objective, recorded: RecordedBatch, u: Tensor) -> Tensor:
    r"""Return squared norms of the per-example gradients of a batch, ``(N,)``, for output gradients ``(N, ..., C)``.

    A linear layer without sharing has :math:`\|g_n\|^2 (\|a_n\|^2 + 1)`; with P positions
    :math:`\sum_{p,q} (a_p^T a_q)(g_p^T g_q)` where that is cheaper than the gradient.
    """
    record, layouts = recorded.record, recorded.example_layouts
    gradients = dict(enumerate(record.gradients(u.unsqueeze(0))))
    total = u.new_zeros(u.shape[0])
    for views, numbers in _groups(record.calls, record.unrecognized):
        call = record.calls[numbers[0]]
        if len(numbers) == 1 and isinstance(call, Matmul):
            total += _matmul_norms(call, gradients[numbers[0]], layouts[numbers[0]], views)
            continue
        step = max(1, _CHUNK_ELEMENTS // max(1, sum(view.numel for view in views)))
        for start in range(0, u.shape[0], step):
            rows = slice(start, start + step)
            for values in _summed(recorded, gradients, views, numbers, layouts, objective.space, rows).values():
                total[rows] += values[0].square().sum(-1)
    for values in UnrecognizedGradients(objective, recorded)(u.unsqueeze(0)).values():
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


def _groups(calls: Sequence[LayerCall], unrecognized: frozenset[str]) -> list[tuple[list[ParameterView], list[int]]]:
    """Return the calls that share a parameter together, with the views they have of it.

    A call with a weight and a bias that are both its own is one group; a parameter with several calls, in whatever
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
    """Add squared gradients of examples or positions, summed over these and the vectors of the output factor."""
    call, g, layout = recorded.record.calls[numbers[0]], gradients[numbers[0]], recorded.sum_layouts[numbers[0]]
    if len(numbers) == 1 and len({view.name for view in views}) == len(views) and isinstance(call, Matmul | Lookup):
        for view, values in _squared_of_one(recorded, numbers[0], g, views):
            view.add(total[space.slices[view.name]], space.tensors[view.name], values)
        return
    step = max(1, _CHUNK_ELEMENTS // max(1, g.shape[0] * sum(view.numel for view in views)))
    for start in range(0, layout.n, step):
        rows = slice(start, start + step)
        for name, values in _summed(recorded, gradients, views, numbers, recorded.sum_layouts, space, rows).items():
            total[space.slices[name]] += values.square().sum((0, 1))


def _squared_of_one(
    recorded: RecordedBatch, number: int, g: Tensor, views: Sequence[ParameterView]
) -> Iterator[tuple[ParameterView, Tensor]]:
    """Yield the same for a single call."""
    call, layout = recorded.record.calls[number], recorded.sum_layouts[number]
    if isinstance(call, Lookup):
        yield views[0], squared_table(call, g, layout)
        return
    assert isinstance(call, Matmul)
    u = call.example_outputs(g, layout)
    if call.weight is not None and call.weight in views:
        yield call.weight, call.as_parameter(squared_gradients([recorded.summed_inputs(number)], [u]))
    if call.bias is not None and call.bias in views:
        yield call.bias, u.sum(-1).square().sum((0, 1))


def _summed(
    recorded: RecordedBatch,
    gradients: Mapping[int, Tensor],
    views: Sequence[ParameterView],
    numbers: Sequence[int],
    layouts: Sequence[PositionLayout],
    space: ParameterSpace,
    rows: slice,
) -> dict[str, Tensor]:
    """Return gradients of whole parameters, summed over calls and by layout over positions, ``(k, n, numel)``."""
    totals: dict[str, Tensor] = {}
    for i in numbers:
        for view, values in recorded.record.calls[i].example_gradients(gradients[i], layouts[i], rows):
            if view in views:
                parameter = space.tensors[view.name]
                if view.name not in totals:
                    totals[view.name] = values.new_zeros(*values.shape[:2], parameter.numel())
                view.add(totals[view.name], parameter, values)
    return totals
