"""Directions of recession along one parameter, with the intercepts that go with it: cheap to find and to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raphson.estimators._names import INTERCEPT, listed
from raphson.estimators.separation._output_cone import EQUAL, GAIN, GUARD, HELD
from raphson.estimators.separation._problem import ROUNDING, TIE, Cone, Problem, certified

Array = NDArray[Any]


class SingleDirection(NamedTuple):
    """Outputs that move by a parameter's loading times ``sign * (z - value)``.

    Attributes:
        parameter: Which one.
        sign: 1 or -1.
        value: Of the standardized column; NaN for a parameter of the ones.
        direction: ``(p,)``.
    """

    parameter: int
    sign: int
    value: float
    direction: Array


def single_directions(problem: Problem, of_ones: Array, shares: Array | None) -> list[SingleDirection]:
    """Return every parameter that alone, or with the intercepts alone, may be a direction of recession.

    They are still to be certified: a weak inequality in every row, perhaps no strict one. ``shares`` ``(p, r_0)`` are
    what the parameters of the ones add to move each parameter's column by a constant; None where they cannot.
    """
    assert problem.z is not None
    loadings, of_loading = np.unique(problem.loading.toarray(), axis=0, return_inverse=True)
    found = []
    for which, loading in enumerate(loadings):
        rises, falls, fixed = _signs(problem, loading)
        if not (rises.any() or falls.any()):
            continue
        bounds = _boundaries(problem.z, rises, falls, fixed, free=shares is not None)
        for q in np.flatnonzero(of_loading.reshape(-1) == which):
            unit = np.zeros(problem.n_parameters)
            unit[q] = 1.0
            if q in of_ones:
                if not fixed.any() and rises.any() != falls.any():
                    sign = 1 if rises.any() else -1
                    found.append(SingleDirection(int(q), sign, np.nan, sign * unit))
                continue
            for sign, (low, high) in bounds.items():
                lowest, highest = low[problem.column[q]], high[problem.column[q]]
                if lowest > highest:
                    continue
                ends = [end for end in (lowest, highest) if np.isfinite(end)]
                value = float(np.mean(ends))
                direction = unit.copy()
                if shares is not None:
                    direction[of_ones] -= value * shares[q]
                found.append(SingleDirection(int(q), sign, value, sign * direction))
    return found


def _signs(problem: Problem, loading: Array) -> tuple[Array, Array, Array]:
    """Return in which rows outputs may not fall along a loading, may not rise, and may not move."""
    cone = problem.cone
    rises, falls, fixed = np.zeros((3, len(cone.matrices)), dtype=bool)
    for kind, matrix in enumerate(cone.matrices):
        change, roles = matrix @ loading, cone.roles[kind]
        one_sided = np.isin(roles, (GAIN, GUARD))
        rises[kind], falls[kind] = (change > 0)[one_sided].any(), (change < 0)[one_sided].any()
        fixed[kind] = (change != 0)[np.isin(roles, (EQUAL, HELD))].any()
    return rises[cone.kinds], falls[cone.kinds], fixed[cone.kinds]


def _boundaries(z: Array, rises: Array, falls: Array, fixed: Array, free: bool) -> dict[int, tuple[Array, Array]]:
    """Return between which values of each column ``(width,)`` outputs may change their direction, by sign.

    With the sign 1 no row that may not fall lies below it, no row that may not rise above it, and fixed rows have it;
    where no intercept makes up for it, it must be zero. There is none if the lowest is larger than the highest.
    """
    given = 0.0 if not free else np.nan
    ends = []
    for rows in (rises, falls, fixed):
        part = z[rows]
        ends.append((part.min(0, initial=np.inf), part.max(0, initial=-np.inf)))
    (low_rise, high_rise), (low_fall, high_fall), (low_fixed, high_fixed) = ends
    found = {1: (high_fall, low_rise), -1: (high_rise, low_fall)}
    return {
        sign: (np.fmax(np.maximum(low, high_fixed), given), np.fmin(np.minimum(high, low_fixed), given))
        for sign, (low, high) in found.items()
    }


def statements(
    problem: Problem,
    known: Cone,
    singles: Sequence[SingleDirection],
    names: Sequence[tuple[str, str]],
    target_names: Sequence[str] | None,
) -> list[str]:
    """Say which rows are separated: single columns where they do it, otherwise a combination of columns."""
    assert problem.z is not None
    gains = known.strict & problem.cone.has_role(GAIN)
    several = len({output for output, _ in names}) > 1
    explained = np.zeros_like(gains)
    found: list[str] = []
    for single in singles:
        strict = certified(problem, single.direction)
        if strict is None or not (strict & gains).any():
            continue
        explained |= strict
        output, column = names[single.parameter]
        of = f" ({output})" if several else ""
        if np.isnan(single.value):
            number = int((strict & gains).any(1).sum())
            every = "every row" if number == problem.n_rows else f"all {number} rows that depend on the intercept"
            found.append(f"In {every}{of} the target is {_targets(problem, strict & gains, target_names)}.")
            continue
        z = problem.z[:, problem.column[single.parameter]]
        for side, mask in (("below", z < single.value), ("above", z > single.value)):
            there = strict & gains & mask[:, None]
            if there.any():
                number, value = int(there.any(1).sum()), _original(problem, single)
                rows = f"all {number} rows" if number > 1 else "the one row"
                target = _targets(problem, there, target_names)
                found.append(f"In {rows} where '{column}' is {side} {value:.6g} the target is {target}{of}.")
    rest = gains & ~explained
    if rest.any():
        theta = known.direction
        large = np.abs(theta) > ROUNDING * np.abs(theta).max()
        columns = list(dict.fromkeys(names[q][1] for q in np.flatnonzero(large).tolist() if names[q][1] != INTERCEPT))
        number = int(rest.any(1).sum())
        subject = f"A combination of {listed(columns)} picks" if columns else "The intercepts pick"
        target = _targets(problem, rest, target_names)
        found.append(f"{subject} out {number} row{'s' * (number != 1)} in which the target is {target}.")
    return found


def _targets(problem: Problem, strict: Array, target_names: Sequence[str] | None) -> str:
    """Return in words which targets strict conditions belong to."""
    seen = [problem.cone.targets[kind, condition] for kind, condition, _ in problem.conditions(strict)]
    words = [target_names[int(t)] if target_names is not None and t.isdigit() else t for t in dict.fromkeys(seen)]
    return " or ".join(map(str, words)) if len(words) < 4 else f"one of {len(words)}"


def _original(problem: Problem, single: SingleDirection) -> float:
    """Return the boundary in the column's own units, without the rounding of standardized columns."""
    std = problem.std
    j = problem.live[problem.column[single.parameter] - problem.has_ones]
    value = (single.value + std.shift[j]) * std.scale[j] + std.reference[j]
    return float(value) if abs(value) > TIE * std.size[j] else 0.0
