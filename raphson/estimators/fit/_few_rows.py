"""Penalized classes of few rows and many columns: Newton steps and L-BFGS in combinations of the rows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson.estimators.fit._first_step import further
from raphson.estimators.fit._options import FitOptions
from raphson.estimators.fit._solver import FEW_ITERATIONS, PRECISE
from raphson.linear import (
    Checked,
    DualBegin,
    DualClasses,
    DualCoordinates,
    DualPoint,
    LinearObjective,
    euclidean_norm,
    has_dual,
    has_row_space,
)
from raphson.solve import Callback, Evaluation, History, InversePairs, PairsStepper, Solution, Status, descend

_ROWS = 250
"""Rows up to which a fit in combinations of them is tried before all else."""

_LINE_COLUMNS, _LINE_MARGIN, _LINE_SHARE = 32, 15.0, 0.4
"""Columns for each row of a class from which the best point along the gradient is looked at first, where slopes that
set rows apart by so much have, by their penalty, such a share of the gradient looked for. 60 x 2000 and 60 x 7000, l2 =
1e-6, end there whatever the classes, after three passes and without the products of rows."""

_STEPS = 50
"""Steps of two classes, compiled ones before them counted, after which no Newton step is taken; few are ever."""

_WHOLE, _FALLS = 0.8, 0.1
"""Length of a step from which the next one is first tried whole, and share of the gradient that it then may leave."""

_ROUNDED, _ROUNDED_NORM = 2.0**-36, 0.5
"""Predicted decrease, in losses of a row, and share of the gradient left, beyond which rounding is what stops a fit."""

_LEAST_SCALE = 0.1
"""Least scale of the columns that the gradient looked for is made smaller by."""

_LIKELY, _SURE = 0.9, 0.6
"""Share of the gradient looked for at which all columns are looked at, and to which compiled steps go: one takes a
tenth of what that look does. 60 x 2000, 50 classes, sparse, missed the tolerance by 4 % without the first one."""

_PATIENCE, _FIRST_PATIENCE = 150.0, 32.0
"""Gradients that L-BFGS may take, and for two classes before Newton steps."""


class _State(NamedTuple):
    """A point as L-BFGS sees it."""

    value: float
    gradient: Any
    norm: float
    hessian: None = None


class _Shares:
    """The objective as a function of shares and intercepts in a row, with about its inverse Hessian.

    Attributes:
        last: The point that was evaluated last, which a step that is taken leads to.
    """

    last: DualPoint

    def __init__(self, dual: DualClasses) -> None:
        self._dual = dual
        self._slopes, self._ones = 1.0 / (dual.penalty + dual.span_curvature), 1.0 / dual.curvature

    def evaluate(self, theta: Tensor) -> _State:
        """Return the state at shares and intercepts ``(q N + q,)``."""
        parts, q = theta.numpy(), self._dual.q
        a = parts[:-q].reshape(q, -1)
        return self.state(self._dual.at(a, self._dual.times_gram(a), parts[-q:]))

    def state(self, at: DualPoint) -> _State:
        """Return the state at a point."""
        self.last = at
        return _State(at.value, _row(at.r_product, at.ones), at.norm)

    def inverse(self, gradient: Tensor) -> Tensor:
        """Return about the product with the inverse Hessian, up to a factor, of the gradient that was made last."""
        return _row(self._slopes * self.last.r, self._ones * self.last.ones)


def _row(a: Any, b: Any) -> Tensor:
    return torch.from_numpy(np.concatenate([a.ravel(), b]))


def takes_few_rows(objective: LinearObjective, options: FitOptions) -> bool:
    """Return whether an objective is fitted in combinations of its rows."""
    if options.solver != "auto" or options.jeffreys or options.max_iter < FEW_ITERATIONS or options.tol <= PRECISE:
        return False
    return objective.n_rows <= _ROWS and has_dual(objective) and has_row_space(objective)


def solve_few_rows(objective: LinearObjective, options: FitOptions, callback: Callback | None) -> Solution:
    """Minimize from outputs of zero.

    Returns:
        The solution in the parameters of all columns, with ``MAX_ITERATIONS`` where others have to go on from there.
    """
    dual, two = DualClasses(objective), objective.n_outputs == 2
    if _has_line(dual, options.tol):
        start, best = dual.along_gradient(lambda norm: further(options.tol, norm))
        if best.norm <= options.tol:
            run = _Run(dual, options, callback, start)
            run.reach(best.at, best)
            return run.solution("lbfgs")
    coordinates = DualCoordinates.of(dual)
    if coordinates is None:
        run = _Run(dual, options, callback, dual.start())
    else:
        begin = coordinates.into(dual.start(products=False))
        run = _Run(dual, options, callback, begin.at)
        most = min(_FIRST_PATIENCE, options.max_iter) if two else _PATIENCE
        _in_coordinates(run, coordinates, begin, most)
    if two and not run.is_done:
        _by_newton(run, dual, min(options.max_iter, _STEPS))
        return run.solution("newton")
    if coordinates is None:
        _in_shares(run, dual)
    return run.solution("lbfgs")


def _by_newton(run: _Run, dual: DualClasses, most: int) -> None:
    """Take Newton steps for two classes."""
    whole, here = False, run.at
    if not here.r_product.size:
        run.at = dual.at(here.a, here.product, here.b)
    while not run.is_done and run.taken < most:
        at = run.at
        step = dual.newton_step(at)
        if step is None:
            break
        there = dual.moved(at, step, 1.0) if whole else None
        if there is None or there.norm > max(run.aim, _FALLS * at.norm):
            length = dual.line(at, step).length()
            whole = _WHOLE < length < 1.0 / _WHOLE
            there = dual.moved(at, step, length)
        run.reach(there)
        if there.norm > _ROUNDED_NORM * at.norm and at.decrease(step) <= _ROUNDED:
            break


def _in_shares(run: _Run, dual: DualClasses) -> None:
    """Take steps of L-BFGS in shares of the rows."""
    problem = _Shares(dual)
    state = problem.state(run.at)
    pairs = InversePairs(problem.inverse, state.gradient, scaled=True, length=1.0)
    for reached in descend(PairsStepper(problem.evaluate, pairs), _row(run.at.a, run.at.b), state):
        run.reach(problem.last)
        if run.is_done or reached.evaluations >= _PATIENCE:
            break


def _in_coordinates(run: _Run, coordinates: DualCoordinates, begin: DualBegin, patience: float) -> None:
    """Take steps of L-BFGS in coordinates of the rows' span."""
    state: Evaluation = begin.state
    theta, stepper, evaluations = begin.theta, coordinates.stepper(), 0
    while not run.is_done and evaluations < patience:
        aim, moved = _SURE * run.aim, False
        for reached in descend(stepper, theta, state, tol=coordinates.largest * aim):
            theta, state, moved = reached.theta, reached.at, True
            norm = euclidean_norm(state.gradient)
            for value, largest in reached.passed:
                run.pass_by(value, largest / coordinates.largest)
            run.pass_by(state.value, norm)
            if norm <= aim or evaluations + reached.evaluations >= patience:
                break
        if not moved:
            break
        evaluations += reached.evaluations
        run.come_to(*coordinates.back(theta), norm)


