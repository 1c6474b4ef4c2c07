r"""A model linearized at its parameters, once, for many products with its Jacobian or with a Hessian.

Operations, in units of a forward pass F (matrix products only; a gradient is 3F): the forward pass F and the backward
graph 2F are built once; then :math:`J v` is 2F, :math:`J^\top u` is 2F and a Hessian product 6F. The first layer needs
no gradient of its input, so that it counts half in all of them. The backward pass of a batch norm differentiates badly
(all its derivatives are computed, asked for or not): with such, :math:`J v` is a forward pass with tangents, 3F.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.network._checks import Traits
from raphson.network._module import Inputs, Model
from raphson.network._parameters import ParameterSpace
from raphson.network.autodiff._double_backward import differentiable_kernels
from raphson.network.autodiff._rewrite import Rewritten

Function = Callable[[Tensor], Tensor]

Parts = tuple[Tensor, ...]
"""One tensor for each parameter, of its shape: a vector that has not been put together."""

_SMALL = 2**27
"""Multiplications of a product up to which vectors go together: fewer calls, wider products (measured)."""


def rewritten(traits: Traits, *, once: bool = True, fold: bool = True) -> contextlib.AbstractContextManager[object]:
    """Return the context in which calls are replaced by cheaper ones, where the model has such (not for ``vmap``).

    Once: second derivatives of the model itself are not asked for. Fold: the graph may leave out a convolution's output
    that a batch norm makes another convolution of.
    """
    return Rewritten(traits.channels_last, once, fold) if traits.rewritten else contextlib.nullcontext()


class Linearization:
    r"""Outputs of one batch with products of their Jacobian :math:`J` in the parameters, from graphs built once.

    :math:`J^\top u` is a backward pass. It is linear in :math:`u`, so that the derivative of its own graph in
    :math:`u`, along :math:`v`, is :math:`J v`: two backward passes, and no forward pass after the first.

    Args:
        model: The model.
        x: Inputs of a batch.
        traits: What is known about the model.
        products: Whether ``jvp`` will be called; without, there is no graph for it.

    Attributes:
        outputs: ``(N, ..., C)``, without a graph.

    Raises:
        InputError: The outputs depend on no parameter.
    """

    def __init__(self, model: Model, x: Inputs, traits: Traits, *, products: bool = True) -> None:
        self._space, self._complex = model.space, traits.complex_views
        self._leaves = list(model.leaves().values())
        with torch.enable_grad(), differentiable_kernels(traits), rewritten(traits):
            self._f = model.call(dict(zip(self._space.names, self._leaves, strict=True)), x)
        refuse_constant(self._f, self._space.names)
        self.outputs = self._f.detach()
        self.together = vectors_go_together(self.outputs, model, traits)
        if products:
            self._transpose()

    def jvp(self, v: Tensor) -> Tensor:
        """Return ``J v``, ``(N, ..., C)``, for ``v`` of shape ``(P,)``."""
        tangents = self._space.split_rows(v)
        along = [tangents[i].clone() if self._complex else tangents[i] for i in self._used]
        (out,) = torch.autograd.grad(self._parts, self._u, along, retain_graph=True, materialize_grads=True)
        return out

    def vjp(self, u: Tensor) -> Parts:
        """Return ``J^T u``, one tensor for each parameter, for ``u`` of shape ``(N, ..., C)``."""
        return torch.autograd.grad(self._f, self._leaves, u, retain_graph=True, materialize_grads=True)

    def jvps(self, rows: Tensor) -> Tensor:
        """Return ``J v``, ``(k, N, ..., C)``, for ``v`` in rows ``(k, P)``."""
        return map_rows(self.jvp, rows, self.together)

    def vjps(self, u: Tensor) -> Tensor:
        """Return ``J^T u``, ``(k, P)``, for ``u`` of shape ``(k, N, ..., C)``."""
        return map_parts(self.vjp, u, self._space, self.together)

    def gauss_newton_products(self, rows: Tensor, middle: Function) -> Tensor:
        """Return ``J^T M J v``, ``(k, P)``, for ``v`` in rows ``(k, P)``, with the product ``middle`` of ``M``."""
        return map_parts(lambda v: self.vjp(middle(self.jvp(v))), rows, self._space, self.together)

    def _transpose(self) -> None:
        # one zero seen everywhere: the graph is linear in u and needs no value of it
        self._u = self.outputs.new_zeros(()).expand(self.outputs.shape).requires_grad_()
        with torch.enable_grad():
            parts = torch.autograd.grad(self._f, self._leaves, self._u, create_graph=True, allow_unused=True)
        used = [(i, part) for i, part in enumerate(parts) if part is not None and part.requires_grad]
        self._used, self._parts = [i for i, _ in used], [part for _, part in used]


class GradientGraph:
    r"""The gradient of a batch's loss with its graph: Hessian products are one more backward pass each.

    The likelihood enters by its own closed forms, the output gradient and the product with its Hessian, as one node of
    the graph: nothing differentiates through the loss.

    Args:
        model: The model.
        x: Inputs of a batch.
        traits: What is known about the model.
        derivatives: From outputs ``(N, ..., C)`` to the gradient of the loss in them and the product with its Hessian.

    Attributes:
        gradient: ``(P,)``, without a graph.

    Raises:
        InputError: The outputs depend on no parameter.
    """

    def __init__(
        self, model: Model, x: Inputs, traits: Traits, derivatives: Callable[[Tensor], tuple[Tensor, Function]]
    ) -> None:
        self._space, self._complex = model.space, traits.complex_views
        self._leaves = list(model.leaves().values())
        with torch.enable_grad(), differentiable_kernels(traits), rewritten(traits, once=False):
            f = model.call(dict(zip(self._space.names, self._leaves, strict=True)), x)
        refuse_constant(f, self._space.names)
        self.together = vectors_go_together(f, model, traits)
        gradient, product = derivatives(f.detach())
        with torch.enable_grad():
            g = _OutputGradient.apply(f, gradient, product)  # type: ignore[no-untyped-call]
            parts = torch.autograd.grad(f, self._leaves, g, create_graph=True, materialize_grads=True)
        self.gradient = torch.cat([part.detach().reshape(-1) for part in parts])
        self._used = [i for i, part in enumerate(parts) if part.requires_grad]
        self._parts = [parts[i] for i in self._used]

    def product(self, v: Tensor) -> Parts:
        """Return the Hessian times ``v`` of shape ``(P,)``, one tensor for each parameter."""
        tangents = self._space.split_rows(v)
        along = [tangents[i].clone() if self._complex else tangents[i] for i in self._used]
        return torch.autograd.grad(self._parts, self._leaves, along, retain_graph=True, materialize_grads=True)

    def products(self, rows: Tensor) -> Tensor:
        """Return the Hessian times ``v`` in rows, both ``(k, P)``."""
        return map_parts(self.product, rows, self._space, self.together)


class _OutputGradient(torch.autograd.Function):
    """The gradient of the loss in the outputs, as a function of them whose derivative is known in closed form."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, gradient: Tensor, product: Function) -> Tensor:
        ctx.product = product
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *t: Tensor) -> Any:
        return ctx.product(t[0]), None, None


