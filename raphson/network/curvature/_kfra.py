"""KFRA: K-FAC with the output side passed from layer to layer (Botev, Ritter and Barber 2017)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.linalg import Dense
from raphson.network._objective import Objective
from raphson.network._parameters import ParameterSpace
from raphson.network.curvature.factors._kronecker_factors import MatmulTerm
from raphson.network.curvature.factors._layer_operator import LayerOperator
from raphson.network.curvature.factors._layer_plan import Bias
from raphson.network.curvature.factors._layer_sums import ParameterBlock, assemble, joined, whole
from raphson.network.curvature.factors._recorded_batches import average_weights
from raphson.network.curvature.factors._recursion import Recursion
from raphson.network.layers._feed_forward import FeedForward, FeedForwardLayer, LayerValues, read_feed_forward


def kfra(objective: Objective, bias: Bias) -> LayerOperator:
    """Return the Kronecker factors of a feed-forward network with the recursive output side."""
    feed_forward = objective.feed_forward or required_feed_forward(objective.model.module)
    recursion = Recursion(feed_forward, objective.space.empty())
    layers = [_Layer(layer, objective, bias == "joint") for layer in feed_forward.layers]
    for index, batch in enumerate(objective.batches()):
        features = feed_forward.features(batch.x)
        weights, _ = average_weights(objective, batch, features.shape[:-1])
        with torch.no_grad():
            passed = list(feed_forward.forward_pass(features))
            objective.check_losses(passed[-1].outputs, batch.y, index)
            recursion.add(objective, batch, passed, weights)
            for layer, at in zip(layers, passed, strict=True):
                layer.add(at, weights)
    blocks = []
    for layer, h in zip(layers[::-1], recursion.hessians()[::-1], strict=True):
        blocks += layer.blocks(h)
    return assemble(objective, blocks)


class _Layer:
    """A linear layer with its inputs averaged over the data.

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

    def add(self, at: LayerValues, weights: Tensor | None) -> None:
        """Add the layer at a batch, with weights of the positions."""
        if self._weight_name is not None:
            self._term.add_rows(at.flat().inputs[:, None, :, None], weights)

    def blocks(self, h: Tensor) -> list[ParameterBlock]:
        """Return the blocks of those of weight and bias that are differentiated, for the pre-activations' matrix."""
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


def required_feed_forward(module: nn.Module | None) -> FeedForward:
    """Return a module as a feed-forward network; ``InputError`` names the part that is something else."""
    try:
        return read_feed_forward(module)
    except InputError as error:
        raise InputError(
            "estimator='recursive' (KFRA) goes through linear layers and elementwise activations of a "
            f"torch.nn.Sequential, each layer with parameters of its own, but {error} Use estimator='exact' or 'mc'."
        ) from None
