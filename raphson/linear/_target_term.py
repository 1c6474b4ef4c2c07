r"""What the targets add to the objective of an exponential family: a linear term, summed over the data once.

With :math:`\ell = A(f) - t(y)^T f` the average loss of a linear model is
:math:`\tfrac1W \sum_n w_n A(f_n) - \langle T, \theta \rangle` with :math:`T = \tfrac1W \sum_n w_n J_n^T t(y_n)`, so$
that no later pass over the data reads a target.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from raphson.data import Block, Design, SparseDesign
from raphson.likelihoods import Likelihood
from raphson.linear._compiled import Table, adjoint, table_of
from raphson.linear._output_map import OutputMap

_ROWS = 2**17
"""Rows whose targets' statistic is made at a time."""


class TargetSums(NamedTuple):
    """Sums over the rows of the targets' statistic, known from an earlier pass over the table.

    Attributes:
        columns: Times the columns of the table as given, ``(C, D)``.
        ones: The statistic itself, ``(C,)``.
    """

    columns: Tensor
    ones: Tensor

    def of_features(self, design: Design) -> Tensor:
        """Return those times the standardized columns and the ones, ``(C, D')``."""
        found = self.columns.new_empty(len(self.ones), design.n_columns)
        columns = torch.addr(self.columns, self.ones, design.center, alpha=-1.0, out=found[:, int(design.intercept) :])
        columns.div_(design.scale)
        if design.intercept:
            found[:, 0] = self.ones
        return found


class TargetRows:
    """Rows with their targets, and what is made of these alone: once for all objectives that share them.

    Args:
        design: The rows.
        likelihood: Of the targets' statistic.
        y: Targets.
        n_outputs: C.
        weights: ``(N,)`` or None.
        known: Sums from an earlier pass, where there are any.
    """

    def __init__(
        self,
        design: Design,
        likelihood: Likelihood,
        y: Tensor,
        n_outputs: int,
        weights: Tensor | None,
        known: TargetSums | None,
    ) -> None:
        self.design, self.likelihood, self.y, self.n_outputs = design, likelihood, y, n_outputs
        self.weights, self.known = weights, known

    @cached_property
    def table(self) -> Table | None:
        """The rows as compiled code reads them, or None where it cannot or is not the faster one."""
        return table_of(self.design, self.n_outputs)

    @property
    def sums(self) -> Tensor | None:
        """Sums of the statistic times the features, ``(C, D')``; None for a likelihood without one."""
        return self._sums_and_means[0]

    @cached_property
    def _sums_and_means(self) -> tuple[Tensor | None, Tensor | None]:
        """The sums, and the means of a sparse table, which are wanted, too, where the same pass makes them."""
        if self.known is not None:
            return self.known.of_features(self.design), None
        total, with_ones = None, isinstance(self.design, SparseDesign) and self.weights is None
        for _, t, adjoint_of in self.parts():
            if t is None:
                return None, None
            part = adjoint_of(torch.cat([t.mT, t.new_ones(1, len(t))]) if with_ones else t.mT)
            total = part if total is None else total.add_(part)
        if with_ones and total is not None:
            return total[:-1], total[-1] / self.design.n_rows
        return total, None

    @cached_property
    def means(self) -> Tensor:
        """Means of the features, ``(D',)``."""
        known = None if self.weights is not None else self._sums_and_means[1]
        if known is not None:
            return known
        n = self.design.n_rows
        ones = torch.full((1, n), 1.0 / n, dtype=torch.float64)
        return (self.design.adjoint(ones) if self.table is None else adjoint(self.table, None, ones))[0]

    def parts(self) -> Iterator[tuple[slice, Tensor | None, Callable[[Tensor], Tensor]]]:
        """Yield rows, their statistic ``(rows, C)`` and the map from ``(q, rows)`` to its sums over features."""
        for rows, adjoint_of in _adjoints(self.design, self.table, self.weights, self.n_outputs):
            t = self.likelihood.statistic(self.y[rows], self.n_outputs)
            yield rows, None if t is None else t.reshape(-1, self.n_outputs), adjoint_of  # a block of one row, too


def target_term(
    of: TargetRows, output_map: OutputMap, offset: Tensor | None, total_weight: float
) -> tuple[Tensor, float] | None:
    """Return T ``(P,)`` and the offset's part, a number; None for a likelihood without a statistic of this kind."""
    if offset is None and not output_map.has_constants:
        known = of.sums
        return None if known is None else (output_map.from_products(output_map.reduce(known), None) / total_weight, 0.0)
    total: Tensor | None = None
    sums, constant = torch.zeros(of.n_outputs, dtype=torch.float64), 0.0
    for rows, t, adjoint_of in of.parts():
        if t is None:
            return None
        part = adjoint_of(output_map.reduce(t.mT))
        total = part if total is None else total.add_(part)
        weighted = t if of.weights is None else t * of.weights[rows, None]
        sums += weighted.sum(0)
        constant += 0.0 if offset is None else float((weighted * offset[rows]).sum())
    assert total is not None
    found = output_map.from_products(total, sums if output_map.has_constants else None)
    return found / total_weight, constant / total_weight


def negative_term(
    likelihood: Likelihood, y: Tensor, table: Table, weights: Tensor | None, total_weight: float
) -> tuple[Tensor | None, Tensor | None]:
    """Return the linear term and the weights of a loss ``a e^(-f) + t f``, in coefficients of the other sign."""
    parts = likelihood.negative_exponential(y)
    if parts is None:
        return None, None
    a, t = parts if weights is None else (part * weights for part in parts)
    return adjoint(table, None, t[None]).div_(total_weight), a


def _adjoints(
    design: Design, table: Table | None, weights: Tensor | None, n_outputs: int
) -> Iterator[tuple[slice, Callable[[Tensor], Tensor]]]:
    """Yield rows with the map from numbers ``(q, rows)`` to their weighted sums over the features, ``(q, D')``."""
    if table is None:
        for block in design.blocks(n_outputs):
            yield block.rows, functools.partial(_block_adjoint, block, None if weights is None else weights[block.rows])
        return
    weights = None if weights is None else weights.double().contiguous()
    n = design.n_rows
    if n <= _ROWS:
        yield slice(0, n), functools.partial(adjoint, table, weights)
        return
    for start in range(0, n, _ROWS):
        rows = slice(start, min(start + _ROWS, n))
        yield rows, functools.partial(adjoint, table.rows(rows), None if weights is None else weights[rows])


def _block_adjoint(block: Block, weights: Tensor | None, t: Tensor) -> Tensor:
    return block.adjoint(times(t, weights))


def times(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return values ``(..., rows)`` times weights ``(rows,)``, where there are any."""
    return values if weights is None else values * weights
