r"""K-FAC with corrected eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from raphson.linalg import Dense, SymmetricOperator
from raphson.network._objective import Objective
from raphson.network._required import check_objective
from raphson.network.curvature._kfac import check_options, layer_sums
from raphson.network.curvature.factors._eigen_moments import EigenMoments
from raphson.network.curvature.factors._kronecker_factors import MatmulTerm, Sharing, TableTerm, Term
from raphson.network.curvature.factors._layer_operator import LayerOperator
from raphson.network.curvature.factors._layer_plan import Bias
from raphson.network.curvature.factors._layer_sums import LayerSums
from raphson.network.curvature.factors._output_factor import Estimator, output_factors, sampling_of
from raphson.network.curvature.factors._recorded_batches import recorded_batches


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
    check_objective(objective)
    check_options(sharing, bias)
    sampling = sampling_of(objective, estimator, samples, generator)
    sums = layer_sums(objective, sampling, sharing, bias, outer=True)
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


def _eigenvectors(factors: Tensor) -> Tensor | None:
    """Return eigenvectors of ``(G, d, d)``; None for diagonals ``(G, d)``."""
    return None if factors.ndim == 2 else Dense(factors).eigh().eigenvectors.to_dense()


def _basis(terms: Mapping[bool, Term]) -> EigenMoments | None:
    """Return the basis of a weight; None for one used both ways round, whose two products have none in common."""
    (term, *more) = terms.values()
    if more or not isinstance(term, MatmulTerm | TableTerm):
        return None
    inputs, outputs, table = term.inputs, term.outputs, isinstance(term, TableTerm)
    if table:
        inputs, outputs = inputs[None], outputs[None]
    groups, o, i = outputs.shape[0], outputs.shape[1], inputs.shape[1]
    joint = isinstance(term, MatmulTerm) and term.joint
    shape = (groups, i, o) if table else (groups, o, i)
    return EigenMoments(_eigenvectors(inputs), _eigenvectors(outputs), shape, table, joint, outputs)


def _operator(sums: LayerSums, i: int, basis: EigenMoments | None) -> SymmetricOperator:
    return sums.weight_operator(i) if basis is None else basis.operator()
