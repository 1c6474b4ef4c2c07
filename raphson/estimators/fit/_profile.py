r"""Profile likelihood: intervals and tests of single coefficients by refits with the coefficient held.

With :math:`\ell_p(t)` the largest (penalized) log-likelihood over all :math:`\theta` whose coefficient is t, the
interval holds the t with :math:`2 (\ell_p(\hat t) - \ell_p(t)) \le \chi^2_{1, 1 - \alpha}` (Venzon and Moolgavkar 1988;
Heinze and Schemper 2002 for Jeffreys' penalty, which stays that of all coefficients). The signed root of that deviance
is nearly a straight line in t, so that Newton steps on it find a bound in a few refits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raphson._errors import NotEstimableError
from raphson.estimators.fit._fitted import Fitted
from raphson.estimators.fit._jeffreys import Delayed, DenseEvaluation, JeffreysObjective
from raphson.linalg import Dense
from raphson.linear import LinearObjective
from raphson.solve import newton

_TOL = 1e-10
"""Bound on the gradient of a refit: its value is then exact to rounding."""

_ROOT_TOL = 1e-8
"""Accuracy of the signed root at a bound, absolute."""

_FARTHEST = 1e3
"""So many standard errors away a bound that was not met yet is infinite."""

_STEPS = 60


@dataclass(frozen=True, eq=False)
class _Restricted:
    """A problem on the affine space ``base + basis u``."""

    problem: LinearObjective | JeffreysObjective
    base: Tensor
    basis: Tensor

    @property
    def n_parameters(self) -> int:
        return int(self.basis.shape[1])

    def value(self, u: Tensor) -> float:
        return self.problem.value(self.base + self.basis @ u)

    def evaluate(self, u: Tensor, hessian: Any = "observed") -> DenseEvaluation:
        at = self.problem.evaluate(self.base + self.basis @ u, hessian)
        given = at.hessian
        matrix = None
        if given is not None:
            matrix = Delayed(self.n_parameters, lambda: self.basis.mT @ given.to_dense() @ self.basis)
        gradient = self.basis.mT @ at.gradient
        return DenseEvaluation(at.value, gradient, self.problem.gradient_norm(self.basis @ gradient), matrix)

    def hessian(self, u: Tensor, kind: Any = "observed") -> Dense:
        matrix = self.problem.hessian(self.base + self.basis @ u, kind).to_dense()
        return Dense(self.basis.mT @ matrix @ self.basis)


class Profile:
    """The profile likelihood of one linear combination of the solver's parameters.

    Args:
        fitted: The fit.
        contrast: ``(p,)``, the combination.
        covariance: ``(p, p)`` of the solver's parameters, to start from.
    """

    def __init__(self, fitted: Fitted, contrast: Tensor, covariance: Tensor) -> None:
        self._problem = fitted.problem
        self._factor_cost, self._scoring = 0.0, not fitted.objective.likelihood.concave
        if isinstance(self._problem, JeffreysObjective):
            self._factor_cost, self._scoring = self._problem.factor_cost, self._problem.differenced
        self._theta, self._weight = fitted.solution.theta, fitted.objective.total_weight
        self._best = self._problem.value(self._theta)
        self._contrast = contrast
        self._direction = covariance @ contrast
        self.standard_error = math.sqrt(float(contrast @ self._direction))
        self.estimate = float(contrast @ self._theta)
        # an orthonormal basis of what leaves the combination unchanged
        self._basis = torch.linalg.qr(contrast[:, None], mode="complete")[0][:, 1:].contiguous()

    def deviance(self, t: float) -> tuple[float, float]:
        """Return twice the fall of the log-likelihood where the combination is held at t, and its derivative.

        Raises:
            NotEstimableError: If a refit does not converge.
        """
        start = self._theta + self._direction * ((t - self.estimate) / self.standard_error**2)
        if self._basis.shape[1]:
            restricted = _Restricted(self._problem, start, self._basis)
            found = newton(
                restricted,
                torch.zeros(self._basis.shape[1], dtype=torch.float64),
                tol=_TOL,
                factor_cost=self._factor_cost,
                scoring=self._scoring,
            )
            if not found.status.converged and found.gradient_norm > math.sqrt(_TOL):
                raise NotEstimableError(
                    f"No profile likelihood: with the coefficient held at {t:.4g} the refit does not converge. "
                    f"{found.status.sentence} Use method='wald'."
                )
            start = start + self._basis @ found.theta
        value, gradient = self._problem.value_and_gradient(start)
        slope = float(self._contrast @ gradient) / float(self._contrast @ self._contrast)
        return max(0.0, 2.0 * self._weight * (value - self._best)), 2.0 * self._weight * slope

    def bound(self, root: float, side: int) -> float:
        """Return where the root of the deviance is ``root``, below (-1) or above (1) the estimate, or infinity."""
        near, far = 0.0, math.inf
        distance = root * self.standard_error
        for _ in range(_STEPS):
            deviance, slope = self.deviance(self.estimate + side * distance)
            here = math.sqrt(deviance)
            if abs(here - root) <= _ROOT_TOL * max(1.0, root):
                break
            if here < root:
                near = distance
            else:
                far = distance
            if near > _FARTHEST * self.standard_error and math.isinf(far):
                return side * math.inf
            rate = side * slope / (2.0 * here) if here > 0.0 else 0.0
            step = distance + (root - here) / rate if rate > 0.0 else math.inf
            if not near < step < far or step > 4.0 * distance:
                step = 0.5 * (near + far) if math.isfinite(far) else 3.0 * distance
            distance = step
        return self.estimate + side * distance


def profiles(fitted: Fitted, covariance: Tensor, positions: list[int]) -> list[Profile]:
    """Return the profile likelihoods of the reported coefficients, all estimable, at some places."""
    rows = fitted.reported(torch.eye(fitted.objective.n_parameters, dtype=torch.float64)).mT
    return [Profile(fitted, rows[i].contiguous(), covariance) for i in positions]
