r"""Penalized classes as combinations of rows: value, gradient and Newton step in outputs, where rows are few.

With a ridge the slopes are combinations of the centered rows, :math:`B = A \tilde X` with A (q, N), so that outputs and
penalty need no more than the products of the rows,

.. math:: F = b + A G, \qquad G = \tilde X \tilde X^T, \qquad
    L = \sum_n \omega_n \left[ \log \sum_k e^{F_{kn}} - F_{y_n n} \right] + \tfrac\mu2 \langle A, A G \rangle ,

and the gradient in B is :math:`R \tilde X` with :math:`R = (P - Y) \Omega + \mu A`: a step costs the square of the
rows, whatever the columns. Two classes are one logit, with half the penalty.

Of two classes let :math:`w_n` be the curvature in a row, :math:`V = \Omega w / \mu` and
:math:`E = (I + V G)^{-1} V = V^{1/2} (I + V^{1/2} G V^{1/2})^{-1} V^{1/2}`. The Newton step is

.. math:: \Delta A = - R / \mu + (R G / \mu - \Delta b)\, E, \qquad \Delta A\, 1 = 0 ,

with a factor of a matrix that is well conditioned (Rasmussen and Williams 2006, algorithm 3.1).

References:
    C. E. Rasmussen and C. K. I. Williams (2006), Gaussian Processes for Machine Learning, ch. 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from raphson.data import SparseDesign, SparseRows, filled, row_products
from raphson.linalg import SERIAL_ENTRIES
from raphson.linear._dual_factors import Array, solve
from raphson.linear._dual_line import Line
from raphson.linear._dual_point import Checked, DualPoint, DualStep
from raphson.linear._objective import LinearObjective
from raphson.linear._row_space import constant_columns
from raphson.linear._units import euclidean_norm, largest_size

_SHIFTED = 1.0
"""Squared mean over the columns' squared scale up to which products of rows are centered after they were summed."""

_CENTERED = 1e-26
"""The same below which columns are centered already."""

_FEW_PRODUCTS = 2**18
"""Multiplications of two matrices up to which OpenBLAS starts no threads either."""


