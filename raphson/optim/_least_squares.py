r"""The linear least-squares problem of a Gauss-Newton step: damped solves without normal equations.

With rows :math:`\tilde J` and residuals r the damped step minimizes
:math:`\|\tilde J \delta + r\|^2 + \lambda \|D \delta\|^2`. One triangular factor of :math:`[\tilde J\ r]` serves all
dampings, and is made some rows at a time, so that memory is that of P x P numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_ROWS = 4
"""Multiples of P rows that are factorized together with the present factor: one pays for the other."""


class LeastSquares:
    """A triangular factor ``R`` with ``R^T R`` the Gauss-Newton matrix, and ``c`` with ``R^T c`` the gradient.

    Args:
        rows: Rows ``(k, P)`` and residuals ``(k,)``.
        n: Number of parameters ``P``.
    """

    def __init__(self, rows: Iterable[tuple[Tensor, Tensor]], n: int) -> None:
        waiting: list[Tensor] = []
        for jacobian, residual in rows:
            waiting.append(torch.cat([jacobian, residual.unsqueeze(1)], 1))
            if sum(map(len, waiting)) > _ROWS * (n + 1):
                waiting = [_triangle(torch.cat(waiting))]
        whole = _triangle(torch.cat(waiting))
        self.r, self.c = whole[:n, :n], whole[:n, n]
        if len(self.r) < n:
            missing = n - len(self.r)
            self.r = torch.cat([self.r, self.r.new_zeros(missing, n)])
            self.c = torch.cat([self.c, self.c.new_zeros(missing)])

    @property
    def gradient(self) -> Tensor:
        """The gradient, ``(P,)``."""
        return self.r.mT @ self.c

    @property
    def scales(self) -> Tensor:
        """The roots of the diagonal of the Gauss-Newton matrix, ``(P,)``."""
        found: Tensor = torch.linalg.vector_norm(self.r, dim=0)
        return found

    def damped(self, scales: Tensor, damping: float) -> DampedSolver:
        """Return a solver for ``R^T R + damping D^2`` with the diagonal ``D``, ``(P,)``."""
        return DampedSolver(self, scales, damping)

    def promised(self, step: Tensor) -> float:
        """Return the change of the objective that the model promises for a step."""
        moved = self.r @ step
        return float(torch.dot(self.c, moved) + 0.5 * torch.dot(moved, moved))


class DampedSolver:
    """Solves with a damped Gauss-Newton matrix.

    Args:
        problem: The problem.
        scales: ``D``.
        damping: Its multiple.
    """

    def __init__(self, problem: LeastSquares, scales: Tensor, damping: float) -> None:
        n = len(problem.c)
        self._scales = scales
        # in units of D columns are alike, whatever the units of the parameters
        rows = [problem.r / scales, torch.eye(n, dtype=problem.r.dtype, device=problem.r.device) * damping**0.5]
        right = torch.cat([problem.c, problem.c.new_zeros(n)])
        whole = _triangle(torch.cat([torch.cat(rows), right.unsqueeze(1)], 1))
        self._r, self._c = whole[:n, :n], whole[:n, n]

    def step(self) -> Tensor:
        """Return the damped Gauss-Newton step, ``(P,)``."""
        found: Tensor = torch.linalg.solve_triangular(self._r, self._c.unsqueeze(1), upper=True)
        return found.squeeze(1).neg_() / self._scales

    def solve(self, b: Tensor) -> Tensor:
        """Return the inverse of the damped matrix times ``b``, ``(P,)``."""
        y = torch.linalg.solve_triangular(self._r.mT, (b / self._scales).unsqueeze(1), upper=False)
        found: Tensor = torch.linalg.solve_triangular(self._r, y, upper=True)
        return found.squeeze(1) / self._scales


def _triangle(a: Tensor) -> Tensor:
    triangle: Tensor = torch.linalg.qr(a, mode="r").R
    return triangle
