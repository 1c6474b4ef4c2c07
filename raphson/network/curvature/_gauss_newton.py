r"""Products with :math:`J^\top M J`: by passes over the network, or with its Jacobian cached."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.data import Batch
from raphson.linalg import Implicit
from raphson.network._objective import Objective
from raphson.network._tensor_memory import inside_transformation
from raphson.network.autodiff._linearize import Linearization, map_rows
from raphson.network.curvature._cached_jacobian import cached_jacobian
from raphson.network.curvature._products import BatchProducts, NetworkProducts
from raphson.network.curvature.factors._output_curvature import OutputCurvature
from raphson.network.layers._feed_forward_products import FeedForwardProducts, in_parts
from raphson.network.layers._layer_jacobian import LayerJacobian

Keep = Literal["auto"] | bool

_FROM = 0.75
"""Vectors asked for, in units of the outputs of an example, from which on ``keep="auto"`` caches the Jacobian: making
it takes as long as the products of 0.3 (linear layers) to 0.9 (convolutions) as many vectors (measured)."""

Function = Callable[[Tensor], Tensor]


def gauss_newton_products(objective: Objective, middle: OutputCurvature, keep: Keep) -> Implicit:
    """Return the operator of products with ``J^T M J`` summed over the data."""
    if keep not in ("auto", True, False):
        raise InputError(f"keep is {keep!r}, but it must be 'auto', True or False.")

    def linearize(batch: Batch, index: int, spare: float) -> BatchProducts:
        network = objective.feed_forward
        passes = (
            Linearization(objective.model, batch.x, objective.traits)
            if network is None
            else FeedForwardProducts(network, objective.space, network.features(batch.x))
        )
        f = passes.outputs
        objective.check_outputs(f, batch, index)
        function = middle.product(objective, f, batch, index)
        products: Function = partial(passes.gauss_newton_products, middle=function)

        def cache() -> Function | None:
            limit = spare - f.numel() * f.shape[-1] * f.element_size()
            vjps = passes.vjps if isinstance(passes, Linearization) else None
            jacobian = cached_jacobian(objective, batch, index, f, vjps, limit)
            return None if jacobian is None else _CachedProducts(jacobian, f, function)

        if keep is not False:
            products = _CachingProducts(products, cache, 0.0 if keep is True else _FROM * f[0].numel())
        return BatchProducts(products, getattr(passes, "nbytes", 0))

    return NetworkProducts(objective, linearize, keep_all=keep is True).operator()


class _CachedProducts:
    """Products with a cached Jacobian and the matrices ``M`` written out."""

    def __init__(self, jacobian: LayerJacobian, f: Tensor, middle: Function) -> None:
        self._jacobian, c = jacobian, f.shape[-1]
        unit = torch.eye(c, dtype=f.dtype, device=f.device).view(c, *[1] * (f.ndim - 1), c)
        columns = map_rows(middle, unit.expand(c, *f.shape), True)
        self._matrices = columns.reshape(c, -1, c).transpose(0, 1).contiguous()

    def __call__(self, rows: Tensor) -> Tensor:
        return in_parts(self._product, rows, self._jacobian.width)

    def _product(self, rows: Tensor) -> Tensor:
        u = self._jacobian.jvp(rows)
        # symmetric matrices, so that they may stand on the right
        moved = u.reshape(len(u), *self._matrices.shape[:2]).transpose(0, 1) @ self._matrices
        return self._jacobian.vjp(moved.transpose(0, 1).reshape(u.shape))


class _CachingProducts:
    """Products by passes, until so many vectors were asked for; then with the Jacobian, if it can be cached."""

    def __init__(self, products: Function, cache: Callable[[], Function | None], start: float) -> None:
        self._products, self._asked, self._start = products, 0, start
        self._cache: Callable[[], Function | None] | None = cache

    def __call__(self, rows: Tensor) -> Tensor:
        self._asked += len(rows)
        # inside a transformation (vmap) nothing can be cached
        plain = not inside_transformation(rows)
        if self._cache is not None and plain and self._asked >= self._start:
            cached, self._cache = self._cache(), None
            self._products = cached or self._products
        return self._products(rows)
