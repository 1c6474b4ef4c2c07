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
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from raphson.data import SparseDesign, SparseRows, row_products
from raphson.linalg import SERIAL_ENTRIES
from raphson.linear._dual_factors import Array, solve
from raphson.linear._objective import LinearObjective
from raphson.linear._row_space import constant_columns
from raphson.linear._units import largest_size

_SHIFTED = 1.0
"""Squared mean over the columns' squared scale up to which products of rows are centered after they were summed."""

_CENTERED = 1e-26
"""The same below which columns are centered already."""

_FEW_PRODUCTS = 2**18
"""Multiplications of two matrices up to which OpenBLAS starts no threads either."""

_BEHIND = 0.5
"""Share of a length by which its local parabola may put the minimum before it."""

_FIRST, _FLAT, _TRIALS = 0.01, 0.1, 40
"""Share of the first slope that a line search may leave, at the start and later, and its evaluations: of outputs alone.

At the start, since a weak penalty's step goes three times too far: 60 x 300, 50 classes, l2 = 1e-6, ends with it."""

_SATURATED = 0.01
"""The same for the gradient at the start, where the rest of the way is worked out: 60 x 2000, 50 classes, 3 evaluations
in place of 23."""


class DualStep(NamedTuple):
    """A change of shares ``(q, N)``, of their products with G and of the intercepts ``(q,)``."""

    a: Array
    product: Array
    b: Array


class DualPoint(NamedTuple):
    """A point with the state there.

    Attributes:
        a: Shares of the rows in the slopes, ``(q, N)``.
        product: ``A G``, ``(q, N)``.
        b: Intercepts for centered columns, ``(q,)``.
        p: Probabilities, ``(q, N)``.
        value: The objective.
        r: The gradient's shares R, ``(q, N)``.
        r_product: ``R G``, ``(q, N)``.
        ones: The gradient in the intercepts, ``(q,)``.
        norm: The Euclidean norm of the gradient in the coefficients of the table's columns, centered.
    """

    a: Array
    product: Array
    b: Array
    p: Array
    value: float
    r: Array
    r_product: Array
    ones: Array
    norm: float

    def decrease(self, step: DualStep) -> float:
        """Return by how much a whole step lowers the objective to first order."""
        return -float(np.vdot(self.r, step.product)) - float(self.ones @ step.b)


class Checked(NamedTuple):
    """A point whose outputs were computed from its slopes.

    Attributes:
        slopes: Those of the table's columns, centered, ``(q, D)``.
        at: The state.
        norm: Of the gradient of all columns.
    """

    slopes: Tensor
    at: DualPoint
    norm: float


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
        norm = math.hypot(float(slopes.norm()), float(np.dot(start.ones, start.ones)) ** 0.5)
        length = self._balanced(start, step)
        length *= further(self.penalty * length * largest_size(slopes))
        there = self.at(length * step.a, length * step.product, length * step.b, products=False)
        if not there.value < start.value:  # a row of another size hides how the others fall
            length = self.length(start, step)
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

    def _balanced(self, start: DualPoint, step: DualStep) -> float:
        """Return about the length of a step from outputs of zero at which the penalty balances the rest of the loss.

        Where hardly any is left it falls exponentially, at the rate of the variance to the mean of the outputs' change.
        """
        k, fall = max(2, self.q), start.decrease(step)
        first = math.log((k - 1) / _SATURATED) * (1.0 - 1.0 / k) / fall if fall > 0.0 else 1.0
        length = self.length(start, step, left=_SATURATED, first=first)
        change, own = step.product + step.b[:, None], self.penalty * float(np.vdot(step.a, step.product))
        mean, variance = self._along(change)(length * change)
        rest = float(np.vdot(self.targets, change)) - mean
        if rest > own * length > 0.0 and variance > 0.0:
            length += math.log(rest / (own * length)) * rest / variance
        return length

    def length(self, at: DualPoint, step: DualStep, *, left: float | None = None, first: float = 1.0) -> float:
        """Return about how many times a step of descent lowers the objective most.

        That is where ``left`` of the first slope is left at most; None for what pays before a Newton step. The search
        begins at a ``first`` length.
        """
        change = step.product + step.b[:, None]
        f, own = at.product + at.b[:, None], self.penalty * float(np.vdot(step.a, step.product))
        linear = self.penalty * float(np.vdot(at.a, step.product)) - float(np.vdot(self.targets, change))
        mean_and_variance = self._along(change)
        left = left or (_FLAT if at.a.any() else _FIRST)
        enough = left * at.decrease(step)
        low, high, length = 0.0, math.inf, first
        for _ in range(_TRIALS):
            mean, variance = mean_and_variance(f + length * change)
            slope, curvature = mean + linear + length * own, variance + own
            # a slope that rises may be small and the minimum far behind, where all rows are saturated
            if -enough <= slope <= min(enough, _BEHIND * curvature * length):
                break
            low, high = (length, high) if slope < 0.0 else (low, length)
            wanted = length - slope / curvature if curvature > 0.0 else math.inf
            length = wanted if low < wanted < high else 0.5 * (low + high)
            length = min(length, 4.0 * low) if low else length
        return length

    def _along(self, change: Array) -> Callable[[Array], tuple[float, float]]:
        """Return a map from outputs to the mean over rows of the expected change of outputs, and of its variance."""
        weights = self._weights
        if self.q > 1:

            def of_classes(f: Array) -> tuple[float, float]:
                part = _softmax(f) * change
                mean = part.sum(0)
                return float(weights @ mean), float(weights @ ((part * change).sum(0) - mean * mean))

            return of_classes
        first = weights * change[0]
        second = first * change[0]

        def of_two(f: Array) -> tuple[float, float]:
            p = expit(f[0])
            return float(p @ first), float((p - p * p) @ second)

        return of_two

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

    def checked(self, at: DualPoint) -> Checked:
        """Return a point's slopes, the state by them, and the norm of the gradient of all columns.

        Outputs are computed anew from the slopes: what rounding left of the products of rows does not matter.
        """
        slopes = self.combined(at.a)
        self._leave_constant(slopes)
        return self._with_gradient(slopes, self.at(at.a, self.predicted(slopes), at.b, products=False))

    def _leave_constant(self, slopes: Tensor) -> None:
        """Set the slopes of constant columns to zero."""
        constant = constant_columns(self.objective.design)
        if constant is not None:
            slopes[:, constant] = 0.0

    def _with_gradient(self, slopes: Tensor, at: DualPoint) -> Checked:
        """Return a point with the norm of the gradient of all columns there."""
        ones = at.ones if self._intercept else None
        gradient, norm = self.combined(at.r, ones), self.objective.gradient_norm
        return Checked(slopes, at, norm.of_table(gradient, None if ones is None else torch.from_numpy(ones)))

    def parameters(self, checked: Checked) -> Tensor:
        """Return the parameters in the objective's map, ``(P,)``."""
        here, design, given = self.objective.output_map, self.objective.design, checked.slopes
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


def _softmax(f: Array) -> Array:
    p: Array = np.exp(f - f.max(0))
    p /= p.sum(0)
    return p
