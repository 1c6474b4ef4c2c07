r"""The Jacobian of a network times a square root of the output Hessian: Gauss-Newton as linear least squares.

With :math:`S_n S_n^\top` the expected Hessian of the loss in the outputs, scale and weight included, the Gauss-Newton
matrix is :math:`\sum_n (S_n^\top J_n)^\top (S_n^\top J_n)`, and with :math:`r_n = S_n^+ g_n` the gradient is
:math:`\sum_n (S_n^\top J_n)^\top r_n`: a step solves a least-squares problem, which forms no normal equations and so
loses half as many digits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from raphson.network._objective import Objective
from raphson.network.autodiff._per_example import example_jacobian
from raphson.network.curvature.factors._output_curvature import slice_rows

_CHUNK = 2**24
"""Entries of a Jacobian that are formed at a time."""


def root_jacobian(objective: Objective) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows ``S^T J``, ``(k, P)``, and residuals ``r``, ``(k,)``, some examples at a time; the penalty is last.

    Where the output gradient is outside the range of ``S`` (a saturated probability), what is outside is left out.

    Args:
        objective: The objective.

    Yields:
        Rows of the least-squares problem.
    """
    lik, space = objective.likelihood, objective.space
    for index, batch in enumerate(objective.batches()):
        with torch.no_grad():
            shape = objective.model.call(None, batch.rows(slice(0, 1)).x).shape[1:]
        width = max(1, _CHUNK // (shape.numel() * space.numel))
        for rows in slice_rows(batch.n_examples, width):
            part = batch.rows(rows)
            with torch.no_grad():
                f = objective.outputs(part, index)
            jacobian = example_jacobian(objective.model, part.x, part.n_examples, objective.traits).detach()
            with torch.no_grad():
                root = lik.fisher_factor(f, part.y).to_dense()
                residual = (torch.linalg.pinv(root) @ lik.gradient(f, part.y).unsqueeze(-1)).squeeze(-1)
                weights = objective.position_weights(part)
                w = torch.full((), objective.scale, dtype=f.dtype, device=f.device).sqrt()
                w = w if weights is None else (weights * objective.scale).sqrt()[..., None]
                found = root.mT @ jacobian * (w[..., None] if w.ndim else w)
                yield found.reshape(-1, space.numel), (residual * w).reshape(-1)
    if objective.l2:
        root_l2 = objective.l2**0.5
        yield torch.eye(space.numel, dtype=space.dtype, device=space.device) * root_l2, root_l2 * space.vector()
