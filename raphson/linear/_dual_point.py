"""Points and steps of penalized classes in combinations of the rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from raphson.linear._dual_factors import Array


class DualStep(NamedTuple):
    """A change of shares ``(q, N)``, of their products with G and of the intercepts ``(q,)``."""

    a: Array
    product: Array
    b: Array


class DualPoint(NamedTuple):
    """A point with the state there.

    Attributes:
        a: Shares of the rows in the slopes, ``(q, N)``.
        product: ``A G``, ``(q, N)``.
        b: Intercepts for centered columns, ``(q,)``.
        p: Probabilities, ``(q, N)``.
        value: The objective.
        r: The gradient's shares R, ``(q, N)``.
        r_product: ``R G``, ``(q, N)``.
        ones: The gradient in the intercepts, ``(q,)``.
        norm: The Euclidean norm of the gradient in the coefficients of the table's columns, centered.
    """

    a: Array
    product: Array
    b: Array
    p: Array
    value: float
    r: Array
    r_product: Array
    ones: Array
    norm: float

    def decrease(self, step: DualStep) -> float:
        """Return by how much a whole step lowers the objective to first order."""
        return -float(np.vdot(self.r, step.product)) - float(self.ones @ step.b)


class Checked(NamedTuple):
    """A point whose outputs were computed from its slopes.

    Attributes:
        slopes: Those of the table's columns, centered, ``(q, D)``.
        at: The state.
        norm: Of the gradient of all columns.
    """

    slopes: Tensor
    at: DualPoint
    norm: float
