r"""The problem of a categorical model in which every class has a coefficient of its own for every column.

The likelihood never falls along a table :math:`B` with :math:`(b_{y_i} - b_k)^T \hat x_i \ge 0` for every row
:math:`i` and class :math:`k` (Albert and Anderson 1984).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raphson.estimators.separation._cone import Cone, all_strict
from raphson.estimators.separation._output_cone import OutputCone
from raphson.estimators.separation._problem import Problem, certified, margins
from raphson.estimators.separation._standardize import Standardized

Array = NDArray[Any]


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
