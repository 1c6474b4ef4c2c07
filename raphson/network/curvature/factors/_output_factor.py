r"""Vectors in output space whose outer products sum to the output curvature.

At an output :math:`f_i` (one for each example, or each position of it) the output Hessian, times weight and scale, is
written as :math:`\sum_c u_{ic} u_{ic}^T`. The Gauss-Newton matrix is then
:math:`\sum_{i,c} (J_i^T u_{ic})(J_i^T u_{ic})^T`: backward passes from the ``u``, and no matrix in output space.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.data import Batch
from raphson.linalg import LinearOperator
from raphson.network._objective import Objective
from raphson.network.autodiff._linearize import rewritten
from raphson.network.curvature.factors._syrk import Syrk
from raphson.network.layers._feed_forward import FeedForward, find_feed_forward
from raphson.network.layers._layer_calls import Matmul, PositionLayout
from raphson.network.layers._recorder import LayerRecord, record_feed_forward, record_layers

Estimator = Literal["exact", "observed", "mc", "empirical"]

_CHUNK_ELEMENTS = 2**21
"""Entries of the output gradients of a layer that are made at a time: more leave the cache (measured)."""

_PART_ELEMENTS = 2**24
"""Entries that a model makes at a time in its forward pass."""


@dataclass(frozen=True, eq=False)
class Sampling:
    """Which columns to take.

    Attributes:
        estimator: ``"exact"``: a root of the expected output Hessian; ``"mc"``: random combinations of its columns,
            with the outer product right in expectation; ``"empirical"``: the output gradient at the data;
            ``"observed"``: a root of the observed output Hessian, which must not be indefinite.
        samples: Number of random combinations.
        generator: Source of randomness.
    """

    estimator: Estimator
    samples: int = 1
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.estimator not in get_args(Estimator):
            raise InputError(
                f"estimator is {self.estimator!r}, but it must be one of {', '.join(get_args(Estimator))}."
            )
        if self.samples < 1:
            raise InputError(f"samples is {self.samples}, but at least one sample is needed.")


@dataclass(frozen=True, eq=False)
class RecordedBatch:
    """A batch with its forward pass, and how its positions make up the terms of the loss.

    Attributes:
        index: Its number.
        batch: The batch.
        taps: Output and uses.
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
        """Which positions of each use belong to which example."""
        return self.record.layouts()

    @cached_property
    def independent_layouts(self) -> list[PositionLayout]:
        """Which positions of each use belong to which unit: an example, or a position where they are alike."""
        if not self.positionwise:
            return self.example_layouts
        return [PositionLayout(1, call.positions, 1) for call in self.record.calls]

    @property
    def sum_layouts(self) -> list[PositionLayout]:
        """Over which positions of each use gradients are summed before they are squared."""
        return self.example_layouts if self.mixed else self.independent_layouts

    def independent_inputs(self, number: int) -> Tensor:
        """Return the inputs of a linear or convolutional use by unit, ``(units, G, I, P)``, kept for all columns."""
        if number not in self._inputs:
            call = self.record.calls[number]
            assert isinstance(call, Matmul)
            self._inputs[number] = call.example_inputs(self.sum_layouts[number])
        return self._inputs[number]

    @cached_property
    def _inputs(self) -> dict[int, Tensor]:
        return {}


