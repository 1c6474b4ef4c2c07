r"""Closed forms for linear models: value, gradient and Hessian, for any likelihood.

With outputs :math:`f_n = B \hat x_n` (B of shape (C, D'), row k the coefficients of output k) the Jacobian is
:math:`J_n = I_C \otimes \hat x_n^T`, so that with :math:`W = \sum_n w_n`

.. math::
    \nabla L &= \tfrac1W \sum_n w_n\, g_n \otimes \hat x_n + \nabla\mathrm{penalty}, \\
    \nabla^2 L &= \tfrac1W \sum_n w_n\, H_n \otimes \hat x_n \hat x_n^T + Q \otimes \mathrm{diag}(\lambda_j),

whatever the likelihood: it supplies :math:`g_n` (C) and :math:`H_n` (C x C), and nothing here looks inside it. The
Gauss-Newton matrix of a linear model is its Hessian, because the second derivative of f vanishes.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from raphson.data import Block, DenseDesign, Design
from raphson.likelihoods import Derivatives, Likelihood
from raphson.linalg import DiagonalPlusLowRank, SymmetricOperator
from raphson.linear._compiled import (
    CompiledFamily,
    CompiledHessian,
    Table,
    adjoint,
    is_compiled,
    without_subnormals,
)
from raphson.linear._hessian import LinearHessian
from raphson.linear._khatri_rao import GivenPairs, KhatriRaoGram, score_pairs, triangle

Kind = Literal["observed", "expected"]
Part = tuple[Block, SymmetricOperator, Tensor | None]

_ADJOINT_ROWS = 2**17
"""Rows whose targets' statistic is made at a time."""

_KEPT_BYTES = 2**28
"""Output Hessians are kept between products while their diagonals take less than this; else they are made anew."""


class Evaluation(NamedTuple):
    """Objective at one point: value, gradient ``(p,)`` and, if asked for, the Hessian, not formed."""

    value: float
    gradient: Tensor
    hessian: LinearHessian | None


