"""Bounds on the largest Hessian eigenvalue of a linear model, which first-order methods take their step size from."""

from __future__ import annotations

import torch
from torch import Tensor

from raphson.linear._objective import LinearObjective


def gram_matrix(objective: LinearObjective) -> Tensor:
    """Return the weighted second moments of the columns, ``(D', D')``, on the scale of the average loss."""
    total = torch.zeros(objective.design.n_columns, objective.design.n_columns, dtype=torch.float64)
    for block in objective.design.blocks(objective.n_outputs):
        x = block.features()
        total += (x if objective.weights is None else x * objective.weights[block.rows]) @ x.mT
    return total / objective.total_weight


def lipschitz_bound(objective: LinearObjective) -> float | None:
    """Return a bound on the largest Hessian eigenvalue anywhere, or None if the likelihood has none.

    With output Hessians at most ``b I`` and outputs with coefficients of their own it is ``b`` times the largest
    eigenvalue of the Gram matrix, plus the largest penalty; for the softmax it is the bound of Bohning (1992), b = 1/2.
    """
    bound = _output_bound(objective)
    if bound is None:
        return None
    return bound * float(torch.linalg.eigvalsh(gram_matrix(objective))[-1]) + float(objective.ridge.columns.max())


def row_lipschitz_bound(objective: LinearObjective) -> float | None:
    """Return the bound of ``lipschitz_bound`` for the worst single row."""
    bound = _output_bound(objective)
    if bound is None:
        return None
    rows = max(float(b.features().square().sum(0).max()) for b in objective.design.blocks(objective.n_outputs))
    heaviest = 1.0
    if objective.weights is not None:
        heaviest = float(objective.weights.max()) / objective.total_weight * objective.n_rows
    return bound * rows * heaviest + float(objective.ridge.columns.max())


def _output_bound(objective: LinearObjective) -> float | None:
    own = objective.output_map.is_uniform and objective.output_map.selected is not None
    return objective.likelihood.hessian_bound if own else None
