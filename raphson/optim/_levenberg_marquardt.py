r"""Levenberg-Marquardt for networks of moderate size."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from raphson.likelihoods import Likelihood
from raphson.network import Objective
from raphson.optim._gauss_newton import DENSE, DenseModel, Linearized, ProductModel
from raphson.optim._network_problem import NetworkProblem, second_along
from raphson.optim._options import flag, one_of, positive, whole
from raphson.solve import Solution, Status, Step

_ACCEPT = 1e-4
_UNSEEN, _BLURRED = 2.0**-46, 2.0**-20
"""Shares of the objective below which what is left to gain cannot be seen in it, or may not be: residuals that are
small against the outputs have as many digits less."""

_STEP = 0.1
"""Length of the differences that give second derivatives along a step, in steps (Transtrum and Sethna 2012)."""

_BENT = 0.75
"""Share of a step that its acceleration may have (Transtrum and Sethna 2012, alpha)."""

_FORGET = 0.3
"""Share of a parameter's scale that outlives a step."""

_SMALLEST = 1e-18

_TRIES = 60


class LevenbergMarquardt:
    r"""Damped Gauss-Newton steps, for few parameters and high accuracy.

    With :math:`G = \tilde J^\top \tilde J`, where :math:`\tilde J` is the Jacobian of the outputs times a square root
    of the likelihood's expected output Hessian (least squares for a Gaussian), a step solves

    .. math:: (G + \lambda D^2)\, \delta = -g, \qquad D_p = \max(\sqrt{G_{pp}},\ 0.3\, D_p \text{ of the step before})

    by orthogonal triangularization up to 2,048 parameters: half as many digits are lost as with normal equations. The
    scaling is Marquardt's, kept from falling fast as by More (1978), whose maximum over all steps freezes a parameter
    that once was far away. :math:`\lambda` follows the gain ratio, the change of the loss over what the model promised
    (Nielsen 1999). With geodesic acceleration half of :math:`a = -(G + \lambda D^2)^{-1} J^\top H f''` is added, where
    :math:`f''` is the second derivative of the outputs along :math:`\delta`, and steps of too much curvature,
    :math:`2 \|D a\| > 0.75\, \|D \delta\|`, are refused (Transtrum and Sethna 2012).

    Of NIST's 27 nonlinear regressions it solves all from both starting points, to 6 digits of the parameters and more.
    Residuals have fewer digits where they are small against the outputs: those of Lanczos1, a hundred times float64's
    rounding, have two.

    Args:
        model: A module in evaluation mode, or a function ``f(params, *x)``; float64 for more than a few digits.
        likelihood: A likelihood, or a torch loss that stands for one.
        params: As for ``Objective``.
        l2: :math:`\lambda` of the penalty of an ``Objective``.
        damping: :math:`\lambda` of the first step, relative to :math:`D^2`.
        geodesic: Whether to add the acceleration.
        solver: ``"dense"``, ``"cg"``, or ``"auto"``: dense up to 2,048 parameters.
        max_iter: Largest number of steps of ``minimize``.
        tol: ``minimize`` ends where a full Gauss-Newton step is shorter than that, relative to the parameters, both in
            units of D.

    Raises:
        InputError: An argument is not one of those above.

    References:
        J. J. More (1978), The Levenberg-Marquardt algorithm: implementation and theory. M. K. Transtrum and
        J. P. Sethna (2012), Improvements to the Levenberg-Marquardt algorithm for nonlinear least-squares minimization.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> model = lambda p, x: p["a"] * torch.exp(p["b"] * x)
        >>> params = {"a": torch.ones(1).double(), "b": torch.zeros(1).double()}
        >>> x = torch.arange(5.0).double().unsqueeze(1)
        >>> lm = rp.optim.LevenbergMarquardt(model, rp.Gaussian(normalized=False), params)
        >>> solution = lm.minimize((x, 2 * torch.exp(-0.5 * x)))
        >>> [round(v, 6) for v in solution.theta.tolist()]
        [2.0, -0.5]
    """

    def __repr__(self) -> str:
        model, likelihood = (type(part).__name__ for part in self._made)
        return f"<LevenbergMarquardt for {model} with {likelihood}: damping {self.damping:g}>"

    def __init__(
        self,
        model: nn.Module | Callable[..., Tensor],
        likelihood: Likelihood | nn.Module,
        params: Mapping[str, Tensor] | str | Iterable[str] | None = None,
        *,
        l2: float = 0.0,
        damping: float = 1e-2,
        geodesic: bool = True,
        solver: Literal["auto", "dense", "cg"] = "auto",
        max_iter: int = 500,
        tol: float = 1e-10,
    ) -> None:
        one_of("solver", solver, ("auto", "dense", "cg"))
        positive("damping", damping)
        positive("tol", tol)
        whole("max_iter", max_iter, 0)
        flag("geodesic", geodesic)
        self._made: tuple[Any, ...] = (model, likelihood)
        self._params, self._l2 = params, l2
        self._geodesic, self._solver, self._max_iter, self._tol = geodesic, solver, max_iter, tol
        self.damping = damping
        self._growth = 2.0
        self._scales: Tensor | None = None
        self._model: Linearized | None = None

    def step(self, x: Any, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """Take one accepted step for a batch, or none if no damping gives one.

        Args:
            x: Inputs, as for an ``Objective``.
            y: Targets.
            weight: Example weights ``(N,)``.

        Returns:
            The objective before the step.
        """
        problem, self._model = self._problem((x, y) if weight is None else (x, y, weight)), None
        value = problem.value()
        if not math.isfinite(value):
            problem.objective.value()  # names the row
        self._advance(problem, value)
        return torch.tensor(value, dtype=problem.objective.dtype)

    def minimize(self, data: Any, callback: Callable[[Step], None] | None = None) -> Solution:
        """Minimize over data, from the model's present parameters; the model has those of the solution afterwards.

        Args:
            data: As for an ``Objective``.
            callback: Called with a ``Step`` after every iteration.

        Returns:
            The solution; ``hessian`` is None.
        """
        problem, start, steps = self._problem(data), time.perf_counter(), []
        self._scales, self._model, self._growth = None, None, 2.0
        value, status, last = problem.value(), Status.MAX_ITERATIONS, None
        gradient = math.nan
        if not math.isfinite(value):
            problem.objective.value()
        for iteration in range(self._max_iter + 1):
            made = self._advance(problem, value, last=iteration == self._max_iter)
            gradient = float(made.gradient.abs().max())
            steps.append(Step(iteration, time.perf_counter() - start, value, gradient))
            if callback is not None:
                callback(steps[-1])
            if made.status is not None:
                status = made.status
                break
            value, last = made.value, made.step
        theta = problem.theta
        return Solution(
            theta, status, value, gradient, len(steps) - 1, "levenberg-marquardt", last_step=last, history=tuple(steps)
        )

    def _problem(self, data: Any) -> NetworkProblem:
        model, likelihood = self._made
        return NetworkProblem(Objective(model, likelihood, data, params=self._params, l2=self._l2))

    def _linearized(self, problem: NetworkProblem) -> Linearized:
        objective = problem.objective
        dense = self._solver == "dense" or (self._solver == "auto" and objective.n_parameters <= DENSE)
        return DenseModel(objective) if dense else ProductModel(objective)

    def _advance(self, problem: NetworkProblem, value: float, last: bool = False) -> _Advance:
        """Go to the next point, with the damping that leads to one."""
        model, self._model = self._model or self._linearized(problem), None
        theta, gradient = problem.theta, model.gradient
        self._scales = model.scales if self._scales is None else torch.maximum(_FORGET * self._scales, model.scales)
        scales = torch.where(self._scales > 0, self._scales, 1.0)
        size = float((scales * theta).norm())
        if model.newton_size(scales) <= self._tol * size or not bool(gradient.any()):
            return _Advance(gradient, value, None, Status.CONVERGED)
        if last:
            return _Advance(gradient, value, None, None)
        left = 0.5 * model.merit(scales) ** 2  # what a full step promises
        for attempt in range(_TRIES):
            step, curved = self._proposed(problem, model, theta, scales)
            promised = model.promised(step)
            problem.put(theta + step + 0.5 * curved)
            new = problem.value()
            ratio = (new - value) / promised if promised < 0 else -math.inf
            bent = 2 * float((scales * curved).norm()) > _BENT * float((scales * step).norm())
            if ratio > _ACCEPT and not bent and left > _UNSEEN * abs(value):
                self.damping = max(self.damping * max(1 / 3, 1 - (2 * ratio - 1) ** 3), _SMALLEST)
                self._growth = 2.0
                return _Advance(gradient, new, step, None)
            if attempt == 0 and left <= _BLURRED * abs(value) and math.isfinite(new):
                # rounding of the outputs may hide it in the objective: the gradient tells
                found = self._linearized(problem)
                if found.merit(scales) < model.merit(scales):
                    self._model = found
                    return _Advance(gradient, new, step, None)
            problem.put(theta)
            if left <= _UNSEEN * abs(value):
                return _Advance(gradient, value, step, Status.PRECISION_REACHED)
            self.damping, self._growth = self.damping * self._growth, self._growth * 2
        blurred = left <= _BLURRED * abs(value)
        return _Advance(gradient, value, None, Status.PRECISION_REACHED if blurred else Status.STALLED)

    def _proposed(
        self, problem: NetworkProblem, model: Linearized, theta: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the damped Gauss-Newton step and its geodesic acceleration."""
        solver = model.damped(scales, self.damping)
        step = solver.step()
        zero = torch.zeros_like(step)
        if not self._geodesic:
            return step, zero
        bend = second_along(problem, theta, step, _STEP)
        if bend is None:
            return step, zero
        curved = -solver.solve(bend)
        return step, curved if bool(torch.isfinite(curved).all()) else zero


class _Advance(NamedTuple):
    """Outcome of an iteration.

    Attributes:
        gradient: The gradient before it.
        value: The objective after it.
        step: The Gauss-Newton step; None where there was none.
        status: How the run ended; None while it goes on.
    """

    gradient: Tensor
    value: float
    step: Tensor | None
    status: Status | None
