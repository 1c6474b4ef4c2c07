"""Whether a fit can be used: did it converge, and to a finite optimum."""

from __future__ import annotations

import warnings
from dataclasses import replace

from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from raphson._errors import SeparationWarning
from raphson.estimators.fit._fitted import Fitted
from raphson.estimators.input._rows import Rows
from raphson.estimators.separation._divergence import Divergence, find_divergence, separates
from raphson.estimators.separation._separation import Separation, find_separation
from raphson.solve import Status

_SUSPICIOUS_STEP = 1e-2
"""A Newton step at convergence that still changes some linear predictor by this much points to separation."""


def examine(fitted: Fitted, rows: Rows) -> tuple[Fitted, Separation | Divergence | None, str | None]:
    """Look for separation where the fit shows signs of it, and say whether classical inference can be had.

    Args:
        fitted: A fit.
        rows: Its rows.

    Returns:
        The fit, marked as diverging where targets are separated; what separates them; and the sentence with which
        standard errors are refused, or None.
    """
    solution = fitted.solution
    if fitted.objective.l2 == 0 and _looks_separated(fitted):
        separation = _find(fitted, rows)
        if separation is not None:
            sentence = separation.sentence()
            warnings.warn(sentence, SeparationWarning, stacklevel=4)
            return replace(fitted, solution=replace(solution, status=Status.DIVERGING)), separation, sentence
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
    return fitted.largest_move(step) > _SUSPICIOUS_STEP


def _find(fitted: Fitted, rows: Rows) -> Separation | Divergence | None:
    layout, likelihood = fitted.layout, fitted.objective.likelihood
    intercept, step = layout.output_map.intercept, fitted.solution.last_step
    direction: Tensor | None = None if step is None else fitted.coefficients(step)
    if likelihood.differences_only and layout.is_relative and rows.y.ndim == 1:
        texts = list(layout.outputs)
        return find_separation(
            rows.x, rows.y, len(texts), rows.weights, list(layout.columns), texts, intercept, candidate=direction
        )
    if layout.output_map.is_uniform and len(layout.outputs) == 1:
        binary, found = separates(rows, likelihood, layout.columns, intercept, direction)
        if binary:
            return found
    return find_divergence(fitted, layout.labels)
