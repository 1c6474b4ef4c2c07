r"""From Gaussian outputs to responses without samples: closed forms, and approximations for classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood


class _ExactGaussian:
    r"""The predictive density of a Gaussian with a fixed scale: :math:`N(f, \Sigma + \sigma^2 I)`."""

    def applies(self, likelihood: Likelihood) -> bool:
        """Whether the likelihood is such a Gaussian, with its outputs as means and a density that integrates to 1."""
        return isinstance(likelihood, Gaussian) and likelihood.link == "identity" and likelihood.normalized

    def __call__(self, likelihood: Likelihood, f: Tensor, covariance: Tensor, y: Tensor, joint: bool) -> Tensor:
        """Return log densities ``(N, ...)`` of ``y``, or one number for all together."""
        residual = y.to(f.dtype).reshape(f.shape) - f
        noise = likelihood.variance(f)
        if joint:
            residual, noise = residual.reshape(-1), noise.reshape(-1)
        lower = torch.linalg.cholesky(covariance + torch.diag_embed(noise))
        half = torch.linalg.solve_triangular(lower, residual.unsqueeze(-1), upper=False).squeeze(-1)
        constant = 0.5 * residual.shape[-1] * math.log(2 * math.pi)
        value: Tensor = -0.5 * half.square().sum(-1) - lower.diagonal(dim1=-2, dim2=-1).log().sum(-1) - constant
        return value


exact_gaussian = _ExactGaussian()


def probit(likelihood: Likelihood, f: Tensor, variance: Tensor) -> Tensor:
    r"""Return :math:`f / \sqrt{1 + \pi v / 8}`: outputs at which classes have their averaged probabilities."""
    _refuse_other(likelihood, "probit", (Bernoulli, Categorical))
    return f / (1 + math.pi / 8 * variance).sqrt()


def bridge(likelihood: Likelihood, f: Tensor, covariance: Tensor) -> Tensor:
    r"""Return outputs at which a categorical likelihood gives the means of a Dirichlet distribution, ``(N, ..., C)``.

    Its parameters are :math:`\alpha_k = \frac{1}{\Sigma_{kk}} \bigl(1 - \frac2K + \frac{e^{f_k}}{K^2} \sum_l
    e^{-f_l}\bigr)`, with the mean over classes taken out, which probabilities do not depend on.
    """
    _refuse_other(likelihood, "bridge", (Categorical,))
    return log_dirichlet(f, covariance)


def _refuse_other(likelihood: Likelihood, link: str, known: tuple[type[Likelihood], ...]) -> None:
    if not isinstance(likelihood, known):
        names = " and ".join(kind.__name__ for kind in known)
        raise InputError(
            f"link='{link}' approximates probabilities of classes ({names}), and {type(likelihood).__name__} has none: "
            "use link='mixture'."
        )


def log_dirichlet(f: Tensor, covariance: Tensor) -> Tensor:
    """Return the logarithms of the parameters of the Dirichlet distribution of the Laplace bridge, ``(..., K)``."""
    k = f.shape[-1]
    # softmax does not see the mean over classes: it is taken out of outputs and covariance
    mean = f - f.mean(-1, keepdim=True)
    variance = covariance.diagonal(dim1=-2, dim2=-1) - 2 * covariance.mean(-1) + covariance.mean((-2, -1)).unsqueeze(-1)
    variance = variance.clamp_min(torch.finfo(f.dtype).eps)
    both = torch.logsumexp(-mean, -1, keepdim=True) + mean - 2 * math.log(k)
    return torch.logaddexp(f.new_tensor(1 - 2 / k).log(), both) - variance.log()
