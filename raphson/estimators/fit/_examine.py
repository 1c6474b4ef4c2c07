"""Whether a fit can be used: did it converge, and to a finite optimum."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from raphson._errors import SeparationWarning
from raphson.estimators.fit._fitted import Fitted
from raphson.estimators.fit._limit_fit import fit_limit
from raphson.estimators.fit._options import FitOptions
from raphson.estimators.input._rows import Rows
from raphson.estimators.separation._divergence import Divergence, falls_on, find_divergence
from raphson.estimators.separation._find_recession import find_recession
from raphson.estimators.separation._recession import Recession
from raphson.solve import Status

_SUSPICIOUS_STEP = 1e-2
"""A Newton step at convergence that still changes some linear predictor by this much points to separation."""

_ROUNDING = 1e-10
"""Entries of a direction below this share of its largest are rounding."""


def examine(
    fitted: Fitted, rows: Rows, options: FitOptions
) -> tuple[Fitted, Recession | Divergence | None, str | None]:
    """Look for separation where the fit shows signs of it, and say whether classical inference can be had.

    Returns:
        The fit, marked as diverging where targets are separated, with the fit of its limit where some coefficients
        stay finite; what separates them; and the sentence with which standard errors are refused, or None.
    """
    solution = fitted.solution
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
    sentence = (
        f"{solution.status.sentence} (solver {solution.method}, {solution.iterations} iterations, gradient "
        f"norm {solution.gradient_norm:.1e}). Raise max_iter, loosen tol, or add a penalty (l2)."
    )
    warnings.warn(sentence, ConvergenceWarning, stacklevel=4)
    return fitted, None, "No standard errors: the fit did not converge. " + sentence


def _looks_separated(fitted: Fitted) -> bool:
    step = fitted.solution.last_step
    if step is None:
        return not fitted.solution.converged
    # an optimum that a ridge keeps finite may be far off: the value rises soon, which is seen in less than a pass
    return (not fitted.objective.l2 or falls_on(fitted)) and fitted.objective.moves_more(step, _SUSPICIOUS_STEP)


def recession_of(fitted: Fitted, rows: Rows) -> Recession | None:
    """Return what makes coefficients infinite without a penalty, or None; the last step is tried as a direction."""
    layout, likelihood, step = fitted.layout, fitted.objective.likelihood, fitted.solution.last_step
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
    ).recession


def only_penalized(fitted: Fitted, rows: Rows) -> tuple[Tensor | None, str | None]:
    """Return the reported directions ``(P, r)`` that only a ridge penalty keeps finite, and a sentence; or Nones."""
    found = recession_of(fitted, rows)
    if found is None:
        return None, None
    layout, span = fitted.layout, found.span
    here = layout.output_map
    if layout.is_relative and here.is_plain and fitted.objective.likelihood.differences_only:
        table = span.view(here.n_outputs, here.n_columns, -1)  # coefficients are reported as summing to zero
        span = (table - table.mean(0)).reshape(span.shape)
    size = span.abs()
    return torch.where(size > _ROUNDING * size.amax(0), span, 0.0)[layout.order], found.sentence()
