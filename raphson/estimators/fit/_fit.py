"""Fitting a linear model: independent columns, objective, solver."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from raphson._errors import CollinearityWarning, InputError, RaphsonWarning
from raphson.data import DenseDesign, Design, SparseDesign
from raphson.estimators.fit._by_rows import solve_penalized
from raphson.estimators.fit._edge import fit_inside
from raphson.estimators.fit._fitted import Fitted
from raphson.estimators.fit._options import FitOptions
from raphson.estimators.fit._orthogonal import OrthogonalColumns
from raphson.estimators.fit._solver import solve
from raphson.estimators.fit._start import exact_start, guess, start_coefficients
from raphson.estimators.fit._wide import OwnColumns, independent, null_directions
from raphson.estimators.input._layout import Layout
from raphson.estimators.input._rows import Rows
from raphson.estimators.separation._collinear import Collinearity, find_collinear
from raphson.likelihoods import REAL, Likelihood
from raphson.linear import LinearObjective, OutputMap
from raphson.solve import Status

_WORKING_VECTORS = 12
"""Arrays of the size of the coefficients that a fit without a dense Hessian holds at once, in float64."""

_LARGE_BYTES = 2**30

_LEAST_SCALE = 1e-304
"""Of a column: its coefficient is that of the standardized column divided by this, and must not overflow."""

_MODERATE = 300.0
"""Outputs without bounds up to this size, in their units, have a finite log-likelihood: no exponential of twice them
overflows. Of 10,000 beta rows the log-likelihood takes a tenth of the fit."""


def fit(
    rows: Rows, likelihood: Likelihood, layout: Layout, options: FitOptions, start: Tensor | None = None
) -> tuple[Fitted, Collinearity | None]:
    """Minimize the average loss of a linear model, on independent columns where there is no penalty.

    An earlier fit's coefficients ``(C, D')`` may be the start; None takes intercepts that suit all rows.

    Returns:
        The fit, and what is collinear, or None where nothing is or it was not looked for.

    Raises:
        InputError: If there is nothing to fit.
    """
    report = layout.output_map
    uniform, first = report.is_uniform, int(report.intercept)
    solver_map, columns = report, torch.arange(report.n_columns)
    kept = columns if uniform else torch.arange(report.n_parameters)
    design = standardized_design(rows, report, columns)
    _refuse_small(design.scale, options.l2, layout.columns)
    null: Tensor | OwnColumns = torch.zeros(kept.shape[0], 0, dtype=torch.float64)
    collinearity = None
    nearly = options.l2 == 0 and not design.is_well_conditioned()
    if nearly:
        collinearity = find_collinear(rows.x, rows.weights, layout.columns, report.intercept)
        nearly = isinstance(design, DenseDesign) or collinearity.is_near
        null = null_directions(collinearity, report, design.scale)
        collinearity = collinearity if null.shape[1] else None
    if null.shape[1] and collinearity is not None:
        fitted = independent(null, first if uniform else report.n_intercepts)
        if uniform:
            columns = kept = fitted.nonzero()[:, 0]
            solver_map = OutputMap.uniform(report.basis, len(kept), report.intercept)
        else:
            solver_map, columns, kept = report.restrict(fitted)
        design = standardized_design(rows, solver_map, columns)
        nearly = nearly and not design.is_well_conditioned()
        warnings.warn(" ".join(collinearity.sentences()), CollinearityWarning, stacklevel=4)
    relative = likelihood.differences_only and layout.is_relative
    if relative:
        solver_map = OutputMap.relative(report.n_outputs, _most_frequent(rows), len(columns), report.intercept)
    orthogonal = None
    if nearly:
        orthogonal = OrthogonalColumns.of(design, solver_map)
        design = design if orthogonal is None else orthogonal.design
    if not solver_map.n_parameters:
        raise InputError(
            "There is no coefficient to fit: all targets are in one class, or no column varies and there is no "
            "intercept. Give targets of two classes or more, or a column."
        )
    objective = rows.objective(design, likelihood, solver_map, options.l2)
    _announce(objective)
    theta = torch.zeros(objective.n_parameters, dtype=torch.float64)
    if start is not None or not relative:
        coef = start_coefficients(rows, likelihood, report, columns) if start is None else start
        theta = _from_table(objective, coef[:, columns], relative, orthogonal)
    space, warm = None, start is not None
    by_newton = not warm and options.l2 == 0 and options.solver in ("auto", "newton")
    exact = exact_start(objective, theta) if by_newton else None
    with options.shown_progress() as callback:
        if options.l2 > 0:
            solution, objective, space = solve_penalized(objective, theta, options, callback, warm=warm)
        elif exact is not None:  # there is no optimum to go to
            solution = solve(objective, exact, replace(options, max_iter=0), callback)
        else:
            solution = fit_inside(objective, theta, options, callback, warm=warm)
    made = Fitted(objective, solution, layout, kept, null, rows.y.shape[0], options.jeffreys, space, orthogonal)
    bounded = any(domain is not REAL for domain in likelihood.domains)
    if solution.converged and (bounded or not likelihood.concave):
        made = _inside(made, rows)
    return made, collinearity


def _refuse_small(scale: Tensor, l2: float, columns: tuple[str, ...]) -> None:
    """Refuse a column so small that its coefficient, or the penalty on that, is no number of double precision."""
    least = float(scale.numpy().min(initial=math.inf))
    penalty = not least * least * sys.float_info.max >= l2
    if penalty or least < _LEAST_SCALE:
        column = int(scale.argmin())
        raise InputError(
            f"The {'penalty on the ' if penalty else ''}coefficient of '{columns[column]}', whose values differ by "
            f"about {float(scale[column]):g}, is too large to compute with; change the unit of the column."
        )


def _inside(fitted: Fitted, rows: Rows) -> Fitted:
    """Return a fit marked as stalled where the log-likelihood at its coefficients is no number.

    On the edge of the domain of an output (a mean of zero) and where a log-likelihood has no bound (a scale of zero in
    some row), rounding alone decides whether it is one: that is no maximum.
    """
    objective, is_free = fitted.objective, all(domain is REAL for domain in fitted.objective.likelihood.domains)
    if is_free and rows.offset is None and not objective.moves_more(fitted.solution.theta, _MODERATE):
        return fitted
    coef, ones = fitted.coefficients(), int(fitted.layout.output_map.intercept)
    f = torch.as_tensor(rows.x @ (coef[:, ones:].mT if isinstance(rows.x, Tensor) else coef[:, ones:].mT.numpy()))
    f = f + coef[:, 0] if ones else f
    nll = objective.likelihood.nll(f if rows.offset is None else f + rows.offset, rows.y)
    if bool(torch.isfinite(nll).all()):
        return fitted
    return replace(fitted, solution=replace(fitted.solution, status=Status.STALLED))


def null_predictors(rows: Rows, likelihood: Likelihood, n_outputs: int, intercepts: Tensor) -> Tensor:
    """Return what intercepts with constraint matrix ``(C, r)`` add to the offsets in the model of both, ``(C,)``."""
    if not intercepts.shape[1]:
        return torch.zeros(n_outputs, dtype=torch.float64)
    empty = DenseDesign(torch.zeros(rows.y.shape[0], 0, dtype=torch.float64))
    output_map = OutputMap.uniform(intercepts, 1, True)
    objective = rows.objective(empty, likelihood, output_map)
    start = torch.linalg.lstsq(intercepts, guess(rows, likelihood, n_outputs)[:, None]).solution[:, 0]
    options = FitOptions(0.0, "auto", 1e-10, 100, False)
    return intercepts @ fit_inside(objective, start, options, None).theta


def _from_table(
    objective: LinearObjective, coef: Tensor, relative: bool, orthogonal: OrthogonalColumns | None = None
) -> Tensor:
    """Return the parameters nearest to coefficients ``(C, d)`` of the table's columns."""
    here = objective.output_map
    coef = (orthogonal or objective.design).from_table(coef)
    return here.collapse(coef - coef[[here.left_out]] if relative else coef)


