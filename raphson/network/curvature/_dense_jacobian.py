"""The dense Jacobian of some examples, by layers where the network is feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from raphson.data import Batch
from raphson.network._objective import Objective
from raphson.network.autodiff._per_example import example_jacobian
from raphson.network.layers._layer_calls import Linear
from raphson.network.layers._recorder import record_feed_forward


def dense_jacobian(objective: Objective, batch: Batch) -> Tensor:
    """Return the Jacobian of the outputs of a batch in the parameters, ``(N, ..., C, P)``.

    With one position for each example a linear layer's part is an outer product of output gradients and inputs: one
    backward pass for all outputs, where differentiation example by example batches every operation.
    """
    network, space = objective.feed_forward, objective.space
    record = None if network is None else record_feed_forward(network, space, batch.x)
    if record is None or record.output.ndim > 2:
        return example_jacobian(objective.model, batch.x, batch.n_examples, objective.traits)
    n, c = record.output.shape
    whole = record.output.new_empty(n, c, space.numel)

    def fill(number: int, gradients: Mapping[int, Tensor]) -> None:
        call, g = record.calls[number], gradients[number].transpose(0, 1)
        assert isinstance(call, Linear) and call.weight is not None
        place = space.slices[call.weight.name]
        block = whole[..., place].view(n, c, *call.weight.size)
        torch.mul(g.unsqueeze(-1), call.input()[:, None, None, :], out=block)
        if call.bias is not None:
            whole[..., space.slices[call.bias.name]] = g

    eye = torch.eye(c, dtype=whole.dtype, device=whole.device)
    with torch.no_grad():
        jobs = [([number], partial(fill, number)) for number in range(len(record.calls))]
        record.deliver(eye.unsqueeze(1).expand(c, n, c), jobs)
    return whole
