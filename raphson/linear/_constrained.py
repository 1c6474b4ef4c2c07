r"""Value, gradient and Hessian of a linear model whose outputs share coefficients, for any likelihood.

.. math:: L(\theta) = \frac1W \sum_n w_n\, \ell\Big(\sum_g H_g \Theta_g x_{n,g} + o_n,\; y_n\Big)
    + \frac\lambda2 \sum_{g\ \mathrm{slopes}} \|\Theta_g\|^2

``LinearObjective`` is the special case of one group with the identity for its matrix, at the speed of that case.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from raphson.data import Block, Design
from raphson.likelihoods import Likelihood
from raphson.linear._constrained_hessian import ConstrainedHessian, Part
from raphson.linear._khatri_rao import half_products, triangle
from raphson.linear._map_gram import ConstrainedGram
from raphson.linear._objective import Kind
from raphson.linear._output_map import MAP_ELEMENTS, Constraints

_KEPT_BYTES = 2**28
"""Output Hessians are kept between products while their diagonals take less than this; else they are made anew."""


class Evaluation(NamedTuple):
    """Objective at one point: value, gradient ``(p,)`` and, if asked for, the Hessian, not formed."""

    value: float
    gradient: Tensor
    hessian: ConstrainedHessian | None


class ConstrainedObjective:
    """Penalized mean negative log-likelihood of a constrained linear model, as a function of its free parameters.

    Args:
        design: Rows and columns; columns for which ``constraints.can_center`` is False must not be centered.
        likelihood: Output-space derivatives.
        y: Targets, first dimension N.
        constraints: How parameters act on the outputs.
        weights: ``(N,)`` example weights; None means 1 each.
        offset: ``(N, C)`` added to the linear predictors; None means 0.
        l2: Penalty of the slopes of the table's columns, mean scale.
        kept: The parameters that are free, indices ``(p,)``, the others being zero; None for all.
    """

    def __init__(
        self,
        design: Design,
        likelihood: Likelihood,
        y: Tensor,
        constraints: Constraints,
        *,
        weights: Tensor | None = None,
        offset: Tensor | None = None,
        l2: float = 0.0,
        kept: Tensor | None = None,
    ) -> None:
        self.design = design
        self.likelihood = likelihood
        self.y = y
        self.constraints = constraints
        self.n_outputs = constraints.n_outputs
        self.weights = weights
        self.offset = offset
        self.l2 = l2
        self.kept = kept
        self.n_parameters = constraints.n_parameters if kept is None else int(kept.shape[0])
        own = likelihood.weight(y)
        if own is None:
            self.total_weight = float(y.shape[0]) if weights is None else float(weights.sum())
        else:
            self.total_weight = float(own.sum() if weights is None else (own * weights).sum())
        ones = torch.zeros(int(constraints.intercept), dtype=torch.float64)
        self._penalty = constraints.per_parameter(torch.cat([ones, l2 / design.scale.square()])) if l2 else None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.design.n_rows

    # free parameters and the table's -----------------------------------------------------------------------------

    def full(self, theta: Tensor) -> Tensor:
        """Return all parameters ``(..., P)``, those not free zero, from the free ones ``(..., p)``."""
        if self.kept is None:
            return theta
        full = theta.new_zeros(*theta.shape[:-1], self.constraints.n_parameters)
        full[..., self.kept] = theta
        return full

    def to_table(self, theta: Tensor) -> Tensor:
        """Turn free parameters ``(..., p)`` into all parameters of the table's columns, ``(..., P)``."""
        return self.constraints.to_table(self.full(theta), self.design.center, self.design.scale)

    def penalty(self, theta: Tensor) -> float:
        """Return the penalty's share of the objective."""
        return 0.0 if self._penalty is None else 0.5 * float(self._penalty @ self.full(theta).square())

    def gradient_norm(self, gradient: Tensor) -> float:
        """Return the largest entry of the gradient in the table's own units (infinity norm, mean scale).

        Entries that rounding alone explains are not counted, as in ``LinearObjective``.
        """
        given = self._gradient_to_table(gradient) if self._gradient_map is None else gradient @ self._gradient_map
        size = given.abs()
        if self._gradient_floor is not None:
            size = (size - self._gradient_floor).clamp_min_(0.0)
        return float(size.max())

    def _gradient_to_table(self, gradient: Tensor) -> Tensor:
        return self.constraints.gradient_to_table(self.full(gradient), self.design.center, self.design.scale)

    @cached_property
    def _gradient_map(self) -> Tensor | None:
        """The matrix of that map where it is small: one product costs less than the calls for each group."""
        if self.n_parameters * self.constraints.n_parameters > MAP_ELEMENTS:
            return None
        return self._gradient_to_table(torch.eye(self.n_parameters, dtype=torch.float64))

    @cached_property
    def _gradient_floor(self) -> Tensor | None:
        size = (self.design.center.square() + self.design.scale.square()).sqrt() * 2.0**-46
        if not bool((size > 1e-12).any()):
            return None
        ones = torch.zeros(int(self.constraints.intercept), dtype=torch.float64)
        return self.constraints.per_parameter(torch.cat([ones, size]))

    # passes over the data ----------------------------------------------------------------------------------------

    def _predictions(self, theta: Tensor) -> Iterator[tuple[Block, Tensor, Tensor | None]]:
        """Yield each block with its outputs ``(C, rows)``, offset included, and its weights."""
        slopes, constants = self.constraints.to_products(theta)
        basis = self.constraints.basis
        for block in self.design.blocks(self.n_outputs):
            slopes = block.arrange(slopes)
            f = block.predict(slopes)
            if constants is not None:
                f = torch.addmm(constants, basis, f)
            elif not self.constraints.plain:
                f = basis @ f
            if self.offset is not None:
                f = f.add_(self.offset[block.rows].mT)
            yield block, f, self._weights_of(block)

    def _adjoint(self, block: Block, g: Tensor) -> Tensor:
        """Return the parameters' gradient ``(P,)`` of output gradients ``(C, rows)``, weights included."""
        sums = g.sum(1) if self.constraints.has_constants else None
        reduced = g if self.constraints.plain else self.constraints.basis.mT @ g
        return self.constraints.from_products(block.adjoint(reduced), sums)

    def largest_move(self, step: Tensor) -> float:
        """Return the largest change that a step in the free parameters makes to an output."""
        still = copy.copy(self)
        still.offset = None
        return max(float(f.abs().max()) for _, f, _ in still._predictions(self.full(step)))

    def predictors(self, theta: Tensor) -> Tensor:
        """Return the outputs of all rows, ``(C, N)``, offset included."""
        return torch.cat([f for _, f, _ in self._predictions(self.full(theta))], 1)

    def value(self, theta: Tensor) -> float:
        """Return the objective at ``theta``."""
        total = 0.0
        for block, f, weights in self._predictions(self.full(theta)):
            nll = self.likelihood.nll(f.mT, self.y[block.rows])
            total += float(nll.sum() if weights is None else weights @ nll)
        return total / self.total_weight + self.penalty(theta)

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """Return the objective and its gradient ``(p,)`` at ``theta``."""
        at = self.evaluate(theta, None)
        return at.value, at.gradient

    def evaluate(self, theta: Tensor, hessian: Kind | None = "observed") -> Evaluation:
        """Return value, gradient and (unless None is asked for) the Hessian, in one pass over the data.

        Args:
            theta: Free parameters ``(p,)``, float64.
            hessian: Which Hessian: ``"observed"``, ``"expected"`` or None.

        Returns:
            The three at ``theta``.
        """
        full = self.full(theta)
        keep = hessian is not None and 8 * self.n_rows * self.n_outputs <= _KEPT_BYTES
        gradient = torch.zeros(self.constraints.n_parameters, dtype=torch.float64)
        value = 0.0
        parts: list[Part] = []
        for block, f, weights in self._predictions(full):
            at = self.likelihood.derivatives(f.mT, self.y[block.rows], hessian if keep else None)
            value += float(at.nll.sum() if weights is None else weights @ at.nll)
            g = at.gradient.mT
            gradient += self._adjoint(block, g if weights is None else g * weights)
            if at.hessian is not None:
                parts.append((block, at.hessian, weights))
        gradient /= self.total_weight
        value /= self.total_weight
        if self._penalty is not None:
            gradient += self._penalty * full
            value += self.penalty(theta)
        made = None
        if hessian is not None:
            made = self._hessian((lambda: iter(parts)) if keep else (lambda: self._recomputed(full, hessian)))
        return Evaluation(value, gradient if self.kept is None else gradient[self.kept], made)

    def hessian(self, theta: Tensor, kind: Kind = "observed") -> ConstrainedHessian:
        """Return the Hessian ``(p, p)`` at ``theta``, observed or expected, as an operator that is not formed."""
        return self._hessian(lambda: self._recomputed(self.full(theta), kind))

    def has_constant_outputs(self, theta: Tensor) -> bool:
        """Return whether all rows have the same outputs, by intercepts alone."""
        if self.offset is not None or not self.constraints.intercept:
            return False
        return not bool(self.full(theta)[self.constraints.shapes[0][0] :].any())

    def _weights_of(self, block: Block) -> Tensor | None:
        return None if self.weights is None else self.weights[block.rows]

    def _recomputed(self, full: Tensor, kind: Kind) -> Iterator[Part]:
        for block, f, weights in self._predictions(full):
            y = self.y[block.rows]
            made = self.likelihood.hessian(f.mT, y) if kind == "observed" else self.likelihood.fisher(f.mT, y)
            yield block, made, weights

    def _hessian(self, parts: Callable[[], Iterator[Part]]) -> ConstrainedHessian:
        return ConstrainedHessian(parts, self.constraints, self.total_weight, self._penalty, self.kept)

    # scores ------------------------------------------------------------------------------------------------------

    def score_gram(self, theta: Tensor, *, squared_weights: bool = True) -> Tensor:
        """Return the sum of outer products of the rows' scores, ``(p, p)``: the middle of the sandwich.

        Args:
            theta: Free parameters ``(p,)``.
            squared_weights: True for sampling weights; False where a weight counts copies of a row.

        Returns:
            A dense symmetric tensor; the penalty has no part in it.
        """
        gram = ConstrainedGram(self.constraints, triangle(self.n_outputs))
        for block, f, weights in self._predictions(self.full(theta)):
            left = g = self.likelihood.gradient(f.mT, self.y[block.rows]).mT
            if weights is not None:
                left = g * (weights.square() if squared_weights else weights)
            gram.add(block, half_products(left, g))
        total = gram.to_dense()
        return total if self.kept is None else total[self.kept][:, self.kept]

    def group_scores(self, theta: Tensor, groups: Tensor, n_groups: int) -> Tensor:
        """Return the scores summed within clusters, ``(n_groups, p)``; ``groups`` holds 0 .. n_groups - 1 per row."""
        totals = [torch.zeros(n_groups, r, d, dtype=torch.float64) for r, d in self.constraints.shapes]
        for block, f, weights in self._predictions(self.full(theta)):
            g = self.likelihood.gradient(f.mT, self.y[block.rows]).mT
            if weights is not None:
                g = g * weights
            x, member = block.features(), groups[block.rows]
            for group, total in zip(self.constraints.groups, totals, strict=True):
                for i, column in enumerate(group.matrix.mT @ g):
                    total[:, i].index_add_(0, member, (x[group.columns] * column).mT)
        scores = torch.cat([total.flatten(1) for total in totals], 1)
        return scores if self.kept is None else scores[:, self.kept]

    # parts -------------------------------------------------------------------------------------------------------

    def take(self, index: Tensor) -> ConstrainedObjective:
        """Return the objective on some of the rows; over random subsets of one size its mean is the objective."""
        part = copy.copy(self)
        part.design = self.design.take(index)
        part.y = self.y[index]
        part.weights = None if self.weights is None else self.weights[index]
        part.offset = None if self.offset is None else self.offset[index]
        part.total_weight = self.total_weight * index.shape[0] / self.n_rows
        return part

    def with_curvature(self, dtype: torch.dtype) -> ConstrainedObjective:
        """Return the same objective: its Hessians are in double precision always."""
        return self

    @property
    def dense_cost(self) -> float:
        """Cost of a dense Hessian and its factorization in evaluations of value and gradient, from the shapes alone.

        As in ``LinearObjective``; an output takes some 60 ns a row, gamma functions among them.
        """
        c, d, n = self.n_outputs, self.design.n_columns, self.n_rows
        sizes = self.constraints.shapes
        work = sum(r * (r + 1) / 2 * w * w for r, w in sizes)
        work += sum(a[0] * b[0] * a[1] * b[1] for i, a in enumerate(sizes) for b in sizes[i + 1 :])
        evaluation = n * (0.7 * d + 0.04 * self.constraints.basis.shape[1] * d + 60.0 * c) + 2e5
        dense = n * (work / 45 + c * c + d) + self.n_parameters**3 / 75
        return 0.0 if dense < 6e4 else (dense + 2e5) / evaluation
