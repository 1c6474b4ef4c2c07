r"""The Gauss-Newton matrices of the pre-activations of a feed-forward network, averaged over the data layer by layer.

With the pre-activations h of a layer, W the weight above it and b = f'(h) the activation's derivatives in between,

.. math:: H_{l} = \bigl(W_{l+1}^T H_{l+1} W_{l+1}\bigr) \odot \overline{b_l b_l^T}

(Botev, Ritter and Barber 2017, eq. 20): exact for one example, and no backward pass for any number of outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from raphson.data import Batch
from raphson.likelihoods import HessianSum
from raphson.linalg import check_dense_size
from raphson.network._weighted_loss import WeightedLoss
from raphson.network.curvature.factors._kronecker_factors import divided, total_of
from raphson.network.curvature.factors._output_factor import add_output_hessians, output_hessians
from raphson.network.curvature.factors._syrk import Syrk
from raphson.network.layers._feed_forward import FeedForward, LayerValues


class Recursion:
    """Sums over batches, and what follows from them.

    Args:
        feed_forward: The network.
        like: Gives type and device.
    """

    def __init__(self, feed_forward: FeedForward, like: Tensor) -> None:
        widths = [layer.linear.out_features for layer in feed_forward.layers]
        check_dense_size((max(widths),) * 2, like.dtype, "estimator='exact' or 'mc', which keep a diagonal there")
        self._layers = feed_forward.layers
        self._top: HessianSum | None = None
        self._derivatives = [Syrk(1, width, like) for width in widths]
        self._weight: float | Tensor = 0.0

    def add(self, loss: WeightedLoss, batch: Batch, passed: Sequence[LayerValues], weights: Tensor | None) -> None:
        """Add a batch.

        Args:
            loss: The loss, with scale and weights.
            batch: The batch.
            passed: Its way through the network, layer by layer.
            weights: How much each position counts in an average, ``(M,)``; None for 1 each.
        """
        positions = passed[0].inputs[..., 0].numel()
        self._weight = self._weight + (positions if weights is None else total_of(weights))
        for total, at in zip(self._derivatives, passed, strict=True):
            if at.derivative is not None:
                derivative = at.flat().derivative
                assert derivative is not None
                derivative = derivative if weights is None else derivative * weights.sqrt()[:, None]
                total.add(derivative[:, None, :, None])
        self._top = self._top or output_hessians(loss, "exact", passed[-1].outputs)
        add_output_hessians(self._top, loss, batch, passed[-1].outputs)

    def hessians(self) -> list[Tensor]:
        """Return the matrix of each layer's pre-activations, ``(out, out)``, from the bottom up."""
        found: list[Tensor] = []
        for i in range(len(self._layers) - 1, -1, -1):
            if found:
                w = self._layers[i + 1].w
                above = w.mT @ found[-1] @ w
            else:
                assert self._top is not None
                above = self._top.total()
            activated, total = self._layers[i].activations, self._derivatives[i]
            found.append(above * divided(total.total()[0], self._weight) if activated else above)
        return found[::-1]
