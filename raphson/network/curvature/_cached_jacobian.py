"""The Jacobian of a batch, made from one backward pass for each output and kept for many products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.data import Batch
from raphson.network._objective import Objective
from raphson.network.curvature.factors._output_factor import RecordedBatch, even_parts, recorded_parts
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
    limit: int,
) -> LayerJacobian | None:
    r"""Return the Jacobian of a batch, kept by layer.

    Cost in units of a forward pass F, for E outputs of an example: about 2E, as much as E / 2 products with
    :math:`J^\top J`.

    Args:
        objective: The objective.
        batch: The batch.
        index: Its number.
        f: Its outputs, ``(N, ..., C)``.
        transposed: From ``u``, ``(1, N, ..., C)``, to ``J^T u``, ``(1, P)``, in another way, to check the result with;
            None for a feed-forward network, whose layers explain it for certain.
        limit: Largest size, in bytes.

    Returns:
        The Jacobian; None where it is larger, where a parameter is used in a way that is no layer's and examples
        cannot be batched for it, or where all this does not explain how the outputs depend on the parameters.
    """
    try:
        found = _made(objective, batch, index, f[0].numel(), limit)
    except InputError:  # a layer's input is gone, or its positions cannot be told apart
        return None
    certain = found is None or transposed is None or _agrees(found, f, transposed)
    return found if certain else None


def _made(objective: Objective, batch: Batch, index: int, outputs: int, limit: int) -> LayerJacobian | None:
    n = batch.n_examples
    most = max(1, _TOGETHER // objective.traits.entries)
    found: LayerJacobian | None = None
    for start, recorded in recorded_parts(objective, batch, index, max(1, most // outputs)):
        record, layouts, examples = recorded.record, recorded.independent_layouts, recorded.batch.n_examples
        # positions that are like examples are units of their own
        each = record.output.shape[-1] if recorded.positionwise else outputs
        units = record.output.numel() // each
        if found is None:
            found = LayerJacobian(
                objective.space, record.calls, layouts, units * n // examples, each, record.unrecognized
            )
            if found.nbytes > limit:
                return None
            found.allocate()
        elif not found.suits(record.calls, layouts):
            return None
        first = start * units // examples
        for columns in even_parts(each, max(1, most // examples)):
            if not _fill(found, objective, recorded, slice(first, first + units), slice(*columns), each):
                return None
    return found


def _fill(
    found: LayerJacobian, objective: Objective, recorded: RecordedBatch, units: slice, columns: slice, outputs: int
) -> bool:
    """Keep the gradients of some outputs of some units; False where examples would have to go one by one."""
    f, width = recorded.record.output, columns.stop - columns.start
    unit = torch.zeros(width, 1, outputs, dtype=f.dtype, device=f.device)
    unit[:, 0, columns].fill_diagonal_(1.0)

    def keep(number: int, gradients: Mapping[int, Tensor]) -> None:
        call, layout = recorded.record.calls[number], recorded.independent_layouts[number]
        found.fill(number, call, layout, gradients[number], units, columns)

    jobs = [([number], partial(keep, number)) for number in range(len(recorded.record.calls))]
    u = unit.expand(width, f.numel() // outputs, outputs).reshape(width, *f.shape)
    recorded.record.deliver(u, jobs)
    names = [name for name in objective.space.names if name in recorded.record.unrecognized]
    try:
        gradients = UnrecognizedGradients(objective, recorded, names).together(u) if names else []
    except (RuntimeError, NotImplementedError, ValueError):
        return False
    for name, rows in zip(names, gradients, strict=True):
        found.fill_unrecognized(name, rows, units, columns)
    return True


def _agrees(found: LayerJacobian, f: Tensor, transposed: Callable[[Tensor], Tensor]) -> bool:
    """Whether the layers explain how all outputs depend on the parameters, by one vector of random signs."""
    generator = torch.Generator(f.device).manual_seed(0)
    signs = torch.randint(0, 2, (1, *f.shape), generator=generator, device=f.device, dtype=torch.int8)
    u = signs.to(f.dtype).mul_(2).sub_(1)
    expected = transposed(u)
    gap, size = (found.vjp(found.shaped(u)) - expected).norm(), expected.norm()
    return bool(gap <= size * torch.finfo(f.dtype).eps ** 0.5)
