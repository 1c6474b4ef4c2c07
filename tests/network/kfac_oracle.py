"""Kronecker factors from their definitions, by torch.func and loops, for networks of linear layers.

A network here is a list of weights and biases with tanh between the layers, and possibly a mean over positions at
the end. Output gradients come from the Jacobian with respect to a perturbation added to each layer's output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raphson import Objective
from raphson.network.curvature.factors._layer_operator import LayerOperator


@dataclass
class Net:
    """Layers ``(W, b)``, an activation between them, and what happens to positions at the end."""

    layers: list[tuple[Tensor, Tensor]]
    activation: object
    mean: bool

    def run(self, x: Tensor, shifts: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        inputs = []
        for i, ((w, b), shift) in enumerate(zip(self.layers, shifts, strict=True)):
            x = self.activation(x) if i else x
            inputs.append(x)
            x = x @ w.T + b + shift
        return (x.mean(-2) if self.mean else x), inputs


def factors(net: Net, objective: Objective, sharing: str, estimator: str = "exact") -> list[tuple[Tensor, Tensor]]:
    """Return ``(A, B)`` of ``[W b]`` for every layer, one example, position and column at a time."""
    lik = objective.likelihood
    sizes = [w.shape for w, _ in net.layers]
    sums_a = [torch.zeros(i + 1, i + 1, dtype=torch.float64) for _, i in sizes]
    sums_b = [torch.zeros(o, o, dtype=torch.float64) for o, _ in sizes]
    total = 0.0
    for batch in objective.batches():
        for n in range(batch.n_examples):
            x, y = batch.x[n], batch.y[n]
            zero = [torch.zeros(*x.shape[:-1], o, dtype=torch.float64) for o, _ in sizes]
            f, inputs = net.run(x, zero)
            weight = 1.0 if batch.weight is None else float(batch.weight[n])
            own = lik.weight(y)
            own = torch.ones(f.shape[:-1]) if own is None else own
            jacobians = torch.func.jacrev(lambda s, x=x: net.run(x, s)[0])(zero)
            curvature = lik.fisher(f, y).to_dense().reshape(-1, f.shape[-1], f.shape[-1])
            score = lik.gradient(f, y).reshape(-1, f.shape[-1])
            for l, (o, i) in enumerate(sizes):  # noqa: E741
                a = torch.cat([inputs[l].reshape(-1, i), torch.ones(inputs[l].numel() // i, 1)], 1)
                j = jacobians[l].reshape(curvature.shape[0], f.shape[-1], -1, o)
                if sharing == "reduce":
                    a, j = a.mean(0, keepdim=True), j.sum(2, keepdim=True)
                # positions count by their own target where a layer has those of the output
                per = (
                    own.reshape(-1) if sharing == "expand" and a.shape[0] == own.numel() else own.mean().expand(len(a))
                )
                sums_a[l] += weight * torch.einsum("p,pi,pj->ij", per.double(), a, a)
                for t in range(len(curvature)):
                    middle = curvature[t] if estimator == "exact" else torch.outer(score[t], score[t])
                    for p in range(j.shape[2]):
                        sums_b[l] += weight * objective.scale * j[t, :, p].T @ middle @ j[t, :, p]
            total += (
                weight * float(own.double().mean()) * (1 if sharing == "reduce" else inputs[0].numel() // sizes[0][1])
            )
    return [(a / total, b) for a, b in zip(sums_a, sums_b, strict=True)]


def assembled(pairs: list[tuple[Tensor, Tensor]], bias: str) -> Tensor:
    """Return the block-diagonal matrix in the order W row by row, then b, layer by layer."""
    blocks = []
    for a, b in pairs:
        i = a.shape[0] - 1
        if bias == "separate":
            blocks += [torch.kron(b, a[:i, :i]), b]
            continue
        joint = torch.kron(b, a)
        places = torch.arange(b.shape[0] * (i + 1)).view(b.shape[0], i + 1)
        order = torch.cat([places[:, :i].reshape(-1), places[:, i]])
        blocks.append(joint[order][:, order])
    return torch.block_diag(*blocks)


def gauss_newton(objective: Objective, sampling: str = "exact") -> Tensor:
    """Return the dense Gauss-Newton matrix with the expected output Hessian, row by row of the Jacobian."""
    total = torch.zeros(objective.n_parameters, objective.n_parameters, dtype=torch.float64)
    for batch in objective.batches():
        leaves = objective.model.leaves()
        f = objective.model.call(leaves, batch.x)
        c = f.shape[-1]
        rows = []
        for value in f.reshape(-1):
            parts = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([part.reshape(-1) for part in parts]))
        jacobian = torch.stack(rows).view(-1, c, objective.n_parameters)
        if sampling == "exact":
            middle = objective.likelihood.fisher(f.detach(), batch.y).to_dense().reshape(-1, c, c)
        else:
            g = objective.likelihood.gradient(f.detach(), batch.y).reshape(-1, c)
            middle = g[:, :, None] * g[:, None, :]
        weight = torch.ones(f.shape[0]) if batch.weight is None else batch.weight
        each = weight.double().reshape(-1, *[1] * (f.ndim - 2)).expand(f.shape[:-1]).reshape(-1)
        total += objective.scale * torch.einsum("r,rcp,rcd,rdq->pq", each, jacobian, middle, jacobian)
    return total


def within_blocks(operator: LayerOperator, matrix: Tensor) -> Tensor:
    """Return the entries of a matrix inside the operator's blocks, zero elsewhere."""
    out = torch.zeros_like(matrix)
    for rows in block_places(operator):
        out[rows[:, None], rows] = matrix[rows[:, None], rows]
    return out


def block_places(operator: LayerOperator) -> list[Tensor]:
    index = operator.index if operator.index is not None else torch.arange(operator.shape[0])
    return list(index.split([block.shape[0] for block in operator.blocks]))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


class Mean(nn.Module):
    """A network with a mean over positions at the end."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).mean(-2)
