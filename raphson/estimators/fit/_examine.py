"""Whether a fit can be used: did it converge, and to a finite optimum."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from raphson._errors import SeparationWarning
from raphson.data import DenseDesign
from raphson.estimators.fit._edge import absent_levels, find_edge
from raphson.estimators.fit._fitted import Fitted
from raphson.estimators.fit._limit_fit import fit_limit
from raphson.estimators.fit._options import FitOptions
from raphson.estimators.fit._sum_to_zero import centered, centered_directions, relative_layout
from raphson.estimators.input._rows import Rows
from raphson.estimators.separation._divergence import Divergence, falls_on, find_divergence, find_no_spread
from raphson.estimators.separation._find_recession import RecessionSearch, find_recession
from raphson.estimators.separation._recession import Recession
from raphson.linear import LinearObjective
from raphson.solve import Status

_SOME_ROWS, _SOME_ROWS_PER_COEFFICIENT, _LARGE = 4000, 20, 5
"""Rows that may prove all estimates finite, and how many times as many there must be for that to be tried first."""

_SUSPICIOUS_STEP = 1e-2
"""A Newton step at convergence that still changes some linear predictor by this much points to separation."""

_BY_SLOPES = 0.01
"""Share of what a step's intercepts move outputs by from which its slopes, which are penalized, do."""

_ROUNDING = 1e-6
"""Share of an output's size by which a step that is no more than rounding, or the tolerance, may change it: means of
1e10 move by 100 at a relative error of 1e-8."""


def examine(
    fitted: Fitted, rows: Rows, options: FitOptions
) -> tuple[Fitted, Recession | Divergence | None, str | None]:
    """Look for separation where the fit shows signs of it, and say whether classical inference can be had.

    Returns:
        The fit, marked as diverging where targets are separated, with the fit of its limit where some coefficients
        stay finite; what separates them; and the sentence with which standard errors are refused, or None.
    """
    solution = fitted.solution
    exact = find_no_spread(fitted, rows)
    if exact is not None:
        warnings.warn(exact.sentence(), SeparationWarning, stacklevel=4)
        return replace(fitted, solution=replace(solution, status=Status.DIVERGING)), exact, exact.sentence()
    edge = find_edge(fitted.objective, solution.theta, fitted.layout, rows.kept)
    if edge is not None:
        warnings.warn(edge.sentence(), ConvergenceWarning, stacklevel=4)
        return replace(fitted, solution=replace(solution, status=Status.BOUNDARY)), None, edge.sentence()
    if _looks_separated(fitted):
        unpenalized = fitted.objective.l2 == 0 and not fitted.jeffreys
        found: Recession | Divergence | None = recession_of(fitted, rows) if unpenalized else None
        limit = fit_limit(fitted, rows, found, options) if isinstance(found, Recession) else None
        found = found or find_divergence(fitted)
        if found is not None:
            sentence = found.sentence()
            warnings.warn(sentence, SeparationWarning, stacklevel=4)
            marked = replace(fitted, solution=replace(solution, status=Status.DIVERGING), limit=limit)
            return marked, found, sentence if limit is None else None
    if solution.converged:
        return fitted, None, None
    absent = absent_levels(fitted.objective.likelihood, rows.y, fitted.layout)
    if absent is not None:
        warnings.warn(absent, ConvergenceWarning, stacklevel=4)
        return replace(fitted, solution=replace(solution, status=Status.BOUNDARY)), None, absent
    sentence = (
        f"{solution.status.sentence} (solver {solution.method}, {solution.iterations} iterations, gradient "
        f"norm {solution.gradient_norm:.1e}). {_what_next(solution.status, fitted.jeffreys)}"
    )
    warnings.warn(sentence, ConvergenceWarning, stacklevel=4)
    return fitted, None, "No standard errors: the fit did not converge. " + sentence


def _looks_separated(fitted: Fitted) -> bool:
    objective, step, theta = fitted.objective, fitted.solution.last_step, fitted.solution.theta
    if step is None:
        return not fitted.solution.converged
    if not objective.may_move_more(step, _SUSPICIOUS_STEP):
        return False
    # an optimum that a ridge keeps finite may be far off: the value rises soon, which is seen in less than a pass
    if objective.l2 and (not falls_on(fitted) or _is_held(objective, step)):
        return False
    if not objective.largest_move(step, in_units=True) > _SUSPICIOUS_STEP:
        return False
    f = objective.predictors(theta)
    moved = (objective.predictors(theta + step) - f).abs().amax(1)
    return bool((moved > _ROUNDING * f.abs().amax(1)).any())


