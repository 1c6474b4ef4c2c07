r"""Where a fit starts: outputs constant over rows, then one scoring step from there.

Where outputs are the same in all rows, the information is one (C, C) matrix for all of them, the mean of their output
Hessians near enough, and the step regresses a linearized target on the columns. Where the likelihood knows the second
parameter (scale, dispersion, precision) that suits the first one, the two have a step each, as if they were orthogonal,
and then the second its intercept from there. For a Gaussian of constant scale that is the optimum.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.estimators.input._rows import Rows, dense
from raphson.likelihoods import COUNT, OPEN_UNIT_INTERVAL, Likelihood
from raphson.linear import LinearObjective, OutputMap, as_list
from raphson.solve import inverse_map

_START_ROWS = 2**14
"""Rows from which the point to start at is guessed; it only has to be near. Drawing some of 10000 takes 60 us."""

_REGRESSED_ROWS = 4096
"""Rows whose columns are combined to something near a constant, for an output without an intercept."""

_EXACT = 1e-12
"""Share of the largest target by which all may miss their means for these to be the targets."""

_SOME_PER_PARAMETER = 4
"""Rows for each parameter that are looked at first: of 10,000 with 12 parameters all took as long as the fit."""

_FAR_OFF = 1e-3
"""Share of the outputs by which one may miss what its target asks for to be looked at further."""

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


def start_coefficients(
    rows: Rows, likelihood: Likelihood, output_map: OutputMap, columns: Tensor | None = None
) -> Tensor:
    """Return coefficients ``(C, D')`` of the table's columns: intercepts that suit all rows.

    An output without an intercept comes as near to a constant as its columns can: those that are fitted, if only some
    are. With a copy of a column that is not, their combination could be of any size.
    """
    c, ones = output_map.n_outputs, int(output_map.intercept)
    coef = torch.zeros(c, output_map.n_columns, dtype=torch.float64)
    wanted = guess(rows, likelihood, c)
    acts = torch.zeros(c, output_map.n_columns, dtype=torch.bool)
    for group in output_map.groups:
        acts[:, group.columns] = (group.matrix != 0).any(1, keepdim=True)
    if columns is not None:
        acts &= torch.isin(torch.arange(output_map.n_columns), columns)
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
    continuous = y.is_floating_point() and y.numel() == n and likelihood.support is not COUNT
    if not continuous or k < 2 or len(likelihood.parameters) != k or n * p * p > _EXACT_WORK or y.numel() != len(y):
        return None
    some = _SOME_PER_PARAMETER * p
    if n > 2 * some:  # what misses a target of some rows is none for all
        part = objective.take(torch.arange(0, n, n // some))
        if _exact(part, theta, span(likelihood, y)) is None:
            return None
    return _exact(objective, theta, span(likelihood, y))


def _exact(objective: LinearObjective, theta: Tensor, size: Tensor) -> Tensor | None:
    """Return parameters with which every mean misses its target by a share of ``size`` at most, or None."""
    likelihood, y, k, p = objective.likelihood, objective.y, objective.n_outputs, objective.n_parameters
    n = objective.n_rows
    try:
        wanted = likelihood.start(y.reshape(1, -1), k * n)[::k]
        base = objective.predictors(torch.zeros_like(theta))
        effects = objective.output_map.expand(torch.eye(p, dtype=theta.dtype)).movedim(1, 0)
        moves = objective.design.predict(effects.reshape(k * p, -1)).view(k, p, n).mT
        free = (moves[1:] != 0).any(0).any(1)
        acts = (moves[0] != 0).any(0) & ~(moves[1:] != 0).any(0).any(0)
        columns = acts.nonzero()[:, 0]
        found = theta.clone()
        rest = wanted - base[0]
        own = moves[0][:, columns]
        found[columns] = torch.linalg.lstsq(own, rest[:, None], driver="gelsd").solution[:, 0]
        if bool(((own @ found[columns] - rest).abs() > _FAR_OFF * (1.0 + rest.abs().amax())).any()):
            return None
        mean = likelihood.mean(objective.predictors(found).mT)
    except (NotImplementedError, InputError):
        return None
    if not bool(free.all()) or not math.isfinite(objective.value(found)) or mean.shape[0] != n or mean.numel() != n:
        return None
    misses = (mean.reshape(y.shape) - y).abs()
    return found if bool((misses <= _EXACT * size).all()) else None


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