def map_rows(function: Callable[[Tensor], Tensor], rows: Tensor, together: bool) -> Tensor:
    """Return a function of each of ``k`` vectors ``(k, ...)``, of any strides.

    All are evaluated at once if ``together``, which large products do not profit from; an operation that cannot be
    batched is done one by one all the same.
    """
    if rows.shape[0] == 1:
        return function(rows[0].contiguous()).unsqueeze(0)
    if together:
        with contextlib.suppress(RuntimeError):
            return torch.vmap(function)(rows)
    return torch.stack([function(row.contiguous()) for row in rows])


def map_parts(function: Callable[[Tensor], Parts], rows: Tensor, space: ParameterSpace, together: bool) -> Tensor:
    """Return the same, ``(k, P)``, of a function that gives one tensor for each parameter."""
    if together and rows.shape[0] > 1:
        with contextlib.suppress(RuntimeError):
            parts = dict(zip(space.names, torch.vmap(function)(rows), strict=True))
            check_shapes(parts, (len(rows),), space.tensors)
            return torch.cat([part.reshape(len(rows), -1) for part in parts.values()], 1)
    out = rows.new_empty(rows.shape[0], space.numel)
    for i, row in enumerate(rows):
        # old PyTorch lets the zeros of unused parameters require gradients
        torch.cat([part.detach().reshape(-1) for part in function(row.contiguous())], out=out[i])
    return out


def check_shapes(found: Mapping[str, Tensor], lead: tuple[int, ...], tensors: Mapping[str, Tensor]) -> None:
    """Raise unless what a transformation returned has the parameters' shapes, after the axes ``lead``.

    Under nested ``vmap`` PyTorch's derivative of a PReLU has another shape (torch 2.13), and so other entries: the
    caller then takes the examples one by one.

    Raises:
        RuntimeError: One has another shape.
    """
    for name, tensor in tensors.items():
        if found[name].shape != (*lead, *tensor.shape):
            raise RuntimeError(f"derivative of shape {tuple(found[name].shape)} in '{name}' {tuple(tensor.shape)}")


def vectors_go_together(f: Tensor, model: Model, traits: Traits) -> bool:
    """Return whether products with several vectors are faster at once than in turn."""
    work = f[..., 0].numel() * model.space.numel
    # rewritten calls do not batch, and the work of convolutions is more than their number of weights
    return traits.batched and not traits.rewritten and (f.is_cuda or work <= _SMALL)


def refuse_constant(f: Tensor, names: tuple[str, ...]) -> None:
    """Raise ``InputError`` if outputs carry no gradient."""
    if not f.requires_grad:
        raise InputError(
            f"The outputs do not depend on {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}: the model "
            "detaches them, runs under torch.no_grad(), or does not use these parameters. Choose others with "
            "params=[...]."
        )
