r"""A Kronecker-factored preconditioner for the Hessian of a linear model.

The Hessian :math:`\frac1W \sum_n w_n H_n \otimes x_n x_n^T` is a mean of Kronecker products; the product of the means,
:math:`\bar H \otimes G` with :math:`G = X^T W X / W`, is its closest relative that can be inverted factor by factor. The
penalty :math:`Q \otimes \mathrm{diag}(\lambda_j)` is carried along exactly, because both pairs can be diagonalized at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raphson.curvature._linear import LinearObjective

_GRAM_COLUMNS = 3000
"""With more columns than this the Gram matrix is replaced by its diagonal."""


def gram_diagonal(objective: LinearObjective) -> Tensor:
    """Return the weighted mean squares of the columns, ``(D',)``."""
    total = torch.zeros(objective.design.n_columns, dtype=torch.float64)
    for block in objective.design.blocks(objective.n_outputs):
        ones = torch.ones(1, block.rows.stop - block.rows.start, dtype=torch.float64)
        total += block.squares(ones if objective.weights is None else ones * objective.weights[block.rows])[0]
    return total / objective.total_weight


def kronecker_preconditioner(objective: LinearObjective) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
    """Return a map from a point to an approximate inverse of the Hessian there.

    Args:
        objective: Linear objective; its Gram matrix is factorized once.

    Returns:
        A function of the free coefficients that returns ``v -> M^-1 v``.
    """
    d = objective.design.n_columns
    penalty = objective.column_penalty
    if d <= _GRAM_COLUMNS:
        gram = objective.gram_matrix.clone()
        # a nearly dependent column would otherwise be trusted to the last digit
        gram.diagonal().add_(1e-10 * gram.diagonal().mean())
        root = torch.linalg.cholesky(gram)
        whitened = torch.linalg.solve_triangular(root, torch.diag(penalty), upper=False)
        whitened = torch.linalg.solve_triangular(root, whitened.mT, upper=False)
        relative, vectors = torch.linalg.eigh(0.5 * (whitened + whitened.mT))
        columns = torch.linalg.solve_triangular(root.mT, vectors, upper=True)
    else:
        second = gram_diagonal(objective).clamp_min(1e-12)
        relative, columns = penalty / second, second.rsqrt()
    q = objective.penalty_outputs

    def at(theta: Tensor) -> Callable[[Tensor], Tensor]:
        mean = objective.hessian(theta).mean_output()
        q_root = torch.linalg.cholesky(q)
        inner = torch.linalg.solve_triangular(q_root, mean, upper=False)
        inner = torch.linalg.solve_triangular(q_root, inner.mT, upper=False)
        curvature, vectors = torch.linalg.eigh(0.5 * (inner + inner.mT))
        outputs = torch.linalg.solve_triangular(q_root.mT, vectors, upper=True)
        spectrum = curvature[:, None] + relative
        spectrum = spectrum.clamp_min(1e-6 * float(spectrum.max()))

        def solve(v: Tensor) -> Tensor:
            w = outputs.mT @ v.view(-1, d).to(torch.float64)
            w = (w @ columns if columns.ndim == 2 else w * columns) / spectrum
            w = w @ columns.mT if columns.ndim == 2 else w * columns
            return (outputs @ w).reshape(-1).to(v.dtype)

        return solve

    return at
