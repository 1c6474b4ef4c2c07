r"""Where a fit starts: outputs constant over rows, then one scoring step from there.

Where outputs are the same in all rows, the information is one (C, C) matrix for all of them, the mean of their output
Hessians near enough, and the step regresses a linearized target on the columns. Where the likelihood knows the second
parameter (scale, dispersion, precision) that suits the first one, the two have a step each, as if they were orthogonal,
and then the second its intercept from there. For a Gaussian of constant scale that is the optimum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.estimators.input._rows import Rows, dense
from raphson.likelihoods import COUNT, OPEN_UNIT_INTERVAL, REAL, Likelihood
from raphson.linear import LinearObjective, OutputMap, as_list
from raphson.solve import inverse_map

_START_ROWS = 2**14
"""Rows from which the point to start at is guessed; it only has to be near. Drawing some of 10000 takes 60 us."""

_REGRESSED_ROWS = 4096
"""Rows whose columns are combined to something near a constant, for an output without an intercept."""

_EXACT = 1e-12
"""Share of the largest target by which all may miss their means for these to be the targets."""

_EXACT_WORK = 1e7
"""Rows times squared coefficients up to which that is looked for: some milliseconds."""


def guess(rows: Rows, likelihood: Likelihood, n_outputs: int) -> Tensor:
    """Return outputs ``(C,)`` that suit all rows, from some of them."""
    n, y, weights, offset = rows.y.shape[0], rows.y, rows.weights, rows.offset
    if n > _START_ROWS:
        some = torch.randint(n, (_START_ROWS,), generator=torch.Generator().manual_seed(0))
        y, weights = y[some], None if weights is None else weights[some]
        offset = None if offset is None else offset[some]
    found = likelihood.start(y, n_outputs, weights).double()
    return found if offset is None else found - offset.mean(0)


def start_coefficients(rows: Rows, likelihood: Likelihood, output_map: OutputMap) -> Tensor:
    """Return coefficients ``(C, D')`` of the table's columns: intercepts that suit all rows.

    An output without an intercept comes as near to a constant as its columns can.
    """
    c, ones = output_map.n_outputs, int(output_map.intercept)
    coef = torch.zeros(c, output_map.n_columns, dtype=torch.float64)
    wanted = guess(rows, likelihood, c)
    acts = torch.zeros(c, output_map.n_columns, dtype=torch.bool)
    for group in output_map.groups:
        acts[:, group.columns] = (group.matrix != 0).any(1, keepdim=True)
    for output in range(c):
        if ones and bool(acts[output, 0]):
            coef[output, 0] = wanted[output]
        elif bool(acts[output].any()) and float(wanted[output]):
            own = [j for j in as_list(slice(ones, output_map.n_columns), output_map.n_columns) if acts[output, j]]
            x = dense(rows.x[:_REGRESSED_ROWS])[:, [j - ones for j in own]]
            coef[output, own] = torch.linalg.lstsq(x, x.new_ones(x.shape[0], 1)).solution[:, 0] * wanted[output]
    return coef


def exact_start(objective: LinearObjective, theta: Tensor) -> Tensor | None:
    """Return parameters ``(P,)`` with which every mean is its target, while a scale is free to vanish, or None.

    A solver would follow it for hundreds of steps. Only tables are looked at of which that costs less than a step.
    """
    likelihood, y, k = objective.likelihood, objective.y, objective.n_outputs
    n, p = objective.n_rows, objective.n_parameters
    if any(domain is not REAL for domain in likelihood.domains):
        return None
    continuous = y.is_floating_point() and y.numel() == n and likelihood.support is not COUNT
    if not continuous or k < 2 or len(likelihood.parameters) != k or n * p * p > _EXACT_WORK or y.numel() != len(y):
        return None
    try:
        wanted = likelihood.start(y.reshape(1, -1), k * n)[::k]
        base = objective.predictors(torch.zeros_like(theta))
        moves = torch.stack([objective.predictors(unit) - base for unit in torch.eye(p, dtype=theta.dtype)], -1)
        free = (moves[1:] != 0).any(0).any(1)
        acts = (moves[0] != 0).any(0) & ~(moves[1:] != 0).any(0).any(0)
        columns = acts.nonzero()[:, 0]
        found = theta.clone()
        rest = wanted - base[0]
        found[columns] = torch.linalg.lstsq(moves[0][:, columns], rest[:, None], driver="gelsd").solution[:, 0]
        mean = likelihood.mean(objective.predictors(found).mT)
    except (NotImplementedError, InputError):
        return None
    if not bool(free.all()) or mean.shape[0] != n or mean.numel() != n:
        return None
    misses = (mean.reshape(y.shape) - y).abs()
    return found if bool((misses <= _EXACT * span(likelihood, y)).all()) else None


def span(likelihood: Likelihood, y: Tensor) -> Tensor:
    """Return the size of targets against which misses are small: of shares, the lesser distance to an end."""
    size = y.abs().amax()
    # shares beside 1 differ by what they lack, of which rounding leaves the digits of 1
    return torch.minimum(size, (1 - y).amax()) if likelihood.support is OPEN_UNIT_INTERVAL else size


def scoring_step(objective: Any, theta: Tensor, at: Any) -> Tensor | None:
    """Return parameters ``(P,)`` that are likely better than those with constant outputs, or None.

    None where outputs differ between rows already, or a Newton step does the same.
    """
    assert isinstance(objective, LinearObjective)
    likelihood = objective.likelihood
    exponential = likelihood.partition is not None or likelihood.negative_exponential(objective.y[:1]) is not None
    if exponential or not objective.has_constant_outputs(theta):
        return None
    two = _knows_second(objective, theta)
    step = -inverse_map(at.hessian.constant_over_rows(2 if two else 1))(at.gradient)
    found = theta + step
    if two:
        first = objective.predictors(found)[::2].mT
        second = objective.likelihood.second_given(first, objective.y, objective.weights)
        assert second is not None
        places = objective.output_map.is_intercept.nonzero()[:, 0]
        found[places[1::2]] = second
    return found


def _knows_second(objective: LinearObjective, start: Tensor) -> bool:
    """Return whether the likelihood can say which second parameters, with intercepts of their own, suit the first."""
    likelihood, c = objective.likelihood, objective.n_outputs
    own = torch.equal(objective.output_map.groups[0].matrix, torch.eye(c, dtype=torch.float64))
    if not own or len(likelihood.parameters) != 2:
        return False
    return likelihood.second_given(start[objective.output_map.is_intercept][None, ::2], objective.y[:1]) is not None
