r"""Products with :math:`J^\top M J`: by passes over the network, or with its Jacobian once that has paid for itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from raphson.data import Batch
from raphson.linalg import Implicit
from raphson.network._objective import Objective
from raphson.network.autodiff._linearize import Linearization, Parts, map_parts, map_rows
from raphson.network.curvature._cached_jacobian import cached_jacobian
from raphson.network.curvature._products import Local, NetworkProducts
from raphson.network.curvature.factors._output_curvature import OutputCurvature
from raphson.network.layers._feed_forward import FeedForward, find_feed_forward
from raphson.network.layers._feed_forward_products import FeedForwardProducts, in_parts
from raphson.network.layers._layer_jacobian import LayerJacobian

_FROM = 0.75
"""Vectors asked for, in units of the outputs of an example, from which on the Jacobian is kept: making it takes as long
as the products of 0.3 (linear layers) to 0.9 (convolutions) as many vectors (measured)."""

Function = Callable[[Tensor], Tensor]


def gauss_newton_products(objective: Objective, middle: OutputCurvature) -> Implicit:
    """Return the operator of products with ``J^T M J`` summed over the data."""
    feed_forward = find_feed_forward(objective.model.module)

    def local(of: Objective, batch: Batch, index: int, spare: int) -> Local:
        passes = _Graph(of, batch) if feed_forward is None else _Closed(of, feed_forward, batch)
        f = passes.outputs
        of.check_outputs(f, batch, index)
        function = middle.product(of, f, batch, index)

        def keep() -> _CachedJacobian | None:
            limit = spare - f.numel() * f.shape[-1] * f.element_size()
            vjp = passes.vjp if isinstance(passes, _Graph) else None
            jacobian = cached_jacobian(of, batch, index, f, vjp, limit)
            return None if jacobian is None else _CachedJacobian(jacobian, f, function)

        return _Local(partial(passes.products, middle=function), passes.nbytes, f[0].numel(), keep)

    return NetworkProducts(objective, local).operator()


class _Graph:
    """The passes by automatic differentiation."""

    nbytes = 0

    def __init__(self, objective: Objective, batch: Batch) -> None:
        self._space = objective.space
        self._lin = Linearization(objective.model, batch.x, objective.traits)
        self.outputs = self._lin.outputs

    def products(self, rows: Tensor, middle: Function) -> Tensor:
        def product(v: Tensor) -> Parts:
            return self._lin.vjp(middle(self._lin.jvp(v)))

        return map_parts(product, rows, self._space, self._lin.together)

    def vjp(self, u: Tensor) -> Tensor:
        return map_parts(self._lin.vjp, u, self._space, self._lin.together)


class _Closed:
    """The passes over a feed-forward network in closed form."""

    def __init__(self, objective: Objective, feed_forward: FeedForward, batch: Batch) -> None:
        self._network = FeedForwardProducts(feed_forward, objective.space, feed_forward.features(batch.x))
        self.outputs, self.nbytes = self._network.outputs, self._network.nbytes

    def products(self, rows: Tensor, middle: Function) -> Tensor:
        def product(part: Tensor) -> Tensor:
            return self._network.vjp(map_rows(middle, self._network.jvp(part), True))

        return in_parts(product, rows, self._network.width)


class _CachedJacobian:
    """A kept Jacobian with the matrices ``M`` written out."""

    def __init__(self, jacobian: LayerJacobian, f: Tensor, middle: Function) -> None:
        self._jacobian, c = jacobian, f.shape[-1]
        unit = torch.eye(c, dtype=f.dtype, device=f.device).view(c, *[1] * (f.ndim - 1), c)
        columns = map_rows(middle, unit.expand(c, *f.shape), True)
        self._matrices = columns.reshape(c, -1, c).transpose(0, 1).contiguous()

    def products(self, rows: Tensor) -> Tensor:
        return in_parts(self._product, rows, self._jacobian.width)

    def _product(self, rows: Tensor) -> Tensor:
        u = self._jacobian.jvp(rows)
        # symmetric matrices, so that they may stand on the right
        moved = u.reshape(len(u), *self._matrices.shape[:2]).transpose(0, 1) @ self._matrices
        return self._jacobian.vjp(moved.transpose(0, 1).reshape(u.shape))


class _Local:
    """``J^T M J`` of one batch.

    The Jacobian is kept, where it fits, when about as many vectors have been asked for as an example has outputs.
    """

    def __init__(
        self, products: Function, nbytes: int, outputs: int, keep: Callable[[], _CachedJacobian | None]
    ) -> None:
        self.nbytes = nbytes
        self._products, self._asked, self._outputs = products, 0, outputs
        self._keep: Callable[[], _CachedJacobian | None] | None = keep

    def products(self, rows: Tensor) -> Tensor:
        self._asked += len(rows)
        # inside a transformation (vmap) nothing is kept
        plain = torch.func.debug_unwrap(rows) is rows
        if self._keep is not None and plain and self._asked >= _FROM * self._outputs:
            cached, self._keep = self._keep(), None
            self._products = self._products if cached is None else cached.products
        return self._products(rows)
