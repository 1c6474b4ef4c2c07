"""How a linear model is fitted: the arguments that the estimators share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from raphson._errors import InputError
from raphson.estimators.fit._jeffreys import check_penalty
from raphson.report import progress_line
from raphson.solve import Callback, Step

SOLVERS = ("auto", "newton", "newton-cg", "gradient-descent", "sgd")

Progress = bool | Callable[[Step], None]


@dataclass(frozen=True)
class FitOptions:
    """The arguments of an estimator that say how it is fitted.

    Attributes:
        l2: Penalty of the average loss.
        solver: One of ``SOLVERS``.
        tol: Bound on the gradient norm.
        max_iter: Largest number of iterations.
        progress: True for a line on the terminal, or a function called with every ``Step``.
        jeffreys: Whether the likelihood is penalized by Jeffreys' prior.
    """

    l2: float
    solver: str
    tol: float
    max_iter: int
    progress: Progress
    jeffreys: bool = False

    @classmethod
    def of(cls, estimator: Any) -> FitOptions:
        """Read the arguments of an estimator; one that has no meaning is an ``InputError``."""
        l2, tol, max_iter = estimator.l2, estimator.tol, estimator.max_iter
        if not (isinstance(l2, int | float | np.number) and math.isfinite(l2) and l2 >= 0):
            raise InputError(f"l2 must be a number that is not negative, got {l2!r}.")
        if not (isinstance(estimator.fit_intercept, bool | np.bool_ | int) and estimator.fit_intercept in (0, 1)):
            raise InputError(f"fit_intercept must be True or False, got {estimator.fit_intercept!r:.60}.")
        if estimator.solver not in SOLVERS:
            raise InputError(f"Unknown solver {estimator.solver!r}; choose one of {', '.join(SOLVERS)}.")
        if not (isinstance(tol, int | float | np.number) and tol > 0):
            raise InputError(f"tol must be a positive number, got {tol!r}.")
        if not (isinstance(max_iter, int | np.integer) and max_iter >= 0):
            raise InputError(f"max_iter must be a whole number that is not negative, got {max_iter!r}.")
        jeffreys = check_penalty(estimator.penalty, float(l2))
        return cls(float(l2), estimator.solver, float(tol), int(max_iter), estimator.progress, jeffreys)

    @contextlib.contextmanager
    def shown_progress(self) -> Generator[Callback | None]:
        """Give the callback that ``progress`` asks for, and clear its line at the end."""
        if self.progress is not True:
            yield self.progress if callable(self.progress) else None
            return
        line = progress_line()
        try:
            yield line
        finally:
            line.close()
