"""A learning rate from the curvature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from raphson._errors import InputError
from raphson.diagnose._diagnose import diagnose


@dataclass(frozen=True)
class LearningRate:
    """A step size for gradient descent.

    Attributes:
        value: The step.
        momentum: Polyak's momentum, 0 unless the objective is strongly convex here.
        reason: Where both come from.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> round(rp.suggest_learning_rate(rp.Dense(torch.diag(torch.tensor([2.0, -1.0])))).value, 4)
        0.5
    """

    value: float
    momentum: float
    reason: str


def suggest_learning_rate(objective: Any, *, steps: int = 50, generator: torch.Generator | None = None) -> LearningRate:
    r"""Return the learning rate of gradient descent that the curvature at this point allows.

    Gradient descent on a quadratic diverges from a rate of :math:`2 / \lambda_\max` on. The rate is
    :math:`1 / |\lambda|_\max` of the Hessian; where that is positive definite, it is Polyak's
    :math:`4 / (\sqrt{\lambda_\max} + \sqrt{\lambda_\min})^2` with his momentum, the fastest pair for a quadratic.

    Args:
        objective: An objective, a fitted estimator or an operator.
        steps: Hessian products, beyond a thousand parameters.
        generator: Source of randomness; None for a fixed one.

    Returns:
        The rate, with momentum and reason.

    Raises:
        InputError: There is no curvature at all.

    References:
        B. T. Polyak (1964), Some methods of speeding up the convergence of iteration methods, USSR Comput. Math. Math.
        Phys. 4, 1-17.

    Examples:
        >>> import raphson as rp
        >>> rate = rp.suggest_learning_rate(rp.Diagonal(torch.tensor([1.0, 9.0], dtype=torch.float64)))
        >>> round(rate.value, 6), round(rate.momentum, 6)
        (0.25, 0.25)
    """
    found = diagnose(objective, steps=steps, generator=generator)
    if math.isnan(found.step_size):
        raise InputError("The curvature at this point is zero or not finite, so that it sets no learning rate.")
    if found.momentum:
        reason = (
            f"The Hessian here lies between {found.smallest:.4g} and {found.largest:.4g} and is positive definite: "
            "Polyak's step and momentum are the fastest pair for a quadratic with this spectrum."
        )
    else:
        largest = max(abs(found.smallest), abs(found.largest))
        reason = (
            f"One over the largest absolute curvature, {largest:.4g}. The objective is {found.convex} here, so that no "
            "momentum follows from its curvature. From twice this rate on gradient descent diverges."
        )
    return LearningRate(found.step_size, found.momentum, reason)
