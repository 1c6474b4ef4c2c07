"""Batches with the record of their layers, and which positions of a layer are independent of each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from raphson.data import Batch, tree_map
from raphson.linalg import is_near
from raphson.network._objective import Objective
from raphson.network._weighted_loss import WeightedLoss
from raphson.network.autodiff._adjoint import rounding_of_products
from raphson.network.autodiff._linearize import rewritten
from raphson.network.curvature.factors._output_curvature import even_parts
from raphson.network.layers._layer_calls import Matmul
from raphson.network.layers._layer_record import LayerRecord
from raphson.network.layers._parameter_view import PositionLayout
from raphson.network.layers._recorder import record_feed_forward, record_layers

_PART_ELEMENTS = 2**24
"""Entries that a model makes at a time in its forward pass."""


@dataclass(frozen=True, eq=False)
class RecordedBatch:
    """A batch with its forward pass, and how its positions make up the terms of the loss.

    Attributes:
        index: Its number.
        batch: The batch.
        record: Output and layer calls.
        mixed: Whether random signs keep the positions of an example apart in expectation, whatever is summed.
    """

    index: int
    batch: Batch
    record: LayerRecord
    mixed: bool = False

    @cached_property
    def positionwise(self) -> bool:
        """Whether an output at a position depends on that position of every layer only: positions are like examples."""
        return _positionwise(self.record)

    @cached_property
    def example_layouts(self) -> list[PositionLayout]:
        """For each call which positions belong to which example."""
        return self.record.layouts(later=self.mixed)

    @cached_property
    def independent_layouts(self) -> list[PositionLayout]:
        """The same with each position as an example of its own, where they are independent."""
        if not self.positionwise:
            return self.example_layouts
        return [PositionLayout(1, call.positions, 1) for call in self.record.calls]

    @property
    def sum_layouts(self) -> list[PositionLayout]:
        """For each call over which positions gradients are summed before they are squared."""
        return self.example_layouts if self.mixed else self.independent_layouts

    def summed_inputs(self, number: int) -> Tensor:
        """Return the inputs of a linear or convolutional call by ``sum_layouts``, ``(N, G, I, P)``, made once."""
        if number not in self._inputs:
            call = self.record.calls[number]
            assert isinstance(call, Matmul)
            self._inputs[number] = call.example_inputs(self.sum_layouts[number])
        return self._inputs[number]

    @cached_property
    def _inputs(self) -> dict[int, Tensor]:
        return {}


def recorded_batches(objective: Objective, mixed: bool = False) -> Iterator[RecordedBatch]:
    """Yield the data with their forward passes: batches, or parts of them where layers have large outputs."""
    step = max(1, _PART_ELEMENTS // objective.traits.entries)
    for index, batch in enumerate(objective.batches()):
        for start, recorded in recorded_parts(objective, batch, index, step, mixed):
            objective.check_losses(recorded.record.output.detach(), recorded.batch.y, index, start)
            yield recorded


def recorded_parts(
    objective: Objective, batch: Batch, index: int, step: int, mixed: bool = False
) -> Iterator[tuple[int, RecordedBatch]]:
    """Yield parts of a batch of about ``step`` examples with the first one's row, not checked yet.

    Where examples share a layer call (positions that are looked up once and broadcast, say) the gradient of its output
    is a sum over examples, so that these go one by one.
    """
    n, seen, known = batch.n_examples, 0, _Known()
    parts = even_parts(n, step)
    while parts:
        start, stop = parts.pop(0)
        part = batch if stop - start == n else batch.rows(slice(start, stop))
        record = _recorded(objective, part, index)
        # of one example alone nothing is learned about several
        if seen < min(2, stop - start):
            seen = min(2, stop - start)
            known = _known_of(objective, part, index, record)
            if known.shared:
                parts = [(row, row + 1) for row in range(start, n)]
                continue
        if known.elsewhere:
            record = replace(record, unrecognized=record.unrecognized | known.elsewhere)
        yield start, RecordedBatch(index, part, record, mixed)


@dataclass(frozen=True)
class _Known:
    """What one example alone shows of the layer calls that batches make.

    Attributes:
        shared: Whether examples of a batch have a layer call in common: one alone makes it with as many positions.
        elsewhere: Parameters whose gradients are not those of their layer calls, so that they are used elsewhere, too,
            unseen: in a derivative that the forward pass takes itself, say. They count as unrecognized.
    """

    shared: bool = False
    elsewhere: frozenset[str] = frozenset()


def _known_of(objective: Objective, batch: Batch, index: int, record: LayerRecord) -> _Known:
    # one example is run once for each objective and each way in which batches go through the model
    if objective.feed_forward is not None or not record.calls:
        return _Known()
    n = batch.n_examples
    forms: list[tuple[str, int]] = []
    tree_map(lambda tensor: forms.append((str(tensor.dtype), tensor.ndim)), batch.x)
    calls = tuple((call.name, len(call.lead), call.positions % n == 0) for call in record.calls)
    way = (calls, tuple(forms), n > 1, objective.space.names)
    if way not in objective.traits.layers:
        first = batch.rows(slice(0, 1))
        alone = _recorded(objective, first, index)
        seen, one = ([(c.name, c.positions * c.inner) for c in found.calls] for found in (record, alone))
        shared = n > 1 and seen != [(name, n * positions) for name, positions in one]
        objective.traits.layers[way] = _Known(shared, _used_elsewhere(objective, first, alone))
    found: _Known = objective.traits.layers[way]
    return found


def _used_elsewhere(objective: Objective, batch: Batch, record: LayerRecord) -> frozenset[str]:
    """Return the parameters whose gradient, for one example, is not the sum over their layer calls."""
    f = record.output.detach()
    u = torch.arange(1, f.numel() + 1, dtype=torch.float32, device=f.device).cos().to(f.dtype).view(f.shape)
    leaves = objective.model.leaves()
    with torch.enable_grad(), rewritten(objective.traits, fold=False):
        out = objective.model.call(leaves, batch.x)
    expected = torch.autograd.grad(out, list(leaves.values()), u, materialize_grads=True)
    found = {name: t.new_zeros(t.numel()) for name, t in leaves.items()}
    for call, g, layout in zip(record.calls, record.gradients(u.unsqueeze(0)), record.layouts(), strict=True):
        for view, values in call.example_gradients(g, layout):
            view.add(found[view.name], leaves[view.name].detach(), values.sum((0, 1)))
    sizes = torch.stack([g.norm() for g in expected])
    gaps = torch.stack([(found[name] - g.reshape(-1)).norm() for name, g in zip(leaves, expected, strict=True)])
    tol = rounding_of_products(f.dtype, objective.traits)
    wrong = gaps > tol * (sizes + 0.01 * sizes.amax())  # also what is not finite is none of this
    if not bool(wrong.any()):
        return frozenset()
    return frozenset(name for name, off in zip(leaves, wrong, strict=True) if bool(off)) - record.unrecognized


def _recorded(objective: Objective, batch: Batch, index: int) -> LayerRecord:
    network = objective.feed_forward
    found = None if network is None else record_feed_forward(network, objective.space, batch.x)
    if found is not None:
        objective.check_shape(found.output, batch.y, index)
        return found
    with rewritten(objective.traits, fold=False):
        return record_layers(
            lambda params, _: objective.outputs(batch, index, params), objective.space.tensors, batch.x
        )


def average_weights(
    objective: WeightedLoss, batch: Batch, positions: torch.Size
) -> tuple[Tensor | None, Tensor | None]:
    """Return how much each position and each example counts in an average of layer inputs, ``(N T,)`` and ``(N,)``.

    A position counts by its example's weight times what the likelihood gives to its target, an example by the mean
    over its positions: with a weight of 3 it is three examples, with its targets ignored it is none. None means 1 each.
    """
    weights, own = objective.position_weights(batch), objective.likelihood.weight(batch.y)
    if weights is None and own is None:
        return None, None
    total = torch.ones(positions, dtype=objective.dtype, device=objective.device)
    for w in (weights, own):
        total = total if w is None else total * w.to(total)
    if is_near(total) and bool((total == 1).all()):  # elsewhere, products with ones cost less than looking
        return None, None
    return total.reshape(-1), total.reshape(positions[0], -1).mean(1)


def _positionwise(record: LayerRecord) -> bool:
    """Whether outputs at three positions depend on one position of every layer each, all different."""
    f = record.output
    n, t = f.shape[0], f.shape[1:-1].numel()
    if t == 1 or record.unrecognized or not record.calls:
        return False
    if any(call.positions != n * t or call.inner > 1 for call in record.calls):
        return False
    total = [torch.zeros(call.positions, dtype=torch.long, device=f.device) for call in record.calls]
    apart: list[Tensor] = []
    for place in {0, t // 2, t - 1}:
        weights = f.new_zeros(n, t)
        weights[:, place] = 1
        for seen, touched in zip(total, record.touched(weights.reshape(f.shape[:-1])), strict=True):
            seen += touched
            apart.append((touched.sum() <= n) & (seen.max() <= 1))
    return bool(torch.stack(apart).all())
