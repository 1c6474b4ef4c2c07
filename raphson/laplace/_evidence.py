r"""The log marginal likelihood of a Laplace approximation, and its gradient.

.. math::
    \log p(D) \approx -\frac1T \sum_n w_n \ell_n - \tfrac12 \sum_g \delta_g \|\theta_g\|^2
    + \tfrac12 \sum_g P_g \log\delta_g - \tfrac12 \log\det\Lambda, \qquad
    \Lambda = \tfrac1T C + \operatorname{diag}(\delta),

.. math::
    \frac{\partial}{\partial\log\delta_g} = \tfrac12 \bigl(P_g - \delta_g \|\theta_g\|^2
    - \delta_g \operatorname{tr}_g \Lambda^{-1}\bigr),

with the curvature C of the summed losses. For a Gaussian with scale :math:`\sigma`, n responses and squared residuals
R, C is proportional to :math:`\sigma^{-2}` and the derivative in :math:`\log\sigma` is
:math:`(R/\sigma^2 - n)/T + \sum_g (P_g - \delta_g \operatorname{tr}_g \Lambda^{-1})`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from raphson.laplace._operators import combined, inverse_diagonal, spectrum
from raphson.laplace._prior import Prior
from raphson.linalg import SymmetricOperator


@dataclass(frozen=True)
class Residuals:
    """What the loss of a Gaussian with one scale depends on.

    Attributes:
        total: Sum of weighted squared residuals.
        count: Number of responses, weighted.
        scale: The scale.
        constant: What the loss of a response is at least: the logarithm of the normalizing constant.
    """

    total: float
    count: float
    scale: float
    constant: float

    @property
    def loss(self) -> float:
        """The summed loss."""
        return 0.5 * self.total / self.scale**2 + self.count * self.constant

    def at(self, scale: float) -> Residuals:
        """Return the same with another scale."""
        constant = self.constant + math.log(scale / self.scale) if self.constant else 0.0
        return replace(self, scale=scale, constant=constant)


class Evidence(NamedTuple):
    """The log marginal likelihood and its gradient.

    Attributes:
        value: A number.
        log_prior: Gradient in the log prior precisions, ``(G,)``.
        log_scale: Derivative in the log scale of a Gaussian likelihood; None for another one.
    """

    value: Tensor
    log_prior: Tensor
    log_scale: Tensor | None


Determinant = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""From precisions ``(G,)`` and the multiple of the curvature to ``log det`` and the traces of the inverse by group."""


def determinant(curvature: SymmetricOperator, prior: Prior) -> Determinant:
    """Return the function that gives ``log det`` of the precision and traces of its inverse, fast where it can be."""
    found = spectrum(curvature, prior.group)
    if found is not None:
        eigenvalues, group = found

        def fast(values: Tensor, multiple: float) -> tuple[Tensor, Tensor]:
            whole = eigenvalues * multiple + values[group]
            traces = torch.zeros_like(values).index_add_(0, group, whole.reciprocal())
            return whole.log().sum(), traces

        return fast

    def direct(values: Tensor, multiple: float) -> tuple[Tensor, Tensor]:
        precision = combined(curvature, multiple, prior.with_values(values).vector)
        return precision.slogdet().logabsdet, prior.sums(inverse_diagonal(precision))

    return direct


def evidence(
    log_det: Determinant,
    prior: Prior,
    squares: Tensor,
    loss: float,
    temperature: float,
    multiple: float = 1.0,
    residuals: Residuals | None = None,
) -> Evidence:
    """Return the evidence with its gradient.

    ``squares`` ``(G,)`` are squared norms of the parameters by group, ``loss`` the summed loss, ``multiple`` by what
    the curvature is multiplied besides; ``residuals`` are those of a Gaussian.
    """
    delta = prior.values
    log_determinant, traces = log_det(delta, multiple / temperature)
    fit = -loss / temperature - 0.5 * (delta @ squares)
    value = fit + 0.5 * (prior.sizes @ delta.log()) - 0.5 * log_determinant
    determined = prior.sizes - delta * traces
    log_scale = None
    if residuals is not None:
        misfit = residuals.total / residuals.scale**2 - residuals.count
        log_scale = misfit / temperature + determined.sum()
    return Evidence(value, 0.5 * (determined - delta * squares), log_scale)
