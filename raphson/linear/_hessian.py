r"""The Hessian of a linear model at one point, kept as the data and the output Hessians.

.. math:: H = \tfrac1W \sum_n w_n\, J_n^T H_n J_n + \mathrm{ridge}, \qquad J_n \theta = S K(\theta) \hat x_n + a(\theta)

A product with it costs two products with X; the dense matrix is one sum (``_gram``). Nothing is formed before it is
asked for, so a solver can choose between the two at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raphson.data import Block
from raphson.linalg import Dense, DenseForm, DiagonalPlusLowRank, SymmetricOperator, cg, check_dense_size
from raphson.linear._compiled import CompiledHessian, without_subnormals
from raphson.linear._gram import constant_sum, dense_sum, map_pairs
from raphson.linear._khatri_rao import GivenPairs, KhatriRaoGram, OutputPairs, output_pairs
from raphson.linear._output_map import OutputMap
from raphson.linear._ridge import Ridge

Part = tuple[Block, SymmetricOperator, Tensor | None]
"""Rows, their output Hessians ``(rows, C, C)`` and their weights ``(rows,)`` or None."""

_SOLVE_TOL = 1e-10


@dataclass(frozen=True, eq=False)
class LinearHessian(DenseForm):
    """Hessian of a linear model in its parameters, ``(P, P)``.

    Attributes:
        parts: Yields rows with their output Hessians over all the data, anew at each call.
        output_map: How the parameters act on the outputs.
        total_weight: W.
        ridge: The penalty, or None.
        element: Element type of products and of the dense form.
        compiled: The same Hessian in compiled code, where that is the faster one.
    """

    parts: Callable[[], Iterator[Part]]
    output_map: OutputMap
    total_weight: float
    ridge: Ridge | None = None
    element: torch.dtype = torch.float64
    compiled: CompiledHessian | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape ``(P, P)``."""
        return torch.Size((self.output_map.n_parameters,) * 2)

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the products."""
        return self.element

    @property
    def device(self) -> torch.device:
        """Device on which the operator lives."""
        return self.output_map.basis.device

    def mv(self, v: Tensor) -> Tensor:
        """Return ``H v`` for ``v`` of shape ``(P,)``, without forming H."""
        if self.compiled is not None:
            return self.compiled.mv(v)
        products, constants = self.output_map.to_products(v)
        total: Tensor | None = None
        sums = None if constants is None else torch.zeros_like(constants[:, 0])
        for block, output, weights in self.parts():
            products = block.arrange(products)
            change = self.output_map.outputs(block.predict(products), constants)
            change = output.mv(change.mT).mT
            if weights is not None:
                change = change * weights.to(self.element)
            part = block.adjoint(self.output_map.reduce(change))
            total = part if total is None else total.add_(part)
            if sums is not None:
                sums += change.sum(1)
        assert total is not None
        found = self.output_map.from_products(total, sums).div_(self.total_weight)
        return found if self.ridge is None else self.ridge.add_product(found, v)

    def to_dense(self) -> Tensor:
        """Return the ``(P, P)`` tensor; it is made once."""
        return self._dense

    @cached_property
    def _dense(self) -> Tensor:
        check_dense_size(self.shape, self.element, "its products mv, which need no such array")
        if self.compiled is not None and self.compiled.objective.table.has_hessians:
            return self.compiled.to_dense(self.element)
        return self._summed((b, map_pairs(self.output_map, output), w) for b, output, w in self.parts())

    def _summed(self, parts: Iterator[tuple[Block, OutputPairs, Tensor | None]]) -> Tensor:
        return self._finished(dense_sum(self.output_map, parts, self.element))

    def _finished(self, total: Tensor) -> Tensor:
        total.div_(self.total_weight)
        if self.ridge is not None:
            self.ridge.add_to(total)
        return total

    def constant_over_rows(self, n_separate: int = 1) -> Tensor:
        """Return the ``(P, P)`` tensor there would be if every row had the mean of the output Hessians.

        Outputs are dealt out to ``n_separate`` parameters in turn; entries between two of them are left out.
        """
        total, n, places = torch.zeros((), dtype=torch.float64), 0.0, torch.zeros(2, 0, dtype=torch.long)
        for block, output, weights in self.parts():
            given, rows = output_pairs(output), slice(0, block.rows.stop - block.rows.start)
            total = total + given.entries(rows, torch.float64, weights).sum(1)
            n, places = n + (rows.stop if weights is None else float(weights.sum())), given.pairs
        c, (i, j) = self.output_map.n_outputs, places
        mean = torch.zeros(c, c, dtype=torch.float64)
        mean[i, j] = mean[j, i] = torch.where(i % n_separate == j % n_separate, total / n, 0.0)
        blocks = ((block, weights) for block, _, weights in self.parts())
        return self._finished(constant_sum(self.output_map, blocks, mean, self.element))

    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(P,)``: at the cost of one product where every column has outputs of its own."""
        if self.output_map.selected is None or not self.output_map.is_uniform:
            return self.to_dense().diagonal()
        total = torch.zeros(self.output_map.shapes[0], dtype=self.element, device=self.device)
        for block, output, weights in self.parts():
            entries = output.diagonal().mT[self.output_map.selected].to(self.element)
            total += block.adjoint_squared(entries if weights is None else entries * weights.to(self.element))
        found = total.reshape(-1) / self.total_weight
        return found if self.ridge is None else found + self.ridge.diagonal.to(self.element)

    def blocks(self) -> Tensor:
        """Return the diagonal blocks of a uniform map with own outputs, one per output, ``(q, D', D')``."""
        if self.compiled is not None and self.compiled.objective.table.has_hessians:
            return self.compiled.blocks(self.element)
        assert self.output_map.is_uniform and self.output_map.selected is not None
        q, d = self.output_map.shapes[0]
        index = torch.arange(q)
        gram = KhatriRaoGram(torch.stack([index, index]), q, d, self.element)
        for block, output, weights in self.parts():
            entries = output.diagonal().mT[self.output_map.selected]
            gram.add(block.features(), GivenPairs(gram.pairs, entries), weights)
        blocks = gram.blocks() / self.total_weight
        if self.ridge is not None:
            blocks.diagonal(dim1=1, dim2=2).add_(self.ridge.diagonal.view(q, d))
        return blocks

    def solve(self, b: Tensor) -> Tensor:
        """Return ``H^-1 b``: densely where the matrix fits, else by conjugate gradients."""
        try:
            return Dense(self.to_dense()).solve(b)
        except MemoryError:
            return cg(self.mv, b, tol=_SOLVE_TOL).x


