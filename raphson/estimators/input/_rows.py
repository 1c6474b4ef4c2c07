"""The rows that a linear model is fitted to: those of positive weight, with targets, weights and offsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson.data import ColumnSums, DenseDesign, Design, SparseDesign
from raphson.estimators.input._validate import as_tensor
from raphson.likelihoods import Likelihood
from raphson.linear import LinearObjective, OutputMap, TargetSums, has_compiled_hessians, suits_compiled

_FEW_ENTRIES, _FEWEST_ENTRIES = 2**18, 2**15
"""Entries up to which a sparse table is fitted as a dense one (2 MB), and up to which it is in any case: calls for its
parts would cost more. 60 x 300: 10 % less dense; 500 x 50: as much."""

_FEW_COLUMNS, _SHARE = 16, 0.25
"""Columns up to which, and share of entries above which, a table of classes is so fitted: others have sums over their
nonzeros. 5 % of 5000 x 50, three classes: 3.8 ms dense, 2.7 sparse; 500 x 300, ten, 6.0 and 4.3; but 50000 x 5, ten, 12
and 16."""

_MANY_CLASSES, _TIMES = 8, 32
"""Classes from which the limit is so many times higher (64 MB), where compiled code has Hessians: exponentials are what
takes time then."""


@dataclass(frozen=True)
class Rows:
    """Rows of a fit, kept for quantities that need them afterwards.

    Attributes:
        x: ``(n, D)`` tensor or CSR matrix, without the rows of zero weight.
        y: Targets ``(n, ...)``.
        weights: Positive weights ``(n,)`` or None.
        offset: ``(n, C)`` or None.
        kept: Boolean mask ``(N,)`` of the rows given to ``fit`` that have positive weight and, with a formula, no
            missing value.
        frame: With a formula the table's rows, else None.
        sums: Sums over the rows of ``x``, where they are known.
        index: Labels of all rows given to ``fit``, if they came in a pandas frame.
    """

    x: Any
    y: Tensor
    weights: Tensor | None
    offset: Tensor | None
    kept: NDArray[np.bool_]
    frame: Any = None
    sums: ColumnSums | None = None
    index: Any = None

    @property
    def are_weights_fractional(self) -> bool:
        """Whether weights are other than whole numbers, so that they count no rows."""
        return self.weights is not None and not torch.equal(self.weights, self.weights.round())

    @property
    def n_given(self) -> int:
        """Rows given to ``fit``, ``N``."""
        return len(self.kept)

    def dense_x(self) -> Tensor:
        """Return ``x`` as a dense tensor ``(n, D)``."""
        return dense(self.x)

    def design(self, columns: Tensor, intercept: bool) -> Design:
        """Return the standardized design of some columns, on the memory of ``x`` where all are used."""
        everything = columns.shape[0] == self.x.shape[1]
        if sp.issparse(self.x):
            part = self.x if everything else self.x[:, columns.numpy()]
            return SparseDesign(part, intercept=intercept, standardize=True)
        part = self.x if everything else self.x[:, columns]
        return DenseDesign(part, intercept=intercept, standardize=True, sums=self.sums if everything else None)

    def objective(
        self, design: Design, likelihood: Likelihood, output_map: OutputMap, l2: float = 0.0
    ) -> LinearObjective:
        """Return the average loss of these rows for columns of a design of them."""
        sums = None
        if self._knows_targets(design):
            assert self.sums is not None and self.sums.by_class is not None
            sums = TargetSums(self.sums.by_class, torch.bincount(self.y, minlength=len(self.sums.by_class)).double())
        given = {"weights": self.weights, "offset": self.offset}
        return LinearObjective(design, likelihood, self.y, output_map, **given, l2=l2, sums=sums)

    def _knows_targets(self, design: Design) -> bool:
        """Return whether the sums by class are those of a design's columns, and keep their digits when centered."""
        if self.weights is not None or self.offset is not None or self.sums is None or self.sums.by_class is None:
            return False
        return isinstance(design, DenseDesign) and design.x is self.x and design.sums_keep_digits


def make_rows(
    table: Any,
    y: Tensor,
    weights: Tensor | None,
    offset: Tensor | None,
    sums: ColumnSums | None = None,
    index: Any = None,
) -> Rows:
    """Leave out the rows of zero weight."""
    kept = np.ones(table.shape[0], dtype=bool) if weights is None else (weights > 0).numpy()
    if weights is not None and not kept.all():
        positive = weights > 0
        table, y, weights, sums = table[kept], y[positive], weights[positive], None
        offset = None if offset is None else offset[positive]
    sparse = sp.issparse(table) and not _is_better_dense(table, y)
    return Rows(table if sparse else dense(table), y, weights, offset, kept, sums=sums, index=index)


def _is_better_dense(table: Any, y: Tensor) -> bool:
    n, d = table.shape
    if n * d > _TIMES * _FEW_ENTRIES:
        return False
    if n * d <= _FEWEST_ENTRIES:
        return True
    classes = int(y.max()) + 1 if y.ndim == 1 and not y.is_floating_point() else 1
    full = d <= _FEW_COLUMNS or table.nnz > _SHARE * n * d
    if n * d > _FEW_ENTRIES:
        return full and classes >= _MANY_CLASSES and has_compiled_hessians(d, classes)
    return (full or classes == 1) and suits_compiled(d, classes)


def dense(table: Any) -> Tensor:
    """Return a table, ``(N, D)`` tensor, array or SciPy sparse matrix, as a dense tensor."""
    if isinstance(table, Tensor):
        return table
    return torch.from_numpy(table.toarray()) if sp.issparse(table) else as_tensor(table)
