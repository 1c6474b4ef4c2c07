r"""Tables of examples, read in blocks: the single place where sums over data happen.

A design matrix :math:`\hat X` (N, D') holds an optional column of ones first and then the D columns of the table.
Solvers work on standardized columns :math:`(x_j - m_j) / s_j`, which costs nothing (it is applied block by block) and
makes them indifferent to units from 1e-24 to 1e24. A block stores its columns first, ``(D', rows)``: a feature is then
contiguous, products of two features and of a feature with a weight run at memory speed, and per-class reductions of the
``(C, rows)`` outputs vectorize over examples however few the classes.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CENTERING = 1e3
"""Means up to this many standard deviations may be subtracted from sums instead of from rows: three digits are lost."""


class Block(abc.ABC):
    """Some consecutive rows of a design matrix.

    Attributes:
        rows: Which rows of the table these are.
    """

    rows: slice

    @abc.abstractmethod
    def predict(self, coef: Tensor) -> Tensor:
        """Return linear predictors ``(C, rows)`` of coefficients ``(C, D')``."""

    @abc.abstractmethod
    def adjoint(self, r: Tensor) -> Tensor:
        """Return ``r @ X``, ``(C, D')``, for ``r`` of shape ``(C, rows)``."""

    def arrange(self, coef: Tensor) -> Tensor:
        """Return coefficients ``(C, D')`` with the strides that ``predict`` wants, copied only if they have others."""
        return coef

    @abc.abstractmethod
    def features(self) -> Tensor:
        """Return the block as a dense tensor ``(D', rows)``."""

    @abc.abstractmethod
    def adjoint_squared(self, r: Tensor) -> Tensor:
        """Return ``r @ X**2``, ``(C, D')``: the diagonal counterpart of ``adjoint``."""


class Design(abc.ABC):
    """A design matrix with standardized columns, given in blocks.

    Attributes:
        x: The table, ``(N, D)``.
        intercept: Whether the first column is the ones.
        center: ``(D,)`` subtracted from the columns of the table.
        scale: ``(D,)`` by which they are divided.
        is_centered: Whether the columns, the ones aside, are known to sum to zero.
        mean_square: That of their entries: one where they are standardized, not of coordinates.
    """

    x: Any
    intercept: bool
    center: Tensor
    scale: Tensor
    dtype: torch.dtype
    is_centered: bool = False
    mean_square: float = 1.0

    @cached_property
    def n_rows(self) -> int:
        """Number of rows, N."""
        return int(self.x.shape[0])

    @cached_property
    def n_columns(self) -> int:
        """Number of columns, D', that of ones included."""
        return int(self.x.shape[1]) + self.intercept

    @cached_property
    def has_small_means(self) -> bool:
        """Whether sums over the columns as given keep enough digits when centered afterwards."""
        return bool((np.abs(self.center.numpy()) <= _CENTERING * self.scale.numpy()).all())

    @abc.abstractmethod
    def blocks(self, n_outputs: int) -> Iterator[Block]:
        """Yield the rows in order, in blocks fit for ``n_outputs`` outputs."""

    def predict(self, coef: Tensor) -> Tensor:
        """Return the products ``(C, N)`` of all rows with coefficients ``(C, D')``."""
        parts = []
        for block in self.blocks(coef.shape[0]):
            coef = block.arrange(coef)
            parts.append(block.predict(coef))
        return torch.cat(parts, 1)

    def adjoint(self, r: Tensor) -> Tensor:
        """Return ``r @ X``, ``(C, D')``, for ``r`` of shape ``(C, N)``."""
        first, *others = (block.adjoint(r[:, block.rows]) for block in self.blocks(r.shape[0]))
        return sum(others, start=first)

    @abc.abstractmethod
    def take(self, index: Tensor) -> Design:
        """Return the design of some rows, standardized as this one."""

    @abc.abstractmethod
    def astype(self, dtype: torch.dtype) -> Design:
        """Return the same design whose blocks have another element type."""

    @abc.abstractmethod
    def row_products(self, columns: slice | Tensor) -> Tensor:
        """Return the inner products of the rows, centered, in the units of the table, ``(N, N)``.

        Args:
            columns: Which of the D columns of the table they are of.
        """

    def without_copy(self) -> Design:
        """Return the same design that caches no standardized copy where it can do without: few passes are to come."""
        return self

    def whole(self) -> Tensor | None:
        """Return all rows as one double-precision tensor ``(D', N)`` where such a copy is cached; None elsewhere."""
        return None

    def is_well_conditioned(self) -> bool:
        """Return whether the columns are far from collinear; False also where finding out would cost too much."""
        return False

    def to_table(self, coef: Tensor) -> Tensor:
        """Return the table's coefficients ``(C, D')`` of those of the standardized columns.

        From ``b0 + sum_j b_j (x_j - m_j) / s_j``, the slopes are ``b_j / s_j`` and the intercept is
        ``b0 - sum_j m_j b_j / s_j``.
        """
        slopes = coef[:, self.intercept :] / self.scale
        if not self.intercept:
            return slopes
        return torch.cat([coef[:, :1] - slopes @ self.center[:, None], slopes], 1)

    def from_table(self, coef: Tensor) -> Tensor:
        """Turn coefficients of the table's columns into those of the standardized ones; undoes ``to_table``."""
        slopes = coef[:, self.intercept :]
        if not self.intercept:
            return slopes * self.scale
        return torch.cat([coef[:, :1] + slopes @ self.center[:, None], slopes * self.scale], 1)
