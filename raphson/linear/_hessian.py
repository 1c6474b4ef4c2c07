r"""The Hessian of a linear model at one point, kept as the data and the output Hessians.

.. math:: H = \tfrac1W \sum_n w_n\, H_n \otimes \hat x_n \hat x_n^T + Q \otimes \mathrm{diag}(\lambda_j)

A product with it costs two products with X; the dense matrix one Khatri-Rao product (``_khatri_rao``). Nothing is
formed before it is asked for, so a solver can choose between the two at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raphson.data import Block
from raphson.linalg import Dense, SymmetricOperator, cg, check_dense_size
from raphson.linear._compiled import CompiledHessian
from raphson.linear._dense_form import DenseForm
from raphson.linear._khatri_rao import GivenPairs, KhatriRaoGram, output_pairs

_SOLVE_TOL = 1e-10


@dataclass(frozen=True, eq=False)
class LinearHessian(DenseForm):
    """Hessian of a linear model in its free coefficients, ``(p, p)`` with p = C_free D'.

    Attributes:
        parts: Yields ``(block, output Hessians (rows, C, C), weights (rows,) or None)`` over all the data, anew at each
            call.
        total_weight: W.
        n_outputs: C.
        n_columns: D'.
        free_outputs: The outputs whose coefficients are free: a slice, or indices ``(C_free,)``.
        penalty_outputs: Q, ``(C_free, C_free)``, or None without a penalty.
        penalty_columns: The penalties per column, ``(D',)``.
        element: Element type of products and of the dense form.
        compiled: The same Hessian in compiled code, where that is the faster one.
    """

    parts: Callable[[], Iterator[tuple[Block, SymmetricOperator, Tensor | None]]]
    total_weight: float
    n_outputs: int
    n_columns: int
    free_outputs: slice | Tensor
    penalty_outputs: Tensor | None
    penalty_columns: Tensor
    element: torch.dtype
    compiled: CompiledHessian | None = None

    @property
    def n_free(self) -> int:
        """Number of free outputs."""
        if isinstance(self.free_outputs, slice):
            return len(range(*self.free_outputs.indices(self.n_outputs)))
        return int(self.free_outputs.shape[0])

    @property
    def shape(self) -> torch.Size:
        """Shape ``(p, p)``."""
        p = self.n_free * self.n_columns
        return torch.Size((p, p))

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the products."""
        return self.element

    @property
    def device(self) -> torch.device:
        """Device on which the operator lives."""
        return self.penalty_columns.device

    def mv(self, v: Tensor) -> Tensor:
        """Return ``H v`` for ``v`` of shape ``(p,)``, without forming H."""
        if self.compiled is not None:
            return self.compiled.mv(v.to(self.element))
        free = v.to(self.element).view(self.n_free, self.n_columns)
        total: Tensor | None = None
        for block, output, weights in self.parts():
            free = block.arrange(free)
            change = block.predict(free)
            if self.n_free < self.n_outputs:
                wide = free.new_zeros(self.n_outputs, change.shape[1])
                wide[self.free_outputs] = change
                change = wide
            change = output.mv(change.mT).mT[self.free_outputs]
            part = block.adjoint(change if weights is None else change * weights.to(self.element))
            total = part if total is None else total.add_(part)
        assert total is not None
        total /= self.total_weight
        if self.penalty_outputs is not None:
            total.addcmul_(self.penalty_outputs.to(self.element) @ free, self.penalty_columns.to(self.element))
        return total.reshape(-1)

    def to_dense(self) -> Tensor:
        """Return the ``(p, p)`` tensor, by the Khatri-Rao form; it is made once."""
        return self._dense

    @cached_property
    def _dense(self) -> Tensor:
        check_dense_size(self.shape, self.element, "its products mv, which need no such array")
        if self.compiled is not None:
            return self.compiled.to_dense(self.element)
        gram: KhatriRaoGram | None = None
        for block, output, weights in self.parts():
            pairs = output_pairs(output, self.free_outputs)
            if gram is None:
                gram = KhatriRaoGram(pairs.pairs, self.n_free, self.n_columns, self.element)
            gram.add(block.features(), pairs, weights, block.products)
        assert gram is not None
        return self._penalized(gram.to_dense())

    def _penalized(self, total: Tensor) -> Tensor:
        total /= self.total_weight
        if self.penalty_outputs is not None:
            c, d = self.n_free, self.n_columns
            diagonals = total.view(c, d, c, d).diagonal(dim1=1, dim2=3)
            diagonals += (self.penalty_outputs[:, :, None] * self.penalty_columns).to(self.element)
        return total

    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(p,)``, at the cost of one product."""
        total = torch.zeros(self.n_free, self.n_columns, dtype=self.element, device=self.device)
        for block, output, weights in self.parts():
            entries = output.diagonal().mT[self.free_outputs].to(self.element)
            total += block.squares(entries if weights is None else entries * weights.to(self.element))
        total /= self.total_weight
        if self.penalty_outputs is not None:
            total += self.penalty_outputs.diagonal()[:, None] * self.penalty_columns
        return total.reshape(-1)

    def blocks(self) -> Tensor:
        """Return the diagonal blocks, one per free output, ``(C_free, D', D')``."""
        if self.compiled is not None:
            return self.compiled.blocks(self.element)
        index = torch.arange(self.n_free)
        gram = KhatriRaoGram(torch.stack([index, index]), self.n_free, self.n_columns, self.element)
        for block, output, weights in self.parts():
            gram.add(block.features(), GivenPairs(gram.pairs, output.diagonal().mT[self.free_outputs]), weights)
        blocks = gram.blocks() / self.total_weight
        if self.penalty_outputs is not None:
            blocks.diagonal(dim1=1, dim2=2).add_(self.penalty_outputs.diagonal()[:, None] * self.penalty_columns)
        return blocks

    def solve(self, b: Tensor) -> Tensor:
        """Return ``H^-1 b``: densely where the matrix fits, else by conjugate gradients."""
        try:
            return Dense(self.to_dense()).solve(b)
        except MemoryError:
            return cg(self.mv, b, tol=_SOLVE_TOL).x
