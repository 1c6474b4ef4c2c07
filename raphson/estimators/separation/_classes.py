r"""The problem of a categorical model in which every class has a coefficient of its own for every column.

The likelihood never falls along a table :math:`B` with :math:`(b_{y_i} - b_k)^T \hat x_i \ge 0` for every row
:math:`i` and class :math:`k` (Albert and Anderson 1984).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raphson.estimators.separation._cone import Cone, all_strict
from raphson.estimators.separation._output_cone import OutputCone, output_cone
from raphson.estimators.separation._problem import ROUNDING, Problem, certified, margins
from raphson.estimators.separation._standardize import Standardized, as_numpy, as_rows, standardize
from raphson.likelihoods import Categorical

Array = NDArray[Any]


def prepare(x: Any, y: Any, n_classes: int, weights: Any, has_intercept: bool) -> tuple[Problem, Array]:
    """Return the problem of the rows that count, and the mask that selects them."""
    rows, keep = as_rows(x, weights)
    codes = torch.from_numpy(as_numpy(y).astype(np.int64)[keep])
    std = standardize(rows, has_intercept)
    cone = output_cone(Categorical(), codes, n_classes)
    assert cone is not None
    return class_problem(std, std.live, has_intercept, cone).with_design(), keep


def class_problem(std: Standardized, live: Array, has_ones: bool, cone: OutputCone, z: Array | None = None) -> Problem:
    """Return the problem in which every class has a coefficient of its own for each of the columns."""
    import scipy.sparse

    n_classes, width = cone.n_outputs, len(live) + has_ones
    column = np.tile(np.arange(width), n_classes)
    of_class = np.repeat(np.arange(n_classes), width)
    loading = scipy.sparse.csr_array(
        (np.ones(len(column)), of_class, np.arange(len(column) + 1)), shape=(len(column), n_classes)
    )
    return Problem(std, live, has_ones, z, cone, column, loading, is_class_table=True)


def standard_direction(problem: Problem, direction: Any) -> Array:
    """Turn a direction in the units of ``X`` into one of the standardized columns that vary."""
    b = as_numpy(direction).astype(np.float64)
    std, first = problem.std, int(problem.has_ones)
    slopes = b[:, first:]
    slopes = slopes * np.where(std.scale > 0, std.scale, 0.0)
    if not first:
        return slopes[:, problem.live]
    constant = std.scale == 0
    values = np.zeros(len(constant))
    for j in np.flatnonzero(constant):
        values[j] = std.x[0, j]
    intercept = b[:, 0] + b[:, 1:] @ (values + np.where(constant, 0.0, std.reference)) + slopes @ std.shift
    return np.column_stack([intercept, slopes[:, problem.live]])


def original_direction(problem: Problem, b: Array) -> Array:
    """Turn standardized directions ``(K, width)`` into the units of ``X``, rounding set to zero."""
    first = int(problem.has_ones)
    b = np.where(np.abs(b) > ROUNDING * np.abs(b).max(), b, 0.0)
    full = np.zeros((len(problem.std.scale), problem.cone.n_outputs))
    full[problem.live] = b[:, first:].T
    original = problem.std.to_original(full).T
    if first:
        size = np.abs(b[:, 0]) + np.abs(original[:, 0])
        total = original[:, 0] + b[:, 0]
        original[:, 0] = np.where(np.abs(total) > ROUNDING * size, total, 0.0)
    return original


def exclude_absent(problem: Problem, cone: Cone) -> Cone:
    """Add to a direction that classes without rows become impossible, where the intercept can do that."""
    missing = np.bincount(problem.cone.kinds, minlength=problem.cone.n_outputs) == 0
    if not missing.any() or not problem.has_ones:
        return cone
    # far enough below every other score, which the terms of the margins bound
    reach = float(margins(problem, cone.direction)[1].max())
    b = cone.direction.copy()
    b[missing] = 0.0
    b[missing, 0] = -1.0 - 2.0 * reach
    strict = certified(problem, b)
    return cone if strict is None else Cone(b, strict)


def saturated(problem: Problem) -> Cone | None:
    """Return a direction that fits every label, where rows are linearly independent."""
    n = len(problem.cone.kinds)
    if problem.width < n or problem.z is None:
        return None
    targets = np.eye(problem.cone.n_outputs)[problem.cone.kinds] - 1.0 / problem.cone.n_outputs
    solution, _, rank, _ = np.linalg.lstsq(problem.z @ problem.z.T, targets, rcond=1e-12)
    if rank < n:
        return None
    b = (problem.z.T @ solution).T
    strict = certified(problem, b)
    return Cone(b, strict) if strict is not None and all_strict(problem, Cone(b, strict)) else None


def descend(problem: Problem, deadline: float) -> Cone | None:
    """Return the coefficients of an unpenalized fit that was stopped early, if they classify every row.

    That is a direction of complete separation, and quasi-Newton steps reach it long before a linear program
    of many variables is solved.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    z = problem.z
    assert z is not None
    shape, each = (problem.cone.n_outputs, problem.width), np.arange(len(problem.cone.kinds))

    def loss(b: Array) -> tuple[float, Array]:
        logs = log_softmax(z @ b.reshape(shape).T, axis=1)
        residual = np.exp(logs)
        residual[each, problem.cone.kinds] -= 1.0
        return -float(logs[each, problem.cone.kinds].mean()), (residual.T @ z).ravel() / len(z)

    def stop(intermediate_result: Any) -> None:
        if time.monotonic() > deadline or intermediate_result.fun < 1e-3 / len(z):
            raise StopIteration

    fitted = minimize(
        loss,
        np.zeros(shape).ravel(),
        jac=True,
        method="L-BFGS-B",
        callback=stop,
        options={"maxiter": 500, "ftol": 0.0, "gtol": 0.0},
    )
    b = fitted.x.reshape(shape)
    strict = certified(problem, b)
    return None if strict is None else Cone(b, strict)