class DualClasses:
    """The objective of classes with a ridge penalty in combinations of the rows.

    Args:
        objective: That of all columns, for which ``has_dual``.
    """

    def __init__(self, objective: LinearObjective) -> None:
        self.objective, self.n = objective, objective.n_rows
        two, y = objective.n_outputs == 2, objective.y.numpy()
        self.q, self.penalty = (1, objective.l2 / 2) if two else (objective.n_outputs, objective.l2)
        kinds = 1 - np.array([[_left_out(objective)]]) if two else np.arange(self.q)[:, None]
        weights = objective.weights
        self.shares: Any = 1.0 / self.n if weights is None else weights.double().numpy() / objective.total_weight
        self.targets: Array = (y == kinds) * self.shares
        self._weights = np.full(self.n, self.shares) if weights is None else self.shares
        self._intercept = objective.output_map.intercept
        self._x: Any = objective.design.x
        self._mean = self._means() if self._intercept else None
        self._is_centered = self._mean is None or self._center_rows(self._mean)

    # the table -------------------------------------------------------------------------------------------------------

    @property
    def _is_sparse(self) -> bool:
        return isinstance(self.objective.design, SparseDesign)

    @cached_property
    def _sparse(self) -> SparseRows:
        """A sparse table's rows."""
        return SparseRows.of(self._x.astype(np.float64, copy=False))

    def _means(self) -> Tensor:
        """Return the means of the columns ``(D,)``, which a dense design centers them at."""
        center: Tensor = self.objective.design.center
        if not self._is_sparse:
            return center
        places, entries = self._sparse.columns.numpy(), self._sparse.values.numpy()
        return torch.from_numpy(np.bincount(places, entries, len(center)) / self.n)

    def _center_rows(self, mean: Tensor) -> bool:
        """Return whether rows are centered, which those with large means are here, in a copy."""
        size = float(torch.dot(mean, mean))
        if size > _SHIFTED * self.size and not self._is_sparse:
            self._x = self._x - mean
            return True
        return size <= _CENTERED * self.size

    @cached_property
    def gram(self) -> Array:
        """The products of the centered rows, G ``(N, N)``."""
        x, mean = self._x, self._mean
        found: Array = row_products(x).numpy() if self._is_sparse else torch.mm(x, x.mT).numpy()
        if mean is not None and not self._is_centered:
            products = x @ mean.numpy() if self._is_sparse else torch.mv(x, mean).numpy()
            found -= products
            found -= (products - float(torch.dot(mean, mean)))[:, None]
        return found

    def times_gram(self, a: Array) -> Array:
        """Return ``A G`` for shares ``(q, N)``."""
        if len(a) * self.n**2 <= (_FEW_PRODUCTS if len(a) > 1 else SERIAL_ENTRIES):
            return a @ self.gram
        found: Array = torch.mm(torch.from_numpy(a), torch.from_numpy(self.gram)).numpy()
        return found

    def combined(self, a: Array, ones: Array | None = None) -> Tensor:
        """Return the combinations of the centered rows with shares ``(m, N)``, ``(m, D)``.

        With them, where there are any, ``ones`` times the means, ``(m,)``. Those of sparse tables have columns slowest,
        as a sparse product makes them and the next one wants them.
        """
        if self._is_sparse and len(a) == 1:
            found = self._sparse.vector_product(torch.from_numpy(a[0]), transposed=True)[None]
        elif self._is_sparse:
            found = self._sparse.transposed.product(torch.from_numpy(a).mT).mT
        else:
            found = torch.mm(torch.from_numpy(a), self._x)
        total = ones if self._is_centered else -a.sum(1) if ones is None else ones - a.sum(1)
        return found if total is None or self._mean is None else found.addr_(torch.from_numpy(total), self._mean)

    def _entries(self, combined: Tensor) -> Tensor:
        """Return the numbers of combinations in the order of memory, perhaps with zeros among them."""
        return filled(combined.mT) if self._is_sparse and len(combined) > 1 else combined.view(-1)

    def predicted(self, slopes: Tensor) -> Array:
        """Return the products of the centered rows with slopes ``(q, D)``, ``(q, N)``."""
        if self._is_sparse and len(slopes) == 1:
            found = self._sparse.vector_product(slopes[0])[None]
        else:
            found = self._sparse.product(slopes.mT).mT if self._is_sparse else torch.mm(slopes, self._x.mT)
        outputs: Array = found.numpy()
        if not self._is_centered and self._mean is not None:
            outputs = outputs - torch.mv(slopes, self._mean).numpy()[:, None]
        return outputs

    @cached_property
    def curvature(self) -> float:
        """The mean variance of a label at the start."""
        return _curvature(self.objective)

    @property
    def span_curvature(self) -> float:
        """The mean eigenvalue of the loss's Hessian at the start in the span of the rows."""
        return self.curvature * self.size / self.n

    @cached_property
    def size(self) -> float:
        """The mean square of the rows, about."""
        return _size(self.objective)

    # values ----------------------------------------------------------------------------------------------------------

    def start(self, *, products: bool = True) -> DualPoint:
        """Return the point at which all outputs are zero, perhaps without what needs products of rows."""
        zero = np.zeros((self.q, self.n))
        return self.at(zero, zero, np.zeros(self.q), products=products)

    def along_gradient(self, further: Callable[[float], float]) -> tuple[DualPoint, Checked]:
        """Return the start and about the best point along the gradient there, by three passes over the table.

        Args:
            further: From the size of the penalty's gradient at that point to how many times as far to go.
        """
        start = self.start(products=False)
        slopes = self.combined(start.r)
        self._leave_constant(slopes)
        step = DualStep(-start.r, -self.predicted(slopes), -self.size / self.n * start.ones)
        entries = self._entries(slopes)
        norm = math.hypot(euclidean_norm(entries), float(np.dot(start.ones, start.ones)) ** 0.5)
        line = self.line(start, step)
        length = line.balanced()
        length *= further(self.penalty * length * largest_size(entries))
        there = self.at(length * step.a, length * step.product, length * step.b, products=False)
        if not there.value < start.value:  # a row of another size hides how the others fall
            length = line.length()
            there = self.at(length * step.a, length * step.product, length * step.b, products=False)
        return start._replace(norm=norm), self._with_gradient(slopes.mul_(-length), there)

    def at(self, a: Array, product: Array, b: Array, *, products: bool = True) -> DualPoint:
        """Return the state at shares, their products and intercepts; perhaps without what needs products of rows."""
        f = product + b[:, None] if self._intercept else product
        if self.q == 1:
            p, logs = expit(f), np.logaddexp(0.0, f[0])
        else:
            largest = f.max(0)
            p = np.exp(f - largest)
            total = p.sum(0)
            p /= total
            logs = np.log(total) + largest
        value = float(self._weights @ logs) - float(np.vdot(self.targets, f))
        value += 0.5 * self.penalty * float(np.vdot(a, product))
        r = p * self.shares
        r -= self.targets
        ones = r.sum(1) if self._intercept else np.zeros(self.q)
        r += self.penalty * a
        if not products:
            return DualPoint(a, product, b, p, value, r, np.empty(0), ones, math.nan)
        r_product = self.times_gram(r)
        norm = math.sqrt(max(float(np.vdot(r, r_product)), 0.0) + float(np.dot(ones, ones)))
        return DualPoint(a, product, b, p, value, r, r_product, ones, norm)

    def moved(self, at: DualPoint, step: DualStep, length: float) -> DualPoint:
        """Return the point that a multiple of a step leads to."""
        return self.at(at.a + length * step.a, at.product + length * step.product, at.b + length * step.b)

    def line(self, at: DualPoint, step: DualStep) -> Line:
        """Return the objective along a step."""
        return Line(at, step, self.penalty, self.targets, self._weights)

    # steps -----------------------------------------------------------------------------------------------------------

    def newton_step(self, at: DualPoint) -> DualStep | None:
        """Return the Newton step for two classes, None where rounding hides that there is one."""
        curvature = (at.p * (1.0 - at.p))[0]
        root = np.sqrt(self._weights * curvature / self.penalty)
        right = np.empty((self.q + 1, self.n))
        np.multiply(at.r_product, root / self.penalty, out=right[:-1])
        right[-1] = root
        matrix = self.gram * root
        matrix *= root[:, None]
        matrix.flat[:: self.n + 1] += 1.0
        solved = solve(matrix, right)
        if solved is None:
            return None
        solved *= root
        a = solved[:-1] - at.r / self.penalty
        b = np.zeros(self.q)
        if self._intercept:
            b = a.sum(1) / solved[-1].sum()
            a -= np.multiply.outer(b, solved[-1])
        return DualStep(a, self.times_gram(a), b)

    # the coefficients ------------------------------------------------------------------------------------------------

    def checked(self, a: Array, b: Array) -> Checked:
        """Return the slopes of shares and intercepts, the state by them, and the norm of the gradient of all columns.

        Outputs are computed anew from the slopes: what rounding left of the products of rows does not matter.
        """
        slopes = self.combined(a)
        self._leave_constant(slopes)
        return self._with_gradient(slopes, self.at(a, self.predicted(slopes), b, products=False))

    def _leave_constant(self, slopes: Tensor) -> None:
        """Set the slopes of constant columns to zero."""
        constant = constant_columns(self.objective.design)
        if constant is not None:
            slopes[:, constant] = 0.0

    def _with_gradient(self, slopes: Tensor, at: DualPoint) -> Checked:
        """Return a point with the norm of the gradient of all columns there."""
        ones = at.ones if self._intercept else None
        gradient, norm = self.combined(at.r, ones), self.objective.gradient_norm
        own = None if ones is None else torch.from_numpy(ones)
        return Checked(slopes, at, norm.of_table(gradient, own, self._entries(gradient)))

    def parameters(self, checked: Checked) -> Tensor:
        """Return the parameters in the objective's map, ``(P,)``."""
        here, design, given = self.objective.output_map, self.objective.design, checked.slopes
        given = given.contiguous()  # as those of sparse tables are not
        coef = torch.empty(here.shapes[0], dtype=torch.float64)
        slopes = coef[:, int(self._intercept) :]
        if self.q == 1:
            torch.mul(given, design.scale, out=slopes)
        else:
            here.relative_to_left_out(given, slopes).mul_(design.scale)
        if self._mean is not None:
            ones = checked.at.b
            if self._is_sparse:  # whose design is centered elsewhere
                ones = ones - torch.mv(given, self._mean - design.center).numpy()
            own = torch.from_numpy(ones)[:, None]
            coef[:, :1] = own if self.q == 1 else here.relative_to_left_out(own)
        return coef.view(-1)


