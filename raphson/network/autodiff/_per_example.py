"""Per-example Jacobians as dense arrays, in chunks of examples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from raphson.data import take
from raphson.network._checks import Traits
from raphson.network._module import Inputs, Model
from raphson.network.autodiff._double_backward import differentiable_kernels
from raphson.network.autodiff._linearize import Linearization, check_shapes


def example_jacobian(model: Model, x: Inputs, n: int, traits: Traits) -> Tensor:
    """Return the Jacobian of the outputs of ``n`` examples in the parameters, ``(N, ..., C, P)``.

    All examples at once where the model's operations can be batched, one by one where not.
    """
    with contextlib.suppress(RuntimeError):
        return _batched(model, x, n, traits)
    return torch.cat([_single(model, take(x, slice(i, i + 1), n), traits) for i in range(n)])


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
