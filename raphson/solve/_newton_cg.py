r"""Newton's method with steps from preconditioned conjugate gradients: the Hessian is multiplied, never formed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from torch import Tensor

from raphson.linalg import CGStatus, cg
from raphson.solve._factor import Inverse
from raphson.solve._line_search import Direction, at_rounding, backtrack, is_finite
from raphson.solve._newton import Finish, Run, finish_run
from raphson.solve._solution import Callback, Evaluation, History, Problem, Solution, Status

_FORCING = 0.5
"""Largest relative residual accepted: far from the optimum an exact step is no better than a rough one."""

_TRUST = 0.9
"""A system is solved to this share of the factor by which the last step reduced the gradient."""

_DEAR = 60.0
"""Price in products from which a preconditioner has to be earned: where a few products do, it would never pay."""

_EXACT = 0.05
"""Smallest relative residual asked for, short of the tolerance: a step that gained more than this promises no more."""

_PRODUCTS = 500
"""Largest number of Hessian products for a step."""


def newton_cg(
    problem: Problem,
    start: Tensor,
    *,
    tol: float = 1e-8,
    max_iter: int = 100,
    precondition: Callable[[Evaluation], Inverse] | None = None,
    refresh_cost: float = 0.0,
    kind: str = "observed",
    finish: Finish | None = None,
    callback: Callback | None = None,
) -> Solution:
    r"""Minimize by truncated Newton steps.

    The systems are solved to a relative residual of :math:`\min(0.5,\, 0.9\, \|g_k\| / \|g_{k-1}\|)` (Eisenstat and
    Walker 1996, choice 2 with exponent 1): where steps gain little, as they do on nearly separated data, the quadratic
    model does not deserve more; no further than 0.05, nor than the tolerance asks for. A direction of negative
    curvature ends the inner iteration (Steihaug 1983).

    Args:
        problem: Objective whose Hessian has products.
        start: Starting point ``(p,)``, float64.
        tol: Bound on the gradient's norm.
        max_iter: Largest number of steps.
        precondition: Turns the state at a point into an approximate inverse of the Hessian.
        refresh_cost: What ``precondition`` costs, in Hessian products. It is kept from step to step until its solves
            have taken that many products more than they would at the rate of the first one.
        kind: Which Hessian: the expected one is never indefinite.
        finish: How to end; None for as it comes.
        callback: Called with a ``Step`` after every step.

    Returns:
        The solution; ``status`` says how it ended.
    """
    evaluate = functools.partial(problem.evaluate, hessian=kind)
    history = History(callback)
    theta, at = start, evaluate(start)
    history.add(at)
    status, last = Status.MAX_ITERATIONS, None
    if not is_finite(at):
        max_iter, status = 0, Status.NOT_FINITE
    inverse: Inverse | None = None
    plain = 0  # products without a preconditioner, which is made once they would have paid for it
    first, excess = 0, 0  # products of the first solve with the present preconditioner, and of later ones beyond that
    before = math.nan
    for _ in range(max_iter):
        if at.norm <= tol:
            break
        assert at.hessian is not None
        if precondition is not None and inverse is None and (refresh_cost <= _DEAR or plain >= refresh_cost):
            inverse, first, excess = precondition(at), 0, 0
        length = float(at.gradient.norm())
        gained = _FORCING if math.isnan(before) else min(_FORCING, _TRUST * length / before)
        forcing = max(gained, _EXACT, 0.5 * tol / at.norm)
        before = length
        right = -at.gradient.to(at.hessian.dtype)
        solved = cg(at.hessian, right, preconditioner=inverse, tol=forcing, max_iter=_PRODUCTS)
        step = solved.x.to(theta.dtype)
        if solved.status is CGStatus.NEGATIVE_CURVATURE and not bool(step.any()):
            step = -at.gradient
        last = Direction.of(step, at.gradient)
        found = backtrack(problem, theta, at, last, evaluate)
        if found is None:
            status = Status.PRECISION_REACHED if at_rounding(last, at) else Status.STALLED
            break
        theta, at, _ = found
        history.add(at)
        if inverse is None:
            plain += solved.iterations
            continue
        first = first or solved.iterations
        excess += solved.iterations - first
        if excess >= refresh_cost:
            inverse = None
    if at.norm <= tol and status is not Status.NOT_FINITE:
        status = Status.CONVERGED
    run = Run(theta, at, status, last)
    finish = finish or Finish(problem, step=False, dense=False)
    return finish_run(finish, run, history, settled=False, tol=tol, max_iter=max_iter, method="newton-cg")
