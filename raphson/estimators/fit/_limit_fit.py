"""The fit that is left where targets are separated: the limiting model, whose optimum is finite."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from raphson.estimators.fit._fit import standardized_design
from raphson.estimators.fit._fitted import Fitted
from raphson.estimators.fit._options import FitOptions
from raphson.estimators.fit._solver import solve
from raphson.estimators.input._rows import Rows
from raphson.estimators.separation._recession import Recession
from raphson.linear import LinearObjective

_STILL = 1e-2
"""A last step that changes an output by more leads to a limit of its own: that optimum is not finite either."""


def fit_limit(fitted: Fitted, rows: Rows, recession: Recession, options: FitOptions) -> Fitted | None:
    """Fit what stays finite: the rows that no direction of recession moves, with the parameters that are left.

    Returns:
        The fit, whose open directions are those of recession and those of collinear columns; None where nothing is
        left, or it is not known what.
    """
    limit, report = recession.limit, fitted.layout.output_map
    if limit is None or bool(recession.diverging.all()) or not bool(limit.rows.any()):
        return None
    if report.is_plain and report.n_outputs > 1 and fitted.objective.likelihood.differences_only:
        return None  # what is kept there is relative to one output, what is reported sums to zero over all
    if report.intercept and not bool(limit.kept[report.is_intercept].any()):
        return None
    part, columns, places = report.restrict(limit.kept)
    rest = _take(rows, limit.rows, limit.offset)
    objective = LinearObjective(
        standardized_design(rest, part, columns),
        fitted.objective.likelihood,
        rest.y,
        part,
        weights=rest.weights,
        offset=rest.offset,
    )
    null = torch.cat([recession.span, fitted.open_parameters], 1)
    theta = fitted.to_parameters(fitted.solution.theta[None])[0]
    theta = theta - null @ torch.linalg.lstsq(null[~limit.kept], theta[~limit.kept, None]).solution[:, 0]
    start = part.collapse(objective.design.from_table(part.expand(theta[places])))
    solution = solve(objective, start, replace(options, solver="newton"), None, warm=True)
    step = solution.last_step
    if not solution.converged or step is None or objective.largest_move(step) > _STILL:
        return None
    return Fitted(
        objective,
        solution,
        fitted.layout,
        places,
        null,
        fitted.n_rows,
        rows=limit.rows,
        diverging=recession.diverging,
    )


def _take(rows: Rows, mask: Tensor, offset: Tensor | None) -> Rows:
    """Return some of the rows, with an offset more."""
    total = rows.offset
    if offset is not None:
        total = offset if total is None else total + offset
    x = rows.x[mask] if isinstance(rows.x, Tensor) else rows.x[mask.numpy()]
    weights = None if rows.weights is None else rows.weights[mask]
    return Rows(x, rows.y[mask], weights, None if total is None else total[mask], rows.kept)
