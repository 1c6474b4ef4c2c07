r"""The covariance of a fit: of all parameters by dense matrices, of some columns' by linear systems.

The variance of a contrast :math:`r^T\beta` is :math:`r^T H^{-1} r / W`, one linear system, solved by preconditioned
conjugate gradients with products of the Hessian that is never formed. In symmetric coordinates the softmax Hessian is
singular along a shift of all classes, which no reported contrast sees.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from raphson._errors import InputError, NotEstimableError, RaphsonWarning, TooLargeError
from raphson.estimators.fit._fitted import Fitted
from raphson.infer import Estimates, inverse_information, sandwich, small_sample_factor
from raphson.linalg import CGStatus, Dense, DiagonalPlusLowRank, SymmetricOperator, cg, check_dense_size
from raphson.linear import OutputMap, RowSpace, block_jacobi_inverse, group_scores, score_gram

CovarianceKind = Literal["observed", "expected", "sandwich"]
WeightMeaning = Literal["frequency", "sampling"]

DENSE_COVARIANCE = 8192
"""Coefficients up to which the whole covariance is formed (0.5 GB, and a few such arrays on the way)."""

_TOL = 1e-9

_OUTSIDE = 1e-7
"""Share of the outputs that coefficients outside the span of the rows may make up, for a fit to lie in that span."""


def estimates(
    fitted: Fitted,
    kind: CovarianceKind = "observed",
    groups: Tensor | None = None,
    correction: str | None = None,
    weights: WeightMeaning = "sampling",
) -> Estimates:
    """Return the reported parameters with their covariance, in the order of the layout's labels.

    ``groups`` ``(N,)`` numbers the cluster of each row from 0; the other arguments are those of an estimator.

    Raises:
        TooLargeError: If there are more than ``DENSE_COVARIANCE`` free parameters; the message gives the size.
    """
    if fitted.limit is not None:
        fitted = fitted.limit
    space = row_space_of(fitted) if kind == "sandwich" else None
    p = fitted.objective.n_parameters if space is None else space.objective.n_parameters
    if p > DENSE_COVARIANCE:
        raise TooLargeError(
            f"The covariance of {p} coefficients would take {8 * p * p / 1e9:.1f} GB; ask for some columns, as in "
            "standard_errors(columns=['x1', 'x2']), which forms only their part of the inverse."
        )
    covariance: SymmetricOperator
    if space is None:
        free, name = free_covariance(fitted, kind, groups, correction, weights)
        covariance = fitted.covariance(free)
    else:
        covariance, name = _sandwich_of_rows(fitted, space, groups, correction, weights)
    made = Estimates(
        values=fitted.reported(fitted.solution.theta[None])[0],
        covariance=covariance,
        labels=fitted.shown_layout.labels,
        kind=name,
        estimable=fitted.estimable,  # type: ignore[arg-type]
        null_space=fitted.null_space,
    )
    return _representable(made)


def _representable(found: Estimates) -> Estimates:
    """Return estimates without those whose variance has no number: constant columns, or units near 1e150 or 1e-150."""
    variances = found.covariance.diagonal()
    lost = found.estimable & ~(torch.isfinite(variances) & (variances > torch.finfo(torch.float64).tiny))
    if not bool(lost.any()):
        return found
    held = lost & (found.values == 0) & (variances == 0)
    reasons = (
        (held, "is zero whatever the targets: the column is constant", "Drop the column."),
        (lost & ~held, "has a variance beyond the range of double precision", "Change the unit of the column."),
    )
    for which, why, remedy in reasons:
        if bool(which.any()):
            names = ", ".join(f"'{' of '.join(reversed(found.labels[i]))}'" for i in which.nonzero()[:5, 0].tolist())
            message = f"The coefficient {names} {why}, so no standard error is given. {remedy}"
            warnings.warn(message, RaphsonWarning, stacklevel=4)
    known = found.covariance
    if isinstance(known, DiagonalPlusLowRank):
        known = replace(known, low_rank=torch.where(lost[:, None], 0.0, known.low_rank))
    else:
        known = Dense(torch.where(lost[:, None] | lost, 0.0, known.to_dense()))
    return replace(found, covariance=known, estimable=found.estimable & ~lost)


def free_covariance(
    fitted: Fitted,
    kind: CovarianceKind,
    groups: Tensor | None = None,
    correction: str | None = None,
    weights: WeightMeaning = "sampling",
) -> tuple[DiagonalPlusLowRank, str]:
    """Return the covariance of the solver's parameters ``(p, p)``, and its name; arguments as in ``estimates``.

    Raises:
        InputError: If the kind is unknown, or not one for groups.
        NotEstimableError: If a penalty biases the coefficients.
    """
    if kind not in ("observed", "expected", "sandwich"):
        raise InputError(f"Unknown covariance kind '{kind}'; choose 'observed', 'expected' or 'sandwich'.")
    objective, solution = fitted.objective, fitted.solution
    if kind != "sandwich":
        if groups is not None:
            raise InputError(f"groups make a clustered sandwich; pass kind='sandwich' with them, not '{kind}'.")
        if objective.l2 > 0:
            raise NotEstimableError(
                f"The fit is penalized (l2={objective.l2:g}): its coefficients are biased toward "
                f"zero and the inverse {kind} information is not their sampling covariance. Pass "
                "kind='sandwich' for the sampling covariance of the penalized estimates, or fit with "
                "l2=0 for classical standard errors."
            )
    theta, total = solution.theta, objective.total_weight
    found = solution.hessian if kind != "expected" and not fitted.jeffreys else None
    if found is None:
        found = objective.hessian(theta, "expected" if kind == "expected" else "observed")
    inverse = inverse_information(Dense(found.to_dense() * total, labels=fitted.parameter_names))
    if kind != "sandwich":
        return inverse, f"{kind} information"
    factor, name = _correction(fitted, groups, correction, weights)
    if groups is None:
        meat = score_gram(objective, theta, squared_weights=weights == "sampling")
    else:
        scores = group_scores(objective, theta, *_clusters(fitted, groups))
        meat = scores.mT @ scores
    return sandwich(inverse, Dense(meat), factor), name


def _correction(
    fitted: Fitted, groups: Tensor | None, correction: str | None, weights: WeightMeaning
) -> tuple[float, str]:
    """Return the small-sample factor of a sandwich and the name of the covariance that it makes."""
    objective, correction = fitted.objective, correction or "stata"
    n, p = objective.total_weight if weights == "frequency" else float(fitted.n_rows), objective.n_parameters
    if groups is None:
        factor, name = small_sample_factor(correction, n, p), f"sandwich ({correction})"
    else:
        n_groups = int(groups.max()) + 1
        factor = small_sample_factor(correction, n, p, n_groups)
        name = f"sandwich clustered in {n_groups} groups ({correction})"
    return factor, name + " of the penalized estimates" * (objective.l2 > 0 or fitted.jeffreys)


def _clusters(fitted: Fitted, groups: Tensor) -> tuple[Tensor, int]:
    """Return the cluster of each row of a fit and the number of clusters."""
    return groups if fitted.rows is None else groups[fitted.rows], int(groups.max()) + 1


def row_space_of(fitted: Fitted) -> RowSpace | None:
    """Return the row space of a penalized fit with more columns than rows, where it holds the optimum; else None."""
    if fitted.row_space is not None:
        return fitted.row_space
    space = RowSpace.of(fitted.objective)
    if space is None:
        return None
    theta = fitted.solution.theta
    outside = fitted.objective.largest_move(space.back(space.into(theta)) - theta)
    return space if outside <= _OUTSIDE * (1.0 + fitted.objective.largest_move(theta)) else None


def _sandwich_of_rows(
    fitted: Fitted, space: RowSpace, groups: Tensor | None, correction: str | None, weights: WeightMeaning
) -> tuple[SymmetricOperator, str]:
    r"""Return the sandwich of the reported parameters, ``(P, P)``, which lies in the span of the rows.

    Scores :math:`s_n` are combinations of rows, and so is :math:`H^{-1} s_n`: with V an orthonormal basis of the span
    and :math:`V_\perp` one of what is orthogonal to it, :math:`H^{-1} = V H_r^{-1} V^T + \lambda^{-1} V_\perp
    V_\perp^T`, of which scores never see the second part. So :math:`\sum_n H^{-1} s_n s_n^T H^{-1}` is a product of
    N vectors, whose squares are the variances: what is formed is ``(N, P)``, or ``(G, P)`` for clusters.
    """
    factor, name = _correction(fitted, groups, correction, weights)
    small = space.objective
    theta = space.into(fitted.solution.theta)
    inverse = inverse_information(Dense(small.hessian(theta).to_dense() * small.total_weight))
    own, n_groups = (torch.arange(small.n_rows), small.n_rows) if groups is None else _clusters(fitted, groups)
    p = fitted.layout.output_map.n_parameters
    check_dense_size((n_groups, p), torch.float64, "standard_errors(columns=[...]) of a fit with fewer columns")
    scores = group_scores(small, theta, own, n_groups)
    if groups is None and weights == "frequency" and small.weights is not None:
        scores = scores / small.weights.sqrt()[:, None]  # a weight counts copies of a row, each with a score of its own
    parts = fitted.reported(space.back(inverse.mm(scores.mT).mT.contiguous())) * factor**0.5
    if p <= DENSE_COVARIANCE:
        return Dense(parts.mT @ parts), name
    return DiagonalPlusLowRank(parts.new_zeros(p), parts.mT), name


def column_estimates(fitted: Fitted, columns: Tensor, labels: tuple[tuple[str, str], ...]) -> Estimates:
    """Return the coefficients of some columns with their joint covariance from the observed information.

    The fit is unpenalized, with outputs of their own coefficients. ``columns`` are positions among D', ``(m,)``;
    ``labels`` names the reported coefficients, output by output.

    Raises:
        NotEstimableError: If the systems cannot be solved to nine digits.
    """
    objective, here, report = fitted.objective, fitted.objective.output_map, fitted.layout.output_map
    coef, outputs = fitted.solution.theta.view(here.shapes[0]), torch.eye(here.shapes[0][0], dtype=torch.float64)
    if here.left_out is not None and objective.likelihood.differences_only:
        objective = objective.with_map(OutputMap.own(here.n_outputs, here.n_columns, here.intercept))
        coef, outputs = here.expand(fitted.solution.theta), torch.eye(here.n_outputs, dtype=torch.float64)
        outputs = outputs - 1.0 / here.n_outputs if report.left_out is None else outputs - outputs[report.left_out]
        outputs = outputs[report.selected]
    hessian = objective.hessian(coef.reshape(-1))
    rows, estimable = _column_rows(fitted, columns)
    right = torch.einsum("kc,md->kmcd", outputs, rows).reshape(-1, objective.n_parameters).mT
    solved = cg(hessian.mm, right, preconditioner=_by_columns(block_jacobi_inverse(hessian)), tol=_TOL)
    if solved.status is not CGStatus.CONVERGED:
        raise NotEstimableError(
            "The information matrix is singular along the coefficients asked for: "
            f"{solved.status.value} Ask for other columns, or drop what is collinear."
        )
    covariance = right.mT @ solved.x / objective.total_weight
    return Estimates(
        values=(right.mT @ coef.reshape(-1)),
        covariance=Dense(0.5 * (covariance + covariance.mT)),
        labels=labels,
        kind="observed information",
        estimable=estimable.repeat(outputs.shape[0]),
    )


def _column_rows(fitted: Fitted, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return what turns the solver's columns into the table's, ``(m, d)``, and which are estimable, ``(m,)``."""
    design, d, n = fitted.objective.design, fitted.kept.shape[0], fitted.layout.output_map.n_columns
    first = int(design.intercept)
    rows = torch.zeros(columns.shape[0], d, dtype=torch.float64)
    known = fitted.estimable
    estimable = torch.ones(len(columns), dtype=torch.bool) if known is None else known[:n][columns]
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
