r"""Columns that nearly depend on each other, fitted as orthogonal combinations of themselves.

With standardized columns :math:`Z = Q R` the model :math:`Z \beta` is :math:`\sqrt N Q \beta'` with
:math:`\beta = \sqrt N R^{-1} \beta'`. A Gram matrix of Z squares its condition number: of a column that copies another
one to seven digits nothing is left of it in 16. That of Q is the identity, and the triangular solve has the digits that
the columns have (Higham 2002, Accuracy and Stability of Numerical Algorithms, sections 8.2 and 19.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raphson.data import DenseDesign, Design
from raphson.linear import OutputMap

_ELEMENTS = 2**26
"""Numbers of a table up to which its orthogonal copy is made (0.5 GB)."""

_PARAMETERS = 2000
"""Parameters up to which it is: more are fitted without factorizations."""

_SINGULAR = 1e-12
"""Share of a column's norm below which the others leave rounding of it."""


@dataclass(frozen=True, eq=False)
class OrthogonalColumns:
    """A design with orthogonal columns, and the way back to the parameters of the one that it was made of.

    Attributes:
        design: The orthogonal columns, of unit variance.
        original: The standardized columns.
        output_map: How parameters of either act on the outputs; columns that act alike are combined with each other.
        columns: Positions of the columns combined, group by group, among the D beside the ones.
        triangles: R over the root of N of each group.
    """

    design: DenseDesign
    original: DenseDesign
    output_map: OutputMap
    columns: tuple[Tensor, ...]
    triangles: tuple[Tensor, ...]

    @staticmethod
    def of(design: Design, output_map: OutputMap) -> OrthogonalColumns | None:
        """Return the orthogonal columns of a design, which are dense; None where too many or not independent."""
        first, n = int(design.intercept), design.n_rows
        if n * design.n_columns > _ELEMENTS or output_map.n_parameters > _PARAMETERS:
            return None
        if not isinstance(design, DenseDesign):
            x = torch.from_numpy(design.x.toarray())
            design = DenseDesign(x, intercept=design.intercept, moments=(design.center, design.scale))
        z = design.standardized(slice(0, n))[first:].mT
        x = torch.empty(n, z.shape[1], dtype=torch.float64)
        columns, triangles = [], []
        for group in output_map.groups:
            own = torch.arange(design.n_columns)[group.columns]
            own = own[own >= first] - first
            q, r = torch.linalg.qr(z[:, own])
            size = r.diagonal().abs()
            if r.shape[0] < r.shape[1] or bool((size < _SINGULAR * r.norm(dim=0)).any()):
                return None
            x[:, own] = q * math.sqrt(n)
            columns.append(own)
            triangles.append(r / math.sqrt(n))
        moments = torch.zeros(z.shape[1], dtype=torch.float64), torch.ones(z.shape[1], dtype=torch.float64)
        made = DenseDesign(x, intercept=design.intercept, moments=moments)
        return OrthogonalColumns(made, design, output_map, tuple(columns), tuple(triangles))

    def to_standardized(self, theta: Tensor) -> Tensor:
        """Turn parameters ``(m, P)`` into those of the standardized columns."""
        parts = []
        for r, part in zip(self.triangles, self.output_map.split(theta), strict=True):
            ones = part.shape[-1] - r.shape[0]
            slopes = torch.linalg.solve_triangular(r, part[..., ones:].mT, upper=True).mT
            parts.append(torch.cat([part[..., :ones], slopes], -1).flatten(-2))
        return torch.cat(parts, -1)

    def to_table(self, theta: Tensor) -> Tensor:
        """Turn parameters ``(m, P)`` into those of the table's columns."""
        return self.output_map.to_table(self.to_standardized(theta), self.original.center, self.original.scale)

    def from_table(self, coef: Tensor) -> Tensor:
        """Turn coefficients ``(C, D')`` of the table's columns into those of the orthogonal ones."""
        standard = self.original.from_table(coef)
        found, first = standard.clone(), int(self.design.intercept)
        for own, r in zip(self.columns, self.triangles, strict=True):
            found[:, own + first] = standard[:, own + first] @ r.mT
        return found
