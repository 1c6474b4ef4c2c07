r"""Sums of squared per-example weight gradients, over examples and output factor, entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raphson.network.layers._layer_calls import Lookup, weight_gradients
from raphson.network.layers._parameter_view import PositionLayout

_CHUNK_ELEMENTS = 2**22
"""Entries of per-example gradients that are formed at a time."""


def squared_gradients(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    r"""Return :math:`\sum_{n,c} (\sum_u \sum_p g_{ncp} a_{np}^T)^2`, squared entry by entry.

    For each call inputs ``(N, G, I, P)`` and output gradients ``(N, k, G, O, P)``; the result is ``(G, O, I)``. Without
    sharing (one call, one position) the square is a product of squares, and the sum one matrix product.
    """
    if len(inputs) == 1 and inputs[0].shape[-1] == 1:
        a, g = inputs[0].squeeze(-1).square(), _summed_squares(outputs[0].squeeze(-1))
        return g.permute(1, 2, 0) @ a.transpose(0, 1)
    n, k, groups, o, _ = outputs[0].shape
    i = inputs[0].shape[2]
    step = max(1, _CHUNK_ELEMENTS // (k * groups * o * i))
    total = inputs[0].new_zeros(groups, o, i)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        gradient: Tensor | None = None
        for a, g in zip(inputs, outputs, strict=True):
            part = weight_gradients(g[rows], a[rows])
            gradient = part if gradient is None else gradient.add_(part)
        assert gradient is not None
        total += gradient.square_().sum((0, 2))
    return total


def _summed_squares(g: Tensor) -> Tensor:
    """Return ``(N, k, ...)`` squared and summed over ``k``, without the squares of all."""
    total = torch.zeros_like(g[:, 0])
    for part in g.unbind(1):
        total.addcmul_(part, part)
    return total


def squared_table(call: Lookup, g: Tensor, layout: PositionLayout) -> Tensor:
    """Return the same for an embedding table, ``(V, E)``, from output gradients ``(k, *shape)``, without such tables.

    Positions of an example with the same row add up before they are squared.
    """
    assert call.weight is not None
    v, e = call.weight.size
    masked = (call.rows(g) * call.counted()[:, None]).movedim(0, 1)
    u, tokens = layout.by_example(masked), layout.by_example(call.tokens())
    owner = torch.arange(tokens.shape[0], device=tokens.device)[:, None]
    pairs, place = torch.unique(tokens + v * owner, return_inverse=True)
    sums = g.new_zeros(pairs.shape[0], g.shape[0], e)
    sums.index_add_(0, place.reshape(-1), u.reshape(-1, g.shape[0], e))
    return g.new_zeros(v, e).index_add_(0, pairs % v, sums.square_().sum(1))
