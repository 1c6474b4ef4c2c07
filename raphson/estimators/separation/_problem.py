r"""Directions of recession of a linear model as linear conditions on its parameters, row by row.

A row's outputs are :math:`f_c = \sum_q L_{qc}\,\theta_q x_{j(q)}`: parameter q multiplies column j(q) and enters output
c with the loading :math:`L_{qc}`. The conditions of an ``OutputCone`` on f are conditions on theta; their values at a
direction are its margins. Columns are standardized here. A direction counts once its margins certify it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raphson.estimators.separation._output_cone import ABSENT, EQUAL, GAIN, GUARD, HELD, OutputCone
from raphson.estimators.separation._standardize import Standardized

Array = NDArray[Any]

TIE = 1e-9  # margins below this share of their terms are zero up to rounding
NUMBERS = 20_000_000  # the linear program is tried up to this many entries of the design and of its margins
VARIABLES = 3000  # and up to this many free coefficients
PROJECTED = 1200  # coefficients for which the span of the directions is computed by an eigendecomposition
FLAT = 1e-12  # relative eigenvalue below which a direction leaves margins unchanged
NOISE = 1e-12  # coefficients below this share of the largest are zero, so that they make no margin of their own
ROUNDING = 1e-7  # parts of a direction below this share are rounding


@dataclass(frozen=True, eq=False)
class Problem:
    """Standardized rows, parameters and conditions; ``z``, the ones first, is stored unless the design is large.

    Attributes:
        std: The rows that count.
        live: ``(width - has_ones,)`` columns that vary.
        has_ones: Whether the first column of the design is the ones.
        z: ``(N, width)`` standardized design, or None.
        cone: The conditions on the outputs of each row.
        column: ``(p,)`` column of ``z`` that each parameter multiplies.
        loading: Sparse ``(p, C)``, how it enters the outputs.
        is_class_table: Whether parameters are a table ``(C, width)`` in which one number more for all classes changes
            nothing.
    """

    std: Standardized
    live: Array
    has_ones: bool
    z: Array | None
    cone: OutputCone
    column: Array
    loading: Any
    is_class_table: bool = False

    @property
    def n_rows(self) -> int:
        """Rows that count."""
        return len(self.cone.kinds)

    @property
    def width(self) -> int:
        """Columns of the standardized design."""
        return len(self.live) + self.has_ones

    @property
    def n_parameters(self) -> int:
        """Number of parameters, p."""
        return len(self.column)

    def no_direction(self) -> Array:
        """Return zeros in the shape of a direction: ``(C, width)`` for a table of classes, else ``(p,)``."""
        return np.zeros((self.cone.n_outputs, self.width) if self.is_class_table else self.n_parameters)

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield slices of rows and their standardized design, an array of that many rows by ``width``."""
        if self.z is not None:
            yield slice(0, self.n_rows), self.z
            return
        for rows, block in self.std.blocks(self.live):
            yield rows, np.concatenate([np.ones((len(block), 1)), block], axis=1) if self.has_ones else block

    def with_design(self) -> Problem:
        """Return the problem with ``z``, where it is small enough."""
        if self.n_rows * max(self.width, self.cone.roles.shape[1]) > NUMBERS:
            return self
        blocks = [block for _, block in self.blocks()] if len(self.live) else [np.ones((self.n_rows, self.width))]
        return replace(self, z=np.concatenate(blocks))

    def distinct(self) -> tuple[Problem, Array]:
        """Return the problem with each distinct row once, and which of its rows each row is, ``(N,)``."""
        assert self.z is not None
        table = np.column_stack([self.z, self.cone.kinds])
        keys = np.ascontiguousarray(table).view(np.dtype((np.void, table.itemsize * table.shape[1])))[:, 0]
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        return replace(self, z=self.z[first], cone=replace(self.cone, kinds=self.cone.kinds[first])), inverse

    def coefficients(self, theta: Array, absolute: bool = False) -> Array:
        """Return the coefficients ``(width, C)`` of all outputs, or sums of absolute values of what makes them."""
        parameter, _, factor, place = self.entries
        values = factor * theta.ravel()[parameter]
        total = np.bincount(place, np.abs(values) if absolute else values, self.width * self.cone.n_outputs)
        return total.reshape(self.width, self.cone.n_outputs)

    @cached_property
    def entries(self) -> tuple[Array, Array, Array, Array]:
        """The entries of ``loading``: parameter, output, value, and place in a table ``(width, C)``."""
        parts = self.loading.tocoo()
        return parts.row, parts.col, parts.data, self.column[parts.row] * self.cone.n_outputs + parts.col

    def on_parameters(self, kind: int, condition: int) -> tuple[Array, Array]:
        """Return the parameters that a condition involves, and the factors by which rows of ``z`` enter."""
        factor = self.loading @ self.cone.condition(kind, condition)
        index = np.flatnonzero(factor)
        return index, factor[index]

    def conditions(self, chosen: Array) -> Iterator[tuple[int, int, Array]]:
        """Yield each kind and condition that some rows of a mask ``(N, m)`` have, with those rows."""
        for kind in np.unique(self.cone.kinds[chosen.any(1)]):
            rows = np.flatnonzero(self.cone.kinds == kind)
            part = chosen[rows]
            for condition in np.flatnonzero(part.any(0)):
                yield int(kind), int(condition), rows[part[:, condition]]


def margins(problem: Problem, theta: Array) -> tuple[Array, Array]:
    """Return margins ``(N, m)`` of a direction and the sums of the absolute values of their terms.

    The largest coefficient counts as a term: coefficients carry its rounding, also in rows near the mean.
    """
    return margins_of(problem, problem.coefficients(theta), problem.coefficients(theta, absolute=True))