class Evaluation:
    """Objective at one point: value, gradient ``(P,)``, its norm and, if asked for, the Hessian, not formed.

    The relative ``rounding`` of the value is given where it is more than that of the gradient's type.

    Making the Hessian takes some microseconds, and every third point of a small fit never needs it: it is made when it
    is first looked at.
    """

    __slots__ = ("_made", "_make", "gradient", "norm", "rounding", "value")

    def __init__(
        self,
        value: float,
        gradient: Tensor,
        norm: float,
        make: Callable[[], LinearHessian] | None,
        rounding: float = 0.0,
    ) -> None:
        self.value, self.gradient, self.norm, self._make, self.rounding = value, gradient, norm, make, rounding
        self._made: LinearHessian | None = None

    @property
    def hessian(self) -> LinearHessian | None:
        """The Hessian, ``(P, P)``, or None if it was not asked for."""
        if self._made is None and self._make is not None:
            self._made = self._make()
        return self._made


def narrowed(hessian: SymmetricOperator, dtype: torch.dtype) -> SymmetricOperator:
    """Return output Hessians in single precision, without numbers whose products are subnormal."""
    if not isinstance(hessian, DiagonalPlusLowRank):
        return hessian.to(dtype=dtype)
    diag = without_subnormals(hessian.diag.to(dtype))
    shared = hessian.low_rank.data_ptr() == hessian.diag.data_ptr()
    return DiagonalPlusLowRank(
        diag, diag.unsqueeze(-1) if shared else without_subnormals(hessian.low_rank.to(dtype)), hessian.sign
    )