def _is_held(objective: LinearObjective, step: Tensor) -> bool:
    """Return whether a penalty holds a step back, in the end: it moves outputs by slopes, not by intercepts alone."""
    if not objective.likelihood.concave:
        return False
    penalized = objective.ridge.diagonal > 0
    slopes, intercepts = (objective.largest_move(torch.where(own, step, 0.0)) for own in (penalized, ~penalized))
    return slopes > _BY_SLOPES * intercepts


def recession_of(fitted: Fitted, rows: Rows) -> Recession | None:
    """Return what makes coefficients infinite without a penalty, or None where nothing is known to.

    A fit's last step, if any, is tried as a direction. Directions are of the parameters of the layout's map.
    """
    shown, relative = fitted.layout, relative_layout(fitted.layout, fitted.objective.likelihood)
    found = _search(fitted, rows).recession
    if found is None or relative is None:
        return found
    span, direction = centered_directions(found.span, relative), centered(found.direction, relative)
    ways = torch.where((span != 0).any(1), direction.sign(), 0.0) if span.shape[1] == 1 else torch.zeros(len(span))
    return replace(
        found,
        labels=tuple(shown.labels[i] for i in shown.order.argsort().tolist()),
        span=span,
        ways=ways,
        diverging=(span != 0).any(1),
        direction=direction / direction.abs().max(),
    )


def _search(fitted: Fitted, rows: Rows) -> RecessionSearch:
    """Look for directions of recession, of parameters relative to a class where those reported sum to zero."""
    likelihood, step = fitted.objective.likelihood, fitted.solution.last_step
    layout = relative_layout(fitted.layout, likelihood) or fitted.layout
    fitted = replace(fitted, layout=layout)
    by_class = likelihood.differences_only and layout.is_relative
    labels = [layout.labels[i] for i in layout.order.argsort().tolist()]
    return find_recession(
        rows.x,
        rows.y,
        likelihood,
        layout.output_map,
        rows.weights,
        labels,
        list(layout.outputs) if by_class else None,
        candidate=None if step is None else fitted.to_parameters(step[None])[0],
    )


def only_penalized(fitted: Fitted, rows: Rows) -> tuple[Tensor | None, str | None]:
    """Return the reported directions ``(P, r)`` that only a ridge penalty keeps finite, and a sentence; or Nones."""
    found = None if _all_finite_by_some(fitted, rows) else recession_of(fitted, rows)
    if found is None:
        return None, None
    return found.span[fitted.layout.order], found.sentence()


def _all_finite_by_some(fitted: Fitted, rows: Rows) -> bool:
    """Return whether some of the rows prove that all estimates are finite without a penalty.

    A direction in which the log-likelihood of all rows rises for ever does so, or changes nothing, on some of them: if
    these have no such direction, and independent columns so that nothing changes nothing, all rows have none.
    """
    n, here = rows.y.shape[0], fitted.layout.output_map
    some = max(_SOME_ROWS, _SOME_ROWS_PER_COEFFICIENT * here.n_parameters)
    if n < _LARGE * some or not isinstance(rows.x, Tensor):
        return False
    index = torch.randint(n, (some,), generator=torch.Generator().manual_seed(0))
    x = rows.x[index]
    if not DenseDesign(x, intercept=here.intercept, standardize=True).is_well_conditioned():
        return False
    weights = None if rows.weights is None else rows.weights[index]
    part = replace(rows, x=x, y=rows.y[index], weights=weights, offset=None, sums=None)
    return _search(replace(fitted, solution=replace(fitted.solution, last_step=None)), part).status == "none"


def _what_next(status: Status, jeffreys: bool) -> str:
    """Return the remedy for a fit that ended without an optimum."""
    if status is Status.MAX_ITERATIONS:
        return "Raise max_iter, or loosen tol."
    if status is Status.BOUNDARY:
        return "Use a link whose outputs have no bounds (such as the log of a mean), or fewer columns."
    if jeffreys:
        return "Loosen tol, change the units of columns or target, or use another likelihood."
    return (
        "Loosen tol, change the units of columns or target, or fit with penalty='jeffreys', whose estimates are finite."
    )
