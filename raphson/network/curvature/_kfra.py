r"""KFRA: the Gauss-Newton matrix of the pre-activations, averaged over the data layer by layer.

With the pre-activations h of a layer, W the weight above it and b = f'(h) the activation's derivatives in between,

.. math:: H_{l} = \bigl(W_{l+1}^T H_{l+1} W_{l+1}\bigr) \odot \overline{b_l b_l^T}

(Botev, Ritter and Barber 2017, eq. 20): exact for one example, and no backward pass for any number of outputs.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.linalg import Dense, check_dense_size
from raphson.network._objective import Objective
from raphson.network._parameters import ParameterSpace
from raphson.network.curvature.factors._kronecker_factors import MatmulTerm, divided, total_of
from raphson.network.curvature.factors._layer_operator import LayerOperator
from raphson.network.curvature.factors._layer_plan import Bias
from raphson.network.curvature.factors._layer_sums import ParameterBlock, assemble, joined, whole
from raphson.network.curvature.factors._output_factor import add_output_hessians
from raphson.network.curvature.factors._recorded_batches import average_weights
from raphson.network.curvature.factors._syrk import Syrk
from raphson.network.layers._feed_forward import FeedForward, FeedForwardLayer, LayerValues, read_feed_forward


def kfra(objective: Objective, bias: Bias) -> LayerOperator:
    """Return the Kronecker factors of a feed-forward network with the recursive output side."""
    feed_forward = objective.feed_forward or _required(objective.model.module)
    widest = max(layer.linear.out_features for layer in feed_forward.layers)
    check_dense_size((widest, widest), objective.dtype, "estimator='exact' or 'mc', which keep a diagonal there")
    layers = [_Layer(layer, objective, bias == "joint") for layer in feed_forward.layers]
    c = feed_forward.layers[-1].linear.out_features
    h = Syrk(1, c, objective.space.empty())
    for index, batch in enumerate(objective.batches()):
        features = feed_forward.features(batch.x)
        weights, _ = average_weights(objective, batch, features.shape[:-1])
        with torch.no_grad():
            for layer, at in zip(layers, feed_forward.forward_pass(features), strict=True):
                layer.add(at, weights)
            objective.check_losses(at.outputs, batch.y, index)
            add_output_hessians(h, objective, batch, at.outputs)
    blocks = layers[-1].blocks(h.total()[0] * layers[-1].mean_derivative_products())
    for lower, upper in zip(layers[-2::-1], layers[:0:-1], strict=True):
        blocks += lower.blocks(upper.hessian_below() * lower.mean_derivative_products())
    return assemble(objective, blocks)


class _Layer:
    """A linear layer and the activations after it, with averages over the data.

    Args:
        layer: The layer.
        objective: Whose parameters are differentiated.
        joint: Whether the bias shares the block of the weight.
    """

    def __init__(self, layer: FeedForwardLayer, objective: Objective, joint: bool) -> None:
        self._layer, self._objective = layer, objective
        self._weight_name, self._bias_name = (
            name if name in objective.space.tensors else None for name in (layer.weight, layer.bias)
        )
        joint = joint and self._weight_name is not None and self._bias_name is not None
        d, like = layer.linear.out_features, objective.space.empty()
        self._term = MatmulTerm((1, d, layer.linear.in_features), "expand", joint, False, like)
        self._derivatives = Syrk(1, d, like)
        self._weight: float | Tensor = 0.0

    def add(self, at: LayerValues, weights: Tensor | None) -> None:
        """Add the layer at a batch, with weights of the positions."""
        at = at.flat()
        if self._weight_name is not None:
            self._term.add_rows(at.inputs[:, None, :, None], weights)
        if at.derivative is None:
            return
        derivative = at.derivative if weights is None else at.derivative * weights.sqrt()[:, None]
        self._weight = self._weight + (derivative.shape[0] if weights is None else total_of(weights))
        self._derivatives.add(derivative[:, None, :, None])

    def mean_derivative_products(self) -> Tensor:
        """Return the average outer product of the derivatives, ``(out, out)``; ones without activation."""
        if not self._layer.activations:
            return torch.ones_like(self._derivatives.total()[0])
        return divided(self._derivatives.total()[0], self._weight)

    def hessian_below(self) -> Tensor:
        """Return ``W^T H W``, once ``blocks`` has set H."""
        w = self._layer.w
        return w.mT @ self._h @ w

    def blocks(self, h: Tensor) -> list[ParameterBlock]:
        """Return the blocks of those of weight and bias that are differentiated."""
        self._h = h
        space, weight, bias = self._objective.space, self._weight_name, self._bias_name
        found: list[ParameterBlock] = []
        if weight is not None:
            both = [weight, bias] if self._term.joint and bias is not None else [weight]
            places = partial(_rows, space, both, self._layer.w.shape)
            product = self._term.operator(h.unsqueeze(0))
            found.append(ParameterBlock(", ".join(both), space.slices[weight].start, places, product))
            bias = None if self._term.joint else bias
        if bias is not None:
            found.append(ParameterBlock(bias, space.slices[bias].start, partial(whole, space, bias), Dense(h)))
        return found


def _rows(space: ParameterSpace, names: list[str], shape: torch.Size) -> Tensor:
    """Return the places of a weight, or of a weight and a bias row by row."""
    places = whole(space, names[0]).view(1, *shape)
    return places.reshape(-1) if len(names) == 1 else joined(places, whole(space, names[1]))


def _required(module: nn.Module | None) -> FeedForward:
    """Return a module as a feed-forward network; ``InputError`` names the part that is something else."""
    try:
        return read_feed_forward(module)
    except InputError as error:
        raise InputError(
            "estimator='recursive' (KFRA) goes through linear layers and elementwise activations of a "
            f"torch.nn.Sequential, each layer with parameters of its own, but {error} Use estimator='exact' or 'mc'."
        ) from None
