"""Fitting a linear model: independent columns, objective, solver, and whether the result can be used."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from raphson._errors import CollinearityWarning, InputError, RaphsonWarning, SeparationWarning
from raphson.data import DenseDesign, SparseDesign
from raphson.estimators.fit._linear_fit import LinearFit
from raphson.estimators.fit._scoring import solve_scoring
from raphson.estimators.fit._solvers import SOLVERS, solve
from raphson.estimators.input._rows import Rows
from raphson.estimators.separation._collinear import Collinearity, find_collinear
from raphson.likelihoods import Likelihood
from raphson.linear import LinearObjective
from raphson.report import progress_line
from raphson.solve import Callback, Solution, Status, Step, newton

_SUSPICIOUS_STEP = 1e-2
"""A Newton step at convergence that still changes some linear predictor by this much points to separation."""

_WORKING_VECTORS = 12
"""Arrays of the size of the coefficients that a fit without a dense Hessian holds at once, in float64."""

_LARGE_BYTES = 2**30

Progress = bool | Callable[[Step], None]


@dataclass(frozen=True)
class FitOptions:
    """How a linear model is fitted; the arguments of the estimators.

    Attributes:
        l2: Penalty of the mean-scale objective.
        fit_intercept: Whether each output has an intercept.
        solver: One of ``SOLVERS``.
        tol: Bound on the gradient norm.
        max_iter: Largest number of iterations.
        progress: True for a line on the terminal, or a function called with every ``Step``.
    """

    l2: float
    fit_intercept: bool
    solver: str
    tol: float
    max_iter: int
    progress: Progress

    @classmethod
    def of(cls, estimator: Any) -> FitOptions:
        """Read and check the arguments of an estimator.

        Args:
            estimator: An estimator with attributes of the same names.

        Returns:
            The options.

        Raises:
            InputError: If one of them has no meaning.
        """
        l2, tol, max_iter = estimator.l2, estimator.tol, estimator.max_iter
        if not (isinstance(l2, int | float | np.number) and math.isfinite(l2) and l2 >= 0):
            raise InputError(f"l2 must be a number that is not negative, got {l2!r}.")
        if estimator.solver not in SOLVERS:
            raise InputError(f"Unknown solver {estimator.solver!r}; choose one of {', '.join(SOLVERS)}.")
        if not (isinstance(tol, int | float | np.number) and tol > 0):
            raise InputError(f"tol must be a positive number, got {tol!r}.")
        if not (isinstance(max_iter, int | np.integer) and max_iter >= 0):
            raise InputError(f"max_iter must be a whole number that is not negative, got {max_iter!r}.")
        intercept = bool(estimator.fit_intercept)
        return cls(float(l2), intercept, estimator.solver, float(tol), int(max_iter), estimator.progress)


def fit_linear(
    rows: Rows,
    y: Tensor,
    likelihood: Likelihood,
    names: Sequence[str],
    options: FitOptions,
    *,
    order: Tensor,
    reference: int | None,
    start: Tensor | None = None,
) -> tuple[LinearFit, Collinearity | None]:
    """Minimize the objective of a linear model, on independent columns where there is no penalty.

    Args:
        rows: The rows.
        y: Their targets, as the likelihood sees them with outputs in the solver's order.
        likelihood: The likelihood.
        names: Names of the ``D`` columns.
        options: How to fit.
        order: Which reported output each of the solver's outputs is, ``(C,)``.
        reference: The solver's output whose coefficients are zero, or None.
        start: Reported coefficients ``(C, D')`` to start from; None starts from zero.

    Returns:
        The fit, and what is collinear, or None where it was not looked for.
    """
    n_columns = len(names) + options.fit_intercept
    kept, basis = torch.arange(n_columns), torch.zeros(n_columns, 0, dtype=torch.float64)
    collinearity = None
    design = rows.design(torch.arange(len(names)), options.fit_intercept)
    if options.l2 == 0 and not design.is_well_conditioned():
        collinearity = find_collinear(rows.x, rows.weights, names, options.fit_intercept)
        if collinearity.nullity:
            kept, basis = _independent(collinearity, n_columns, int(options.fit_intercept))
            slopes = kept[kept >= int(options.fit_intercept)] - int(options.fit_intercept)
            design = rows.design(slopes, options.fit_intercept)
            warnings.warn(" ".join(collinearity.sentences()), CollinearityWarning, stacklevel=3)
    objective = LinearObjective(
        design,
        likelihood,
        y,
        n_outputs=order.shape[0],
        weights=rows.weights,
        offset=None if rows.offset is None else rows.offset[:, order],
        l2=options.l2,
        reference=reference,
    )
    _announce(objective)
    theta = torch.zeros(objective.n_parameters, dtype=torch.float64)
    if start is not None:
        theta = objective.free(objective.design.from_table(start[order][:, kept]))
    minimize = solve if likelihood.concave else solve_scoring
    with shown_progress(options.progress) as callback:
        solution = minimize(
            objective, theta, solver=options.solver, tol=options.tol, max_iter=options.max_iter, callback=callback
        )
    return LinearFit(objective, solution, kept, order, basis, n_columns, rows.y.shape[0]), collinearity


@contextlib.contextmanager
def shown_progress(progress: Progress) -> Generator[Callback | None]:
    """Give the callback that an estimator's ``progress`` asks for, and clear its line at the end."""
    if progress is not True:
        yield progress if callable(progress) else None
        return
    line = progress_line()
    try:
        yield line
    finally:
        line.close()


def _announce(objective: LinearObjective) -> None:
    """Say before a large fit starts how much memory and arithmetic it takes."""
    vectors = 8 * _WORKING_VECTORS * objective.n_parameters
    operations = 4.0 * objective.n_rows * objective.n_outputs * objective.design.n_columns
    if isinstance(objective.design, SparseDesign):
        operations = 4.0 * objective.design.x.nnz * objective.n_outputs
    if vectors > _LARGE_BYTES:
        warnings.warn(
            f"This is a large fit: {objective.n_parameters} coefficients take about {vectors / 1e9:.1f} GB of working "
            f"memory beside the data, and each pass over the rows about {operations:.0e} operations; a fit is some "
            "tens to hundreds of passes.",
            RaphsonWarning,
            stacklevel=4,
        )


class Fitted(Protocol):
    """A fit whose solution can be looked at and replaced."""

    @property
    def objective(self) -> Any:
        """The objective, with its penalty ``l2``."""

    @property
    def solution(self) -> Solution:
        """What the solver returned."""

    def coefficients(self, reference: int | None) -> Tensor:
        """Return the coefficients of the table's columns, ``(C, D')``."""

    def largest_move(self, step: Tensor) -> float:
        """Return the largest change that a step in the free coefficients makes to a linear predictor."""


class Finding(Protocol):
    """What makes coefficients infinite."""

    def sentence(self) -> str:
        """Return it in whole sentences."""


F = TypeVar("F", bound=Fitted)
S = TypeVar("S", bound=Finding)


def examine(fitted: F, find_separation: Callable[[Tensor | None], S | None]) -> tuple[F, S | None, str | None]:
    """Look for separation where the fit shows signs of it, and say whether classical inference can be had.

    Args:
        fitted: A fit.
        find_separation: Takes a direction ``(C, D')`` in which the fit may diverge, or None, and returns what
            separates the targets.

    Returns:
        The fit, marked as diverging where targets are separated; the separation; and the sentence with which
        standard errors are refused, or None.
    """
    solution = fitted.solution
    if fitted.objective.l2 == 0 and _looks_separated(fitted):
        direction = None
        if solution.last_step is not None:
            direction = with_solution(fitted, replace(solution, theta=solution.last_step)).coefficients(None)
        separation = find_separation(direction)
        if separation is not None:
            sentence = separation.sentence()
            warnings.warn(sentence, SeparationWarning, stacklevel=3)
            return with_solution(fitted, replace(solution, status=Status.DIVERGING)), separation, sentence
    if solution.converged:
        return fitted, None, None
    sentence = (
        f"{solution.status.sentence} (solver {solution.method}, {solution.iterations} iterations, gradient "
        f"norm {solution.gradient_norm:.1e}). Raise max_iter, loosen tol, or add a penalty (l2)."
    )
    warnings.warn(sentence, ConvergenceWarning, stacklevel=3)
    return fitted, None, "No standard errors: the fit did not converge. " + sentence


def null_loglik(rows: Rows, likelihood: Likelihood, n_outputs: int, *, intercept: bool) -> float:
    """Return the log-likelihood of the model with offsets and intercepts alone.

    Args:
        rows: The rows.
        likelihood: The likelihood.
        n_outputs: C, the first output being the reference.
        intercept: Whether there are intercepts.

    Returns:
        The log-likelihood, summed over weighted rows.
    """
    empty = torch.zeros(rows.y.shape[0], 0, dtype=torch.float64)
    null = LinearObjective(
        DenseDesign(empty, intercept=intercept),
        likelihood,
        rows.y,
        n_outputs=n_outputs,
        weights=rows.weights,
        offset=rows.offset,
        reference=0,
    )
    start = torch.zeros(null.n_parameters, dtype=torch.float64)
    value = newton(null, start).value if intercept else null.value(start)
    return -value * null.total_weight


def with_solution(fitted: F, solution: Solution) -> F:
    """Return a fit with another solution."""
    changed: F = replace(fitted, solution=solution)  # type: ignore[type-var]
    return changed


def _looks_separated(fitted: Fitted) -> bool:
    step = fitted.solution.last_step
    if step is None:
        return not fitted.solution.converged
    return fitted.largest_move(step) > _SUSPICIOUS_STEP


def _independent(collinearity: Collinearity, n_columns: int, first: int) -> tuple[Tensor, Tensor]:
    """Return the columns to fit, ``(rank,)``, and a basis of the combinations that vanish, ``(D', nullity)``.

    The intercept, where ``first`` is 1, is always fitted; of the others the late ones are left out.
    """
    from scipy.linalg import qr

    basis = collinearity.null_basis.double()
    scaled = basis / basis.abs().amax(0)
    # the null space can be solved for the columns left out: a pivoted QR picks them
    order = torch.arange(n_columns - 1, first - 1, -1)
    _, pivots = qr(scaled[order].mT.numpy(), mode="r", pivoting=True)
    dropped = order[torch.from_numpy(pivots[: basis.shape[1]].copy()).long()]
    kept = torch.ones(n_columns, dtype=torch.bool)
    kept[dropped] = False
    return kept.nonzero()[:, 0], basis
