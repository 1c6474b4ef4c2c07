r"""K-FAC with corrected eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from raphson.linalg import Dense, Diagonal, KroneckerEigen, LinearOperator, Matrix, SymmetricOperator
from raphson.network._objective import Objective
from raphson.network.curvature._kfac import check_options, layer_sums
from raphson.network.curvature.factors._kronecker_factors import (
    MatmulTerm,
    RecordedCall,
    Sharing,
    TableTerm,
    Term,
    grouped,
)
from raphson.network.curvature.factors._layer_operator import LayerOperator
from raphson.network.curvature.factors._layer_plan import Bias
from raphson.network.curvature.factors._layer_sums import LayerSums
from raphson.network.curvature.factors._output_factor import Estimator, output_factors, sampling_of
from raphson.network.curvature.factors._recorded_batches import recorded_batches
from raphson.network.curvature.factors._squared_gradients import squared_gradients, squared_table
from raphson.network.layers._layer_calls import Lookup, Matmul


def ekfac(
    objective: Objective,
    estimator: Estimator = "exact",
    sharing: Sharing = "expand",
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    bias: Bias = "joint",
) -> LayerOperator:
    r"""Return the Gauss-Newton matrix of a network in the Kronecker eigenbasis of each layer.

    With the eigenvectors :math:`Q_A, Q_B` of the factors of ``kfac``, a layer's block is
    :math:`(Q_B \otimes Q_A) \operatorname{diag}(\lambda) (Q_B \otimes Q_A)^T` where

    .. math:: \lambda_{ij} = \sum_{n,c} \Bigl(Q_B^T\, \tfrac{\partial u_{nc}^T f}{\partial W}\, Q_A\Bigr)_{ij}^2

    is the second moment of the per-example gradients along each pair of eigenvectors: the best diagonal in that
    basis, so that the block is never further from the exact one in the Frobenius norm than that of ``kfac`` is. With
    shared weights the gradients are summed over positions before they are squared.

    Cost: ``kfac``, an eigen-decomposition of each factor, and a second pass over the data with two rotations and one
    product of the size of a weight gradient.

    Args:
        objective: The objective; its scale, weights and :math:`\lambda I` are included.
        estimator: ``"exact"``, ``"mc"`` or ``"empirical"``, for the factors and for the eigenvalues.
        sharing: How the factors combine positions with a shared weight.
        samples: Number of random combinations for ``"mc"``.
        generator: Source of randomness for ``"mc"``; None for a fixed one.
        bias: ``"joint"``: a bias is one more column of its weight; ``"separate"``: it has a block of its own.

    Returns:
        A block-diagonal operator ``(P, P)``. What has no Kronecker form is as in ``kfac``, as is a weight that is
        used both as itself and as its transpose.

    References:
        T. George et al. (2018), Fast approximate natural gradient descent in a Kronecker-factored eigenbasis.

    Examples:
        Where the Kronecker product is exact, there is nothing to correct.

        >>> import torch
        >>> from raphson.network._objective import Objective
        >>> from raphson.likelihoods import Gaussian
        >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 0.0], [1.0, 2.0]]), torch.zeros(4, 1)
        >>> objective = Objective(torch.nn.Linear(2, 1, bias=False), Gaussian(), (x, y))
        >>> torch.allclose(ekfac(objective).to_dense(), torch.tensor([[1.0, 1.0], [1.0, 2.0]]))
        True
    """
    check_options(sharing, bias)
    sampling = sampling_of(objective, estimator, samples, generator)
    sums = layer_sums(objective, sampling, sharing, bias)
    bases = [_basis(terms) for terms in sums.terms]
    for recorded in recorded_batches(objective, sampling.mixed):
        work = dict(sums.work(recorded))
        calls = [work[next(iter(terms.values()))] for terms in sums.terms]
        jobs = [
            ([one.number for one in calls], partial(basis.add, calls))
            for basis, calls in zip(bases, calls, strict=True)
            if basis is not None
        ]
        for u in output_factors(objective, recorded, sampling):
            recorded.record.deliver(u, jobs)
    return sums.operator([_operator(sums, i, basis) for i, basis in enumerate(bases)])


class _Basis:
    """The eigenbasis of a term and the second moments in it; None for a factor that is diagonal."""

    def __init__(self, term: MatmulTerm | TableTerm) -> None:
        self._table = isinstance(term, TableTerm)
        self._joint = isinstance(term, MatmulTerm) and term.joint
        inputs, outputs = term.inputs, term.outputs
        if self._table:
            inputs, outputs = inputs[None], outputs[None]
        self._q_in, self._q_out = _eigenvectors(inputs), _eigenvectors(outputs)
        i, o = inputs.shape[1], outputs.shape[1]
        self.moments = outputs.new_zeros(outputs.shape[0], *((i, o) if self._table else (o, i)))

    def add(self, calls: Sequence[RecordedCall], gradients: Mapping[int, Tensor]) -> None:
        """Add a batch's squared gradients."""
        if self._table:
            self._add_table(calls, gradients)
            return
        inputs, outputs = [], []
        for one in calls:
            assert isinstance(one.call, Matmul)
            a = one.recorded.summed_inputs(one.number)
            a = torch.cat([a, torch.ones_like(a[:, :, :1])], dim=2) if self._joint else a
            inputs.append(_rotated(self._q_in, a))
            outputs.append(_rotated(self._q_out, one.call.example_outputs(gradients[one.number], one.summed)))
        self.moments += squared_gradients(inputs, outputs)

    def _add_table(self, calls: Sequence[RecordedCall], gradients: Mapping[int, Tensor]) -> None:
        plain = [gradients[one.number] for one in calls]
        rotated = plain if self._q_out is None else [g @ self._q_out[0] for g in plain]
        first = calls[0].call
        assert isinstance(first, Lookup)
        if self._q_in is None and len(calls) == 1:
            self.moments[0] += squared_table(first, rotated[0], calls[0].summed)
            return
        for n in range(calls[0].summed.n):
            rows = [
                one.call.example_gradients(g, one.summed, slice(n, n + 1))[0][1]
                for one, g in zip(calls, rotated, strict=True)
            ]
            total = torch.stack(rows).sum(0)[:, 0]
            self.moments[0] += _rotated(None if self._q_in is None else self._q_in[0], total).square().sum(0)

    def operator(self) -> SymmetricOperator:
        """Return the block."""
        sizes = self.moments.shape[1:]
        order = (self._q_in, self._q_out) if self._table else (self._q_out, self._q_in)
        blocks = []
        for g, moments in enumerate(self.moments):
            bases: list[LinearOperator] = [
                Diagonal(moments.new_ones(size)) if q is None else Matrix(q[g])
                for q, size in zip(order, sizes, strict=True)
            ]
            blocks.append(KroneckerEigen(tuple(bases), moments))
        return blocks[0] if len(blocks) == 1 else grouped(blocks)


def _eigenvectors(factors: Tensor) -> Tensor | None:
    """Return eigenvectors of ``(G, d, d)``; None for diagonals ``(G, d)``."""
    return None if factors.ndim == 2 else Dense(factors).eigh().eigenvectors.to_dense()


def _rotated(q: Tensor | None, t: Tensor) -> Tensor:
    return t if q is None else q.mT @ t


def _basis(terms: Mapping[bool, Term]) -> _Basis | None:
    """Return the basis of a weight; None for one used both ways round, whose two products have none in common."""
    (term, *more) = terms.values()
    return _Basis(term) if not more and isinstance(term, MatmulTerm | TableTerm) else None


def _operator(sums: LayerSums, i: int, basis: _Basis | None) -> SymmetricOperator:
    return sums.weight_operator(i) if basis is None else basis.operator()
