"""Sums over positions of gradients and of gradients times values, as scales and shifts have them for every example."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

try:
    from raphson.network.layers import _position_sums
except ImportError:
    if not TYPE_CHECKING:
        _position_sums = None


def position_sums(g: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums over positions of products and of gradients.

    On a processor compiled code (``_position_sums.c``) reads each number once and writes down no product.

    Args:
        g: Gradients ``(k, N, P, C)``.
        z: Values ``(N, P, C)``.

    Returns:
        ``sum_p g z`` and ``sum_p g``, each ``(k, N, C)``.
    """
    known = g.dtype == z.dtype and g.dtype in {torch.float32, torch.float64}
    if _position_sums is None or g.device.type != "cpu" or not known:
        return (g * z).sum(2), g.sum(2)
    k, n, positions, channels = g.shape
    products, plain = g.new_empty(2, k, n, channels).unbind()
    sizes = k, n, positions, channels, *g.stride(), *z.stride()
    addresses = (t.data_ptr() for t in (g, z, products, plain))
    _position_sums.sum(g.dtype == torch.float32, *sizes, *addresses, torch.get_num_threads())
    return products, plain
