r"""Training of a small network with its posterior: the expected loss, and prior precisions by evidence.

A round minimizes, in the parameters :math:`\theta`,

.. math:: \sum_n w_n\, \mathrm{E}\,\ell(f_n(\theta) + \varepsilon_n, y_n) + \tfrac12 \sum_g \delta_g \|\theta_g\|^2,
    \qquad \varepsilon_n \sim N(0, J_n \Lambda^{-1} J_n^\top),

with the posterior precision :math:`\Lambda` of the round before, by L-BFGS from its inverse; then :math:`\Lambda` and
:math:`\delta_g = (P_g - \delta_g \operatorname{tr}_g \Lambda^{-1}) / \|\theta_g\|^2` are computed anew. The expectation
over outputs is what keeps a scale that is learned from shrinking to the residuals of an overfitted mean: for a Gaussian
with a constant scale its optimum is the evidence's, :math:`\sigma^2 = R / (n - \sum_g \gamma_g)`. The precision is of
the output curvature averaged likewise, :math:`\mathrm{E}\,H_n`: at the outputs themselves the curvature of nearly
separated classes vanishes, and the covariance would grow from round to round. Expectations are taken at the :math:`2C`
points :math:`\pm\sqrt C\,L_n e_c` with :math:`L_n L_n^\top` the covariance, which have its moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from raphson._errors import IndefiniteError
from raphson.estimators.networks._expected import ExpectedCurvature
from raphson.laplace import Posterior, Predictive, Prior, inside, laplace
from raphson.likelihoods import Gaussian, Likelihood
from raphson.linalg import Dense, cholesky, cholesky_solve
from raphson.network import Objective
from raphson.solve import lbfgs

LOWEST, HIGHEST = 1e-4, 1e6
"""Bounds of prior precisions, for inputs and outputs of size 1."""


@dataclass(frozen=True)
class _Pace:
    """How training goes with the posterior of a structure.

    Attributes:
        rounds: Largest number of rounds.
        steps: Largest number of L-BFGS steps in a round.
        fall: Fall of the bound, for each row, below its best value at which training ends with the best round.
        growth: Growth of steps, with all pairs of a round held; None for L-BFGS as it is by default.
    """

    rounds: int
    steps: int
    fall: float
    growth: float | None


_APPROXIMATE = _Pace(rounds=14, steps=40, fall=0.02, growth=None)
"""An approximate structure drifts: its precisions of the last layer shrink from round to round (digits with kfac: the
bound falls by 0.05 in ten rounds, the log density of other rows from -0.28 to -0.89). Nor is a round minimized further
with a precision that is off: with kfac, digits fall from -0.29 to -0.34 in the second round, from there to -1.06."""

_PACES = {"dense": _Pace(rounds=8, steps=60, fall=1.0, growth=2.0)}
"""Of a dense structure all pairs of a round are held, and steps grow slowly: 1.5 evaluations for a step instead of 1.9,
and 8 rounds of 60 steps with 60 pairs reach a held-out log density that 14 of 40 with 20 do not (concrete -2.86 and
-2.92, mean over divisions 2 and 3, two seeds). Only a collapse ends it: the bound of Student t networks falls by 0.1
for a while, as the expected information is not their Hessian, and they improve."""


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        structure: Of the posterior.
        tol: Training ends when the bound on the evidence changes by less for each example, twice.
        max_rounds: Largest number of rounds; None for what suits the structure.
        max_steps: Largest number of steps in a round; None for what suits the structure.
    """

    structure: Any
    tol: float
    max_rounds: int | None = None
    max_steps: int | None = None

    @property
    def pace(self) -> _Pace:
        """How training goes with this structure."""
        pace = _PACES.get(self.structure, _APPROXIMATE)
        return replace(pace, rounds=self.max_rounds or pace.rounds, steps=self.max_steps or pace.steps)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network.

    Attributes:
        posterior: Its posterior.
        bounds: A lower bound on the log evidence after each round.
        converged: Whether the last rounds changed it little.
    """

    posterior: Posterior
    bounds: list[float]
    converged: bool


def train(
    model: nn.Sequential,
    likelihood: Likelihood,
    data: tuple[Tensor, Tensor, Tensor | None],
    options: Training,
    progress: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train a network, whose parameters are changed, and return its posterior.

    Args:
        model: The network, in double precision; its last module is linear.
        likelihood: The likelihood; a Gaussian's scale is tuned as well.
        data: Inputs, targets and weights.
        options: How to train.
        progress: Called with the number of the round and the bound.

    Returns:
        The trained network.

    Raises:
        IndefiniteError: Curvatures are beyond rounding after each try of the first round.
    """
    x, y, weight = data
    batch = (x, y) if weight is None else (x, y, weight)
    groups = _groups(model, fine=options.structure in {"dense", "diagonal"})
    values = torch.ones(len(groups.keys), dtype=x.dtype)
    cloud: Tensor | None = None
    bounds: list[float] = []
    small = 0
    best: tuple[Posterior, Tensor, Likelihood] | None = None
    post = laplace(model, likelihood, batch, structure=options.structure)
    pace = options.pace
    start, steps = post, pace.steps
    reach: dict[str, Any] = {} if pace.growth is None else {"memory": pace.steps, "growth": pace.growth}
    for number in range(pace.rounds):
        post = replace(post, prior=groups.with_values(values))
        loss = _ExpectedLoss(post, x, y, weight, cloud)
        found = lbfgs(loss, post.mean, _inverse(post), max_iter=steps, tol=1e-5, **reach)
        torch.nn.utils.vector_to_parameters(found.theta, model.parameters())
        try:
            post = replace(_posterior(model, likelihood, batch, options.structure, cloud), prior=post.prior)
            cloud = symmetric_points(post.predict(x))
        except IndefiniteError:  # a scale fell so far that curvatures are beyond rounding: a collapse, as below
            if best is None and (steps == 1 or number == pace.rounds - 1):
                raise
            if best is None:  # nothing but the prior holds a scale in the first round: stop it earlier
                post, steps = start, max(1, steps // 4)
                torch.nn.utils.vector_to_parameters(start.mean.clone(), model.parameters())
                continue
            post, values, likelihood = best
            torch.nn.utils.vector_to_parameters(post.mean.clone(), model.parameters())
            break
        fit = float(_ExpectedLoss(post, x, y, weight, cloud)(post.mean)[0])
        traces = post.prior.sums(post.variance())
        determinant = float(post.precision.slogdet().logabsdet)
        half = values @ traces + determinant - groups.sizes @ values.log() - post.n_parameters
        bounds.append(-fit - 0.5 * float(half))
        if progress is not None:
            progress(number, bounds[-1])
        if isinstance(likelihood, Gaussian):
            likelihood = _with_noise(likelihood, post, x, y, weight, cloud)
            post = laplace(model, likelihood, batch, structure=options.structure)
            post = replace(post, prior=groups.with_values(values))
        change = abs(bounds[-1] - bounds[-2]) / len(x) if len(bounds) > 1 else math.inf
        small = small + 1 if change < options.tol else 0
        if best is None or bounds[-1] >= max(bounds[:-1]):
            best = post, values, likelihood
        if bounds[-1] < max(bounds) - pace.fall * len(x):
            post, values, likelihood = best
            torch.nn.utils.vector_to_parameters(post.mean.clone(), model.parameters())
            break
        if small > 1 or number == pace.rounds - 1:
            break
        values = ((groups.sizes - values * traces).clamp_min(1e-3) / post.squares).clamp(LOWEST, HIGHEST)
    objective = Objective(model, likelihood, batch)
    post = replace(post, objective=objective, versions=objective.model.versions())
    return Trained(post, bounds, small > 1)


class _ExpectedLoss:
    """The loss averaged over points around the outputs, plus the prior: value and gradient at parameters ``(P,)``."""

    def __init__(self, post: Posterior, x: Tensor, y: Tensor, weight: Tensor | None, cloud: Tensor | None) -> None:
        self._objective, self._prior = post.objective, post.prior.vector
        self._x, self._weight = x, weight
        self._cloud = torch.zeros(1, 1, 1, dtype=x.dtype) if cloud is None else cloud
        self._y = y.expand(len(self._cloud), *y.shape)

    def __call__(self, theta: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """Return the value, and a function that returns the gradient."""
        objective, likelihood = self._objective, self._objective.likelihood
        leaves = {name: p.requires_grad_() for name, p in objective.space.unflatten(theta.clone()).items()}
        f = objective.model.call(leaves, self._x)
        around = f.detach() + self._cloud
        with torch.no_grad():
            nll = likelihood.nll(around, self._y)
            if not bool(torch.isfinite(nll).all()):  # thresholds that passed each other, a negative scale
                around = inside(likelihood, f.detach(), self._cloud)
                nll = likelihood.nll(around, self._y)
            nll = nll.mean(0)
        pull = self._prior * theta

        def gradient() -> Tensor:
            sums = likelihood.gradient(around, self._y).mean(0)
            if self._weight is not None:
                sums = sums * self._weight.unsqueeze(-1)
            parts = torch.autograd.grad(f, list(leaves.values()), sums)
            return torch.cat([part.reshape(-1) for part in parts]) + pull

        loss = nll.sum() if self._weight is None else self._weight @ nll
        return loss + 0.5 * (theta @ pull), gradient


def _posterior(
    model: nn.Sequential, likelihood: Likelihood, batch: tuple[Tensor, ...], structure: Any, cloud: Tensor | None
) -> Posterior:
    """Return the posterior with the output curvature averaged over the points."""
    if cloud is None or isinstance(likelihood, Gaussian):
        return laplace(model, likelihood, batch, structure=structure)
    averaged, packed = ExpectedCurvature.around(likelihood, batch[1], cloud)
    found = laplace(model, averaged, (batch[0], packed, *batch[2:]), structure=structure)
    return replace(found, objective=Objective(model, likelihood, batch))


def symmetric_points(predicted: Predictive) -> Tensor:
    """Return ``2C`` points ``(2C, N, C)`` about the outputs with mean 0 and their covariances, within the domain."""
    covariance = predicted.output_covariance
    c = covariance.shape[-1]
    level = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * 1e-9
    eye = torch.eye(c, dtype=covariance.dtype, device=covariance.device)
    columns = math.sqrt(c) * cholesky(covariance + (level + 1e-300) * eye).movedim(-1, 0)
    f = predicted.output_mean
    return inside(predicted.likelihood, f, torch.cat([columns, -columns])) - f


def _inverse(post: Posterior) -> Callable[[Tensor], Tensor]:
    """Return the product with the posterior covariance."""
    precision = post.precision
    if not isinstance(precision, Dense):
        return precision.solve
    lower = cholesky(precision.matrix)
    return lambda v: cholesky_solve(lower, v.unsqueeze(-1)).squeeze(-1)


def _groups(model: nn.Sequential, fine: bool) -> Prior:
    """Return a prior with a precision for each tensor, and of the last weight for each output; or for each layer."""
    keys: list[str] = []
    places: list[Tensor] = []
    names = [name for name, _ in model.named_parameters()]
    for name, p in model.named_parameters():
        if not fine:
            layer = name.rpartition(".")[0]
            keys += [] if layer in keys else [layer]
            places.append(torch.full((p.numel(),), keys.index(layer)))
        elif name == names[-2]:
            places.append((torch.arange(p.shape[0]) + len(keys)).repeat_interleave(p.shape[1]))
            keys += [f"{name}[{i}]" for i in range(p.shape[0])]
        else:
            places.append(torch.full((p.numel(),), len(keys)))
            keys.append(name)
    return Prior(tuple(keys), torch.ones(len(keys), dtype=torch.float64), torch.cat(places))


def _with_noise(
    likelihood: Gaussian, post: Posterior, x: Tensor, y: Tensor, weight: Tensor | None, cloud: Tensor
) -> Gaussian:
    """Return a Gaussian with the scale that the residuals around the outputs' points have."""
    with torch.no_grad():
        f = post.objective.model.call(None, x)
        squares = (y.reshape(f.shape) - f - cloud).square().mean(0)
        mean = squares.mean() if weight is None else (weight @ squares).mean() / weight.sum()
    return replace(likelihood, scale=float(mean.clamp_min(1e-12).sqrt()))
