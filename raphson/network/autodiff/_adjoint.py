r"""Whether a model's products are derivatives: its Jacobian against its transpose, and second derivatives.

A function with a backward pass of its own (``torch.autograd.Function``) may have one that is no function of the output
gradient in the eyes of autograd. The derivative of its graph then leaves it out without a word: :math:`J v` is wrong
where :math:`J^\top u`, a plain backward pass, is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.network._checks import Traits
from raphson.network._module import Inputs, Model
from raphson.network.autodiff._linearize import Function, GradientGraph, Linearization, map_rows
from raphson.network.autodiff._vjp_rules import custom_functions, graph_nodes

_BATCHED = 2**18
"""Entries up to which products with two vectors at once are looked at: they take the memory of two."""

_STEP = 0.33
"""The step of a difference in units of digits: the cube root of the precision is best for a central one."""


def check_adjoint(model: Model, x: Inputs, traits: Traits, second: bool = False) -> None:
    r"""Raise unless :math:`\langle u, J v \rangle = \langle J^\top u, v \rangle`, once for each choice of parameters.

    With :math:`v = J^\top u` nothing cancels: both are a sum of squares. For the second derivatives of a model with
    functions of its own, the derivative of :math:`J^\top u` is compared with its differences, too. ``traits`` remember
    that the model was checked.

    Raises:
        InputError: It is not; the message names the functions with a backward pass of their own.
    """
    key: tuple[str | bool, ...] = (*model.space.names, second)
    if key in traits.adjoint:
        return
    with torch.enable_grad():
        custom = custom_functions(graph_nodes(model.call(model.leaves(), x))[0])
    try:
        good = _curved_right(model, x, traits, bool(custom)) if second else _agrees(model, x, traits)
    except RuntimeError as error:
        raise InputError(_refusal(custom, str(error).split(". ")[0])) from error
    if not good:
        raise InputError(_refusal(custom, "its second derivative is missing or wrong"))
    traits.adjoint.add(key)


def _refusal(custom: list[str], why: str) -> str:
    function = f"The function {', '.join(map(repr, custom))} in the model" if custom else "The model"
    return (
        f"{function} cannot be differentiated twice ({why.strip()}), which products with curvature need. Give its "
        "backward pass as differentiable operations, or use rp.kfac or a dense or diagonal structure, which do not "
        "need that."
    )


def _agrees(model: Model, x: Inputs, traits: Traits) -> bool:
    lin = Linearization(model, x, traits)
    u = mixture(lin.outputs)
    found = torch.cat(_rows(lin.vjp(u)))
    size = found.norm()
    if not bool(torch.isfinite(size) & (size > 0)):
        return True  # nothing to see here: the loss names what is not finite
    v = found / size
    if lin.together and u.numel() <= _BATCHED:
        tol = rounding_of_products(found.dtype, traits)
        traits.batched &= _same_in_turn(lin.jvp, v, tol)
        traits.batched &= _same_in_turn(lambda u: torch.cat(_rows(lin.vjp(u))), u, tol)
    return bool(((lin.jvp(v) * u).sum() - size).abs() <= rounding_of_products(found.dtype, traits) * size)


def rounding_of_products(dtype: torch.dtype, traits: Traits) -> float:
    """Return which relative difference is rounding, also where a model goes through half precision (autocast)."""
    return min(0.1, max(10 * math.sqrt(torch.finfo(dtype).eps), 16 * traits.eps))


def _same_in_turn(function: Function, row: Tensor, tol: float) -> bool:
    """Whether a function of two vectors at once is that of each: not all of torch's derivatives are under ``vmap``."""
    pair = torch.stack([row, mixture(row) * row.norm()])
    at_once, in_turn = map_rows(function, pair, True), map_rows(function, pair, False)
    return at_once.shape == in_turn.shape and bool((at_once - in_turn).norm() <= tol * in_turn.norm())


def _rows(parts: tuple[Tensor, ...]) -> list[Tensor]:
    return [part.reshape(-1) for part in parts]


def _curved_right(model: Model, x: Inputs, traits: Traits, differences: bool) -> bool:
    """Whether the derivative of ``J^T u`` in the parameters is what differences of it say, for a fixed ``u``."""
    theta = model.space.vector()
    w = mixture(theta)
    step = torch.finfo(theta.dtype).eps ** _STEP * max(1.0, float(theta.norm())) / float(w.norm())

    def gradient(at: Tensor) -> Tensor:
        leaves = {name: p.detach().clone().requires_grad_() for name, p in model.space.unflatten(at).items()}
        with torch.enable_grad():
            f = model.call(leaves, x)
        parts = torch.autograd.grad(f, list(leaves.values()), mixture(f.detach()), materialize_grads=True)
        return torch.cat(_rows(parts))

    graph = GradientGraph(model, x, traits, lambda f: (mixture(f), torch.zeros_like))
    if graph.together and len(theta) <= _BATCHED:
        traits.batched &= _same_in_turn(
            lambda w: torch.cat(_rows(graph.product(w))), w, rounding_of_products(theta.dtype, traits)
        )
    if not differences:
        return True
    found = torch.cat(_rows(graph.product(w)))
    expected = (gradient(theta + step * w) - gradient(theta - step * w)) / (2 * step)
    return _near(found, expected, graph.gradient, step)


def is_derivative(pulled: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], x: Tensor) -> bool:
    r"""Whether the derivative of :math:`J^\top u` in the inputs is what differences of it say, for a fixed ``u``.

    Args:
        pulled: From inputs to themselves as a leaf, outputs and :math:`J^\top u` with its graph.
        x: Where.

    Returns:
        Whether it is; what cannot be differentiated raises torch's ``RuntimeError``.
    """
    w = mixture(x)
    step = torch.finfo(x.dtype).eps ** _STEP * max(1.0, float(x.norm())) / float(w.norm())
    inputs, _, gradient = pulled(x)
    found = torch.zeros_like(x)
    if gradient.requires_grad:
        (found,) = torch.autograd.grad(gradient, inputs, w, materialize_grads=True, allow_unused=True)
    ahead, behind = (pulled(x + sign * step * w)[2].detach() for sign in (1, -1))
    return _near(found, (ahead - behind) / (2 * step), gradient.detach(), step)


def _near(found: Tensor, differences: Tensor, gradient: Tensor, step: float) -> bool:
    """Whether a derivative is what differences of a gradient say, as far as these have digits."""
    rounding = torch.finfo(found.dtype).eps * gradient.norm() / step
    return bool((found - differences).norm() <= 0.02 * differences.norm() + 100 * rounding)


def mixture(like: Tensor) -> Tensor:
    """Return numbers between -1 and 1 in no order, without a generator."""
    count = torch.arange(1, like.numel() + 1, dtype=torch.float32, device=like.device)
    return count.cos().to(like.dtype).view(like.shape)
