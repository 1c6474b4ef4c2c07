"""The parameters of an output map as a list, and directions of them in standardized columns and in the table's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raphson.estimators.separation._output_cone import OutputCone
from raphson.estimators.separation._problem import NOISE, ROUNDING, Problem, cleaned
from raphson.estimators.separation._standardize import Standardized, as_numpy, standardize
from raphson.linear import OutputMap

Array = NDArray[Any]

_SPANNED = 1e-10  # residual of a loading below which the intercepts can make up for centering its column


def _matrix(values: Any) -> Array:
    return as_numpy(values).astype(np.float64)


def _with_common(matrix: Array) -> Array:
    """Return a constraint matrix with a column of ones beside it, unless there is one output."""
    return matrix if len(matrix) == 1 else np.column_stack([matrix, np.ones(len(matrix))])


@dataclass(frozen=True, eq=False)
class Parameters:
    """The p parameters ``[vec(Theta_1); vec(Theta_2); ...]`` of a map.

    Attributes:
        groups: Columns, as indices, with their constraint matrix ``(C, r)``, as the map has them.
        column: ``(p,)`` column of the design that each multiplies, the ones being column 0 where there are ones.
        loading: ``(p, C)``, how each enters the outputs.
        has_ones: Whether there is a column of ones.
        shares: ``(p, r_0)``: what to add to the parameters of the ones to move each by a constant; None where the
            intercepts cannot make up for that.
    """

    groups: tuple[tuple[Array, Array], ...]
    column: Array
    loading: Array
    has_ones: bool
    shares: Array | None

    @classmethod
    def of(cls, output_map: OutputMap) -> Parameters:
        """List the parameters of a map."""
        everything = np.arange(output_map.n_columns)
        groups = tuple(
            (everything[g.columns if isinstance(g.columns, slice) else as_numpy(g.columns)], _matrix(g.matrix))
            for g in output_map.groups
        )
        column = np.concatenate([np.tile(at, h.shape[1]) for at, h in groups])
        loading = np.concatenate([np.repeat(h.T, len(at), axis=0) for at, h in groups])
        shares = None
        if output_map.intercept:
            ones = loading[column == 0]
            shares = np.linalg.lstsq(ones.T, loading.T, rcond=None)[0].T
            shares = shares if np.allclose(shares @ ones, loading, rtol=0.0, atol=_SPANNED) else None
        return cls(groups, column, loading, bool(output_map.intercept), shares)

    @property
    def of_ones(self) -> Array:
        """Indices of the parameters of the ones."""
        return np.flatnonzero(self.column == 0) if self.has_ones else np.zeros(0, dtype=np.int64)

    @property
    def n_outputs(self) -> int:
        """Number of outputs, C."""
        return int(self.loading.shape[1])

    @property
    def is_class_table(self) -> bool:
        """Whether every column may move the logits of all classes, up to a number common to them, as it likes."""
        c = self.n_outputs
        return all(np.linalg.matrix_rank(_with_common(h)) == c for _, h in self.groups)

    def to_classes(self, theta: Array) -> Array:
        """Return the table ``(K, D')`` of all classes of parameters ``(p,)``; two classes where there is one logit."""
        c = self.n_outputs
        n_columns = int(self.column.max()) + 1
        table = np.zeros((c, n_columns))
        np.add.at(table.T, self.column, theta[:, None] * self.loading)
        return table if c > 1 else np.concatenate([np.zeros_like(table), table])

    def from_classes(self, table: Array) -> Array:
        """Return parameters ``(p,)`` whose table of all classes is the given one, up to a number common to them."""
        if self.n_outputs == 1:
            table = table[1:] - table[:1]
        parts = []
        for at, h in self.groups:
            solved = np.linalg.lstsq(_with_common(h), table[:, at], rcond=None)[0]
            parts.append(solved[: h.shape[1]].ravel())
        theta = np.concatenate(parts)
        return np.where(np.abs(theta) > NOISE * np.abs(theta).max(), theta, 0.0)

    def problem(self, rows: Any, cone: OutputCone) -> tuple[Problem, Array]:
        """Return the problem of rows ``(N, D)`` and the indices of its parameters: those of columns that vary."""
        import scipy.sparse

        std = standardize(rows, self.shares is not None)
        position = np.full(self.has_ones + rows.shape[1], -1)
        position[std.live + self.has_ones] = np.arange(len(std.live)) + self.has_ones
        position[: self.has_ones] = 0
        index = np.flatnonzero(position[self.column] >= 0)
        loading = scipy.sparse.csr_array(self.loading[index])
        return Problem(std, std.live, self.has_ones, None, cone, position[self.column[index]], loading), index

    def to_table(self, std: Standardized, index: Array, directions: Array) -> Array:
        """Turn directions ``(p', r)`` of standardized columns into ``(p, r)`` in the table's, rounding set to zero."""
        theta = np.zeros((len(self.column), directions.shape[1]))
        theta[index] = cleaned(directions)
        reference, scale, shift = self._per_parameter(std)
        slopes = theta / scale[:, None]
        if self.shares is None:
            return slopes
        moved = -(slopes * reference[:, None] + theta * shift[:, None])
        total, ones = theta + 0.0, self.of_ones
        total[ones] += self.shares.T @ moved
        size = np.abs(theta[ones]) + np.abs(self.shares.T) @ np.abs(moved)
        slopes[ones] = np.where(np.abs(total[ones]) > ROUNDING * size, total[ones], 0.0)
        return slopes

    def to_standardized(self, std: Standardized, index: Array, directions: Array) -> Array:
        """Turn directions ``(p, r)`` of the table's columns into ``(p', r)`` of standardized ones."""
        reference, scale, shift = self._per_parameter(std)
        theta = directions * scale[:, None]
        if self.shares is not None:
            moved = directions * reference[:, None] + theta * shift[:, None]
            theta[self.of_ones] += self.shares.T @ moved
        return np.asarray(theta[index])

    def in_standard_deviations(self, std: Standardized) -> Array:
        """Return the standard deviation of each parameter's column, 1 for the ones and 0 for constants, ``(p,)``."""
        return np.concatenate([np.ones(int(self.has_ones)), std.scale])[self.column]

    def _per_parameter(self, std: Standardized) -> tuple[Array, Array, Array]:
        """Return reference, scale and shift of each parameter's column; 0, 1 and 0 of the ones and of constants."""
        first = np.zeros(int(self.has_ones))
        scale = np.where(std.scale > 0, std.scale, 1.0)
        values = (first, std.reference), (first + 1.0, scale), (first, std.shift)
        reference, scale, shift = (np.concatenate(pair)[self.column] for pair in values)
        return reference, scale, shift
