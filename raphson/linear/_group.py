"""Columns that share a constraint matrix, and what constraint matrices are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RANK = 1e-10
"""Share of its largest singular value below which one of a constraint matrix is rounding."""

Columns = slice | Tensor
"""Positions of columns: a slice or indices ``(d,)``."""


@dataclass(frozen=True, eq=False)
class Group:
    """Columns of a design that act on the outputs in the same way.

    Attributes:
        columns: Their positions among all D', a slice or indices ``(d,)``.
        matrix: H, ``(C, r)``, of full column rank.
    """

    columns: Columns
    matrix: Tensor

    @property
    def n_columns(self) -> int:
        """Number of columns, d."""
        if isinstance(self.columns, slice):
            return int(self.columns.stop - self.columns.start)
        return int(self.columns.shape[0])


def matrix_rank(matrix: Tensor) -> int:
    """Return the rank of a constraint matrix."""
    return int(torch.linalg.matrix_rank(matrix, rtol=RANK)) if matrix.numel() else 0


def solve_matrix(basis: Tensor, matrix: Tensor) -> Tensor:
    """Return the least-squares solution of ``basis @ solution = matrix``, whole numbers without rounding."""
    if torch.equal(basis.mT @ basis, torch.eye(basis.shape[1], dtype=basis.dtype)):
        return basis.mT @ matrix
    solution: Tensor = torch.linalg.lstsq(basis, matrix).solution
    whole = solution.round()
    return torch.where((solution - whole).abs() < 1e-14, whole, solution)


def is_unit(vector: Sequence[float]) -> bool:
    """Return whether a vector has a single entry that is not zero, a one."""
    return sum(map(bool, vector)) == 1 == sum(vector)


def positions(columns: list[int]) -> Columns:
    """Return ascending positions as a slice where they are consecutive."""
    if columns and columns == list(range(columns[0], columns[-1] + 1)):
        return slice(columns[0], columns[-1] + 1)
    return torch.tensor(columns, dtype=torch.long)


def as_list(columns: Columns, n_columns: int) -> list[int]:
    """Return positions, a slice of ``n_columns`` or indices, as a list."""
    return list(range(n_columns)[columns]) if isinstance(columns, slice) else columns.tolist()
