r"""Newton's method with truncated conjugate gradients in a trust region (Hessian-free)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from raphson.likelihoods import Likelihood
from raphson.linalg import SymmetricOperator
from raphson.network import Objective, ggn, hessian
from raphson.optim._network_problem import NetworkProblem
from raphson.optim._options import one_of, positive, whole
from raphson.solve import Solution, Status, Step

_ACCEPT, _BAD, _GOOD = 1e-4, 0.25, 0.75
_CONTRACTED = 0.5
"""Share of the gradient that a step in the interior of the region may leave with the Gauss-Newton matrix: where it
leaves more, what that matrix neglects decides on the rate, which is linear then."""

_ROUNDING = 2.0**-46
_TRIES = 60


class NewtonCG:
    r"""Newton steps whose systems are solved by products with the curvature, in a trust region.

    A step minimizes the model :math:`g^\top p + \tfrac12 p^\top B p` within :math:`\|p\| \le r` by conjugate gradients
    (Steihaug 1983): the residual is reduced to :math:`\min(\tfrac12, \sqrt{\|g\| / \|g_0\|})` of the gradient, or the
    iteration leaves the region or meets a direction of negative curvature, and then goes along it to the boundary. The
    radius follows the ratio of what the loss did to what the model promised. :math:`B` is the Gauss-Newton matrix with
    expected output Hessians (never indefinite) or the Hessian, and is not formed.

    The Gauss-Newton matrix neglects the second derivatives of the outputs. Far from a minimum that is for the better;
    near one with residuals its steps gain a fixed share of the gradient each, which can be a few percent, where those
    with the Hessian converge faster than linearly. ``"auto"`` begins with the first and goes over to the second when a
    step inside the region leaves more than half of the gradient (the idea of Fletcher and Xu 1987).

    Args:
        model: A module in evaluation mode, or a function ``f(params, *x)``.
        likelihood: A likelihood, or a torch loss that stands for one.
        params: As for ``Objective``.
        curvature: ``"auto"``, ``"ggn"`` or ``"hessian"``. In single steps ``"auto"`` is ``"ggn"``: gradients of
            different batches cannot be compared.
        l2: As for ``Objective``.
        radius: The first radius, in units of the parameters; None for the length of the first gradient step that
            minimizes the model.
        max_products: Largest number of products for a step.
        max_iter: Largest number of steps of ``minimize``.
        tol: ``minimize`` ends where no entry of the gradient is larger.

    Raises:
        InputError: An argument is not one of those above.

    References:
        R. Fletcher and C. Xu (1987), Hybrid methods for nonlinear least squares, IMA Journal of Numerical Analysis.
        T. Steihaug (1983), The conjugate gradient method and trust regions in large scale optimization. J. Martens
        (2010), Deep learning via Hessian-free optimization, ICML.

    Examples:
        The loss has a saddle point at 0, which the Hessian's negative curvature leads away from.

        >>> import torch
        >>> import raphson as rp
        >>> model = lambda p, x: p["a"] * p["b"] * x
        >>> params = {"a": torch.zeros(1).double(), "b": torch.full((1,), 1e-3).double()}
        >>> data = torch.ones(1, 1).double(), torch.ones(1, 1).double()
        >>> opt = rp.optim.NewtonCG(model, rp.Gaussian(normalized=False), params, curvature="hessian")
        >>> opt.minimize(data).value < 1e-10
        True
    """

    def __repr__(self) -> str:
        model, likelihood = (type(part).__name__ for part in self._made)
        return f"<NewtonCG for {model} with {likelihood}: curvature {self._curvature!r}>"

    def __init__(
        self,
        model: nn.Module | Callable[..., Tensor],
        likelihood: Likelihood | nn.Module,
        params: Mapping[str, Tensor] | str | Iterable[str] | None = None,
        *,
        curvature: Literal["auto", "ggn", "hessian"] = "auto",
        l2: float = 0.0,
        radius: float | None = None,
        max_products: int = 100,
        max_iter: int = 200,
        tol: float = 1e-6,
    ) -> None:
        one_of("curvature", curvature, ("auto", "ggn", "hessian"))
        if radius is not None:
            positive("radius", radius)
        positive("tol", tol)
        whole("max_products", max_products)
        whole("max_iter", max_iter, 0)
        self._made: tuple[Any, ...] = (model, likelihood)
        self._params, self._l2, self._curvature = params, l2, curvature
        self._max_products, self._max_iter, self._tol = max_products, max_iter, tol
        self.radius = radius
        self._first: float | None = None
        self._exact = curvature == "hessian"

    def step(self, x: Any, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """Take one accepted step for a batch, or none if no radius gives one.

        Args:
            x: Inputs, as for an ``Objective``.
            y: Targets.
            weight: Example weights ``(N,)``.

        Returns:
            The objective before the step.
        """
        problem = self._problem((x, y) if weight is None else (x, y, weight))
        value, gradient = problem.objective.value_and_gradient()
        self._advance(problem, float(value), gradient)
        return value

    def minimize(self, data: Any, callback: Callable[[Step], None] | None = None) -> Solution:
        """Minimize over data, from the model's present parameters; the model has those of the solution afterwards.

        Args:
            data: As for an ``Objective``.
            callback: Called with a ``Step`` after every iteration.

        Returns:
            The solution; ``hessian`` is None.
        """
        problem, begin, steps = self._problem(data), time.perf_counter(), []
        self._first, last, status = None, None, Status.MAX_ITERATIONS
        self._exact, before, inside = self._curvature == "hessian", math.inf, False
        for iteration in range(self._max_iter + 1):
            number, gradient = problem.objective.value_and_gradient()
            value, norm = float(number), float(gradient.abs().max())
            steps.append(Step(iteration, time.perf_counter() - begin, value, norm))
            if callback is not None:
                callback(steps[-1])
            if norm <= self._tol:
                status = Status.CONVERGED
                break
            if iteration == self._max_iter:
                break
            length = float(gradient.norm())
            self._exact |= self._curvature == "auto" and inside and length > _CONTRACTED * before
            before = length
            moved = self._advance(problem, value, gradient)
            if moved.status is not None:
                status = moved.status
                break
            last, inside = moved.step, moved.inside
        return Solution(
            problem.theta,
            status,
            value,
            norm,
            len(steps) - 1,
            "trust-region newton-cg",
            last_step=last,
            history=tuple(steps),
        )

    def _problem(self, data: Any) -> NetworkProblem:
        model, likelihood = self._made
        return NetworkProblem(Objective(model, likelihood, data, params=self._params, l2=self._l2))

    def _matrix(self, problem: NetworkProblem) -> SymmetricOperator:
        if self._exact:
            return hessian(problem.objective)
        return ggn(problem.objective, kind="expected")

    def _advance(self, problem: NetworkProblem, value: float, gradient: Tensor) -> _Moved:
        theta, length = problem.theta, float(gradient.norm())
        self._first = self._first or length
        if length == 0:
            return _Moved(gradient, Status.CONVERGED, True)
        forcing = min(0.5, math.sqrt(length / self._first))
        for _ in range(_TRIES):
            found = steihaug(self._matrix(problem), gradient, self.radius, forcing, self._max_products)
            size = float(found.step.norm())
            problem.put(theta + found.step)
            change = problem.value() - value
            if -found.promised <= _ROUNDING * abs(value):
                if math.isfinite(change) and float(problem.objective.gradient().norm()) < length:
                    return _Moved(found.step, None, not found.on_boundary)
                problem.put(theta)
                return _Moved(found.step, Status.PRECISION_REACHED, True)
            ratio = change / found.promised
            if ratio < _BAD:
                self.radius = 0.25 * size
            elif self.radius is None or (ratio > _GOOD and found.on_boundary):
                self.radius = 2.0 * size
            if ratio > _ACCEPT:
                return _Moved(found.step, None, not found.on_boundary)
            problem.put(theta)
        return _Moved(found.step, Status.STALLED, False)


class _Moved(NamedTuple):
    """Outcome of an iteration: the step, how the run ended (None while it goes on), whether it is inside the region."""

    step: Tensor
    status: Status | None
    inside: bool


class TrustRegionStep(NamedTuple):
    """A step in a trust region.

    Attributes:
        step: The step, ``(P,)``.
        promised: The change that the model promises.
        on_boundary: Whether it ends on the boundary.
        products: Number of products that were taken.
    """

    step: Tensor
    promised: float
    on_boundary: bool
    products: int


def steihaug(
    matrix: SymmetricOperator, gradient: Tensor, radius: float | None, forcing: float, max_products: int
) -> TrustRegionStep:
    """Minimize a quadratic model in a ball by conjugate gradients, which negative curvature leads to its boundary.

    Args:
        matrix: Its matrix.
        gradient: Its gradient, ``(P,)``.
        radius: Of the ball; None: where curvature is not positive, the length of the gradient.
        forcing: Share of the gradient to which the residual is reduced.
        max_products: Largest number of products.

    Returns:
        The step.
    """
    p, moved = torch.zeros_like(gradient), torch.zeros_like(gradient)  # the step, and the matrix times it
    r, d = gradient.clone(), -gradient
    rr = float(r @ r)
    target, ball = forcing**2 * rr, math.inf if radius is None else radius
    boundary, count = False, 0
    while count < max_products and rr > target:
        product = matrix @ d
        count += 1
        curvature = float(d @ product)
        length = rr / curvature if curvature > 0 else math.inf
        limit = _to_boundary(p, d, ball if ball < math.inf else float(gradient.norm()))
        if curvature <= 0 or (ball < math.inf and length >= limit):
            p, moved, boundary = p + limit * d, moved + limit * product, True
            break
        p, moved, r = p + length * d, moved + length * product, r + length * product
        before, rr = rr, float(r @ r)
        d = d * (rr / before) - r
    return TrustRegionStep(p, float(gradient @ p + 0.5 * (p @ moved)), boundary, count)


def _to_boundary(p: Tensor, d: Tensor, radius: float) -> float:
    """Return the positive t with ``|p + t d| = radius``; where p is outside already, that of a step as long."""
    a, b, c = float(d @ d), float(p @ d), float(p @ p) - radius**2
    if c >= 0:
        return radius / math.sqrt(a)
    return (-b + math.sqrt(b * b - a * c)) / a
