r"""Products with the Jacobian and the Hessian of a feed-forward network, for many vectors at once, in closed form.

At a layer with inputs :math:`a` (tangent :math:`t`), :math:`z = W a + b` and derivatives :math:`\varphi'` and
:math:`\varphi''` of its activation, a direction :math:`(\dot W, \dot b)` moves

.. math:: \dot z = \dot W a + W t + \dot b, \qquad t^+ = \varphi' \odot \dot z ,

and with the gradient :math:`g` in :math:`z`, its tangent :math:`\dot g`, and the layer below marked :math:`-`,

.. math:: \dot g^- = \varphi'^- \odot (W^T \dot g + \dot W^T g) + \varphi''^- \odot \dot z^- \odot W^T g, \qquad
    \text{Hessian product in } W: \ \dot g\, a^T + g\, t^T

(Pearlmutter 1994). Without the terms in :math:`g` it is the Gauss-Newton product. Operations, in units of a forward
pass: :math:`J v` is 2F, :math:`J^T u` is 2F, and a Hessian product 6F, the first layer counted half.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raphson.network._parameters import ParameterSpace
from raphson.network.autodiff._linearize import Function, map_rows
from raphson.network.layers._feed_forward import FeedForward, LayerValues, backward_pass

_TOGETHER = {"cpu": 2**21, "cuda": 2**25}
"""Entries of the widest layer, for all vectors, up to which they go together: more take memory and gain nothing."""


class FeedForwardProducts:
    """A feed-forward network at one batch, with products for blocks of vectors.

    Args:
        feed_forward: The network.
        space: The parameters that are differentiated.
        features: Inputs of the first layer, ``(N, ..., in)``.
        second: Whether Hessian products will be asked for.
        layers: The layers at these inputs, where they are known.

    Attributes:
        outputs: ``(N, ..., C)``.
        width: Number of vectors that should go together.
        nbytes: Memory that is held for products.
    """

    def __init__(
        self,
        feed_forward: FeedForward,
        space: ParameterSpace,
        features: Tensor,
        *,
        second: bool = False,
        layers: list[LayerValues] | None = None,
    ) -> None:
        self._space = space
        layers = list(feed_forward.forward_pass(features, second)) if layers is None else layers
        self.outputs = layers[-1].outputs
        # nothing below the first parameter has a derivative
        first = min(i for i, layer in enumerate(feed_forward.layers) if {layer.weight, layer.bias} & set(space.names))
        self._layers = [at.flat() for at in layers[first:]]
        positions, widest = self._layers[0].inputs.shape[0], max(x.linear.out_features for x in feed_forward.layers)
        self.width = vectors_at_once(positions * widest, features.device)
        held = [t for at in self._layers for t in (at.outputs, at.derivative, at.second_derivative) if t is not None]
        self.nbytes = sum(t.numel() * t.element_size() for t in held)

    def jvp(self, rows: Tensor) -> Tensor:
        """Return ``J v``, ``(k, N, ..., C)``, for ``v`` in rows ``(k, P)``."""
        with torch.no_grad():
            moved, _, _ = self._tangents(self._directions(rows))
        return moved.view(-1, *self.outputs.shape)

    def vjp(self, u: Tensor) -> Tensor:
        """Return ``J^T u``, ``(k, P)``, for ``u`` of shape ``(k, N, ..., C)``."""
        return self.backward(u)[0]

    def backward(self, u: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return ``J^T u``, and with it the gradients in the outputs of layers with weights, ``(k, M, out)``."""
        with torch.no_grad():
            gradients = [*backward_pass(self._layers, u.reshape(u.shape[0], -1, u.shape[-1]))][::-1]
            pairs = list(zip(gradients, self._layers, strict=True))
            rows = self._rows([_outer(g, at.inputs) if self._has(at) else None for g, at in pairs], gradients)
            return rows, [g for g, at in pairs if self._has(at)]

    def gauss_newton_products(self, rows: Tensor, middle: Function) -> Tensor:
        """Return ``J^T M J v``, ``(k, P)``, for ``v`` in rows ``(k, P)``, with the product ``middle`` of ``M``."""
        return in_parts(lambda part: self.vjp(map_rows(middle, self.jvp(part), True)), rows, self.width)

    def set_gradient(self, gradient: Tensor) -> None:
        """Store the gradient of a loss in the outputs, ``(N, ..., C)``, for its Hessian products."""
        with torch.no_grad():
            u = gradient.reshape(1, -1, gradient.shape[-1])
            self._gradients = [*backward_pass(self._layers, u)][::-1]
            above = [*(g[0] @ at.layer.w for g, at in zip(self._gradients[1:], self._layers[1:], strict=True)), u[0]]
            # times the gradients in the outputs of the layers
            self._second_terms = [
                None if at.second_derivative is None else at.second_derivative * g
                for at, g in zip(self._layers, above, strict=True)
            ]

    def hessian_product(self, rows: Tensor, middle: Function) -> Tensor:
        """Return the Hessian of the loss times vectors in rows ``(k, P)``; ``middle``: its product in the outputs."""
        with torch.no_grad():
            directions = self._directions(rows)
            moved, tangents, pre = self._tangents(directions)
            moved = map_rows(middle, moved.view(-1, *self.outputs.shape), True).view(moved.shape)
            weights: list[Tensor | None] = []
            outputs: list[Tensor] = []
            for i in range(len(self._layers) - 1, -1, -1):
                at, second_term, d, t = self._layers[i], self._second_terms[i], directions[i][0], tangents[i]
                g = self._gradients[i].expand(len(rows), -1, -1)
                # in place but for what the likelihood returned
                moved = at.times_derivative_(moved) if outputs else at.times_derivative(moved)
                if second_term is not None:
                    moved = moved.addcmul_(second_term, pre[i])
                outputs.append(moved)
                outer = _outer(moved, at.inputs) if self._has(at) else None
                weights.append(outer if outer is None or t is None else outer.baddbmm_(g.mT, t))
                if i:
                    below = moved @ at.layer.w
                    moved = below if d is None else below.baddbmm_(g, d)
            return self._rows(weights[::-1], outputs[::-1])

    def _has(self, at: LayerValues) -> bool:
        """Whether the weight of a layer is differentiated."""
        return at.layer.weight in self._space.tensors

    def _directions(self, rows: Tensor) -> list[tuple[Tensor | None, Tensor | None]]:
        """Return the parts of vectors that belong to weights and biases, None where these are constant."""
        parts = dict(zip(self._space.names, self._space.split_rows(rows), strict=True))
        return [(parts.get(at.layer.weight), parts.get(at.layer.bias or "")) for at in self._layers]

    def _tangents(
        self, directions: list[tuple[Tensor | None, Tensor | None]]
    ) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
        """Return the tangents of the outputs, and of inputs and outputs ``z`` of every layer, ``(k, M, d)``."""
        k = next(part.shape[0] for pair in directions for part in pair if part is not None)
        t: Tensor | None = None
        inputs: list[Tensor | None] = []
        outputs = []
        for at, (weight, bias) in zip(self._layers, directions, strict=True):
            inputs.append(t)
            z = _moved(at, t, weight, bias, k)
            outputs.append(z)
            # second derivatives need z again
            t = at.times_derivative(z) if at.second_derivative is not None else at.times_derivative_(z)
        assert t is not None
        return t, inputs, outputs

    def _rows(self, weights: list[Tensor | None], outputs: list[Tensor]) -> Tensor:
        """Return products ``(k, P)`` from those in the weights and in the layers' outputs."""
        found: dict[str, Tensor] = {}
        for at, weight, g in zip(self._layers, weights, outputs, strict=True):
            if weight is not None:
                found[at.layer.weight] = weight.flatten(1)
            if at.layer.bias in self._space.tensors:
                found[at.layer.bias] = g.sum(1)
        return torch.cat([found[name] for name in self._space.names], 1)


