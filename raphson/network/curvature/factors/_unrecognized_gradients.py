"""Per-example gradients of parameters that no layer explains, by automatic differentiation alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raphson.data import tree_map
from raphson.network._objective import Objective
from raphson.network.autodiff._double_backward import differentiable_kernels
from raphson.network.curvature.factors._output_factor import RecordedBatch


class UnrecognizedGradients:
    """Gradients of each example's outputs in some parameters.

    Examples go through ``vmap`` together; a model that cannot (a fused recurrent layer, say) takes them one by one.

    Args:
        objective: The objective.
        tapped: A batch.
        names: The parameters.
    """

    def __init__(self, objective: Objective, recorded: RecordedBatch, names: list[str]) -> None:
        self._objective, self._tapped, self._names = objective, recorded, names
        self._graphs: list[tuple[Tensor, list[Tensor]]] | None = None

    def __call__(self, u: Tensor) -> list[Tensor]:
        """Return ``(k, N, numel)`` for each parameter, for output gradients ``(k, N, ..., C)``."""
        if self._graphs is None:
            try:
                return self.together(u)
            except (RuntimeError, NotImplementedError, ValueError):
                self._graphs = self._separate_graphs()
        columns = [
            [torch.autograd.grad(f, leaves, part[n : n + 1], retain_graph=True, materialize_grads=True) for part in u]
            for n, (f, leaves) in enumerate(self._graphs)
        ]
        return [
            torch.stack([torch.stack([row[i].reshape(-1) for row in of_example]) for of_example in columns], dim=1)
            for i in range(len(self._names))
        ]

    def together(self, u: Tensor) -> list[Tensor]:
        """Return the same for all examples at once; torch's own errors where the model cannot."""
        batch, model = self._tapped.batch, self._objective.model
        values = {name: self._objective.space.tensors[name] for name in self._names}
        n = batch.n_examples
        axes = tree_map(lambda t: 0 if t.ndim and t.shape[0] == n else None, batch.x)

        def one(x: Any, columns: Tensor) -> dict[str, Tensor]:
            single = _unsqueezed(x, axes)
            _, pull = torch.func.vjp(lambda v: model.call(v, single)[0], values)  # type: ignore[misc]
            return torch.func.vmap(lambda c: pull(c)[0])(columns)  # type: ignore[no-any-return]

        with differentiable_kernels(self._objective.traits):
            rows = torch.func.vmap(one, in_dims=(axes, 1), out_dims=1)(batch.x, u)
        return [rows[name].reshape(*u.shape[:2], -1).detach() for name in self._names]

    def _separate_graphs(self) -> list[tuple[Tensor, list[Tensor]]]:
        batch, model = self._tapped.batch, self._objective.model
        graphs = []
        for n in range(batch.n_examples):
            leaves = {name: self._objective.space.tensors[name].detach().requires_grad_() for name in self._names}
            with torch.enable_grad():
                graphs.append((model.call(leaves, batch.rows(slice(n, n + 1)).x), list(leaves.values())))
        return graphs


def _unsqueezed(x: Any, axes: Any) -> Any:
    """Return inputs of one example with its axis back, where there was one."""
    if isinstance(x, dict):
        return {key: _unsqueezed(value, axes[key]) for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(_unsqueezed(value, axis) for value, axis in zip(x, axes, strict=True))
    return x.unsqueeze(0) if axes == 0 else x
