"""Per-example derivatives as dense arrays, of some examples at once where the model's operations can be batched.

What a transformation returns is taken only in the shape that it must have; else, and where the model cannot be
batched, examples go one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from raphson.data import take
from raphson.network._checks import Traits
from raphson.network._module import Inputs, Model
from raphson.network.autodiff._double_backward import differentiable_kernels
from raphson.network.autodiff._linearize import GradientGraph, Linearization, check_shapes


def example_jacobian(model: Model, x: Inputs, n: int, traits: Traits) -> Tensor:
    """Return the Jacobian of the outputs of ``n`` examples in the parameters, ``(N, ..., C, P)``.

    All examples at once where the model's operations can be batched, one by one where not.
    """
    with contextlib.suppress(RuntimeError):
        return _batched(model, x, n, traits)
    return torch.cat([_single(model, take(x, slice(i, i + 1), n), traits) for i in range(n)])


def example_input_jacobian(
    model: Model, x: Inputs, n: int, traits: Traits, places: Sequence[int], shape: torch.Size
) -> list[Tensor]:
    """Return the Jacobians of each example's outputs, of a shape, in some of the tensors of its input.

    Args:
        model: The model.
        x: Inputs.
        n: Number of examples.
        traits: What is known about the model.
        places: Which of the tensors that have a row for each example.
        shape: ``(..., C)``.

    Returns:
        For each place ``(N, ..., C, *input)``.
    """
    tensors, outputs = one_example(model, x, n)
    with contextlib.suppress(RuntimeError), differentiable_kernels(traits):
        found = vmap(jacrev(partial(outputs, None), argnums=tuple(places)))(*tensors)
        rows = {str(i): tensors[i][0] for i in places}
        check_shapes(dict(zip(rows, found, strict=True)), (n, *shape), rows)
        return list(found)
    each = [_single_input_jacobian(outputs, [t[i] for t in tensors], places, traits) for i in range(n)]
    return [torch.stack(parts) for parts in zip(*each, strict=True)]


def _single_input_jacobian(
    outputs: Callable[..., Tensor], rows: Sequence[Tensor], places: Sequence[int], traits: Traits
) -> list[Tensor]:
    leaves = [row.detach().requires_grad_(i in places) for i, row in enumerate(rows)]
    wanted = [leaves[i] for i in places]
    with torch.enable_grad(), differentiable_kernels(traits):
        f = outputs(None, *leaves)
    if not f.requires_grad:
        return [leaf.new_zeros(*f.shape, *leaf.shape) for leaf in wanted]
    unit = torch.eye(f.numel(), dtype=f.dtype, device=f.device).view(-1, *f.shape)
    columns = [torch.autograd.grad(f, wanted, u, retain_graph=True, materialize_grads=True) for u in unit]
    return [torch.stack(parts).view(*f.shape, *parts[0].shape) for parts in zip(*columns, strict=True)]


def example_second_derivatives(model: Model, x: Inputs, n: int, traits: Traits, shape: torch.Size) -> Tensor:
    """Return the second derivatives of each example's outputs, of a shape, in the parameters, ``(N, ..., C, P, P)``."""
    space, theta = model.space, model.space.vector()
    tensors, outputs = one_example(model, x, n)

    def at(theta: Tensor, *rows: Tensor) -> Tensor:
        return outputs(space.unflatten(theta), *rows)

    with contextlib.suppress(RuntimeError), differentiable_kernels(traits):
        # reverse over reverse: some kernels have no forward mode
        whole: Tensor = vmap(jacrev(jacrev(at)), in_dims=(None, *[0] * len(tensors)))(theta, *tensors)
        check_shapes({"": whole}, (n, *shape, len(theta)), {"": theta})
        return whole
    unit = torch.eye(shape.numel(), dtype=space.dtype, device=space.device).view(-1, 1, *shape)
    eye = torch.eye(len(theta), dtype=space.dtype, device=space.device)

    def second(i: int, u: Tensor) -> Tensor:
        return GradientGraph(model, take(x, slice(i, i + 1), n), traits, lambda _: (u, torch.zeros_like)).products(eye)

    return torch.stack([second(i, u) for i in range(n) for u in unit]).view(n, *shape, *eye.shape)


def one_example(model: Model, x: Inputs, n: int) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """Return the tensors of inputs that have a row for each of ``n`` examples, for ``vmap``, and a function of a row.

    The function takes values of parameters by name, or None, and one row of each tensor, and gives ``(..., C)``.
    """
    tensors, rebuild = parted(x, n)

    def outputs(params: Mapping[str, Tensor] | None, *rows: Tensor) -> Tensor:
        return model.call(params, rebuild([row.unsqueeze(0) for row in rows])).squeeze(0)

    return tensors, outputs


def _batched(model: Model, x: Inputs, n: int, traits: Traits) -> Tensor:
    tensors, outputs = one_example(model, x, n)
    detached = dict(model.space.tensors)
    with differentiable_kernels(traits):
        parts = vmap(jacrev(outputs), in_dims=(None, *[0] * len(tensors)))(detached, *tensors)
    first, t = next((parts[name], t) for name, t in detached.items())
    lead = tuple(first.shape[: first.ndim - t.ndim])
    check_shapes(parts, (n, *lead[1:]), detached)
    return torch.cat([parts[name].reshape(*lead, -1) for name in detached], -1)


def _single(model: Model, x: Inputs, traits: Traits) -> Tensor:
    lin = Linearization(model, x, traits, products=False)
    size, shape = lin.outputs.numel(), lin.outputs.shape
    eye = torch.eye(size, dtype=lin.outputs.dtype, device=lin.outputs.device)
    return lin.vjps(eye.view(size, *shape)).reshape(*shape, -1)


def parted(x: Inputs, n: int) -> tuple[list[Tensor], Callable[[list[Tensor]], Inputs]]:
    """Return the tensors of inputs that have one row per example, and how to put others in their places."""
    if isinstance(x, Tensor):
        return ([x], lambda new: new[0]) if x.ndim and x.shape[0] == n else ([], lambda new: x)
    items = list(x.items()) if isinstance(x, dict) else list(enumerate(x)) if isinstance(x, tuple) else None
    if items is None:
        return [], lambda new: x
    children = [(key, *parted(value, n)) for key, value in items]

    def rebuild(new: list[Tensor]) -> Inputs:
        left, built = iter(new), {}
        for key, tensors, put in children:
            built[key] = put([next(left) for _ in tensors])
        return built if isinstance(x, dict) else tuple(built.values())

    return [tensor for _, tensors, _ in children for tensor in tensors], rebuild
