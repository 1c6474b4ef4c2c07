r"""Gradients of the loss of each example."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import grad, vmap

from raphson.data import Batch
from raphson.linalg import check_dense_size
from raphson.network._objective import Objective
from raphson.network._required import check_objective
from raphson.network.autodiff._double_backward import differentiable_kernels
from raphson.network.autodiff._linearize import check_shapes
from raphson.network.autodiff._per_example import one_example
from raphson.network.curvature._layer_diagonal import layer_gradient_norms
from raphson.network.curvature.factors._output_curvature import slice_rows
from raphson.network.curvature.factors._recorded_batches import recorded_batches

_CHUNK = 2**24
"""Entries of the gradients that are formed at once."""


def example_gradients(objective: Objective) -> Tensor:
    r"""Return the gradient of each example's own loss, :math:`\nabla_\theta \sum_t \ell(f(x_n)_t, y_{nt})`.

    Neither example weights nor the scale :math:`1/W` nor the penalty enter, so that
    :math:`\nabla L = s \sum_n w_n \nabla_n + \lambda\theta`; weights that the likelihood gives to targets do. The loss
    of a sequence is the sum over its positions.

    Args:
        objective: The objective.

    Returns:
        ``(N, P)``; ``TooLargeError`` where that is very large (``example_gradient_norms`` and
        ``iterate_example_gradients`` are not).

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]])
        >>> rp.example_gradients(rp.Objective(model, rp.Gaussian(), (x, y)))
        tensor([[-1.],
                [-6.]])
    """
    check_objective(objective)
    shape = (objective.n_examples, objective.n_parameters)
    check_dense_size(shape, objective.dtype, "iterate_example_gradients, example_gradient_norms, or fewer params")
    return torch.cat(list(iterate_example_gradients(objective)))


def iterate_example_gradients(objective: Objective) -> Iterator[Tensor]:
    """Yield the rows of ``example_gradients`` some at a time, ``(n, P)``, in the order of the data.

    Args:
        objective: The objective.

    Yields:
        The gradients of the next examples.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]])
        >>> [rows.sum().item() for rows in rp.iterate_example_gradients(rp.Objective(model, rp.Gaussian(), (x, y)))]
        [-7.0]
    """
    check_objective(objective)
    width = max(1, _CHUNK // objective.n_parameters)
    for index, batch in enumerate(objective.batches()):
        with torch.no_grad():
            objective.check_outputs(objective.outputs(batch, index), batch, index)
        for rows in slice_rows(batch.n_examples, width):
            yield _gradients(objective, batch.rows(rows))


def example_gradient_norms(objective: Objective) -> Tensor:
    """Return the Euclidean norms of ``example_gradients``, ``(N,)``.

    A linear layer's part comes from the norms of its inputs and output gradients, without the gradient.

    Args:
        objective: The objective.

    Returns:
        One norm for each example.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]])
        >>> rp.example_gradient_norms(rp.Objective(model, rp.Gaussian(), (x, y)))
        tensor([1., 6.])
    """
    check_objective(objective)
    norms = []
    for recorded in recorded_batches(objective):
        g = objective.likelihood.gradient(recorded.record.output.detach(), recorded.batch.y)
        norms.append(layer_gradient_norms(objective, recorded, g).sqrt())
    return torch.cat(norms)


def _gradients(objective: Objective, batch: Batch) -> Tensor:
    """Return the gradients of a few examples, at once where the model's operations can be batched."""
    with contextlib.suppress(RuntimeError):
        return _batched(objective, batch)
    n = batch.n_examples
    return torch.cat([_single(objective, batch.rows(slice(i, i + 1))) for i in range(n)])


def _batched(objective: Objective, batch: Batch) -> Tensor:
    model, space = objective.model, objective.space
    tensors, outputs = one_example(model, batch.x, batch.n_examples)
    with torch.no_grad():
        cotangent = objective.likelihood.gradient(model.call(None, batch.x), batch.y)

    def weighted(params: dict[str, Tensor], u: Tensor, *parts: Tensor) -> Tensor:
        return (outputs(params, *parts) * u).sum()

    each: Callable[..., dict[str, Tensor]] = vmap(grad(weighted), in_dims=(None, 0, *[0] * len(tensors)))
    with differentiable_kernels(objective.traits):
        parts = each(dict(space.tensors), cotangent, *tensors)
    check_shapes(parts, (batch.n_examples,), space.tensors)
    return torch.cat([parts[name].reshape(batch.n_examples, -1) for name in space.names], 1)


def _single(objective: Objective, batch: Batch) -> Tensor:
    leaves = objective.model.leaves()
    f = objective.model.call(leaves, batch.x)
    g = objective.likelihood.gradient(f.detach(), batch.y)
    parts = torch.autograd.grad(f, list(leaves.values()), g, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts]).unsqueeze(0)
