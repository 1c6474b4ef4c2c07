"""Rules for how far to go along a preconditioned gradient, as the user of an optimizer chooses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.optim._full_batch import ITERATIONS
from raphson.optim._options import flag, positive, share, whole

EXPONENT = 0.7
"""Power of the inverse curvature in whole steps of the quadratic model. On the autoencoder of 10,000 digits 333 steps
with a constant damping end at 62.3 with 0.65 and 62.8 with 0.75, where the inverse ends at 65.2; on that of 1400 digits
54 steps are at 14.6 in place of 14.9. Regressors with all rows in a batch lose by it, 0.04 and 0.08. Shorter steps are
better with the inverse: a quarter of each for 1000 steps on 1400 digits 13.84 in place of 13.90 (measured)."""


AVERAGING = 0.85
"""Share of the averaged gradients that stays. With averages of 0.8 that the present gradient enters once (before), and
of 0.8, 0.85 and 0.87 that it enters twice, 500 steps on 1400 digits end at 13.878, 13.880, 13.861 and 13.857 (seed 1:
13.916, 13.901, 13.887, 13.891), 125 and 250 on 10,000 digits at 63.6 and 59.3 before, at 64.3 and 59.6 with 0.8, at
63.8 and 59.2 with 0.85. Longer averages that it enters once are worse (0.9: 13.89; measured)."""


@dataclass(frozen=True)
class QuadraticStep:
    r"""A step to the minimum of the mini-batch's exact quadratic model along the natural gradient.

    The natural gradient is that of the running average of the gradients, which the model of a single mini-batch, by
    itself too optimistic about its own gradient, then judges. The present gradient counts in it once more, as in
    Nesterov's momentum: with the share :math:`\beta` that stays, :math:`m_t = \beta m_{t-1} + (1 - \beta) g_t`, and
    the step goes along :math:`\beta m_t + (1 - \beta) g_t`, so that it remembers longer and reacts as soon.

    With :math:`p < 1` the direction is :math:`-(\hat G + \lambda I)^{-p} m`, between the natural gradient (1) and the
    gradient (0). Along directions of little curvature the gradient of a mini-batch is mostly noise, which the inverse
    enlarges most; the length of the step is found by the model in any case. Only :math:`p = 1` solves a quadratic
    problem in one step, and has directions that do not depend on how a layer's inputs are scaled. A shorter step
    carries less noise along: with a factor ``lr`` below 1 the power is :math:`1 - (1 - p) \sqrt{\text{lr}}`, which is
    that of the inverse where a schedule ends at zero. Another power does not weigh layers against each other as the
    curvature does: where each output has a convex loss of its own (Bernoulli, Gaussian, Poisson), the linear layer that
    makes the outputs, in whose parameters the model is nearly exact, may go farther than the rest, to the minimum in
    both lengths.

    Args:
        averaging: Share of the running average of the gradients that stays; 0 for the present gradient alone.
        momentum: Whether the minimum is taken along the previous step, too (Martens and Grosse 2015, section 7).
        exponent: :math:`p` where ``lr`` is 1, above 0 and at most 1; without noise (all data in each batch) 1 is best.
        period: Most steps from one quadratic model to the next; without momentum. It is shorter in the first 90 steps,
            and 1 where the length that the model finds is not within a factor of 3 of those before; else steps without
            a model have their average, half of it the last one.
        iterations: Of conjugate gradients on the model, where every batch is the same, so that it has no noise, and
            the likelihood is not concave. The loss tells at the second step, which takes the first one back and begins
            anew; each step is then judged by a second forward pass. Damping is then a multiple of what a layer's
            parameters may do to its outputs for inputs of any direction, and no less than 1e-2 of the mean curvature
            unless its first value is given. A concave likelihood with several outputs for each response (natural
            parameters) has single directions with such a damping, of a share of 0.03. Without momentum and with a
            damping that adapts; 0: never.

    Raises:
        InputError: A number makes no sense.

    Examples:
        >>> QuadraticStep().averaging
        0.85
    """

    averaging: float = AVERAGING
    momentum: bool = False
    exponent: float = EXPONENT
    period: int = 10
    iterations: int = ITERATIONS

    ahead: ClassVar[bool] = True
    """Whether the present gradient enters the average twice."""

    def __post_init__(self) -> None:
        share("averaging", self.averaging)
        whole("iterations", self.iterations, 0)
        flag("momentum", self.momentum)
        positive("exponent", self.exponent)
        whole("period", self.period)
        if self.exponent > 1:
            raise InputError(f"exponent is {self.exponent!r}, but it must be at most 1, the inverse of the curvature.")


@dataclass(frozen=True)
class FixedStep:
    r"""A step of fixed length along the natural gradient, kept short where it would lead too far.

    With the natural gradient :math:`\Delta` of the running average of the gradients the step is
    :math:`\nu\, \text{lr}\, \Delta`, with :math:`\nu = \min(1, \sqrt{\kappa / d} / \text{lr})`: it moves the predicted
    distribution of a target by no more than :math:`\kappa` in twice the Kullback-Leibler divergence (Ba, Grosse and
    Martens 2017), on average. To that end :math:`d` is :math:`|g^\top \Delta|` for each target: where the loss is a sum
    over examples, it is divided by their weights, and by the number of targets of an example (the pixels of an image).

    Args:
        averaging: Share of the running average of the gradients that stays (momentum).
        norm_constraint: :math:`\kappa`; infinity for none.

    Raises:
        InputError: A number makes no sense.

    Examples:
        >>> FixedStep().averaging
        0.9
    """

    averaging: float = 0.9
    norm_constraint: float = 1e-2

    exponent: ClassVar[float] = 1.0
    """Of the inverse curvature: the step's length is that of the natural gradient itself."""

    ahead: ClassVar[bool] = False
    """Whether the present gradient enters the average twice."""

    def __post_init__(self) -> None:
        share("averaging", self.averaging)
        if self.norm_constraint != float("inf"):
            positive("norm_constraint", self.norm_constraint)

    def step(self, direction: Tensor, gradient: Tensor, lr: float, targets: float) -> Tensor:
        """Return the step before it is multiplied with ``lr``.

        Args:
            direction: The natural gradient, ``(P,)``.
            gradient: The gradient that it comes from.
            lr: Factor of the step.
            targets: Number of targets whose losses are added up in the loss.

        Returns:
            The step, ``(P,)``.
        """
        decrement = float(torch.dot(gradient, direction).abs()) / targets
        shorter = min(1.0, (self.norm_constraint / max(decrement, 1e-300)) ** 0.5 / max(lr, 1e-300))
        return direction * float(shorter)
