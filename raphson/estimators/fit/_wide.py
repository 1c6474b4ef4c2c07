"""Null spaces of designs with far more columns than rows: nearly as many directions as columns.

There each null vector says what one column, of its own, is in the few columns that are left. All that is kept is
those shares: a basis written out, or a factorization of it, would have the square of the number of columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raphson.linear import OutputMap

MANY = 500
"""Null vectors above which their structure is used; below, a factorization takes less than a tenth of a second."""


@dataclass(frozen=True, eq=False)
class OwnColumns:
    r"""Null vectors N ``(D, r)`` each of which has a row of its own.

    Attributes:
        own: ``(r,)`` that row of each vector.
        size: ``(r,)`` its entry there.
        others: ``(m,)`` the other rows.
        shares: ``(m, r)`` the entries there.
    """

    own: Tensor
    size: Tensor
    others: Tensor
    shares: Tensor

    @staticmethod
    def of(null: Any, n_intercepts: int) -> OwnColumns | None:
        """Return the structure of a null space, or None if a vector has no row of its own.

        Args:
            null: SciPy's sparse ``(D, r)``, zeros left out.
            n_intercepts: The first rows, which do not count as own.

        Returns:
            With the last of several rows of its own for each vector.
        """
        by_row = null.tocsr()
        single = np.flatnonzero(np.diff(by_row.indptr) == 1)
        single = single[single >= n_intercepts]
        owner = by_row.indices[by_row.indptr[single]]
        found = np.full(null.shape[1], -1)
        np.maximum.at(found, owner, single)
        if (found < 0).any():
            return None
        others = np.setdiff1d(np.arange(null.shape[0]), found)
        size = by_row.data[by_row.indptr[found]]
        shares = torch.from_numpy(by_row[others].toarray())
        return OwnColumns(torch.from_numpy(found), torch.from_numpy(size), torch.from_numpy(others), shares)

    @property
    def shape(self) -> tuple[int, int]:
        """``(D, r)``."""
        return len(self.own) + len(self.others), len(self.own)

    @property
    def involved(self) -> Tensor:
        """Which rows some vector has an entry in, bool ``(D,)``."""
        found = torch.ones(self.shape[0], dtype=torch.bool)
        scale = self.shares.abs().amax(0).clamp_min(self.size.abs())
        found[self.others] = (self.shares.abs() > 1e-9 * scale).any(1)
        return found

    def to_dense(self) -> Tensor:
        """Return N."""
        found = self.shares.new_zeros(self.shape)
        found[self.others] = self.shares
        found[self.own, torch.arange(len(self.own))] = self.size
        return found

    def times(self, weights: Tensor) -> Tensor:
        """Return ``N e`` ``(D, m)`` for e ``(r, m)``."""
        found = weights.new_zeros(self.shape[0], weights.shape[1])
        found[self.others] = self.shares @ weights
        found[self.own] = self.size[:, None] * weights
        return found

    def excess(self, table: Tensor, counted: Tensor) -> Tensor:
        r"""Return the least-squares solution e of :math:`N e \approx t` in some rows, those that are own among them.

        What is orthogonal to N, with D (diagonal) in its own rows and C in the others, is spanned by
        :math:`w_C = I, w_D = -D^{-1} C^\top`: a basis of few columns, and the rest is the projection on N.

        Args:
            table: t, ``(D, m)``.
            counted: Which rows count, bool ``(D,)``.

        Returns:
            ``(r, m)``.
        """
        rows = self.others[counted[self.others]]
        shares = self.shares[counted[self.others]]
        complement = torch.cat([
            torch.eye(len(rows), dtype=shares.dtype),
            -(shares / self.size).mT,
        ])
        # a basis that is orthonormal keeps the digits, whatever the units of the columns
        basis = torch.linalg.qr(complement)[0]
        values = torch.cat([table[rows], table[self.own]])
        rest = values - basis @ (basis.mT @ values)
        found: Tensor = rest[len(rows) :] / self.size[:, None]
        return found

    def of_parameters(self, output_map: OutputMap) -> OwnColumns | None:
        """Return the same of the parameters of a map whose slopes all have one constraint matrix.

        Args:
            output_map: The map, not uniform.

        Returns:
            The null space of its parameters; None where there are several matrices, or where intercepts cannot make up
            for constants that null vectors hold.
        """
        ones, *slopes = output_map.groups
        if not output_map.intercept or len(slopes) != 1 or not bool(output_map.can_center().all()):
            return None
        (n_ones, _), (r, d) = output_map.shapes
        made_up = torch.linalg.lstsq(ones.matrix, slopes[0].matrix).solution
        shift = n_ones + d * torch.arange(r)[:, None]
        block = torch.kron(
            torch.eye(r, dtype=self.shares.dtype), self.shares[1:].contiguous()
        )  # the ones are the first of the others
        return OwnColumns(
            (self.own - 1 + shift).flatten(),
            self.size.repeat(r),
            torch.cat([torch.arange(n_ones), (self.others[1:] - 1 + shift).flatten()]),
            torch.cat([torch.kron(made_up, self.shares[:1]), block]),
        )
