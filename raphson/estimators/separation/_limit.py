"""The limit of a model along its directions of recession.

What is left to fit there has a finite optimum; other coefficients go to plus or minus infinity, or either way.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raphson.estimators.separation._null_space import RESIDUAL
from raphson.estimators.separation._output_cone import ABSENT, EQUAL, GAIN, GUARD, OutputCone
from raphson.estimators.separation._parameters import Parameters
from raphson.estimators.separation._problem import PROJECTED, ROUNDING, Cone, Problem, margins, null_space
from raphson.estimators.separation._recession import LimitingModel
from raphson.estimators.separation._standardize import Standardized

Array = NDArray[Any]

FAR = 1e4
"""An output so far off is infinite: exp(-1e4) is zero, and finite outputs beside it keep their digits."""

_NUMBERS = 10**6  # conditions times directions up to which the programs are solved: milliseconds each
_COEFFICIENTS = 200  # and up to so many coefficients, with two programs each


def recession_span(problem: Problem, cone: Cone) -> tuple[Array, Array | None]:
    """Return a basis of the span of all directions of recession ``(p, r)``, and of what changes no output ``(p, f)``.

    At a relative interior point of the cone exactly the conditions that are never strict have margin zero: the span is
    the space where those margins vanish. Of a large problem it is the one direction, and None.
    """
    if problem.z is None or problem.n_parameters > PROJECTED:
        return cone.direction.reshape(-1, 1), None
    conditions = ~problem.cone.has_role(ABSENT)
    everything = null_space(problem, conditions & ~cone.strict)
    flat = null_space(problem, conditions)
    left, _, _ = np.linalg.svd(everything - flat @ (flat.T @ everything), full_matrices=False)
    return left[:, : everything.shape[1] - flat.shape[1]], flat


def limiting_model(
    cone: OutputCone,
    found: Cone,
    keep: Array,
    parameters: Parameters,
    std: Standardized,
    span: Array,
    flat: Array,
) -> LimitingModel:
    """Return what is left to fit in the limit of all directions of recession.

    The columns of ``flat`` change no output: such parameters are not kept either, nor those of constants.
    """
    gains = cone.has_role(GAIN)
    open_rows = (gains & ~found.strict).any(1) | cone.has_role(EQUAL).any(1)
    rows = np.zeros(len(keep), dtype=bool)
    rows[keep] = open_rows
    offset = None
    partly = open_rows & (gains & found.strict).any(1)
    if partly.any():
        offset = np.zeros((len(keep), cone.n_outputs))
        which = np.flatnonzero(keep)
        for i in np.flatnonzero(partly):
            offset[which[i]] = cone.limit(int(cone.kinds[i]), found.strict[i], FAR)
    sizes = parameters.in_standard_deviations(std)
    kept = kept_parameters(np.column_stack([span, flat]), sizes, parameters.of_ones) & (sizes > 0)
    return LimitingModel(
        rows=torch.from_numpy(rows),
        kept=torch.from_numpy(kept),
        offset=None if offset is None else torch.from_numpy(offset),
    )


def kept_parameters(span: Array, scale: Array, of_ones: Array) -> Array:
    """Return which parameters ``(p,)`` to keep, so that none of their combinations lies in a span ``(p, r)``.

    Slopes are left out before intercepts are: then the choice is right whether columns are centered or not.
    ``scale`` ``(p,)`` is the size of each parameter's column, by which to compare them.
    """
    kept = np.ones(len(span), dtype=bool)
    if not span.shape[1]:
        return kept
    scaled = span * scale[:, None]
    scaled /= np.abs(scaled).max(0)
    slopes = np.setdiff1d(np.arange(len(span)), of_ones)
    left, size, right = np.linalg.svd(scaled[slopes], full_matrices=True)
    rank = int((size > RESIDUAL * max(float(size.max(initial=0.0)), 1.0)).sum())
    kept[slopes[_independent_rows(left[:, :rank])]] = False
    kept[of_ones[_independent_rows(scaled[of_ones] @ right[rank:].T)]] = False
    return kept


def _independent_rows(matrix: Array) -> Array:
    """Return as many independent rows as there are columns, of a matrix of full column rank."""
    from scipy.linalg import qr

    if not matrix.size:
        return np.zeros(0, dtype=np.int64)
    _, pivots = qr(matrix.T, mode="r", pivoting=True)
    return np.asarray(pivots[: matrix.shape[1]], dtype=np.int64)


def find_ways(problem: Problem, span: Array, table: Array, direction: Array, deadline: float) -> Array:
    """Return the sign ``(p,)`` that each coefficient has along every direction of recession, 0 for none or unknown.

    Along the directions of recession, a cone in their span, a coefficient may take either sign: that of a class for a
    column on which a second class is perfectly predicted, say. A linear program for each end tells. The directions have
    the basis ``span`` ``(p', r)`` in standardized columns, ``table`` ``(p, r)`` in the table's, in which ``direction``
    ``(p,)`` is one of them.
    """
    ways = np.zeros(len(table), dtype=np.int8)
    far = np.flatnonzero((table != 0).any(1))
    if span.shape[1] == 1:
        ways[far] = np.sign(direction[far])
        return ways
    conditions = problem.cone.has_role(GAIN, GUARD)
    if len(far) > _COEFFICIENTS or conditions.sum() * span.shape[1] > _NUMBERS:
        return ways
    shape = problem.no_direction().shape
    rows = np.stack([margins(problem, column.reshape(shape))[0][conditions] for column in span.T], 1)
    size = np.abs(rows).max(1, initial=0.0)
    rows = np.unique(np.round(rows[size > ROUNDING] / size[size > ROUNDING, None], 12), axis=0)
    for q in far:
        low, high = (_least(rows, sign * table[q], deadline) for sign in (1.0, -1.0))
        if low is None or high is None:
            break
        ways[q] = int(low) - int(high)
    return ways


def _least(rows: Array, form: Array, deadline: float) -> bool | None:
    """Return whether a linear form is nowhere negative where ``rows @ w >= 0``; None if that is not known."""
    from scipy.optimize import linprog

    if time.monotonic() > deadline:
        return None
    found = linprog(form / np.abs(form).max(), A_ub=-rows, b_ub=np.zeros(len(rows)), bounds=(-1.0, 1.0), method="highs")
    return None if found.status else bool(found.fun >= -ROUNDING)