def standardized_design(rows: Rows, output_map: OutputMap, columns: Tensor) -> Design:
    """Return the standardized design of some columns; a shift that no intercept can make up for is left out."""
    first = int(output_map.intercept)
    design = rows.design(columns[first:] - first, output_map.intercept)
    if not output_map.intercept or output_map.is_uniform:
        return design
    fixed = ~output_map.can_center()
    if not bool(fixed.any()):
        return design
    scale = torch.where(fixed, torch.hypot(design.scale, design.center), design.scale)
    center = torch.where(fixed, 0.0, design.center)
    build = SparseDesign if isinstance(design, SparseDesign) else DenseDesign
    return build(design.x, intercept=True, moments=(center, scale))


def _most_frequent(rows: Rows) -> int:
    """Return the most frequent class: relative to it the Hessian is best conditioned."""
    if rows.y.ndim == 1:
        # NumPy's takes a third of the time of PyTorch's
        weights = None if rows.weights is None else rows.weights.numpy()
        return int(np.bincount(rows.y.numpy(), weights).argmax())
    totals = rows.y.double() if rows.weights is None else rows.y * rows.weights[:, None]
    return int(totals.sum(0).argmax())


def _announce(objective: LinearObjective) -> None:
    """Say before a large fit starts how much memory and arithmetic it takes."""
    vectors = 8 * _WORKING_VECTORS * objective.n_parameters
    if vectors <= _LARGE_BYTES:
        return
    operations = 4.0 * objective.n_rows * objective.n_outputs * objective.design.n_columns
    if isinstance(objective.design, SparseDesign):
        operations = 4.0 * objective.design.x.nnz * objective.n_outputs
    warnings.warn(
        f"This is a large fit: {objective.n_parameters} coefficients take about {vectors / 1e9:.1f} GB of working "
        f"memory beside the data, and each pass over the rows about {operations:.0e} operations; a fit is some "
        "tens to hundreds of passes.",
        RaphsonWarning,
        stacklevel=5,
    )
