r"""Where a fit of a constrained linear model starts: one scoring step from outputs that are the same in all rows.

There the information is one (C, C) matrix for all rows, the mean of their output Hessians near enough, and the step
regresses a linearized target on the columns. Where the likelihood knows the second parameter (scale, dispersion,
precision) that suits the first one, the two have a step each, as if they were orthogonal, and then the second its
intercept from there. For a Gaussian of constant scale that is the optimum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raphson.linear import ConstrainedObjective
from raphson.solve import newton_direction


def first_step(objective: ConstrainedObjective, start: Tensor) -> tuple[Tensor, float] | None:
    """Return a point that is likely better to start from, and the objective at the one given.

    Args:
        objective: The objective.
        start: Free parameters ``(p,)``.

    Returns:
        Free parameters ``(p,)`` and the value at ``start``; None where outputs differ between rows already.
    """
    if not objective.has_constant_outputs(start):
        return None
    at = objective.evaluate(start)
    assert at.hessian is not None
    two = _knows_second(objective, start)
    theta = start + newton_direction(at.hessian.alike(2 if two else 1), at.gradient).step
    if two:
        c = objective.n_outputs
        first = objective.predictors(theta)[::2].mT
        second = objective.likelihood.second_given(first, objective.y, objective.weights)
        assert second is not None
        theta[1:c:2] = second
    return theta, at.value


def _knows_second(objective: ConstrainedObjective, start: Tensor) -> bool:
    """Return whether the likelihood can say which second parameters, with intercepts of their own, suit the first."""
    likelihood, c = objective.likelihood, objective.n_outputs
    own = torch.equal(objective.constraints.groups[0].matrix, torch.eye(c, dtype=torch.float64))
    if not own or len(likelihood.parameters) != 2:
        return False
    return likelihood.second_given(start[None, :c:2], objective.y[:1]) is not None
