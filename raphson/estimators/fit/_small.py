"""Small fits: Newton's method from start to end in one compiled call."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from raphson.linear import LinearObjective, NewtonRules
from raphson.solve import ARMIJO, EXTENSIONS, LONGEST, ROUNDING, STEEP, Callback, Solution, Status, Step

_SMALL = 1e6
"""Nanoseconds of a dense Hessian below which every step has its own: another step costs calls, a factor little more."""

_RULES = NewtonRules(EXTENSIONS, ARMIJO, ROUNDING, STEEP, LONGEST)


def small_fit(
    objective: LinearObjective, start: Tensor, *, tol: float, max_iter: int, callback: Callback | None
) -> Solution | None:
    """Take compiled Newton steps, if the objective is small and compiled.

    Args:
        objective: The objective.
        start: Free coefficients to start from, ``(p,)``.
        tol: Bound on the gradient norm.
        max_iter: Largest number of steps.
        callback: Called with every ``Step``, after the last one.

    Returns:
        What they led to; or None for another kind of objective. Where Newton steps lead no further, the status is that
        the iteration limit was reached, and another solver can go on from there.
    """
    if objective.dense_nanoseconds > _SMALL:
        return None
    found = objective.newton_steps(start, _RULES, tol=tol, limit=max_iter)
    if found is None:
        return None
    begun = found.history[0][2]
    history = tuple(Step(i, at - begun, value, norm) for i, (value, norm, at) in enumerate(found.history))
    if callback is not None:
        for step in history:
            callback(step)
    decrement = math.nan if math.isnan(found.decrement_squared) else math.sqrt(max(found.decrement_squared, 0.0))
    return Solution(
        found.theta,
        Status.CONVERGED if found.converged else Status.MAX_ITERATIONS,
        history[-1].value,
        history[-1].gradient_norm,
        len(history) - 1,
        "quasi-newton",
        decrement,
        None if math.isnan(decrement) else found.last_step,
        history=history,
    )


def continued(first: Solution, second: Solution) -> Solution:
    """Return a solution that was found from another one, with the history of both."""
    steps, seconds = first.iterations, first.history[-1].seconds
    later = tuple(s._replace(iteration=s.iteration + steps, seconds=s.seconds + seconds) for s in second.history[1:])
    return replace(second, iterations=steps + second.iterations, history=first.history + later)
