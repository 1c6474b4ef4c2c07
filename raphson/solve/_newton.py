r"""Newton's method: steps :math:`-H^{-1} g` from a dense factorization, globalized.

A factor may be kept over several steps. A dense Hessian costs many gradients, and after a step most of it is still
right: the inverse of the last one factorized then serves as the initial matrix of limited-memory BFGS. Every step costs
one gradient and one solve, and the pairs since the factorization carry the change of the Hessian; a new factor is made
when the gradient falls too slowly for its price.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from raphson.solve._factor import Cholesky, Inverse, inverse_map
from raphson.solve._line_search import Direction, at_rounding, backtrack, extend, is_finite
from raphson.solve._pairs import InversePairs
from raphson.solve._solution import Callback, Evaluation, History, Problem, Solution, Status

_NEWTON_RATE = 1.2
"""What a fresh factor is counted on for: a step that reduces the gradient by ``exp(1.2)``, about 3."""

_STEPS = 20
"""Steps allowed for each iteration asked for: these are cheap ones, a fraction of a Newton iteration each."""

_SCORING_COST = 2.0
"""Price of the expected information in evaluations: some of it is quadrature, so that it is kept over a few steps."""

_SHIFTS = (1e-8, 1e-6, 1e-4, 1e-2, 1.0, 1e2)
"""Multiples of the largest diagonal entry tried as shifts where a Newton step leads nowhere: up to a gradient step."""

_SHORT = 1e-5
"""Newton decrement up to which a step leaves an error of 1e-10: where it leads need not be seen."""

_STILL = 1e-8
"""Newton decrement up to which a Hessian before the last step is as good as the one after it."""

_ROUNDED = 2.0**-46
"""Share of the value by which the last step may seem to raise it: rounding."""

Propose = Callable[[Problem, Tensor, Evaluation], Tensor | None]
"""Turns objective, starting point and state there into a point that is likely better, or None."""


class Stage(NamedTuple):
    """A cheaper objective that leads near the optimum, say that of some of the rows.

    Attributes:
        problem: The objective.
        value_tol: It is solved to this predicted distance from its optimal value.
        factor_cost: What a Hessian and its factor cost, in evaluations of value and gradient.
    """

    problem: Problem
    value_tol: float
    factor_cost: float


@dataclass(frozen=True)
class Finish:
    """How a solver ends: the objective in double precision, in coordinates in which its Hessian is not singular.

    Attributes:
        problem: That objective, in which the solver goes on where it leads no further.
        step: Whether a converged solver takes one full Newton step more. It squares what error is left, and its length
            tells an optimum from a limit at infinity.
        dense: Whether the Hessian is formed. Where it is, a solver that stops goes on by Newton steps.
        direction: Makes that last step from the state at a point where it is not.
        back: From the solver's coordinates to those of ``problem``; None where they are the same.
    """

    problem: Problem
    step: bool = True
    dense: bool = True
    direction: Callable[[Evaluation], Tensor] | None = None
    back: Callable[[Tensor], Tensor] | None = None


class Run(NamedTuple):
    """Where a descent ended: point, state there, status, the last direction and its decrement."""

    theta: Tensor
    at: Evaluation
    status: Status
    last: Direction | None


def newton(
    problem: Problem,
    start: Tensor,
    *,
    tol: float = 1e-8,
    max_iter: int = 100,
    factor_cost: float = 0.0,
    scoring: bool = False,
    extended: bool = False,
    stages: Sequence[Stage] = (),
    propose: Propose | None = None,
    finish: Finish | None = None,
    coarse: float | None = None,
    callback: Callback | None = None,
) -> Solution:
    """Minimize by Newton's method.

    Args:
        problem: Objective with a dense Hessian.
        start: Starting point ``(p,)``, float64.
        tol: Bound on the gradient's norm.
        max_iter: Largest number of factorizations; with kept ones twenty times as many steps are allowed.
        factor_cost: What a Hessian and its factor cost, in evaluations of value and gradient; decides how long one is
            kept. Zero makes one for every step.
        scoring: Whether steps are by the expected information where the observed is not positive definite (Fisher
            scoring), which descends from anywhere.
        extended: Whether steps with a factor of their own are extended while the objective falls steeply.
        stages: Objectives to begin with, each from where the one before led.
        propose: Gives a point to try before the first step.
        finish: How to end; None ends with a full step of ``problem``.
        coarse: Bound on the gradient norm before the last step, where that is known to do the rest; None for ``tol``.
        callback: Called with a ``Step`` after every step on ``problem``.

    Returns:
        The solution; ``status`` says how it ended. Nothing is raised for an objective without an optimum.
    """
    finish = finish or Finish(problem)
    descent = _Descent(tol if coarse is None else coarse, max_iter, scoring, extended)
    theta, inverse = start, None
    for stage in stages:
        proposal = propose if theta is start else None
        run = descent.run(stage.problem, theta, stage.factor_cost, History(None), stage.value_tol, inverse, proposal)
        if run.last is None and run.theta is not theta and run.status.converged:
            theta = start  # what was proposed is all it takes, on all rows too
            break
        if run.status is not Status.NOT_FINITE:
            theta, inverse = run.theta, descent.factorize(stage.problem, run.theta, run.at)[0]
    history = History(callback)
    run = descent.run(problem, theta, factor_cost, history, 0.0, inverse, propose if theta is start else None)
    if run.status is Status.NOT_FINITE and theta is not start:
        run = descent.run(problem, start, factor_cost, history)
    settled = problem is finish.problem and not factor_cost
    return finish_run(finish, run, history, settled=settled, tol=tol, max_iter=max_iter, scoring=scoring)


class _Descent:
    """The iteration: what stays the same from stage to stage is set once."""

    def __init__(self, tol: float, max_iter: int, scoring: bool, extended: bool) -> None:
        self.tol, self.max_iter, self.scoring, self.extended = tol, max_iter, scoring, extended

    def run(
        self,
        problem: Problem,
        start: Tensor,
        cost: float,
        history: History,
        value_tol: float = 0.0,
        inverse: Inverse | None = None,
        propose: Propose | None = None,
    ) -> Run:
        """Descend to a stationary point, or until the predicted distance in value is below ``value_tol``."""
        theta, at = start, problem.evaluate(start)
        last: Direction | None = None
        if not is_finite(at):
            history.begin(at)
            return Run(theta, at, Status.NOT_FINITE, last)
        proposed = propose(problem, theta, at) if propose is not None else None
        if proposed is not None:
            there = problem.evaluate(proposed)
            if is_finite(there) and there.value <= at.value:
                theta, at = proposed, there
        history.begin(at)
        limit = len(history.steps) + _STEPS * self.max_iter
        pairs: InversePairs | None = None
        factors, price = 0, cost
        fresh = True  # no step has been taken since the factor was made: making it again would change nothing
        slow = False
        while len(history.steps) < limit:
            if at.norm <= self.tol:
                if last is not None and inverse is not None:
                    # by the factor that is there: what is left, where the last direction told what was before it
                    last = self._direction(inverse, pairs, at)
                return Run(theta, at, Status.CONVERGED, last)
            if inverse is None or (slow and not fresh):
                if factors == self.max_iter:
                    break
                inverse, expected = self.factorize(problem, theta, at)
                price = max(cost, _SCORING_COST) if expected else cost
                fresh, slow, factors = True, False, factors + 1
                pairs = None
            if price and pairs is None:
                pairs = InversePairs(inverse, at.gradient)
            last = self._direction(inverse, pairs, at)
            if last.decrement_squared < 2.0 * value_tol:
                return Run(theta, at, Status.CONVERGED, last)
            found = backtrack(problem, theta, at, last, problem.evaluate)
            if found is None:
                if at_rounding(last, at):
                    return Run(theta, at, Status.PRECISION_REACHED, last)
                if not fresh:
                    slow = True
                    continue
                found = self._shifted_step(problem, theta, at)
                if found is None:
                    return Run(theta, at, Status.STALLED, last)
            new_theta, new, length = found
            if self.extended and not price and length == 1.0:
                new_theta, new = extend(problem.evaluate, theta, last, new_theta, new)
            if pairs is not None:
                pairs.move(new_theta - theta, new.gradient)
            slow = not price or new.norm > at.norm * math.exp(-_NEWTON_RATE / (1.0 + price)) or length < 0.5
            theta, at, fresh = new_theta, new, False
            history.add(at)
        return Run(theta, at, Status.CONVERGED if at.norm <= self.tol else Status.MAX_ITERATIONS, last)

    @staticmethod
    def _direction(inverse: Inverse, pairs: InversePairs | None, at: Evaluation) -> Direction:
        """Return the Newton direction at a point, by a Hessian's inverse and what steps since then told."""
        return Direction.of(inverse(at.gradient).neg() if pairs is None else pairs.direction(), at.gradient)

    def factorize(self, problem: Problem, theta: Tensor, at: Evaluation) -> tuple[Inverse, bool]:
        """Return the inverse of the Hessian at a point, and whether it is that of the expected information."""
        matrix, expected = self._matrix(problem, theta, at)
        return inverse_map(*matrix), expected

    def _matrix(self, problem: Problem, theta: Tensor, at: Evaluation) -> tuple[tuple[Tensor, Cholesky | None], bool]:
        """Return the Hessian with its Cholesky factor, if it has one, and whether it is the expected one."""
        assert at.hessian is not None
        hessian = at.hessian.to_dense()
        factor = Cholesky(hessian)
        if factor.exists or not self.scoring:
            return (hessian, factor), False
        return (problem.hessian(theta, "expected").to_dense(), None), True

    def _shifted_step(self, problem: Problem, theta: Tensor, at: Evaluation) -> tuple[Tensor, Evaluation, float] | None:
        """Try steps of ``H + t I`` with growing t, down to a gradient step: far out the quadratic model is no good."""
        (hessian, _), _ = self._matrix(problem, theta, at)
        if hessian.dtype != at.gradient.dtype:
            return None  # double precision goes on from here
        size = max(1.0, float(hessian.diagonal().max()))
        for shift in _SHIFTS:
            shifted = hessian + torch.eye(hessian.shape[0], dtype=hessian.dtype) * (shift * size)
            direction = Direction.of(-inverse_map(shifted)(at.gradient), at.gradient)
            found = backtrack(problem, theta, at, direction, problem.evaluate)
            if found is not None:
                return found
        return None


