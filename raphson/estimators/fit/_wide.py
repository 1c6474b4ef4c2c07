"""Combinations of columns or parameters that leave every output unchanged, and which of them to fit.

With far more columns than rows there are nearly as many directions as columns. Each then says what one column, of its
own, is in the few columns that are left. All that is kept is those shares: a basis written out, or a factorization of
it, would have the square of the number of columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raphson._errors import TooLargeError
from raphson.estimators.separation._collinear import Collinearity
from raphson.linear import OutputMap

MANY = 500
"""Null vectors above which their structure is used; below, a factorization takes less than a tenth of a second."""

_NULL = 1e-9
"""Singular values below this share of the largest mark combinations of parameters that leave every output unchanged."""

_SYSTEM_ELEMENTS = 10**7
"""A linear system of so many numbers is factorized in some seconds; a larger one is refused."""


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
        """Return the structure of a null space, SciPy's sparse ``(D, r)``, or None if a vector has no row of its own.

        The first rows, ``n_intercepts``, do not count as own; of several the last one does.
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

        Returns:
            ``(r, m)`` for t ``(D, m)`` and the rows that count, bool ``(D,)``.
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
        """Return the same of the parameters of a map, not uniform, whose slopes all have one constraint matrix.

        Returns:
            None where there are several matrices, or intercepts cannot make up for constants that null vectors hold.
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


def null_directions(collinearity: Collinearity, output_map: OutputMap, scale: Tensor) -> Tensor | OwnColumns:
    """Return what the data leave open: of columns ``(D', r)`` for a uniform map, of parameters ``(P, r)`` for others.

    The columns have standard deviations ``scale`` ``(D,)``. Many directions come by their structure; where outputs have
    columns of their own and it would take a huge factorization, that is a ``TooLargeError``.
    """
    structure = None
    if collinearity.nullity > MANY:
        structure = OwnColumns.of(collinearity.null, int(output_map.intercept))
        if structure is not None and not output_map.is_uniform:
            structure = structure.of_parameters(output_map)
    if structure is not None:
        return structure
    null = collinearity.null_basis.double()
    return null if output_map.is_uniform else _null_parameters(output_map, null, scale)


def _null_parameters(output_map: OutputMap, null: Tensor, scale: Tensor) -> Tensor:
    r"""Return the parameters ``(P, r)`` whose coefficients vanish on the data, for columns with a null space.

    The coefficients of every output, a row of :math:`B(\Theta)`, must lie in the null space of the design; that is one
    linear system in :math:`\Theta` and the weights of the null vectors. A huge one is a ``TooLargeError``.
    """  # noqa: DOC501
    if null.shape[1] == 0:
        return null.new_zeros(output_map.n_parameters, 0)
    c, p = output_map.n_outputs, output_map.n_parameters
    rows, columns = c * null.shape[0], p + c * null.shape[1]
    if rows * columns > _SYSTEM_ELEMENTS:
        raise TooLargeError(
            f"{null.shape[1]} columns depend linearly on others, and outputs have their own: an unpenalized fit "
            f"factorizes {rows} x {columns} numbers. Remedy: drop columns, or fit with l2=1e-3 for predictions."
        )
    size = torch.cat([scale.new_ones(int(output_map.intercept)), scale])
    # kron does not take a single column with the stride that qr gives it
    basis = torch.linalg.qr(null * size[:, None])[0].clone(memory_format=torch.contiguous_format)
    expanded = output_map.expand(torch.eye(p, dtype=torch.float64)).reshape(p, -1).mT
    system = torch.cat([expanded, torch.kron(torch.eye(c, dtype=torch.float64), basis)], 1)
    _, values, vectors = torch.linalg.svd(system, full_matrices=True)
    rank = int((values > _NULL * values[0]).sum())
    found = vectors[rank:, :p].mT / output_map.per_parameter(size)[:, None]
    return torch.where(found.abs() > 1e-10 * found.abs().amax(0), found, 0.0)


def independent(null: Tensor | OwnColumns, n_intercepts: int) -> Tensor:
    """Return which columns or parameters to fit, bool: the first ones, and of the others the early ones.

    The null space can be solved for those left out: a pivoted QR picks them, the late ones first.
    """
    from scipy.linalg import qr

    fitted = torch.ones(null.shape[0], dtype=torch.bool)
    if isinstance(null, OwnColumns):
        fitted[null.own] = False
        return fitted
    scaled = null / null.abs().amax(0)
    order = torch.arange(null.shape[0] - 1, n_intercepts - 1, -1)
    _, pivots = qr(scaled[order].mT.numpy(), mode="r", pivoting=True)
    fitted[order[torch.from_numpy(pivots[: null.shape[1]].copy()).long()]] = False
    return fitted