def _has_line(dual: DualClasses, tol: float) -> bool:
    """Return whether the gradient from the start is first followed without the products of rows."""
    d, of_class = dual.objective.design.x.shape[1], dual.n / dual.q
    if not d >= _LINE_COLUMNS * of_class or not dual.size > 0.0:
        return False
    # of rows that are nearly orthogonal, each with a squared length of about the columns' summed mean squares
    largest = _LINE_MARGIN * math.sqrt(of_class / (d * dual.size)) * math.sqrt(2.0 * math.log(d * dual.q))
    return dual.penalty * largest <= _LINE_SHARE * tol


class _Run:
    """Where a fit is, and whether the gradient of all columns is small there.

    That is looked at where its length in the table's coefficients, which costs nothing, is small enough.
    """

    def __init__(self, dual: DualClasses, options: FitOptions, callback: Callback | None, start: DualPoint) -> None:
        self.dual, self._tol, self._history = dual, options.tol, History(callback)
        # a gradient of so many entries is about so many times as long as its largest one
        entries = float(dual.q * dual.objective.output_map.n_columns)
        self.aim = self._tol * max(1.0, math.sqrt(entries / (2.0 * math.log(entries))))
        # the tolerance is for standardized columns, which those of counts and indicators are far from; the intercept's
        # gradient is the same in both
        scale = math.sqrt(dual.size / dual.objective.design.x.shape[1])
        self.aim *= _LIKELY * min(1.0, max(scale, _LEAST_SCALE))
        self.reach(start)

    @property
    def taken(self) -> int:
        """Steps taken."""
        return len(self._history.steps) - 1

    def reach(self, at: DualPoint, checked: Checked | None = None) -> None:
        """Note the next point."""
        self.arrive(at, checked)
        self.pass_by(at.value, at.norm)

    def pass_by(self, value: float, norm: float) -> None:
        """Note value and gradient of the next point in the history alone."""
        self._history.reach(value, norm)

    def arrive(self, at: DualPoint, checked: Checked | None = None) -> None:
        """Take a point that was passed by as where the fit is."""
        self.at, self._checked, self.is_done = at, checked, checked is not None
        if at.norm <= self.aim:
            self._look(at.a, at.b, at.norm)

    def come_to(self, a: NDArray[Any], b: NDArray[Any], norm: float) -> None:
        """Take shares and intercepts that were passed by, where the gradient is so long, as where the fit is."""
        self.at = self._look(a, b, norm).at._replace(norm=norm)

    def _look(self, a: NDArray[Any], b: NDArray[Any], norm: float) -> Checked:
        """Look at the gradient of all columns."""
        self._checked = checked = self.dual.checked(a, b)
        self.is_done = checked.norm <= self._tol
        self.aim = 0.8 * norm * min(1.0, self._tol / checked.norm) if checked.norm > 0.0 else self.aim
        return checked

    def solution(self, method: str) -> Solution:
        """Return where the fit is."""
        checked = self._checked or self.dual.checked(self.at.a, self.at.b)
        at, norm = checked.at, checked.norm
        steps = self._history.steps
        steps[-1] = steps[-1]._replace(value=at.value, gradient_norm=norm)
        objective = self.dual.objective
        return Solution(
            self.dual.parameters(checked),
            Status.CONVERGED if norm <= self._tol else Status.MAX_ITERATIONS,
            at.value,
            norm,
            self.taken,
            method,
            history=tuple(steps),
            reason=(
                f"In combinations of the {self.dual.n} rows there are {self.dual.q * self.dual.n} numbers to find in "
                f"place of {objective.n_parameters} coefficients."
            ),
        )
