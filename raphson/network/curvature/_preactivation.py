r"""Hessians of the loss in the pre-activations of a feed-forward network, example by example, from the top down.

With :math:`z_{l+1} = W \varphi(z_l) + b`, derivatives :math:`B = \operatorname{diag}\varphi'(z_l)`, the gradient
:math:`\delta` of the loss in :math:`\varphi(z_l)` and :math:`D = \operatorname{diag}(\varphi''(z_l)\,\delta)`,

.. math:: H_l = B W^\top H_{l+1} W B + D,

and the exact block of the Hessian of a layer with inputs :math:`a` is :math:`\sum_n a_n a_n^\top \otimes H_{l,n}`
(Botev, Ritter and Barber 2017, Practical Gauss-Newton optimisation for deep learning, eq. 6-8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raphson.data import Batch
from raphson.network._objective import Objective
from raphson.network.curvature.factors._output_curvature import slice_rows
from raphson.network.layers._feed_forward import FeedForward, FeedForwardLayer, LayerValues

_CHUNK = 2**24
"""Entries of the factors that are held at once."""


@dataclass(frozen=True, eq=False)
class _Factored:
    """A part :math:`F^T M F` of the Hessian: a factor and the product with the matrix in the middle.

    Attributes:
        factor: ``(n, k, d)``, or ``(1, k, d)`` where all positions have the same.
        middle: The product with ``M``, ``(n, k, d) -> (n, k, d)``.
    """

    factor: Tensor
    middle: Callable[[Tensor], Tensor]

    def diagonal(self) -> Tensor:
        return (self.middle(self.factor) * self.factor).sum(-2)

    def below(self, w: Tensor) -> _Factored:
        return _Factored(self.factor @ w, self.middle)

    def times_derivative(self, derivative: Tensor) -> _Factored:
        return _Factored(self.factor * derivative.unsqueeze(-2), self.middle)


@dataclass(frozen=True, eq=False)
class _DiagonalBelow:
    """A diagonal matrix seen through one layer, :math:`B W^T diag(r) W B`, whose diagonal needs no factor.

    Attributes:
        w: ``W``, ``(d', d)``.
        r: ``(n, d')``.
        derivative: ``(n, d)``, or None for ones.
    """

    w: Tensor
    r: Tensor
    derivative: Tensor | None = None

    def diagonal(self) -> Tensor:
        values = self.r @ self.w.square()
        return values if self.derivative is None else values * self.derivative.square()

    def factored(self) -> _Factored:
        factor = self.w if self.derivative is None else self.w * self.derivative.unsqueeze(-2)
        return _Factored(factor, lambda c: self.r.unsqueeze(-1) * c)

    def below(self, w: Tensor) -> _Factored:
        return self.factored().below(w)

    def times_derivative(self, derivative: Tensor) -> _DiagonalBelow:
        return _DiagonalBelow(self.w, self.r, derivative if self.derivative is None else self.derivative * derivative)


@dataclass(frozen=True, eq=False)
class Preactivation:
    """What the recursion knows at one linear layer, for some positions.

    Attributes:
        layer: The layer.
        inputs: Its inputs ``a``, ``(n, d_in)``.
        weights: Example weights times scale, ``(n,)``.
        parts: Whose sum is the Hessian in its outputs, with ``residual``.
        residual: The diagonal part ``D``, ``(n, d)``; None at the top.
    """

    layer: FeedForwardLayer
    inputs: Tensor
    weights: Tensor
    parts: list[_Factored | _DiagonalBelow]
    residual: Tensor | None

    def diagonal(self) -> Tensor:
        """Return the diagonals of the Hessians in the layer's outputs, ``(n, d)``, without weights."""
        total = torch.stack([part.diagonal() for part in self.parts]).sum(0)
        return total if self.residual is None else total + self.residual


def preactivation_diagonal(objective: Objective, feed_forward: FeedForward) -> Tensor:
    """Return the diagonal of the Hessian, ``(P,)``, without the penalty.

    Operations: a forward and a backward pass, one backward pass more for each output, and factors of the width of the
    layers above for each layer but the two lowest whose activations are curved.
    """
    total = objective.space.vector().zero_()
    slices = objective.space.slices
    for index, batch in enumerate(objective.batches()):
        for at in preactivations(objective, feed_forward, batch, index):
            weighted = at.diagonal() * at.weights.unsqueeze(-1)
            weight, bias = slices.get(at.layer.weight), slices.get(at.layer.bias or "")
            if weight is not None:
                total[weight] += (weighted.mT @ at.inputs.square()).reshape(-1)
            if bias is not None:
                total[bias] += weighted.sum(0)
    return total


def preactivations(
    objective: Objective, feed_forward: FeedForward, batch: Batch, index: int
) -> Iterator[Preactivation]:
    """Yield the layers of a feed-forward network from the top down, for some positions of a batch at a time."""
    x = feed_forward.features(batch.x)
    weights = objective.position_weights(batch)
    weights = x.new_ones(x.shape[:-1]) if weights is None else weights
    rows = x.reshape(-1, x.shape[-1])
    targets = batch.y.reshape(-1, *batch.y.shape[x.ndim - 1 :])
    with torch.no_grad():
        objective.check_outputs(objective.outputs(batch, index), batch, index)
    widths = [layer.linear.out_features for layer in feed_forward.layers]
    width = max(1, _CHUNK // (widths[-1] * max(widths)))
    weights = weights.reshape(-1) * objective.scale
    for part in slice_rows(rows.shape[0], width):
        layers = list(feed_forward.forward_pass(rows[part], second=True))
        f, y = layers[-1].outputs, targets[part]
        yield from _descend(layers, objective.likelihood.gradient(f, y), _top(objective, f, y), weights[part])


def _top(objective: Objective, f: Tensor, y: Tensor) -> _Factored:
    """Return the Hessian in the outputs: by the closed-form root where it is the Fisher information's."""
    if objective.information_is_observed:
        return _Factored(objective.likelihood.fisher_factor(f, y).to_dense().mT, lambda c: c)
    operator = objective.likelihood.hessian(f, y)
    identity = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
    return _Factored(identity, lambda c: operator.mm(c.expand(f.shape[0], -1, -1)))


def _descend(layers: list[LayerValues], gradient: Tensor, top: _Factored, weights: Tensor) -> Iterator[Preactivation]:
    """Yield the layers from the top down, given gradient and Hessian in the outputs."""
    parts: list[_Factored | _DiagonalBelow] = [top]
    residual: Tensor | None = None
    for number in range(len(layers) - 1, -1, -1):
        layer = layers[number]
        if layer.derivative is not None:
            parts = [part.times_derivative(layer.derivative) for part in parts]
        residual = None if layer.second_derivative is None else layer.second_derivative * gradient
        gradient = gradient if layer.derivative is None else gradient * layer.derivative
        yield Preactivation(layer.layer, layer.inputs, weights, parts, residual)
        if number > 0:
            w = layer.layer.w
            fresh = [] if residual is None else [_DiagonalBelow(w, residual)]
            parts = [*(part.below(w) for part in parts), *fresh]
            gradient = gradient @ w
