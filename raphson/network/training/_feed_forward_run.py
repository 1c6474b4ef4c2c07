"""A run of a feed-forward network in closed form: nothing is recorded, and no graph is made.

A step of K-FAC on a small network is calls more than it is products: recording the layer calls of the autoencoder of
1400 digits and making its graph, which products with the Jacobian differentiate again, takes as long as all products.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from raphson.network._parameters import ParameterSpace
from raphson.network.layers._feed_forward import FeedForward, find_feed_forward
from raphson.network.layers._feed_forward_products import FeedForwardProducts
from raphson.network.layers._recorder import feed_forward_record, records_feed_forward


class FeedForwardRun:
    """A run of linear layers and elementwise activations.

    Args:
        feed_forward: The network.
        space: The parameters.
        x: Its inputs.
    """

    def __init__(self, feed_forward: FeedForward, space: ParameterSpace, x: Any) -> None:
        self._space = space
        layers = list(feed_forward.forward_pass(feed_forward.features(x)))
        self.record = feed_forward_record(layers, space)
        self._products = FeedForwardProducts(feed_forward, space, layers[0].inputs, layers=layers)

    def gradient(self, u: Tensor, keep: bool) -> tuple[Tensor, list[Tensor]]:  # noqa: D102
        rows, outputs = self._backward(u)
        return rows, outputs if keep else []

    def backward(self, u: Tensor, names: Collection[str]) -> tuple[list[Tensor], dict[str, Tensor]]:  # noqa: D102
        if not names:
            return [g.squeeze(0) for g in self.record.gradients(u.unsqueeze(0))], {}
        rows, outputs = self._backward(u)
        return outputs, {name: part for name, part in self._space.unflatten(rows).items() if name in names}

    def jvp(self, v: Tensor) -> Tensor:  # noqa: D102
        return self._products.jvp(v.unsqueeze(0)).squeeze(0)

    def _backward(self, u: Tensor) -> tuple[Tensor, list[Tensor]]:
        rows, outputs = self._products.backward(u.unsqueeze(0))
        shapes = (call.shape for call in self.record.calls)
        return rows.squeeze(0), [g.view(shape) for g, shape in zip(outputs, shapes, strict=True)]


def closed_form(module: nn.Module | None, space: ParameterSpace) -> FeedForward | None:
    """Return the network in the mode that it is in, if it has closed forms; None where it has not, or drops values."""
    found = find_feed_forward(module)
    if found is None or module is None or not records_feed_forward(found, space):
        return None
    drops = any(type(part) is nn.Dropout and part.training and part.p > 0 for part in module.modules())
    alike = all(p.dtype == space.dtype and p.device == space.device for p in module.parameters())
    return found if alike and not drops else None
