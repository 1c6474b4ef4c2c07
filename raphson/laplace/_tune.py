"""Prior precisions that suit the data: by the evidence, or by what is predicted of other data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.laplace._curvature import Curvature, curvature_of
from raphson.laplace._evidence import determinant, evidence
from raphson.laplace._operators import combined
from raphson.laplace._predictive import Link
from raphson.laplace._prior import Per, Prior, parts_modules, regrouped
from raphson.laplace._state import parameters_of
from raphson.likelihoods import Gaussian
from raphson.network import Objective, multiplied_factors

if TYPE_CHECKING:
    from raphson.laplace._posterior import Posterior

_FIXED_POINT_STEPS = 30
_RANGE = 1e10
"""Precisions stay between its inverse and this: beyond, a group is switched off, or free, to working precision."""

_GRID = np.logspace(-4, 4, 9)
"""Precisions that validation tries first; it then halves the distance between powers three times around the best."""


def tune_by_evidence(post: Posterior, per: Per | None, scale: bool) -> Posterior:
    """Return the posterior with the largest evidence in the prior precisions and, if asked for, the noise scale."""
    if scale and post.residuals is None:
        raise InputError(
            "scale=True tunes the scale of a Gaussian likelihood with one scale, and "
            f"{type(post.objective.likelihood).__name__} has none that is fixed."
        )
    post = _with_groups(post, per)
    squares = post.squares
    log_det = determinant(post.curvature, post.prior)
    start = post.residuals.scale if post.residuals is not None else 1.0

    def at(values: Tensor, sigma: float) -> tuple[float, Tensor, float]:
        """Return the evidence and its gradient at precisions and a scale."""
        prior = post.prior.with_values(values)
        if not scale or post.residuals is None:
            found = evidence(log_det, prior, squares, post.loss, post.temperature)
            return float(found.value), found.log_prior, 0.0
        own = post.residuals.at(sigma)
        found = evidence(log_det, prior, squares, own.loss, post.temperature, (start / sigma) ** 2, own)
        assert found.log_scale is not None
        return float(found.value), found.log_prior, float(found.log_scale)

    values, sigma = post.prior.values, start
    for _ in range(_FIXED_POINT_STEPS):
        before = values
        _, log_prior, log_scale = at(values, sigma)
        # delta |theta|^2 = P - delta tr at the fixed point: the gradient is half their difference
        determined = 2 * log_prior + values * squares
        values = (determined / squares).clamp(1 / _RANGE, _RANGE).nan_to_num(_RANGE)
        if scale and post.residuals is not None:
            free = post.residuals.count - float(determined.sum()) * post.temperature
            sigma = math.sqrt(post.residuals.total / max(free, 1.0))
        if bool(((values / before).log().abs() < 1e-3).all()):
            break
    values, sigma = _climb(at, values, sigma, scale)
    tuned = replace(post, prior=post.prior.with_values(values))
    return with_scale(tuned, sigma) if scale else tuned


def _climb(
    at: Callable[[Tensor, float], tuple[float, Tensor, float]], values: Tensor, sigma: float, scale: bool
) -> tuple[Tensor, float]:
    """Return where the evidence is largest near these precisions and scale."""
    from scipy.optimize import minimize

    def negative(point: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        own = torch.from_numpy(point[: len(values)]).to(values).exp()
        value, log_prior, log_scale = at(own, math.exp(point[-1]) if scale else sigma)
        gradient = log_prior.cpu().double().numpy()
        return -value, -np.append(gradient, log_scale) if scale else -gradient

    start = values.cpu().double().log().numpy()
    start = np.append(start, math.log(sigma)) if scale else start
    bounds = [(-math.log(_RANGE), math.log(_RANGE))] * len(values) + [(None, None)] * scale
    found = minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200}).x
    best = found if negative(found)[0] <= negative(start)[0] else start
    return torch.from_numpy(best[: len(values)]).to(values).exp(), math.exp(best[-1]) if scale else sigma


def with_scale(post: Posterior, sigma: float) -> Posterior:
    """Return the posterior with another scale of its Gaussian likelihood: curvature and loss change in closed form."""
    assert post.residuals is not None and isinstance(post.objective.likelihood, Gaussian)
    own, zeros = post.residuals.at(sigma), torch.zeros_like(post.mean)
    ratio = (post.residuals.scale / sigma) ** 2
    return replace(
        post,
        objective=post.objective.with_likelihood(replace(post.objective.likelihood, scale=sigma)),
        curvature=combined(post.curvature, ratio, zeros),
        factors=None if post.factors is None else multiplied_factors(post.factors, ratio),
        gradient=post.gradient * ratio,
        residuals=own,
        loss=own.loss,
    )


def tune_by_validation(post: Posterior, per: Per | None, data: Any, link: Link) -> Posterior:
    """Return the posterior whose predictive density of other data is largest."""
    post = _with_groups(post, per)
    held_out = Objective(
        post.objective.model.function, post.objective.likelihood, data, params=parameters_of(post.objective)
    )

    def score(values: Tensor) -> float:
        candidate = replace(post, prior=post.prior.with_values(values))
        total = 0.0
        for batch in held_out.batches():
            density = candidate.predict(batch.x, link=link).log_density(batch.y)
            weights = held_out.position_weights(batch)
            total += float((density if weights is None else density * weights).sum())
        return total

    values = post.prior.values.clone()
    for g in range(len(values)) if len(values) > 1 else [0]:
        tried: dict[float, float] = {}

        def at(log10: float, g: int = g, tried: dict[float, float] = tried) -> float:
            if log10 not in tried:
                candidate = values.clone()
                candidate[g] = 10.0**log10
                tried[log10] = score(candidate)
            return tried[log10]

        best = max((math.log10(v) for v in _GRID), key=at)
        for step in (0.5, 0.25, 0.125):
            best = max((best - step, best, best + step), key=at)
        values[g] = 10.0**best
    return replace(post, prior=post.prior.with_values(values))


def _with_groups(post: Posterior, per: Per | None) -> Posterior:
    """Return the posterior with the groups of the prior that are asked for."""
    if per is None:
        return post
    space = post.objective.space
    prior = post.prior
    if post.entries is not None:
        prior = Prior(prior.keys, prior.values, torch.zeros(space.numel, dtype=torch.long, device=space.device))
    prior = regrouped(prior, space.names, space.sizes, per)
    if post.entries is not None:
        prior = prior.of_entries(post.entries)
    parted = post.entries is None and parts_modules(prior, space.names, space.sizes)
    if not parted or post.bias == "separate" or post.structure not in {"kfac", "ekfac"}:
        return replace(post, prior=prior)
    if not post.complete:
        raise InputError(
            "A weight and its bias share a block here, and the data to part them are gone (after update, or loading): "
            "make the posterior with a prior_precision for each tensor, or tune per='layer'."
        )
    made = curvature_of(post.objective, Curvature(post.structure, "expected", "separate", 0, None))
    return replace(post, prior=prior, bias="separate", curvature=made.operator, factors=made.factors)