class LinearObjective:
    r"""Penalized mean negative log-likelihood of a linear model, as a function of its free coefficients.

    .. math:: L(\beta) = \frac1W \sum_n w_n\, \ell(B \hat x_n + o_n, y_n) + \frac\lambda2 \|B_{pen}\|^2

    The free coefficients are ``beta = [beta_1; ...; beta_C]``, class by class with the intercept first, of the design's
    (standardized) columns; with ``reference`` that output's coefficients are zero and left out. The penalty acts on the
    slopes of the table's columns; where a ``reference`` makes coefficients relative, or ``centered_penalty`` is set, it
    acts on their sum-to-zero form, so that predictions do not depend on the reference.

    Args:
        design: Rows and columns.
        likelihood: Output-space derivatives.
        y: Targets, first dimension N.
        n_outputs: C.
        weights: ``(N,)`` example weights; None means 1 each.
        offset: ``(N, C)`` added to the linear predictors; None means 0.
        l2: :math:`\lambda` of the mean-scale objective.
        reference: Output whose coefficients are zero, or None. The last one is the cheapest.
        centered_penalty: Penalize the coefficients less their mean over outputs.
        curvature_dtype: Element type of Hessians; values and gradients are always float64.
    """

    def __init__(
        self,
        design: Design,
        likelihood: Likelihood,
        y: Tensor,
        *,
        n_outputs: int,
        weights: Tensor | None = None,
        offset: Tensor | None = None,
        l2: float = 0.0,
        reference: int | None = None,
        centered_penalty: bool = False,
        curvature_dtype: torch.dtype = torch.float64,
    ) -> None:
        self.design = design
        self.likelihood = likelihood
        self.y = y
        self.n_outputs = n_outputs
        self.weights = weights
        self.offset = offset
        self.l2 = l2
        self.reference = reference
        self.centered_penalty = centered_penalty or reference is not None
        self.curvature_dtype = curvature_dtype
        self._kept_type = torch.float64
        self._curvature_design = design if curvature_dtype == design.dtype else design.astype(curvature_dtype)
        self.free_outputs = _free_outputs(n_outputs, reference)
        self.n_free = n_outputs - (reference is not None)
        self.n_parameters = self.n_free * design.n_columns
        self.total_weight = self._total_weight()
        # what l2 on the table's slopes b_j / s_j is per standardized column
        slopes = l2 / design.scale.square() if l2 else torch.zeros_like(design.scale)
        self.column_penalty = torch.cat([torch.zeros(int(design.intercept), dtype=torch.float64), slopes])

    def _total_weight(self) -> float:
        own = self.likelihood.weight(self.y)
        if own is None:
            return float(self.n_rows) if self.weights is None else float(self.weights.sum())
        return float(own.sum() if self.weights is None else (own * self.weights).sum())

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.design.n_rows

    # coefficients ------------------------------------------------------------------------------------------------

    def coefficients(self, theta: Tensor) -> Tensor:
        """Return the coefficients of all outputs, ``(C, D')``, the reference's zero, from the free ``(p,)``."""
        free = theta.view(self.n_free, self.design.n_columns)
        if self.reference is None:
            return free
        full = free.new_zeros(self.n_outputs, self.design.n_columns)
        full[self.free_outputs] = free
        return full

    def free(self, coef: Tensor) -> Tensor:
        """Return the free coefficients ``(p,)`` out of all outputs' ``(C, D')``; undoes ``coefficients``."""
        if self.reference is not None:
            coef = coef[self.free_outputs] - coef[self.reference]
        return coef.reshape(-1)

    # penalty -----------------------------------------------------------------------------------------------------

    @cached_property
    def penalty_outputs(self) -> Tensor:
        """Q, ``(C_free, C_free)``: the identity, or the projection on sum-to-zero coefficients of all outputs."""
        q = torch.eye(self.n_outputs, dtype=torch.float64) - float(self.centered_penalty) / self.n_outputs
        return q[self.free_outputs][:, self.free_outputs].contiguous()

    def _penalty_gradient(self, free: Tensor) -> Tensor:
        return (self.penalty_outputs @ free) * self.column_penalty

    def penalty(self, theta: Tensor) -> float:
        """Return the penalty's share of the objective."""
        free = theta.view(self.n_free, self.design.n_columns)
        return 0.5 * float((free * self._penalty_gradient(free)).sum())

    # passes over the data ----------------------------------------------------------------------------------------

    def predict(self, block: Block, coef: Tensor) -> Tensor:
        """Return the outputs of a block, ``(C, rows)``, offset included, for free coefficients ``(C_free, D')``."""
        free = block.predict(coef)
        if self.reference is None:
            f = free
        elif self.reference == self.n_outputs - 1:
            f = torch.nn.functional.pad(free, (0, 0, 0, 1))
        else:
            f = free.new_zeros(self.n_outputs, free.shape[1])
            f[self.free_outputs] = free
        return f if self.offset is None else f + self.offset[block.rows].mT.to(f.dtype)

    def block_weights(self, block: Block) -> Tensor | None:
        """Return the weights of a block's examples, or None for 1 each."""
        return None if self.weights is None else self.weights[block.rows]

    def predictors(self, theta: Tensor) -> Tensor:
        """Return the outputs of all rows, ``(C, N)``, offset included."""
        coef = theta.view(self.n_free, -1)
        return torch.cat([self.predict(block, coef) for block in self.design.blocks(self.n_outputs)], 1)

    @cached_property
    def _linear_term(self) -> tuple[Tensor, float] | None:
        r"""The targets' part in an exponential family, :math:`\sum w\, t(y) \otimes \hat x / W`, and the offset's."""
        total = torch.zeros(self.n_free, self.design.n_columns, dtype=torch.float64)
        constant = 0.0
        for rows, sums in self._adjoints():
            t = self.likelihood.statistic(self.y[rows], self.n_outputs)
            if t is None:
                return None
            total += sums(t.mT[self.free_outputs])
            if self.offset is not None:
                weighted = t if self.weights is None else t * self.weights[rows, None]
                constant += float((weighted * self.offset[rows]).sum())
        return total / self.total_weight, constant / self.total_weight

    def _adjoints(self) -> Iterator[tuple[slice, Callable[[Tensor], Tensor]]]:
        """Yield rows with the map from numbers ``(C, rows)`` to their weighted sums over the features, ``(C, D')``."""
        if self._table is None:
            for block in self.design.blocks(self.n_outputs):
                yield block.rows, functools.partial(_block_adjoint, block, self.block_weights(block))
            return
        weights = None if self.weights is None else self.weights.double().contiguous()
        for start in range(0, self.n_rows, _ADJOINT_ROWS):
            rows = slice(start, min(start + _ADJOINT_ROWS, self.n_rows))
            yield rows, functools.partial(adjoint, self._table.rows(rows), None if weights is None else weights[rows])

    @cached_property
    def _table(self) -> Table | None:
        """The rows as compiled code reads them, or None where it cannot."""
        return _table(self.design) if is_compiled(self.design.n_columns, self.n_outputs) else None

    def _derivatives(self, f: Tensor, rows: slice, kind: Kind | None) -> Derivatives:
        if self._linear_term is not None:
            return self.likelihood.log_partition(f.mT, hessian=kind is not None)
        return self.likelihood.derivatives(f.mT, self.y[rows], kind)

    @cached_property
    def _compiled(self) -> CompiledFamily | None:
        """The same objective in compiled code, where that knows the likelihood and is the faster one."""
        partition, last = self.likelihood.partition, self.n_outputs - 1
        if partition is None or (partition != "softmax" and last) or self.reference not in (None, last):
            return None
        if self.offset is not None or self._table is None or self._linear_term is None:
            return None
        return CompiledFamily(
            self._table,
            None if self.weights is None else self.weights.double().contiguous(),
            self._linear_term[0],
            self.reference is not None or partition == "logistic",
            self.penalty_outputs,
            self.column_penalty,
            self.likelihood.partition_multiple / self.total_weight,
            partition == "exponential",
        )

    def value(self, theta: Tensor) -> float:
        """Return the objective at ``theta``."""
        return self.evaluate(theta, None).value

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """Return the objective and its gradient ``(p,)`` at ``theta``."""
        at = self.evaluate(theta, None)
        return at.value, at.gradient

    def gradient(self, theta: Tensor) -> Tensor:
        """Return the gradient ``(p,)`` at ``theta``."""
        return self.evaluate(theta, None).gradient

    def hessian(self, theta: Tensor, kind: Kind = "observed") -> LinearHessian:
        """Return the Hessian ``(p, p)`` at ``theta``, observed or expected, as an operator that is not formed."""
        hessian = self.evaluate(theta, kind).hessian
        assert hessian is not None
        return hessian

    def evaluate(self, theta: Tensor, hessian: Kind | None = "observed") -> Evaluation:
        """Return value, gradient and (unless None is asked for) the Hessian, in one pass over the data.

        Args:
            theta: Free coefficients ``(p,)``, float64.
            hessian: Which Hessian: ``"observed"``, ``"expected"`` or None.

        Returns:
            The three at ``theta``.
        """
        if self._compiled is not None:
            value, gradient, compiled = self._compiled.evaluate(theta, self._kept_type if hessian else None)
            made = None
            if hessian is not None:
                made = self._hessian(lambda: self._recomputed(theta, hessian), compiled)
            return Evaluation(value, gradient, made)
        return self._evaluate_blocks(theta, hessian)

    def _evaluate_blocks(self, theta: Tensor, hessian: Kind | None) -> Evaluation:
        linear = self._linear_term
        gradient: Tensor | None = None
        value = 0.0
        keep = hessian is not None and self._keeps_output_hessians()
        parts: list[Part] = []
        coef = theta.view(self.n_free, self.design.n_columns)
        for block, same in self._paired_blocks(keep):
            coef = block.arrange(coef)
            f = self.predict(block, coef)
            at = self._derivatives(f, block.rows, hessian if keep else None)
            weights = self.block_weights(block)
            value += float(at.nll.sum() if weights is None else weights @ at.nll)
            part = block.adjoint(_times(at.gradient.mT[self.free_outputs], weights))
            gradient = part if gradient is None else gradient.add_(part)
            if at.hessian is not None:
                narrow = at.hessian if self.curvature_dtype == f.dtype else _narrowed(at.hessian, self.curvature_dtype)
                parts.append((same, narrow, weights))
        assert gradient is not None
        gradient /= self.total_weight
        value /= self.total_weight
        if linear is not None:
            gradient -= linear[0]
            value -= float(torch.dot(linear[0].reshape(-1), theta)) + linear[1]
        if self.l2:
            penalty_gradient = self._penalty_gradient(theta.view(gradient.shape))
            gradient += penalty_gradient
            value += 0.5 * float(torch.dot(penalty_gradient.reshape(-1), theta))
        made = None
        if hessian is not None:
            made = self._hessian((lambda: iter(parts)) if keep else (lambda: self._recomputed(theta, hessian)))
        return Evaluation(value, gradient.reshape(-1), made)

    def _keeps_output_hessians(self) -> bool:
        return self.n_rows * self.n_outputs * self.curvature_dtype.itemsize <= _KEPT_BYTES

    def _paired_blocks(self, pair: bool) -> Iterator[tuple[Block, Block]]:
        """Yield each block in double precision with the same rows in the curvature's element type."""
        first = self.design.blocks(self.n_outputs)
        if not pair or self._curvature_design is self.design:
            yield from ((block, block) for block in first)
        else:
            yield from zip(first, self._curvature_design.blocks(self.n_outputs), strict=True)

    def _recomputed(self, theta: Tensor, kind: Kind) -> Iterator[Part]:
        coef = theta.to(self.curvature_dtype).view(self.n_free, self.design.n_columns)
        for block in self._curvature_design.blocks(self.n_outputs):
            coef = block.arrange(coef)
            f = self.predict(block, coef)
            made = self._derivatives(f, block.rows, kind).hessian
            assert made is not None
            yield block, made, self.block_weights(block)

    def _hessian(self, parts: Callable[[], Iterator[Part]], compiled: CompiledHessian | None = None) -> LinearHessian:
        return LinearHessian(
            parts=parts,
            total_weight=self.total_weight,
            n_outputs=self.n_outputs,
            n_columns=self.design.n_columns,
            free_outputs=self.free_outputs,
            penalty_outputs=self.penalty_outputs if self.l2 else None,
            penalty_columns=self.column_penalty,
            element=self.curvature_dtype,
            compiled=compiled,
        )

    @property
    def dense_nanoseconds(self) -> float:
        """Rough time of a dense Hessian and its factorization on one ordinary machine, from the shapes alone.

        The Hessian makes and multiplies pairs of outputs and of columns (``KhatriRaoGram``).
        """
        c, d = self.n_free, self.design.n_columns
        width = 2.0 if self.curvature_dtype == torch.float64 else 1.0
        pairs, products = c * (c + 1) / 2, d * (d + 1) / 2
        half = pairs * products / 90 + 0.4 * (pairs + products)
        stacked = pairs * d * d / 90 + 0.5 * pairs * d
        return width * (self.n_rows * min(half, stacked) + self.n_parameters**3 / 150)

    @property
    def dense_cost(self) -> float:
        """Cost of a dense Hessian and its factorization in evaluations of value and gradient, from the shapes alone.

        Operations and memory traffic are both counted as time; what matters is their ratio. An evaluation streams the
        columns, multiplies twice and takes C exponentials. On small data both are calls, not arithmetic, and a Hessian
        costs no more than what reusing an old one does: that counts as nothing.
        """
        c, d, n = self.n_free, self.design.n_columns, self.n_rows
        evaluation = n * (0.7 * d + 0.04 * c * d + 3.0 * self.n_outputs) + 2e5
        dense = self.dense_nanoseconds
        return 0.0 if dense < 6e4 else (dense + 2e5) / evaluation

    # scores ------------------------------------------------------------------------------------------------------

    def _scores(self, theta: Tensor) -> Iterator[tuple[Block, Tensor, Tensor | None]]:
        """Yield each block with its output gradients ``(C_free, rows)``, unweighted, and weights."""
        coef = theta.view(self.n_free, self.design.n_columns)
        for block in self.design.blocks(self.n_outputs):
            f = self.predict(block, coef)
            g = self.likelihood.gradient(f.mT, self.y[block.rows]).mT[self.free_outputs]
            yield block, g, self.block_weights(block)

    def score_gram(self, theta: Tensor, *, squared_weights: bool = True) -> Tensor:
        r"""Return :math:`\sum_n w_n^2 (g_n g_n^T) \otimes x_n x_n^T`, ``(p, p)``: the middle of the sandwich.

        The penalty has no part in it; the scale is the sum, not the mean.

        Args:
            theta: Free coefficients ``(p,)``.
            squared_weights: True for sampling weights; False where a weight counts copies of a row, each with a score
                of its own, and enters once.

        Returns:
            A dense symmetric tensor.
        """
        gram = KhatriRaoGram(triangle(self.n_free), self.n_free, self.design.n_columns, torch.float64)
        for block, g, weights in self._scores(theta):
            squared = weights.square() if weights is not None and squared_weights else weights
            gram.add(block.features(), score_pairs(g), squared)
        return gram.to_dense()

    def group_scores(self, theta: Tensor, groups: Tensor, n_groups: int) -> Tensor:
        """Return the scores summed within groups, ``(n_groups, p)``; ``groups`` holds 0 .. n_groups - 1 per row."""
        total = torch.zeros(n_groups, self.n_free, self.design.n_columns, dtype=torch.float64)
        for block, g, weights in self._scores(theta):
            x, member = block.features(), groups[block.rows]
            for output, column in enumerate(_times(g, weights)):
                total[:, output].index_add_(0, member, (x * column).mT)
        return total.view(n_groups, -1)

    # bounds ------------------------------------------------------------------------------------------------------

    @cached_property
    def gram_matrix(self) -> Tensor:
        """Weighted second moments of the columns, ``(D', D')``, on the mean scale."""
        gram = KhatriRaoGram(torch.zeros(2, 1, dtype=torch.long), 1, self.design.n_columns, torch.float64)
        for block in self.design.blocks(self.n_outputs):
            ones = torch.ones(1, block.rows.stop - block.rows.start, dtype=torch.float64)
            gram.add(block.features(), GivenPairs(gram.pairs, ones), self.block_weights(block))
        return gram.blocks()[0] / self.total_weight

    def lipschitz_bound(self) -> float | None:
        """Return a bound on the largest Hessian eigenvalue anywhere, or None if the likelihood has none.

        With output Hessians at most ``b I`` it is ``b`` times the largest eigenvalue of the Gram matrix, plus the
        largest penalty; for the softmax this is the bound of Bohning (1992), b = 1/2.
        """
        bound = self.likelihood.hessian_bound
        if bound is None:
            return None
        return bound * float(torch.linalg.eigvalsh(self.gram_matrix)[-1]) + float(self.column_penalty.max())

    def row_lipschitz_bound(self) -> float | None:
        """Return the bound of ``lipschitz_bound`` for the worst single row."""
        bound = self.likelihood.hessian_bound
        if bound is None:
            return None
        rows = max(float(b.features().square().sum(0).max()) for b in self.design.blocks(self.n_outputs))
        heaviest = 1.0 if self.weights is None else float(self.weights.max()) / self.total_weight * self.n_rows
        return bound * rows * heaviest + float(self.column_penalty.max())

    # parts and units ---------------------------------------------------------------------------------------------

    def take(self, index: Tensor) -> LinearObjective:
        """Return the objective on some of the rows; over random subsets of one size its mean is the objective."""
        part = copy.copy(self)
        for name in ("_linear_term", "_table", "_compiled", "gram_matrix"):
            part.__dict__.pop(name, None)
        part.design = self.design.take(index)
        part._curvature_design = (
            part.design if self.curvature_dtype == part.design.dtype else part.design.astype(self.curvature_dtype)
        )
        part.y = self.y[index]
        part.weights = None if self.weights is None else self.weights[index]
        part.offset = None if self.offset is None else self.offset[index]
        part.total_weight = self.total_weight * index.shape[0] / self.n_rows
        return part

    def symmetric(self) -> LinearObjective:
        """Return the same objective in the coefficients of all outputs, of which only differences matter."""
        other = copy.copy(self)
        for name in ("_linear_term", "_compiled", "penalty_outputs"):
            other.__dict__.pop(name, None)
        other.reference, other.centered_penalty = None, True
        other.free_outputs, other.n_free = slice(0, self.n_outputs), self.n_outputs
        other.n_parameters = other.n_free * self.design.n_columns
        return other

    def with_curvature(self, dtype: torch.dtype, *, products: bool = False) -> LinearObjective:
        """Return the same objective with Hessians of another element type.

        Args:
            dtype: That type.
            products: Whether Hessians are wanted for their products: probabilities are then kept in that type too.

        Returns:
            The objective.
        """
        if dtype == self.curvature_dtype and not products:
            return self
        other = copy.copy(self)
        other._kept_type = dtype if products else torch.float64
        other.curvature_dtype = dtype
        other._curvature_design = self.design if dtype == self.design.dtype else self.design.astype(dtype)
        return other

    def table_gradient(self, gradient: Tensor) -> Tensor:
        """Turn a gradient in the standardized coefficients, ``(p,)``, into one in the table's, ``(C_free, D')``."""
        return self.design.gradient_to_table(gradient.view(self.n_free, self.design.n_columns))

    @cached_property
    def _norm_floor(self) -> Tensor | None:
        """What rounding alone makes of the gradient of each column, ``(D',)``; None where that is nothing."""
        # of a column of this size; one of size 1e24 has 1e8 at the optimum
        size = (self.design.center.square() + self.design.scale.square()).sqrt() * 2.0**-46
        if not bool((size > 1e-12).any()):
            return None
        return torch.cat([torch.zeros(int(self.design.intercept), dtype=torch.float64), size])

    def gradient_norm(self, gradient: Tensor) -> float:
        """Return the largest entry of the gradient in the table's own units (infinity norm, mean scale)."""
        size = self.table_gradient(gradient)
        if self._norm_floor is not None:
            size = (size.abs() - self._norm_floor).clamp_min_(0.0)
        return float(torch.linalg.vector_norm(size, torch.inf))


