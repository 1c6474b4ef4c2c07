r"""First-order baselines, so that a user can compare them with Newton's method on one objective."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from raphson.solve._solution import Callback, History, Problem, Solution, Status


class Sampled(Problem, Protocol):
    """A problem that is a mean over rows and can be restricted to some of them."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""

    def take(self, index: Tensor) -> Sampled:
        """Return the mean over the rows named."""


def gradient_descent(
    problem: Problem,
    start: Tensor,
    *,
    lipschitz: float,
    tol: float = 1e-8,
    max_iter: int = 10_000,
    callback: Callback | None = None,
) -> Solution:
    r"""Minimize by gradient descent with the fixed step :math:`1 / \mathcal L`.

    With :math:`\mathcal L` (``lipschitz``) a bound on the largest Hessian eigenvalue every step lowers the objective
    by at least :math:`\|g\|^2 / 2\mathcal L`; for the softmax Bohning's bound is such a bound (Bohning 1992).

    Returns:
        The solution.
    """
    history = History(callback)
    theta = start
    at = problem.evaluate(theta, None)
    history.add(at)
    status = Status.MAX_ITERATIONS
    for _ in range(max_iter):
        if at.norm <= tol:
            break
        theta = theta - at.gradient / lipschitz
        at = problem.evaluate(theta, None)
        history.add(at)
        if not math.isfinite(at.value):
            status = Status.NOT_FINITE
            break
    if at.norm <= tol:
        status = Status.CONVERGED
    return history.solution(theta, at, status, "gradient-descent")


def stochastic_gradient_descent(
    problem: Sampled,
    start: Tensor,
    *,
    lipschitz: float,
    strong_convexity: float = 0.0,
    batch_size: int = 32,
    tol: float = 1e-3,
    max_iter: int = 100,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Solution:
    r"""Minimize a mean over rows by stochastic gradient descent over shuffled batches, with averaging.

    Step t is :math:`1 / (2 \mathcal L + \mu t)` with the strong convexity :math:`\mu` (a penalty's), or
    :math:`1 / (2 \mathcal L \sqrt{1 + t / T})` with T steps per pass if :math:`\mu = 0`; :math:`\mathcal L` bounds the
    Hessian of a batch. The answer is the mean of the iterates weighted by t + 1, which removes the noise floor of the
    last one (Lacoste-Julien, Schmidt and Bach 2012). The gradient of the whole objective is looked at after every pass,
    of which there are up to ``max_iter``; without a generator the shuffles are those of seed 0.

    Returns:
        The solution; its gradient norm is that of the whole objective.
    """
    generator = generator or torch.Generator().manual_seed(0)
    history = History(callback)
    theta = average = start
    at = problem.evaluate(theta, None)
    history.add(at)
    status = Status.CONVERGED if at.norm <= tol else Status.MAX_ITERATIONS
    batches_per_pass = math.ceil(problem.n_rows / batch_size)
    step = 0
    for _ in range(max_iter if status is not Status.CONVERGED else 0):
        for batch in torch.randperm(problem.n_rows, generator=generator).split(batch_size):  # type: ignore[no-untyped-call]
            gradient = problem.take(batch).evaluate(theta, None).gradient
            if strong_convexity > 0:
                rate = 1.0 / (2.0 * lipschitz + strong_convexity * step)
            else:
                rate = 1.0 / (2.0 * lipschitz * math.sqrt(1.0 + step / batches_per_pass))
            theta = theta - rate * gradient
            average = average + (theta - average) * (2.0 / (step + 2.0))
            step += 1
        at = problem.evaluate(average, None)
        history.add(at)
        if at.norm <= tol or not math.isfinite(at.value):
            status = Status.CONVERGED if at.norm <= tol else Status.NOT_FINITE
            break
    return history.solution(average, at, status, "sgd")
