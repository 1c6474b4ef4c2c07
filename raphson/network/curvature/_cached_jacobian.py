"""The Jacobian of a batch, made from one backward pass for each output and cached for many products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.data import Batch
from raphson.network._objective import Objective
from raphson.network.curvature.factors._output_curvature import even_parts
from raphson.network.curvature.factors._recorded_batches import RecordedBatch, recorded_parts
from raphson.network.curvature.factors._unrecognized_gradients import UnrecognizedGradients
from raphson.network.layers._layer_jacobian import LayerJacobian

_TOGETHER = 2**25
"""Entries of what the model makes, for all outputs of some examples, that are differentiated at a time."""


def cached_jacobian(
    objective: Objective,
    batch: Batch,
    index: int,
    f: Tensor,
    transposed: Callable[[Tensor], Tensor] | None,
    limit: float,
) -> LayerJacobian | None:
    r"""Return the Jacobian of a batch with outputs ``f``, stored by layer, in at most ``limit`` bytes.

    Cost in units of a forward pass F, for E outputs of an example: about 2E, as much as E / 2 products with
    :math:`J^\top J`. The result is checked with ``transposed``, another way from ``u``, ``(1, N, ..., C)``, to
    ``J^T u``, ``(1, P)``; None for a feed-forward network, whose layers explain it for certain.

    Returns:
        The Jacobian; None where it is larger, where a parameter is used outside recognized layers and examples cannot
        be batched for it, or where all this does not explain how the outputs depend on the parameters.
    """
    try:
        found = _made(objective, batch, index, f[0].numel(), limit)
    except InputError:  # a layer's input is gone, or its positions cannot be told apart
        return None
    certain = found is None or transposed is None or _agrees(found, f, transposed)
    return found if certain else None


def _made(objective: Objective, batch: Batch, index: int, outputs: int, limit: float) -> LayerJacobian | None:
    n = batch.n_examples
    most = max(1, _TOGETHER // objective.traits.entries)
    found: LayerJacobian | None = None
    for start, recorded in recorded_parts(objective, batch, index, max(1, most // outputs)):
        record, layouts, length = recorded.record, recorded.independent_layouts, recorded.batch.n_examples
        # independent positions count as examples of their own
        each = record.output.shape[-1] if recorded.positionwise else outputs
        count = record.output.numel() // each
        if found is None:
            found = LayerJacobian(
                objective.space, record.calls, layouts, count * n // length, each, record.unrecognized
            )
            if found.nbytes > limit:
                return None
            found.allocate()
        elif not found.suits(record.calls, layouts):
            return None
        first = start * count // length
        for part in even_parts(each, max(1, most // length)):
            if not _fill(found, objective, recorded, slice(first, first + count), slice(*part), each):
                return None
    return found


def _fill(
    found: LayerJacobian, objective: Objective, recorded: RecordedBatch, examples: slice, part: slice, outputs: int
) -> bool:
    """Store the gradients of part of the outputs of some examples; False where these would have to go one by one."""
    f, width = recorded.record.output, part.stop - part.start
    unit = torch.zeros(width, 1, outputs, dtype=f.dtype, device=f.device)
    unit[:, 0, part].fill_diagonal_(1.0)

    def store(number: int, gradients: Mapping[int, Tensor]) -> None:
        call, layout = recorded.record.calls[number], recorded.independent_layouts[number]
        found.fill(number, call, layout, gradients[number], examples, part)

    jobs = [([number], partial(store, number)) for number in range(len(recorded.record.calls))]
    u = unit.expand(width, f.numel() // outputs, outputs).reshape(width, *f.shape)
    recorded.record.deliver(u, jobs)
    try:
        gradients = UnrecognizedGradients(objective, recorded).together(u)
    except (RuntimeError, NotImplementedError, ValueError):
        return False
    for name, rows in gradients.items():
        found.fill_unrecognized(name, rows, examples, part)
    return True


def _agrees(found: LayerJacobian, f: Tensor, transposed: Callable[[Tensor], Tensor]) -> bool:
    """Whether the layers explain how all outputs depend on the parameters, by one vector of random signs."""
    generator = torch.Generator(f.device).manual_seed(0)
    signs = torch.randint(0, 2, (1, *f.shape), generator=generator, device=f.device, dtype=torch.int8)
    u = signs.to(f.dtype).mul_(2).sub_(1)
    expected = transposed(u)
    gap, size = (found.vjp(found.shaped(u)) - expected).norm(), expected.norm()
    return bool(gap <= size * torch.finfo(f.dtype).eps ** 0.5)
