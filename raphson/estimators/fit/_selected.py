r"""Standard errors of some coefficients of a model too large for a covariance matrix.

The variance of a contrast :math:`r^T\beta` is :math:`r^T H^{-1} r / W`, one linear system, solved by preconditioned
conjugate gradients with products of the Hessian that is never formed. In symmetric coordinates the softmax Hessian is
singular along a shift of all classes, which no reported contrast sees.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raphson._errors import NotEstimableError, TooLargeError
from raphson.estimators.fit._constrained_fit import ConstrainedFit
from raphson.estimators.fit._linear_fit import LinearFit
from raphson.infer import Estimates
from raphson.linalg import CGStatus, Dense, cg
from raphson.linear import class_block_inverse

DENSE_COVARIANCE = 8192
"""Coefficients up to which the whole covariance is formed (0.5 GB, and a few such arrays on the way)."""

_TOL = 1e-9


def refuse_dense(fitted: LinearFit | ConstrainedFit) -> None:
    """Refuse the whole covariance of a model with too many coefficients.

    Args:
        fitted: The fit.

    Raises:
        TooLargeError: If it has more than ``DENSE_COVARIANCE`` free coefficients; the message gives the size.
    """
    p = fitted.objective.n_parameters
    if p > DENSE_COVARIANCE:
        raise TooLargeError(
            f"The covariance of {p} coefficients would take {8 * p * p / 1e9:.1f} GB; ask for some columns, as in "
            "standard_errors(columns=['x1', 'x2']), which forms only their part of the inverse."
        )


def selected_estimates(
    fitted: LinearFit, columns: Tensor, labels: tuple[tuple[str, str], ...], reference: int | None
) -> Estimates:
    """Return the coefficients of some columns with their joint covariance from the observed information.

    Args:
        fitted: An unpenalized fit.
        columns: Positions among the ``D'`` columns, the intercept being column 0, ``(m,)``.
        labels: Names of the reported coefficients, output by output.
        reference: Output whose coefficients are zero, or None for coefficients that sum to zero.

    Returns:
        Estimates of the outputs' coefficients of these columns, the reference's left out.

    Raises:
        NotEstimableError: If the systems cannot be solved to nine digits.
    """
    objective = fitted.objective
    symmetric = objective.symmetric() if objective.reference is not None else objective
    coef = objective.coefficients(fitted.solution.theta)
    at = symmetric.evaluate(coef.reshape(-1))
    assert at.hessian is not None
    outputs = _reported_outputs(fitted, reference)
    rows, estimable = _column_rows(fitted, columns)
    right = torch.einsum("kc,md->kmcd", outputs, rows).reshape(-1, symmetric.n_parameters).mT
    solved = cg(at.hessian.mm, right, preconditioner=_by_columns(class_block_inverse(at)), tol=_TOL)
    if solved.status is not CGStatus.CONVERGED:
        raise NotEstimableError(
            "The information matrix is singular along the coefficients asked for: "
            f"{solved.status.value} Add a penalty (l2), or ask for other columns."
        )
    covariance = right.mT @ solved.x / symmetric.total_weight
    return Estimates(
        values=(right.mT @ coef.reshape(-1)),
        covariance=Dense(0.5 * (covariance + covariance.mT)),
        labels=labels,
        kind="observed information",
        estimable=estimable.repeat(outputs.shape[0]),
    )


def _reported_outputs(fitted: LinearFit, reference: int | None) -> Tensor:
    """Return the contrasts of the solver's outputs that are reported, ``(C_reported, C)``."""
    c = fitted.objective.n_outputs
    pick = torch.zeros(c, c, dtype=torch.float64)
    pick[fitted.order, torch.arange(c)] = 1.0
    if fitted.objective.reference is None:
        return pick
    if reference is None:
        return pick - 1.0 / c
    return (pick - pick[reference])[torch.arange(c) != reference]


def _column_rows(fitted: LinearFit, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return what turns the solver's columns into the table's, ``(m, d)``, and which are estimable, ``(m,)``."""
    design, d = fitted.objective.design, fitted.kept.shape[0]
    first = int(design.intercept)
    rows = torch.zeros(columns.shape[0], d, dtype=torch.float64)
    estimable = fitted.estimable()[columns]
    for i, column in enumerate(columns.tolist()):
        where = torch.nonzero(fitted.kept == column)
        if column < first:
            rows[i, 0] = 1.0
            rows[i, 1:] = -design.center / design.scale
        elif len(where):
            position = int(where[0, 0])
            rows[i, position] = 1.0 / design.scale[position - first]
    return rows, estimable


def _by_columns(inverse: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda v: torch.stack([inverse(column.contiguous()) for column in v.mT], 1)
