"""Per-example Jacobians as dense arrays, in chunks of examples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from raphson.network._checks import Traits
from raphson.network._module import Inputs, Model
from raphson.network.autodiff._double_backward import differentiable_kernels
from raphson.network.autodiff._linearize import Linearization, map_parts

Rows = Callable[[slice], Inputs]


def example_jacobian(model: Model, x: Inputs, n: int, traits: Traits) -> Tensor:
    """Return the Jacobian of the outputs of ``n`` examples in the parameters.

    All examples at once where the model's operations can be batched, one by one where not.

    Args:
        model: The model.
        x: Inputs, with the examples on the first axis of every tensor of length ``n``.
        n: Number of examples.
        traits: What is known about the model.

    Returns:
        ``(N, ..., C, P)``.
    """
    with contextlib.suppress(RuntimeError):
        return _batched(model, x, n, traits)
    return torch.cat([_single(model, select(x, i, n), traits) for i in range(n)])


def _batched(model: Model, x: Inputs, n: int, traits: Traits) -> Tensor:
    tensors, rebuild = parted(x, n)

    def outputs(params: dict[str, Tensor], *parts: Tensor) -> Tensor:
        return model.call(params, rebuild([part.unsqueeze(0) for part in parts])).squeeze(0)

    detached = dict(model.space.tensors)
    with differentiable_kernels(traits):
        parts = vmap(jacrev(outputs), in_dims=(None, *[0] * len(tensors)))(detached, *tensors)
    lead = next(iter(parts.values())).ndim - next(iter(detached.values())).ndim
    return torch.cat(
        [parts[name].flatten(lead) if t.ndim else parts[name][..., None] for name, t in detached.items()], -1
    )


def _single(model: Model, x: Inputs, traits: Traits) -> Tensor:
    lin = Linearization(model, x, traits, products=False)
    size, shape = lin.outputs.numel(), lin.outputs.shape
    eye = torch.eye(size, dtype=lin.outputs.dtype, device=lin.outputs.device)
    rows = map_parts(lambda u: lin.vjp(u.reshape(shape)), eye, model.space, True)
    return rows.reshape(*shape, -1)


def select(x: Inputs, i: int, n: int) -> Inputs:
    """Return the inputs of one example, its axis kept."""
    tensors, rebuild = parted(x, n)
    return rebuild([tensor[i : i + 1] for tensor in tensors])


def parted(x: Inputs, n: int) -> tuple[list[Tensor], Callable[[list[Tensor]], Inputs]]:
    """Return the tensors of inputs that have one row per example, and how to put others in their places."""
    if isinstance(x, Tensor):
        return ([x], lambda new: new[0]) if x.ndim and x.shape[0] == n else ([], lambda new: x)
    items = list(x.items()) if isinstance(x, dict) else list(enumerate(x)) if isinstance(x, tuple) else None
    if items is None:
        return [], lambda new: x
    children = [(key, *parted(value, n)) for key, value in items]

    def rebuild(new: list[Tensor]) -> Inputs:
        rest, built = iter(new), {}
        for key, tensors, put in children:
            built[key] = put([next(rest) for _ in tensors])
        return built if isinstance(x, dict) else tuple(built.values())

    return [tensor for _, tensors, _ in children for tensor in tensors], rebuild