def finish_run(
    finish: Finish,
    run: Run,
    history: History,
    *,
    settled: bool,
    tol: float,
    max_iter: int,
    scoring: bool = False,
    method: str = "newton",
) -> Solution:
    """Go on in double precision where a solver led no further, take the last step, and say how it went.

    ``settled`` says that Newton steps of ``finish.problem`` led there, so that more of them lead no further; ``tol``,
    ``max_iter`` and ``scoring`` are for what follows.

    Returns:
        The solution.
    """
    problem = finish.problem
    descent = _Descent(tol, max_iter, scoring, False)
    if finish.back is not None:
        last = None if run.last is None else run.last._replace(step=finish.back(run.last.step))
        run = run._replace(theta=finish.back(run.theta), last=last)
    if not run.status.converged and run.status is not Status.NOT_FINITE and finish.dense and not settled:
        run, settled = descent.run(problem, run.theta, 0.0, history), True
    theta, at, status, last = run
    hessian = None
    if finish.step and status.converged or finish.dense and not status.converged and status is not Status.NOT_FINITE:
        at = at if settled else problem.evaluate(theta)
        hessian = at.hessian
        assert hessian is not None
        step = -inverse_map(hessian.to_dense())(at.gradient) if finish.direction is None else finish.direction(at)
        last = Direction.of(step, at.gradient)
    value, norm, coarse = at.value, at.norm, at.norm > tol
    if hessian is not None and last is not None and status.converged:
        if norm > tol or not 0.0 <= last.decrement_squared <= _SHORT**2:
            there = theta + last.step
            new = problem.evaluate(there, None)
            # else rounding has the last word: the gradient of a mean is small where rows of little weight are far off
            if new.norm <= norm and new.value <= value + _ROUNDED * max(abs(value), 1.0):
                theta, value, norm = there, new.value, new.norm
        else:
            theta = theta + last.step
        if norm > tol and status is Status.CONVERGED and finish.dense:
            again = descent.run(problem, theta, 0.0, history)
            return finish_run(
                replace(finish, back=None), again, history, settled=True, tol=tol, max_iter=max_iter, scoring=scoring
            )
        if coarse and last.decrement > _STILL:
            hessian = None
    steps = tuple(history.steps)
    decrement = math.nan if last is None else last.decrement
    return Solution(
        theta,
        status,
        value,
        norm,
        len(steps) - 1,
        method,
        decrement,
        None if last is None else last.step,
        hessian if finish.dense else None,
        history=steps,
    )
