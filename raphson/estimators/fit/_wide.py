"""Null spaces of designs with far more columns than rows: nearly as many directions as columns.

There each null vector says what one column, of its own, is in the others, so that what takes a factorization of all
directions elsewhere (its square times the number of columns: minutes for 10,000 of them) takes one of the few columns
that are left.
"""

from __future__ import annotations

import torch
from torch import Tensor

MANY = 500
"""Null vectors above which their structure is used; below, a factorization takes less than a tenth of a second."""


def own_columns(null: Tensor, n_intercepts: int) -> Tensor | None:
    """Return for each null vector a column past the intercepts that no other has, ``(r,)``; None if one has none."""
    involved = null != 0
    single = (involved.sum(1) == 1).nonzero()[:, 0]
    single = single[single >= n_intercepts]
    owner = involved[single].int().argmax(1)
    found = torch.full((null.shape[1],), -1, dtype=torch.long)
    found.scatter_reduce_(0, owner, single, "amax")
    return None if bool((found < 0).any()) else found


def nearest_excess(null: Tensor, table: Tensor, own: Tensor) -> Tensor:
    r"""Return the least-squares solution e ``(r, m)`` of :math:`N e \approx t` by the complement of N ``(D, r)``.

    With own columns the rows of N are D (diagonal) and C (the others); what is orthogonal to N is spanned by
    :math:`w_C = I, w_D = -D^{-1} C^\top`, and the projection on that is one of few columns.
    """
    others = torch.ones(null.shape[0], dtype=torch.bool)
    others[own] = False
    size = null[own, torch.arange(null.shape[1])]
    complement = null.new_zeros(null.shape[0], int(others.sum()))
    complement[others] = torch.eye(complement.shape[1], dtype=null.dtype)
    complement[own] = -null[others].mT / size[:, None]
    # a basis that is orthonormal keeps the digits, whatever the units of the columns
    basis = torch.linalg.qr(complement)[0]
    rest = table - basis @ (basis.mT @ table)
    found: Tensor = rest[own] / size[:, None]
    return found
