r"""Penalized classes of few rows in an orthonormal basis of their span, in which compiled code makes steps of L-BFGS.

Of the centered rows :math:`\tilde X = Z V^T` the coordinates Z (N, N) follow from :math:`G = Z Z^T` alone; slopes are
:math:`C V^T`, outputs :math:`b + C Z^T`, and the penalty is that of C.

Of centered rows G has no factor. With an intercept, Z is that of :math:`G + s 1 1^T`, as if rows had one column more,
the same in all of them: at the optimum residuals sum to zero, so that its slope, which the penalty is on as well, does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raphson.linear._compiled import CompiledFamily, Table, has_compiled_steps
from raphson.linear._dual import DualClasses
from raphson.linear._dual_factors import Array
from raphson.linear._dual_point import DualPoint
from raphson.linear._hessian import Evaluation
from raphson.linear._stepper import CompiledStepper
from raphson.linear._units import euclidean_norm, largest_size

_DIGITS = 1e-6
"""Least share of the largest pivot: below it rows are nearly combinations of others."""

_COLUMN = 1e-3
"""Mean square of the column more, over that of all others together: with 1 L-BFGS takes up to a third more steps, with
0.1 a tenth, with this as many as in a basis of the centered rows, which costs two reflections."""

_AT_ONCE, _MOST = 3e5, 32
"""Multiplications, half of an evaluation's, of steps in one call, which takes 25 us, and how many at most: of 60 rows a
step takes 12 us for ten classes, 48 for 50."""


class DualBegin(NamedTuple):
    """Where steps begin.

    Attributes:
        at: The point, with the length of its gradient in coordinates.
        theta: Its coordinates, ``(q (1 + k),)``, each output's in a row.
        state: Value and gradient there, in coordinates.
    """

    at: DualPoint
    theta: Tensor
    state: Evaluation


@dataclass(frozen=True, eq=False)
class DualCoordinates:
    """The objective of classes in coordinates ``(q, 1 + k)`` of the slopes, each after the intercept if there is one.

    Attributes:
        dual: The objective in combinations of the rows.
        rows: Z, ``(N, N)``, a lower triangle.
        shift: s, zero without an intercept.
        family: What compiled code evaluates.
    """

    dual: DualClasses
    rows: Array
    shift: float
    family: CompiledFamily

    @classmethod
    def of(cls, dual: DualClasses) -> DualCoordinates | None:
        """Return the coordinates, None where rows depend on each other or there is no compiled code."""
        n, q, objective = dual.n, dual.q, dual.objective
        if not has_compiled_steps(q * (n + 1)):
            return None
        ones = int(objective.output_map.intercept)
        shift = _COLUMN * float(dual.gram.trace()) / n**2 if ones else 0.0
        factor, info = torch.linalg.cholesky_ex(torch.from_numpy(dual.gram + shift))
        rows: Array = factor.numpy()
        pivots = rows.diagonal()
        if int(info) or not pivots.min() > _DIGITS * pivots.max():
            return None
        columns = np.ones((ones + n, n))
        columns[ones:] = rows.T
        penalties = np.ones(len(columns))
        penalties[:ones] = 0.0
        units = np.zeros((3, len(columns)))
        units[0] = 1.0
        family = CompiledFamily(
            Table(torch.from_numpy(columns)),
            objective.weights,
            torch.from_numpy(np.ascontiguousarray(dual.targets @ columns.T)),
            q == 1,  # whose other class is zero
            torch.from_numpy(np.array([dual.penalty, 0.0])),
            torch.from_numpy(penalties),
            1.0 / (n if objective.weights is None else objective.total_weight),
            False,
            torch.from_numpy(units),
        )
        return cls(dual, rows, shift, family)

    def stepper(self) -> CompiledStepper:
        """Return what makes steps."""
        ones, (q, width) = int(self._has_ones), self.family.linear.shape
        diagonal = np.full((q, width), self.dual.penalty + self.dual.span_curvature)
        diagonal[:, :ones] = self.dual.curvature
        most = max(1, min(_MOST, int(_AT_ONCE / (self.dual.n * diagonal.size))))
        return CompiledStepper(self.family.evaluator, torch.from_numpy(diagonal.ravel()), None, 1.0, most)

    def into(self, at: DualPoint) -> DualBegin:
        """Return a point's coordinates and the state there."""
        ones, size = int(self._has_ones), self.dual.n
        coef, change = np.empty((2, self.dual.q, ones + size))
        np.matmul(at.a, self.rows, out=coef[:, ones:])
        np.matmul(at.r, self.rows, out=change[:, ones:])
        if ones:
            coef[:, 0], change[:, 0] = at.b - self.shift * at.a.sum(1), at.ones
        theta, gradient = torch.from_numpy(coef).view(-1), torch.from_numpy(change).view(-1)
        state = Evaluation(at.value, gradient, largest_size(gradient), None)
        return DualBegin(at._replace(norm=euclidean_norm(gradient)), theta, state)

    def back(self, theta: Tensor) -> tuple[Array, Array]:
        """Return the shares ``(q, N)`` and intercepts ``(q,)`` at some coordinates."""
        ones, coef = int(self._has_ones), theta.view(self.dual.q, -1)
        slopes, factor = coef[:, ones:], torch.from_numpy(self.rows)
        shares: Array = torch.linalg.solve_triangular(factor, slopes, upper=False, left=False).numpy()
        if not ones:
            return shares, np.zeros(self.dual.q)
        total = shares.sum(1)
        shares -= total[:, None] / self.dual.n  # of centered rows the same slopes, as Newton steps want them
        return shares, coef[:, 0].numpy() + self.shift * total  # which the column more adds to all outputs

    @cached_property
    def largest(self) -> float:
        """About the largest entry of a gradient of length one."""
        count = float(self.family.linear.numel())
        return 1.0 / max(1.0, math.sqrt(count / (2.0 * math.log(count))))

    @property
    def _has_ones(self) -> bool:
        return self.dual.objective.output_map.intercept
