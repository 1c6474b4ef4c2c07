"""A network's objective at any parameters: values and gradients for solvers that try steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.network import Objective


class NetworkProblem:
    """An objective as a function of one vector, which lives in the model's own parameters.

    Args:
        objective: The objective; its model has the parameters that were asked for last.

    Raises:
        InputError: The parameters are in half precision.
    """

    def __init__(self, objective: Objective) -> None:
        objective.model.refuse_half("A second-order optimizer")
        self.objective = objective

    @property
    def theta(self) -> Tensor:
        """The present parameters, ``(P,)``, as a copy."""
        return self.objective.space.vector()

    @torch.no_grad()
    def put(self, theta: Tensor) -> None:
        """Write parameters into the model."""
        self.objective.model.refresh()
        for name, part in self.objective.space.unflatten(theta).items():
            self.objective.space.tensors[name].copy_(part)

    def value(self) -> float:
        """Return the objective at the present parameters; infinity where it, or an output, is not finite."""
        try:
            value = float(self.objective.value())
        except InputError:
            return math.inf
        return value if math.isfinite(value) else math.inf

    def outputs(self) -> list[Tensor]:
        """Return the outputs of all batches at the present parameters."""
        with torch.no_grad():
            return [self.objective.outputs(batch, i) for i, batch in enumerate(self.objective.batches())]


def second_along(problem: NetworkProblem, theta: Tensor, step: Tensor, length: float) -> Tensor | None:
    """Return the gradient that the second derivative of the outputs along a step stands for, ``(P,)``.

    With f'' by differences, it is the sum of ``J^T H f''`` with the expected output Hessians H. The model is at
    ``theta`` afterwards; None where an output is not finite.

    Args:
        problem: The objective, at ``theta``.
        theta: The point.
        step: The step.
        length: Of the differences, in steps.

    Returns:
        The gradient.
    """
    objective, lik = problem.objective, problem.objective.likelihood
    here = problem.outputs()
    problem.put(theta + length * step)
    there = problem.outputs()
    problem.put(theta - length * step)
    back = problem.outputs()
    problem.put(theta)
    bends = [(a - 2 * b + c) / length**2 for a, b, c in zip(there, here, back, strict=True)]
    if not all(bool(torch.isfinite(bend).all()) for bend in bends):
        return None
    total = torch.zeros_like(theta)
    for index, (batch, bend) in enumerate(zip(objective.batches(), bends, strict=True)):
        leaves = objective.model.leaves()
        f = objective.outputs(batch, index, leaves)
        u = objective.scaled(lik.fisher(f.detach(), batch.y).mv(bend), batch)
        parts = torch.autograd.grad(f, list(leaves.values()), u, materialize_grads=True)
        total += torch.cat([part.reshape(-1) for part in parts])
    return total