def _table(design: Design) -> Table | None:
    """Return the rows of a design as compiled code reads them, or None where it cannot."""
    if isinstance(design, DenseDesign) and design.is_raw and design.x.numel():  # nothing has no address
        factor = design.scale.reciprocal()
        if bool(factor.isfinite().all()):  # not for columns below 1e-308
            return Table(design.x, design.center, factor, design.intercept)
    whole = design.whole()
    return None if whole is None else Table(whole)


def _free_outputs(n_outputs: int, reference: int | None) -> slice | Tensor:
    if reference is None:
        return slice(0, n_outputs)
    if reference == n_outputs - 1:
        return slice(0, n_outputs - 1)
    outputs = torch.arange(n_outputs)
    return outputs[outputs != reference]


def _narrowed(hessian: SymmetricOperator, dtype: torch.dtype) -> SymmetricOperator:
    """Return output Hessians in single precision, without numbers whose products are subnormal."""
    if not isinstance(hessian, DiagonalPlusLowRank):
        return hessian.to(dtype=dtype)
    diag = without_subnormals(hessian.diag.to(dtype))
    shared = hessian.low_rank.data_ptr() == hessian.diag.data_ptr()
    return DiagonalPlusLowRank(
        diag, diag.unsqueeze(-1) if shared else without_subnormals(hessian.low_rank.to(dtype)), hessian.sign
    )


def _block_adjoint(block: Block, weights: Tensor | None, t: Tensor) -> Tensor:
    return block.adjoint(_times(t, weights))


def _times(values: Tensor, weights: Tensor | None) -> Tensor:
    return values if weights is None else values * weights
