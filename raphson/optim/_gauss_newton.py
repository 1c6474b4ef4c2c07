"""The Gauss-Newton model of an objective at one point: factorized, or by products."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from raphson.linalg import SymmetricOperator, cg
from raphson.network import Objective, ggn, root_jacobian
from raphson.optim._least_squares import LeastSquares

DENSE = 2048
"""Parameters up to which a model is factorized: beyond, a factor takes more than 32 MB and P^3 operations."""

_TOL = 1e-3
"""Relative residual of conjugate gradients: what is left of the error goes with the next step."""


class DampedSolve(Protocol):
    """Solves with the damped matrix."""

    def step(self) -> Tensor:
        """Return minus its inverse times the gradient, ``(P,)``."""

    def solve(self, b: Tensor) -> Tensor:
        """Return its inverse times ``b``, ``(P,)``."""


class Linearized(Protocol):
    """A model of an objective that is quadratic in a step."""

    gradient: Tensor
    scales: Tensor

    def damped(self, scales: Tensor, damping: float) -> DampedSolve:
        """Return a solver for the Gauss-Newton matrix plus ``damping D^2``."""

    def promised(self, step: Tensor) -> float:
        """Return the change of the objective that it promises for a step."""

    def merit(self, scales: Tensor) -> float:
        """Return the length of the gradient in a norm without units."""

    def newton_size(self, scales: Tensor) -> float:
        """Return the length of a full step in units of D."""


class DenseModel:
    """The model by a triangular factor.

    Args:
        objective: The objective, at the present parameters.
    """

    def __init__(self, objective: Objective) -> None:
        self._problem = LeastSquares(root_jacobian(objective), objective.n_parameters)
        self.gradient, self.scales = self._problem.gradient, self._problem.scales

    def damped(self, scales: Tensor, damping: float) -> DampedSolve:  # noqa: D102
        return self._problem.damped(scales, damping)

    def promised(self, step: Tensor) -> float:  # noqa: D102
        return self._problem.promised(step)

    def merit(self, scales: Tensor) -> float:  # noqa: D102
        return float(self._problem.c.norm())

    def newton_size(self, scales: Tensor) -> float:  # noqa: D102
        step = self._problem.damped(scales, 0.0).step()
        size = float((scales * step).norm())
        return size if math.isfinite(size) else math.inf


class ProductModel:
    """The model by products with the Gauss-Newton matrix.

    Args:
        objective: The objective, at the present parameters.
    """

    def __init__(self, objective: Objective) -> None:
        self.gradient = objective.gradient()
        self._objective = objective
        self._diagonal = ggn(objective, "diagonal", kind="expected").diagonal()
        self.scales = self._diagonal.clamp_min(0.0).sqrt()

    def damped(self, scales: Tensor, damping: float) -> DampedSolve:  # noqa: D102
        return _ProductSolver(self._objective, self._diagonal, self.gradient, damping * scales.square())

    def promised(self, step: Tensor) -> float:  # noqa: D102
        return float(torch.dot(self.gradient, step) + 0.5 * torch.dot(step, _matrix(self._objective) @ step))

    def merit(self, scales: Tensor) -> float:  # noqa: D102
        return float((self.gradient / scales).norm())

    def newton_size(self, scales: Tensor) -> float:  # noqa: D102
        return self.merit(scales)


class _ProductSolver:
    """Conjugate gradients, preconditioned by the diagonal."""

    def __init__(self, objective: Objective, diagonal: Tensor, gradient: Tensor, shift: Tensor) -> None:
        self._objective, self._gradient, self._shift = objective, gradient, shift
        self._inverse = (diagonal + shift).clamp_min(torch.finfo(diagonal.dtype).tiny).reciprocal()

    def step(self) -> Tensor:
        """Return minus the inverse times the gradient."""
        return self.solve(-self._gradient)

    def solve(self, b: Tensor) -> Tensor:
        """Return the inverse times ``b``."""
        matrix = _matrix(self._objective)

        def product(v: Tensor) -> Tensor:
            return matrix @ v + self._shift * v

        return cg(product, b, preconditioner=lambda v: self._inverse * v, tol=_TOL, max_iter=2 * len(b)).x


def _matrix(objective: Objective) -> SymmetricOperator:
    """Return the Gauss-Newton matrix, anew: steps that are tried write into the parameters and back."""
    return ggn(objective, kind="expected")
