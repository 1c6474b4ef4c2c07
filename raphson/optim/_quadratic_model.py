r"""How far to go along a preconditioned gradient and the previous step.

The exact quadratic model of a mini-batch, with its Gauss-Newton matrix G, the damping :math:`\lambda` and the penalty
:math:`\eta`, is

.. math:: M(\delta) = g^\top \delta + \tfrac12 \delta^\top (G + (\lambda + \eta) I) \delta, \qquad
    \delta = \alpha \Delta + \mu\, \delta_0 ,

whose minimum in :math:`\alpha` and :math:`\mu` takes a product of the Jacobian with each direction (Martens and Grosse
2015, sections 6.4 and 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raphson.network import TrainingPass
from raphson.optim._gathered import Gathered
from raphson.optim._groups import GroupValues

_SINGULAR = 1e-6
"""Share of the largest eigenvalue of the scaled 2 x 2 system below which its directions count as one."""

_FARTHER = 4.0
"""Times the length of the rest by which the last layer may go farther than that. Mini-batches ask for 20 to 500 times,
which is ahead for 60 steps and falls behind by noise later: on 10,000 digits 60, 250 and 500 steps end at 69.3, 61.5
and 59.0 without a bound, at 69.9, 59.4 and 57.0 with 8, at 72.5, 59.3 and 56.8 with 4; 250 at 60.1 with 2."""


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
        if len(b) == 2:  # a call of linear algebra takes as long as all dot products
            ((p, c), (_, q)), (g, h) = a.tolist(), b.tolist()
            cosine = abs(c) / math.sqrt(p * q) if p > 0 and q > 0 else math.inf
            if 1.0 - cosine > _SINGULAR * (1.0 + cosine):
                det = p * q - c * c
                return torch.tensor([(c * h - q * g) / det, (c * g - p * h) / det], dtype=torch.float64)
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


def quadratic_model(
    gathered: Gathered,
    directions: Sequence[Tensor],
    gradient: Tensor,
    damping: float,
    values: GroupValues,
    last: Callable[[TrainingPass, Tensor], Tensor] | None = None,
) -> QuadraticModel:
    """Return the model of the batches of a step along directions ``(P,)``.

    Args:
        gathered: The batches.
        directions: The directions.
        gradient: The gradient, with the penalty's, ``(P,)``.
        damping: What is added to the diagonal of the curvature.
        values: Options of the groups, of which the penalty is one.
        last: Returns the Jacobian of a pass times the last direction; None for the general way.

    Returns:
        The model.
    """
    matrix = gathered.curvature(directions, last)
    together = torch.stack(list(directions))
    if values.common("weight_decay") == 0.0:
        more = damping * (together @ together.mT)
    else:
        more = together @ torch.stack([damping * v + values.times("weight_decay", v) for v in directions]).mT
    return QuadraticModel(directions, together @ gradient, matrix + more)


def combination(directions: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    """Return the sum of directions ``(P,)`` times their coefficients ``(k,)``."""
    first, *more = directions
    found = first * float(coefficients[0])
    for v, c in zip(more, coefficients[1:], strict=True):
        found.add_(v, alpha=float(c))
    return found
