"""Per-example gradients of parameters outside recognized layers, by automatic differentiation alone."""

from __future__ import annotations

import torch
from torch import Tensor

from raphson.network._objective import Objective
from raphson.network.autodiff._double_backward import differentiable_kernels
from raphson.network.autodiff._linearize import check_shapes
from raphson.network.autodiff._per_example import one_example
from raphson.network.curvature.factors._recorded_batches import RecordedBatch

Gradients = dict[str, Tensor]
"""By parameter ``(k, N, numel)``."""


class UnrecognizedGradients:
    """Gradients of each example's outputs in the parameters outside recognized layers.

    Examples go through ``vmap`` together; a model that cannot (a fused recurrent layer, say) takes them one by one.

    Args:
        objective: The objective.
        recorded: A batch.
        names: The parameters; None for those that the batch's record does not recognize.
    """

    def __init__(self, objective: Objective, recorded: RecordedBatch, names: list[str] | None = None) -> None:
        found = [name for name in objective.space.names if name in recorded.record.unrecognized]
        self._objective, self._batch = objective, recorded.batch
        self._names = found if names is None else names
        self._graphs: list[tuple[Tensor, list[Tensor]]] | None = None

    def __call__(self, u: Tensor) -> Gradients:
        """Return the gradients for output gradients ``(k, N, ..., C)``."""
        if not self._names:
            return {}
        if self._graphs is None:
            try:
                return self.together(u)
            except (RuntimeError, NotImplementedError, ValueError):
                self._graphs = self._separate_graphs()
        columns = [
            [torch.autograd.grad(f, leaves, part[n : n + 1], retain_graph=True, materialize_grads=True) for part in u]
            for n, (f, leaves) in enumerate(self._graphs)
        ]
        return {
            name: torch.stack([torch.stack([row[i].reshape(-1) for row in of_example]) for of_example in columns], 1)
            for i, name in enumerate(self._names)
        }

    def together(self, u: Tensor) -> Gradients:
        """Return the same for all examples at once; torch's own errors where the model cannot."""
        if not self._names:
            return {}
        objective = self._objective
        values = {name: objective.space.tensors[name] for name in self._names}
        tensors, outputs = one_example(objective.model, self._batch.x, self._batch.n_examples)

        def one(u: Tensor, *rows: Tensor) -> Gradients:
            _, vjp = torch.func.vjp(lambda v: outputs(v, *rows), values)  # type: ignore[misc]
            return torch.func.vmap(lambda c: vjp(c)[0])(u)  # type: ignore[no-any-return]

        with differentiable_kernels(objective.traits):
            found = torch.func.vmap(one, in_dims=(1, *[0] * len(tensors)), out_dims=1)(u, *tensors)
        check_shapes(found, tuple(u.shape[:2]), values)
        return {name: found[name].reshape(*u.shape[:2], -1).detach() for name in self._names}

    def _separate_graphs(self) -> list[tuple[Tensor, list[Tensor]]]:
        graphs = []
        for n in range(self._batch.n_examples):
            leaves = {name: self._objective.space.tensors[name].detach().requires_grad_() for name in self._names}
            with torch.enable_grad():
                graphs.append((
                    self._objective.model.call(leaves, self._batch.rows(slice(n, n + 1)).x),
                    list(leaves.values()),
                ))
        return graphs
