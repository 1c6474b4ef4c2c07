r"""Predictions of the rows of a fit as if each had been left out: one Newton step, without fitting again.

With the mean f and covariance S of a row's outputs under the posterior, and the gradient g and the curvature H of its
loss in the outputs, the posterior without the row gives the outputs the covariance and the mean

.. math:: S_- = (S^{-1} - H)^{-1} = R (I - R^\top H R)^{-1} R^\top, \quad S = R R^\top, \qquad f_- = f + S_- g,

which is exact for a linear model and a quadratic loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raphson.laplace._predictive import Predictive, from_outputs, inside
from raphson.linalg import cholesky

_FARTHEST = 3.0
"""Standard deviations, of the outputs without a row, by which the row can have moved them. If the model holds that is
less than the row's own standardized deviation; a larger step is of an approximation that does not hold (nearly
separated classes) and would be taken for a fact."""

_SAMPLES = 400
"""Of the outputs: their extreme ones are that far from the mean."""

_LEVERAGE = 0.99
"""Largest eigenvalue of the leverage; a row that decides its own prediction has 1, and no prediction without itself."""


def left_out(
    predicted: Predictive, gradient: Tensor, curvature: Tensor, generator: torch.Generator | None = None
) -> Predictive:
    """Return what is predicted of each row by the posterior without it.

    Args:
        predicted: What the posterior of all rows predicts of them, with outputs ``(N, C)``.
        gradient: Of the loss of each row in its outputs, ``(N, C)``, times its weight.
        curvature: What the posterior has of its second derivative, ``(N, C, C)``, times its weight.
        generator: Source of randomness; None for a fixed one.

    Returns:
        The predictive distribution.

    References:
        D. Pregibon (1981), Logistic regression diagnostics, Annals of Statistics 9. A. Vehtari et al. (2016), Bayesian
        leave-one-out cross-validation approximations for Gaussian latent variable models, JMLR 17, section 3.
    """
    f, covariance = predicted.output_mean, predicted.output_covariance
    level = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    # outputs that move together have a singular covariance
    root = cholesky(covariance + (1e-12 * level + 1e-300) * torch.eye(f.shape[-1], dtype=f.dtype, device=f.device))
    values, vectors = torch.linalg.eigh(root.mT @ curvature @ root)
    wide = root @ vectors * (1 - values.clamp(max=_LEVERAGE)).rsqrt().unsqueeze(-2)
    step = (wide.mT @ gradient.unsqueeze(-1)).squeeze(-1)
    step = step * (_FARTHEST / step.norm(dim=-1, keepdim=True).clamp_min(1e-300)).clamp(max=1.0)
    mean = inside(predicted.likelihood, f, (wide @ step.unsqueeze(-1)).squeeze(-1))
    return from_outputs(predicted.likelihood, mean, wide, "mixture", _SAMPLES, generator, is_root=True)