def margins_of(problem: Problem, coefficients: Array, absolute: Array) -> tuple[Array, Array]:
    """Return what ``margins`` does, of coefficients ``(width, C)`` of the outputs."""
    cone = problem.cone
    margin = np.zeros((problem.n_rows, cone.roles.shape[1]))
    size = np.zeros_like(margin)
    for rows, z in problem.blocks():
        score, bound = z @ coefficients, np.abs(z) @ absolute + absolute.max(0)
        kinds = cone.kinds[rows]
        for kind in np.unique(kinds):
            of_kind = np.flatnonzero(kinds == kind)
            matrix = cone.matrices[kind]
            margin[rows.start + of_kind] = (matrix @ score[of_kind].T).T
            size[rows.start + of_kind] = (abs(matrix) @ bound[of_kind].T).T
    return margin, size


def certified(problem: Problem, theta: Array) -> Array | None:
    """Return the conditions ``(N, m)`` with a positive margin, or None if theta is not a direction of recession."""
    if not np.isfinite(theta).all() or not theta.any():
        return None
    margin, size = margins(problem, theta)
    strict: Array = (margin > TIE * size) & problem.cone.has_role(GAIN, GUARD)
    negative = (margin < -TIE * size) & problem.cone.has_role(GAIN, GUARD)
    moved = (np.abs(margin) > TIE * size) & problem.cone.has_role(EQUAL, HELD)
    return strict if strict.any() and not negative.any() and not moved.any() else None


def flat_space(problem: Problem, chosen: Array) -> Array:
    """Return an orthonormal basis ``(p, r)`` of the directions with zero margins at the chosen conditions."""
    assert problem.z is not None
    p = problem.n_parameters
    gram = np.zeros((p, p))
    for kind, condition, rows in problem.conditions(chosen & ~problem.cone.has_role(ABSENT)):
        index, factor = problem.on_parameters(kind, condition)
        z, at = problem.z[rows], problem.column[index]
        gram[np.ix_(index, index)] += np.outer(factor, factor) * (z.T @ z)[np.ix_(at, at)]
    values, vectors = np.linalg.eigh(gram)
    basis: Array = vectors[:, values <= FLAT * max(float(values[-1]), 1.0) * p]
    return basis


def null_space(problem: Problem, chosen: Array) -> Array:
    """Return what ``flat_space`` does, nearly flat directions told from flat ones by their margins in the rows.

    A Gram matrix squares the condition number: what it takes for flat is computed once more from the rows.
    """
    basis = flat_space(problem, chosen)
    if not basis.shape[1]:
        return basis
    assert problem.z is not None
    gram, count = np.zeros((basis.shape[1],) * 2), 1
    for kind, condition, rows in problem.conditions(chosen & ~problem.cone.has_role(ABSENT)):
        index, factor = problem.on_parameters(kind, condition)
        margin = (problem.z[rows][:, problem.column[index]] * factor) @ basis[index]
        gram += margin.T @ margin
        count += len(rows)
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(basis @ vectors[:, values <= TIE**2 * count])


def cleaned(basis: Array) -> Array:
    """Return a basis ``(p, r)`` with rounding set to zero."""
    return np.where(np.abs(basis) > ROUNDING * np.abs(basis).max(0, initial=1e-300), basis, 0.0)


class Cone(NamedTuple):
    """A certified direction of standardized columns, and the conditions ``(N, m)`` that it makes strict."""

    direction: Array
    strict: Array


def all_strict(problem: Problem, cone: Cone) -> bool:
    """Return whether a direction gains in every condition that can gain: complete separation."""
    return bool((cone.strict | ~problem.cone.has_role(GAIN)).all())


def polish(problem: Problem, b: Array) -> Cone | None:
    """Return the direction certified, however noisy it is, as iterates of a diverging fit are; or None.

    Small margins are taken for ties in turn, ever larger ones, and the direction is projected on the space
    where those are exactly zero; the first projection that passes the certificate is returned.
    """
    if not np.isfinite(b).all() or not b.any():
        return None
    if problem.is_class_table:
        b = b - b.mean(0)
    b = b / max(float(np.abs(b).max()), np.finfo(np.float64).tiny)
    b = np.where(np.abs(b) > NOISE, b, 0.0)
    margin, size = margins(problem, b)
    for share in (0.0, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2):
        trial = b
        if share:
            if problem.n_parameters > PROJECTED or problem.z is None or (margin < -share * size).any():
                continue
            flat = flat_space(problem, np.abs(margin) <= share * size)
            trial = (flat @ (flat.T @ b.ravel())).reshape(b.shape)
            if np.abs(trial).max() < 1e-6:
                return None
        strict = certified(problem, trial)
        if strict is not None:
            return Cone(trial / np.abs(trial).max(), strict)
    return None


def join(problem: Problem, first: Cone, second: Cone | None) -> Cone:
    """Return the sum of two certified directions, which separates what either does."""
    if second is None:
        return first
    if not first.strict.any():
        return second
    direction = first.direction / np.abs(first.direction).max() + second.direction / np.abs(second.direction).max()
    strict = certified(problem, direction)
    return Cone(direction, first.strict | second.strict if strict is None else strict | first.strict | second.strict)


def sum_cones(problem: Problem, directions: Sequence[Array]) -> Cone:
    """Certify directions and add up those that pass."""
    nothing = Cone(problem.no_direction(), np.zeros((problem.n_rows, problem.cone.roles.shape[1]), dtype=bool))
    if not directions:
        return nothing
    total = np.sum([b / np.abs(b).max() for b in directions], axis=0)
    strict = certified(problem, total)
    if strict is not None:
        return Cone(total, strict)
    cone = nothing
    for b in directions:
        strict = certified(problem, b)
        cone = join(problem, cone, None if strict is None else Cone(b, strict))
    return cone
