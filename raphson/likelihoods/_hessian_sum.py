r"""The sum of output Hessians over examples, which is one matrix of outputs by outputs whatever their number."""

from __future__ import annotations

import torch
from torch import Tensor

from raphson.likelihoods._average import output_hessian
from raphson.likelihoods._likelihood import Likelihood
from raphson.likelihoods._special._softmax import one_hot_variance
from raphson.linalg import (
    Dense,
    Diagonal,
    DiagonalPlusLowRank,
    EqualBlocks,
    Scaled,
    SymmetricOperator,
    check_dense_size,
)

_CHUNK_ELEMENTS = 2**21
"""Entries of outputs, or of products with unit vectors, that are made at a time: 16 MB in float64."""


class HessianSum:
    r"""A running sum :math:`\sum_n w_n H_n` of output Hessians, ``(C, C)``, or its diagonal, ``(C,)``.

    By the structure of the Hessians: a diagonal with a product of low rank, as that of the softmax, is one matrix
    product for all examples, :math:`\operatorname{diag}(\sum_n w_n p_n) - P^\top W P`, of :math:`N C^2` operations in
    memory of :math:`C^2`; diagonals and blocks are added up; any other operator is multiplied with unit vectors.

    Where only differences of outputs matter, the entries of a row add up to zero, which gives the diagonal without
    cancellation: predictions that are nearly sure keep their digits.

    Args:
        likelihood: Any likelihood.
        n_outputs: ``C``.
        like: Gives type and device.
        kind: ``"observed"`` or ``"expected"``.
        diagonal: Whether only the diagonal is wanted.

    Raises:
        TooLargeError: The matrix is too large to be formed.

    Examples:
        >>> from raphson.likelihoods import Categorical
        >>> f = torch.zeros(3, 2)
        >>> total = HessianSum(Categorical(), 2, f)
        >>> total.add(f, torch.tensor([0, 1, 1]))
        >>> total.total()
        tensor([[ 0.7500, -0.7500],
                [-0.7500,  0.7500]])
    """

    def __init__(
        self, likelihood: Likelihood, n_outputs: int, like: Tensor, kind: str = "expected", diagonal: bool = False
    ) -> None:
        shape = (n_outputs,) if diagonal else (n_outputs, n_outputs)
        check_dense_size(shape, like.dtype, "diagonal=True")
        self._likelihood, self._kind, self._total = likelihood, kind, like.new_zeros(shape)

    def add(self, f: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Add the Hessians of rows.

        Args:
            f: Outputs ``(n, C)``.
            y: Targets, ``n`` of them.
            weights: ``(n,)``, not negative; None means 1 each.
        """
        size = max(1, _CHUNK_ELEMENTS // max(1, f.shape[-1]))
        for start in range(0, len(f), size):
            rows = slice(start, start + size)
            w = f.new_ones(len(f[rows])) if weights is None else weights[rows].to(f)
            self._add(output_hessian(self._likelihood, f[rows], y[rows], self._kind), w)

    def total(self) -> Tensor:
        """Return the sum."""
        total = self._total.clone() if self._total.ndim == 1 else (self._total + self._total.mT) / 2
        if total.ndim == 2 and self._likelihood.differences_only:
            total.diagonal().zero_()
            total.diagonal().copy_(-total.sum(-1))
        return total

    def _add(self, operator: SymmetricOperator, w: Tensor) -> None:
        on_diagonal = self._total if self._total.ndim == 1 else self._total.diagonal()
        if isinstance(operator, Scaled):
            multiplier = torch.as_tensor(operator.multiplier, dtype=w.dtype, device=w.device)
            self._add(operator.operator, w * multiplier)
        elif isinstance(operator, Diagonal):
            on_diagonal += w @ operator.values
        elif isinstance(operator, EqualBlocks) and self._total.ndim == 2:
            m, k = operator.blocks.shape[-3], operator.blocks.shape[-1]
            own = self._total.view(m, k, m, k).diagonal(dim1=0, dim2=2)
            own += torch.tensordot(w, operator.blocks, 1).movedim(0, -1)
        elif isinstance(operator, Dense) and self._total.ndim == 2:
            self._total += torch.tensordot(w, operator.matrix, 1)
        elif isinstance(operator, DiagonalPlusLowRank) and self._total.ndim == 2:
            on_diagonal += w @ operator.diag
            u = operator.low_rank.mT.reshape(-1, self._total.shape[0])
            each = w.repeat_interleave(operator.low_rank.shape[-1]).unsqueeze(-1)
            self._total.addmm_(u.mT, u * each, alpha=operator.sign)
        elif self._total.ndim == 1:
            self._total += w @ _diagonal(self._likelihood, operator)
        else:
            self._add_columns(operator, w)

    def _add_columns(self, operator: SymmetricOperator, w: Tensor) -> None:
        c = self._total.shape[0]
        step = max(1, _CHUNK_ELEMENTS // (len(w) * c))
        for start in range(0, c, step):
            count = min(step, c - start)
            unit = torch.zeros(c, count, dtype=w.dtype, device=w.device)
            unit[start : start + count].fill_diagonal_(1.0)
            products = operator.mm(unit.expand(len(w), c, count))
            self._total[:, start : start + count] += torch.tensordot(w, products, 1)


def hessian_diagonal(likelihood: Likelihood, f: Tensor, y: Tensor, kind: str = "expected") -> Tensor:
    """Return the diagonals of the output Hessians of rows, ``(n, C)``, without cancellation where it is known how.

    Args:
        likelihood: Any likelihood.
        f: Outputs ``(n, C)``.
        y: Targets, ``n`` of them.
        kind: ``"observed"`` or ``"expected"``.

    Returns:
        The diagonals.
    """
    return _diagonal(likelihood, output_hessian(likelihood, f, y, kind))


def _diagonal(likelihood: Likelihood, operator: SymmetricOperator) -> Tensor:
    if isinstance(operator, Scaled):
        multiplier = torch.as_tensor(operator.multiplier, dtype=operator.dtype, device=operator.device)
        return _diagonal(likelihood, operator.operator) * multiplier.unsqueeze(-1)
    rank_one = isinstance(operator, DiagonalPlusLowRank) and operator.low_rank.shape[-1] == 1
    if rank_one and likelihood.differences_only:
        assert isinstance(operator, DiagonalPlusLowRank)
        return one_hot_variance(operator.low_rank.squeeze(-1))
    return operator.diagonal()