def has_dual(objective: LinearObjective) -> bool:
    """Return whether an objective is one of labels with a ridge, and of columns enough for its rows."""
    likelihood, y, x = objective.likelihood, objective.y, objective.design.x
    if likelihood.partition != "softmax" or not objective.l2 or objective.offset is not None:
        return False
    if 2 * objective.output_map.n_columns <= objective.n_rows:
        return False
    if (
        y.ndim != 1
        or y.is_floating_point()
        or objective.output_map.left_out is None
        or not objective.output_map.is_uniform
    ):
        return False
    if isinstance(x, Tensor) and (x.dtype != torch.float64 or not x.is_cpu):
        return False
    # of labels with weights of their own or smoothing, no difference is a logit
    return likelihood.of_difference() is not None and int(y.numpy().min()) >= 0


def start_condition(objective: LinearObjective) -> float:
    """Return the mean eigenvalue of the loss's Hessian at the start, over as many as rows, in penalties."""
    return _curvature(objective) * _size(objective) / (objective.n_rows * objective.l2)


def _curvature(objective: LinearObjective) -> float:
    k = objective.n_outputs
    return (1.0 - 1.0 / k) / k


def _size(objective: LinearObjective) -> float:
    return float(torch.dot(objective.design.scale, objective.design.scale))


def _left_out(objective: LinearObjective) -> int:
    found = objective.output_map.left_out
    assert found is not None
    return found
