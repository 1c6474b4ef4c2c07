"""Certified directions of recession, and their sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raphson.estimators.separation._output_cone import GAIN
from raphson.estimators.separation._problem import NOISE, PROJECTED, Problem, certified, flat_space, margins

Array = NDArray[Any]


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
