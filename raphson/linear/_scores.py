"""Scores of a linear model, the gradients of the loss of single rows: their products, and their sums in clusters."""

from __future__ import annotations

import torch
from torch import Tensor

from raphson.linear._gram import dense_sum
from raphson.linear._khatri_rao import score_pairs
from raphson.linear._objective import LinearObjective
from raphson.linear._target_term import times


def score_gram(objective: LinearObjective, theta: Tensor, *, squared_weights: bool = True) -> Tensor:
    r"""Return :math:`\sum_n w_n^2 (J_n^T g_n) (J_n^T g_n)^T`, ``(P, P)``: the middle of the sandwich.

    The penalty has no part in it; the scale is the sum, not the mean. Where a weight counts copies of a row, each
    with a score of its own, it enters once: without ``squared_weights``.
    """
    here = objective.output_map
    parts = (
        (
            block,
            score_pairs(here.reduce(g) if here.is_uniform else g),
            weights.square() if weights is not None and squared_weights else weights,
        )
        for block, g, weights in objective.output_gradients(theta)
    )
    return dense_sum(here, parts, torch.float64)


def group_scores(objective: LinearObjective, theta: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Return the scores summed within clusters, ``(n_groups, P)``; ``groups`` holds 0 .. n_groups - 1 per row."""
    here = objective.output_map
    totals = [torch.zeros(n_groups, r, d, dtype=torch.float64) for r, d in here.shapes]
    for block, g, weights in objective.output_gradients(theta):
        x, member = block.features(), groups[block.rows]
        for group, total in zip(here.groups, totals, strict=True):
            for i, column in enumerate(group.matrix.mT @ times(g, weights)):
                total[:, i].index_add_(0, member, (x[group.columns] * column).mT)
    return torch.cat([total.flatten(1) for total in totals], 1)