def vectors_at_once(entries: int, device: torch.device) -> int:
    """Return how many vectors should go together where the widest layer has so many entries for each."""
    return max(1, _TOGETHER.get(device.type, 2**21) // entries)


def in_parts(function: Callable[[Tensor], Tensor], rows: Tensor, width: int) -> Tensor:
    """Return a function of ``width`` rows at a time."""
    if rows.shape[0] <= width:
        return function(rows)
    return torch.cat([function(part) for part in rows.split(width)])  # type: ignore[no-untyped-call]


def _moved(at: LayerValues, t: Tensor | None, weight: Tensor | None, bias: Tensor | None, k: int) -> Tensor:
    """Return the tangents of a layer's outputs, ``(k, M, out)``, from those of inputs, weight and bias."""
    w, m = at.layer.w, at.inputs.shape[0]
    z: Tensor
    if weight is not None:
        a = at.inputs.expand(k, -1, -1)
        z = a @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), a, weight.mT)
    elif bias is not None:
        z = bias.unsqueeze(1).expand(k, m, -1).clone()
    else:
        assert t is not None  # only the first layer has none, and it has parameters
        return t @ w.mT
    if t is not None:
        z.view(-1, w.shape[0]).addmm_(t.reshape(-1, w.shape[1]), w.mT)
    return z


def _outer(g: Tensor, a: Tensor) -> Tensor:
    """Return ``sum_m g_m a_m^T`` for each of ``k``, ``(k, out, in)``."""
    return g.mT @ a.expand(g.shape[0], -1, -1)
