"""The fit that is left where targets are separated: the limiting model, whose optimum is finite."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from raphson.estimators.fit._fit import standardized_design
from raphson.estimators.fit._fitted import Fitted
from raphson.estimators.fit._options import FitOptions
from raphson.estimators.fit._solver import solve
from raphson.estimators.fit._sum_to_zero import differences, relative_layout
from raphson.estimators.input._rows import Rows
from raphson.estimators.separation._recession import Recession

_STILL = 1e-2
"""A last step that changes an output by more leads to a limit of its own: that optimum is not finite either."""


def fit_limit(fitted: Fitted, rows: Rows, recession: Recession, options: FitOptions) -> Fitted | None:
    """Fit what stays finite: the rows that no direction of recession moves, with the parameters that are left.

    Returns:
        The fit, whose open directions are those of recession and those of collinear columns; None where nothing is
        left, or it is not known what.
    """
    limit, shown = recession.limit, fitted.layout
    if limit is None or bool(recession.diverging.all()) or not bool(limit.rows.any()):
        return None
    relative = relative_layout(shown, fitted.objective.likelihood)
    fitted = replace(fitted, layout=relative or shown)
    span = recession.span if relative is None else differences(recession.span, relative)
    report = fitted.layout.output_map
    if report.intercept and not bool(limit.kept[report.is_intercept].any()):
        return None
    part, columns, places = report.restrict(limit.kept)
    rest = _take(rows, limit.rows, limit.offset)
    objective = rest.objective(standardized_design(rest, part, columns), fitted.objective.likelihood, part)
    null = torch.cat([span, fitted.open_parameters], 1)
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
        recession=span,
        shown=None if relative is None else shown,
    )


def _take(rows: Rows, mask: Tensor, offset: Tensor | None) -> Rows:
    """Return some of the rows, with an offset more."""
    total = rows.offset
    if offset is not None:
        total = offset if total is None else total + offset
    x = rows.x[mask] if isinstance(rows.x, Tensor) else rows.x[mask.numpy()]
    weights = None if rows.weights is None else rows.weights[mask]
    return Rows(x, rows.y[mask], weights, None if total is None else total[mask], rows.kept)


def far_coefficients(fitted: Fitted) -> Tensor:
    """Return the coefficients of all outputs that predictions are made with, ``(C, D')``.

    Those are the optimum; where the fit diverges and its limit is known, the finite estimates of the limit, as far
    along the directions of recession as the fit got.
    """
    found, limit = fitted.coefficients(), fitted.limit
    if limit is None or limit.recession is None:
        return found
    directions = limit.layout.output_map.expand(limit.recession.mT.contiguous())
    if limit.shown is not None:
        directions = directions - directions.mean(1, keepdim=True)
    span, finite = directions.flatten(1).mT, limit.coefficients()
    moved: Tensor = span @ torch.linalg.lstsq(span, (found - finite).reshape(-1, 1)).solution
    return finite + moved.view(found.shape)
