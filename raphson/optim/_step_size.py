r"""How far to go along a preconditioned gradient and the previous step.

The exact quadratic model of a mini-batch, with its Gauss-Newton matrix G, the damping :math:`\lambda` and the penalty
:math:`\eta`, is

.. math:: M(\delta) = g^\top \delta + \tfrac12 \delta^\top (G + (\lambda + \eta) I) \delta, \qquad
    \delta = \alpha \Delta + \mu\, \delta_0 ,

whose minimum in :math:`\alpha` and :math:`\mu` takes a product of the Jacobian with each direction (Martens and Grosse
2015, sections 6.4 and 7). Without momentum, the length of one such step is good for the next few, too, where it changes
little from model to model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.optim._full_batch import ITERATIONS
from raphson.optim._options import flag, positive, share, whole

_SINGULAR = 1e-6
"""Share of the largest eigenvalue of the scaled 2 x 2 system below which its directions count as one."""

_SAME = 1.5
"""Factor between steps from two models, in the metric of the curvature, up to which they count as the same. Those of
mini-batches of the autoencoders differ by less, and those of a network whose curvature changes from step to step, a
regressor with a scale, by more (measured)."""

_LONGER = 2.0
"""How much longer than the last step with a model a step without may be. Without such a bound, and with a model at
every fifth step whatever it finds, regressors with a scale diverge (measured)."""

_FARTHER = 4.0
"""Times the length of the rest by which the last layer may go farther than that. Mini-batches ask for 20 to 500 times,
which is ahead for 60 steps and falls behind by noise later: on 10,000 digits 60, 250 and 500 steps end at 69.3, 61.5
and 59.0 without a bound, at 69.9, 59.4 and 57.0 with 8, at 72.5, 59.3 and 56.8 with 4; 250 at 60.1 with 2."""

_SETTLED = 50
"""Steps over which the longest period grows to what it is. On the autoencoder of 1400 digits 125 steps end at 14.46, as
with a model each step, but at 14.70 where the period grows from the first step on (6 seeds, measured)."""

EXPONENT = 0.7
"""Power of the inverse curvature in whole steps of the quadratic model. On the autoencoder of 10,000 digits 333 steps
with a constant damping end at 62.3 with 0.65 and 62.8 with 0.75, where the inverse ends at 65.2; on that of 1400 digits
54 steps are at 14.6 in place of 14.9. Regressors with all rows in a batch lose by it, 0.04 and 0.08. Shorter steps are
better with the inverse: a quarter of each for 1000 steps on 1400 digits 13.84 in place of 13.90 (measured)."""


@dataclass(frozen=True)
class QuadraticStep:
    r"""A step to the minimum of the mini-batch's exact quadratic model along the natural gradient.

    The natural gradient is that of the running average of the gradients, which the model of a single mini-batch, by
    itself too optimistic about its own gradient, then judges.

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
        period: Most steps from one quadratic model to the next; without momentum. It is shorter in the first 50 steps,
            and 1 where the length that the model finds is not within a factor of 1.5 of the last one.
        iterations: Of conjugate gradients on the model, where every batch is the same, so that it has no noise, and
            the likelihood is not concave. The loss tells at the second step, which takes the first one back and begins
            anew; each step is then judged by a second forward pass. Without momentum and with a damping that adapts; 0:
            never.

    Raises:
        InputError: A number makes no sense.

    Examples:
        >>> QuadraticStep().averaging
        0.8
    """

    averaging: float = 0.8
    momentum: bool = False
    exponent: float = EXPONENT
    period: int = 5
    iterations: int = ITERATIONS

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


@dataclass(frozen=True)
class QuadraticModel:
    """The model of a mini-batch in a space of few directions.

    Attributes:
        directions: The directions, ``(P,)`` each.
        slopes: ``g^T v_i``, ``(k,)``.
        matrix: ``v_i^T (G + (lambda + eta) I) v_j``, ``(k, k)``.
    """

    directions: Sequence[Tensor]
    slopes: Tensor
    matrix: Tensor

    def minimum(self) -> Tensor:
        """Return the coefficients of the directions where the model is smallest, ``(k,)``, float64 on the processor."""
        a, b = self.matrix.cpu().double(), self.slopes.cpu().double()
        if len(b) == 1:
            first: Tensor = -b / a[0]
            return first
        root = a.diagonal().clamp_min(torch.finfo(torch.float64).tiny).rsqrt()
        scaled = a * root[:, None] * root
        inverse: Tensor = torch.linalg.pinv(scaled, rtol=_SINGULAR, hermitian=True)
        found: Tensor = inverse @ (b * root)
        return -found * root

    def longer(self) -> Tensor:
        """Return the minimum in a direction and a part of it that may go farther, ``(2,)``; not back, nor less far.

        Nor too far (``_FARTHER``). Own lengths of all layers are too many for a mini-batch: 60 steps on 10,000 digits
        end at 94, with one length at 78, with one for the last layer and one for the rest at 69 (measured).
        """
        found = self.minimum()
        first, more = found.tolist()
        if first > 0 and 0 <= more <= _FARTHER * first:
            return found
        together = torch.tensor([1.0, _FARTHER if first > 0 and more > 0 else 0.0], dtype=torch.float64)
        a, b = self.matrix.cpu().double(), self.slopes.cpu().double()
        return -(b @ together) / (together @ a @ together) * together

    def change(self, coefficients: Tensor) -> float:
        """Return the change of the loss that the model promises for coefficients ``(k,)``."""
        a, b = self.matrix.cpu().double(), self.slopes.cpu().double()
        return float(b @ coefficients + 0.5 * coefficients @ a @ coefficients)


class KeptLength:
    r"""The lengths of steps along their direction and a part of it, kept between the quadratic models that find them.

    A model is made at each step where a length changes from one to the next, and more and more seldom where they stay
    the same.

    Attributes:
        found: The last coefficients; None before the first.
        decrement: The square root of :math:`|m^\top \Delta|` for the step of these lengths.
        at: The step when it was found.
        period: Steps from there to the next model.
    """

    def __init__(self) -> None:
        self.found: list[float] | None = None
        self.decrement, self.at, self.period = 0.0, -1, 1

    def due(self, count: int) -> bool:
        """Whether step ``count`` needs a model."""
        return self.found is None or count - self.at >= self.period

    def put(self, coefficients: list[float], slopes: Sequence[float], count: int, longest: int) -> None:
        """Keep what a model found.

        Args:
            coefficients: Of the direction and, on top of that, of its part, if it has one.
            slopes: The averaged gradient along each.
            count: The step.
            longest: Bound of the period.
        """
        decrement, same = _decrement(coefficients, slopes), False
        if self.found is not None:
            changes = [now - before for now, before in zip(coefficients, self.found, strict=True)]
            longer = max(decrement, _decrement(self.found, slopes))
            same = 0 < longer and _decrement(changes, slopes) <= (1.0 - 1.0 / _SAME) * longer
        self.period = min(self.period + 1, longest, 1 + count * longest // _SETTLED) if same else 1
        self.found, self.decrement, self.at = coefficients, decrement, count

    def along(self, slopes: Sequence[float]) -> list[float]:
        """Return the coefficients of a step without a model, for the averaged gradient along its direction and part."""
        assert self.found is not None
        share = min(1.0, _LONGER * self.decrement / max(_decrement(self.found, slopes), 1e-300))
        return [share * one for one in self.found]


def _decrement(coefficients: Sequence[float], slopes: Sequence[float]) -> float:
    """Return the length, in the metric of the curvature, of a step along a direction and, on top of that, a part."""
    first, *more = coefficients
    total = first**2 * abs(slopes[0] - sum(slopes[1:]))
    for coefficient, slope in zip(more, slopes[1:], strict=True):
        total += (first + coefficient) ** 2 * abs(slope)
    return math.sqrt(total)


def combination(directions: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    """Return the sum of directions ``(P,)`` times their coefficients ``(k,)``."""
    first, *more = directions
    found = first * float(coefficients[0])
    for v, c in zip(more, coefficients[1:], strict=True):
        found.add_(v, alpha=float(c))
    return found