def recorded_batches(objective: Objective, sampling: Sampling | None = None) -> Iterator[RecordedBatch]:
    """Yield the data with their forward passes: batches, or parts of them where layers have large outputs."""
    step = max(1, _PART_ELEMENTS // objective.traits.entries)
    mixed = sampling is not None and sampling.estimator == "mc"
    for index, batch in enumerate(objective.batches()):
        for start, recorded in recorded_parts(objective, batch, index, step, mixed):
            objective.check_losses(recorded.record.output.detach(), recorded.batch.y, index, start)
            yield recorded


def recorded_parts(
    objective: Objective, batch: Batch, index: int, step: int, mixed: bool = False
) -> Iterator[tuple[int, RecordedBatch]]:
    """Yield parts of a batch of about ``step`` examples with the first one's row, not checked yet."""
    feed_forward = find_feed_forward(objective.model.module)
    for start, stop in even_parts(batch.n_examples, step):
        part = batch if stop - start == batch.n_examples else batch.rows(slice(start, stop))
        yield start, RecordedBatch(index, part, _recorded(objective, part, index, feed_forward), mixed)


def _recorded(objective: Objective, batch: Batch, index: int, feed_forward: FeedForward | None) -> LayerRecord:
    found = None if feed_forward is None else record_feed_forward(feed_forward, objective.space, batch.x)
    if found is not None:
        objective.check_shape(found.output, batch, index)
        return found
    with rewritten(objective.traits, fold=False):
        return record_layers(
            lambda params, _: objective.outputs(batch, index, params), objective.space.tensors, batch.x
        )


def columns(objective: Objective, recorded: RecordedBatch, sampling: Sampling) -> Iterator[Tensor]:
    """Yield the vectors, some at a time.

    Args:
        objective: The objective, whose scale and weights they have.
        recorded: A batch.
        sampling: Which vectors.

    Yields:
        ``(k, N, ..., C)``.
    """
    batch, record = recorded.batch, recorded.record
    f = record.output.detach()
    root = _root(objective, batch, f)
    # making columns takes a few arrays of their size
    chunk = max(1, _CHUNK_ELEMENTS // max(4 * f.numel(), *(call.shape.numel() for call in record.calls), 1))
    lik = objective.likelihood
    factor = None if sampling.estimator == "empirical" else lik.fisher_factor(f, batch.y)
    if sampling.estimator == "observed":
        factor = lik.hessian(f, batch.y).factor()
    if sampling.estimator == "mc":
        assert factor is not None
        for start in range(0, sampling.samples, chunk):
            size = (*f.shape[:-1], factor.shape[-1])
            draws = [_signs(size, sampling.generator, f) for _ in range(min(chunk, sampling.samples - start))]
            yield torch.stack([factor.mv(z) for z in draws]) * (root / math.sqrt(sampling.samples))
        return
    apart = f.ndim > 2 and not recorded.positionwise
    for u in _whole(f, lik.gradient(f, batch.y) if factor is None else factor, chunk):
        u = u * root
        if not apart:
            yield u
            continue
        flat = u.flatten(2, -2)
        for t in range(flat.shape[2]):
            alone = torch.zeros_like(flat)
            alone[:, :, t] = flat[:, :, t]
            yield alone.view_as(u)


def _whole(f: Tensor, source: Tensor | LinearOperator, chunk: int) -> Iterator[Tensor]:
    """Yield a gradient, or the columns of a factor some at a time, as ``(k, N, ..., C)``."""
    if isinstance(source, Tensor):
        yield source.unsqueeze(0)
        return
    r = source.shape[-1]
    for start, stop in even_parts(r, chunk):
        unit = torch.zeros(r, stop - start, dtype=f.dtype, device=f.device)
        unit[start:stop].fill_diagonal_(1.0)
        yield source.mm(unit.expand(*f.shape[:-1], *unit.shape)).movedim(-1, 0)


def even_parts(n: int, most: int) -> list[tuple[int, int]]:
    """Return where parts of ``n`` begin and end that have at most so many each, about equally many."""
    count = -(-n // most)
    bounds = [n * i // count for i in range(count + 1)]
    return list(pairwise(bounds))


def average_weights(objective: Objective, batch: Batch, positions: torch.Size) -> tuple[Tensor | None, Tensor | None]:
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
    if bool((total == 1).all()):
        return None, None
    return total.reshape(-1), total.reshape(positions[0], -1).mean(1)


def add_output_hessians(total: Syrk, objective: Objective, batch: Batch, f: Tensor) -> None:
    """Add the expected output Hessians of a batch, times weight and scale."""
    root = _root(objective, batch, f)
    c = f.shape[-1]
    factor = objective.likelihood.fisher_factor(f, batch.y)
    for u in _whole(f, factor, max(1, _CHUNK_ELEMENTS // f.numel())):
        total.add((u * root).reshape(-1, 1, c, 1))


def _root(objective: Objective, batch: Batch, f: Tensor) -> Tensor:
    """Return the square root of scale times weight, broadcast against the outputs."""
    weights = objective.position_weights(batch)
    if weights is None:
        return torch.full((), objective.scale, dtype=f.dtype, device=f.device).sqrt()
    return (weights * objective.scale).sqrt().unsqueeze(-1)


def _signs(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Return random signs, eight from each number that is drawn: drawing is what costs."""
    device, n = like.device if generator is None else generator.device, math.prod(shape)
    draws = torch.randint(0, 256, (-(-n // 8),), generator=generator, device=device, dtype=torch.uint8)
    bits = draws.bitwise_and(2 ** torch.arange(8, dtype=torch.uint8, device=device)[:, None]).ne(0)
    return bits.reshape(-1)[:n].view(shape).to(dtype=like.dtype, device=like.device).mul_(2).sub_(1)


def _positionwise(record: LayerRecord) -> bool:
    """Whether outputs at three positions depend on one position of every layer each, all different."""
    f = record.output
    n, t = f.shape[0], f.shape[1:-1].numel()
    if t == 1 or record.unrecognized:
        return False
    if (
        not record.calls
        or any(call.positions != n * t for call in record.calls)
        or any(call.inner > 1 for call in record.calls)
    ):
        return False
    total = [torch.zeros(call.positions, dtype=torch.long, device=f.device) for call in record.calls]
    for place in {0, t // 2, t - 1}:
        weights = f.new_zeros(n, t)
        weights[:, place] = 1
        for seen, touched in zip(total, record.touched(weights.reshape(f.shape[:-1])), strict=True):
            seen += touched
            if int(touched.sum()) > n or int(seen.max()) > 1:
                return False
    return True
