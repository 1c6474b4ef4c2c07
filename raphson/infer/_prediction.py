"""Confidence intervals of predicted means by the delta method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raphson.infer._covariance import covariance_root
from raphson.infer._estimates import NULL_RTOL, critical_value
from raphson.infer._mean import MeanFunction, chunk_rows, mean_function, require_mean, row_jacobian, with_intercept
from raphson.likelihoods import Likelihood
from raphson.linalg import SymmetricOperator


@dataclass(frozen=True)
class MeanInterval:
    """Predicted means with confidence intervals, each ``(N, M)``.

    Attributes:
        mean: Predicted mean.
        standard_errors: Standard error of the mean itself.
        lower: Lower bound.
        upper: Upper bound.
        level: Coverage.
    """

    mean: Tensor
    standard_errors: Tensor
    lower: Tensor
    upper: Tensor
    level: float

    def __repr__(self) -> str:
        n, m = self.mean.shape[0], self.mean.shape[-1]
        return f"<MeanInterval of {n} rows, {m} mean{'s' * (m > 1)}, level {self.level:g}>"


def mean_interval(
    likelihood: Likelihood,
    f: Tensor,
    x: Tensor,
    covariance: SymmetricOperator,
    level: float = 0.95,
    *,
    scale: str = "identity",
    null_space: Tensor | None = None,
) -> MeanInterval:
    r"""Return delta-method confidence intervals of the mean :math:`m(f(x))` for given rows.

    The interval is symmetric on the chosen scale :math:`h` and mapped back, so that it keeps the bounds of
    the mean: :math:`h^{-1}(h(m) \pm z\, s)` with :math:`s^2 = \nabla_f (h \circ m)\, G\, \nabla_f (h \circ
    m)^T` and :math:`G = (I \otimes \hat x^T) V (I \otimes \hat x)`, the covariance of the outputs of a row.

    Args:
        likelihood: Any likelihood with a mean.
        f: Outputs, offset included, ``(N, C)``.
        x: Features without the intercept, ``(N, D)``.
        covariance: Covariance of the C (D + 1) coefficients, class by class, intercept first.
        level: Coverage.
        scale: ``"identity"``; ``"log"`` for positive means; ``"logit"`` for probabilities of yes-or-no answers
            (variance ``m (1 - m)``); ``"proportion"`` for other means between 0 and 1; ``"simplex"`` for
            probabilities that sum to one over the entries of the mean (these two on the logit scale too).
        null_space: Directions of the coefficients that the data leave open, ``(C (D + 1), r)``; None for none.

    Returns:
        Means, standard errors and bounds; all but the mean are nan in rows whose outputs an open direction moves.
    """
    c, width = f.shape[1], x.shape[1] + 1
    half = critical_value(level)
    root = covariance_root(covariance).reshape(c, width, -1)
    mean, link = mean_function(likelihood), _link(likelihood, scale)
    size = chunk_rows(c * root.shape[-1])
    parts: list[tuple[Tensor, ...]] = []
    for outputs, rows in zip(torch.split(f, size), torch.split(x, size), strict=True):
        require_mean(likelihood, outputs)
        xhat = with_intercept(rows)
        moves = torch.einsum("nk,ckr->ncr", xhat, root)
        output_covariance = moves @ moves.mT
        center = link(outputs)
        reach = half * _deviation(row_jacobian(link, outputs), output_covariance)
        known: tuple[Tensor, ...] = (
            _deviation(row_jacobian(mean, outputs), output_covariance),
            _inverse_link(center - reach, scale, lower=True),
            _inverse_link(center + reach, scale, lower=False),
        )
        if null_space is not None:
            fixed = _is_fixed(xhat, null_space.reshape(c, width, -1))[:, None]
            known = tuple(torch.where(fixed, part, torch.nan) for part in known)
        parts.append((mean(outputs), *known))
    values, deviations, lower, upper = (torch.cat(part) for part in zip(*parts, strict=True))
    return MeanInterval(values, deviations, lower, upper, level)


def _is_fixed(xhat: Tensor, directions: Tensor) -> Tensor:
    """Return which rows keep all outputs along directions ``(C, D + 1, r)``, bool ``(N,)``."""
    moved = torch.einsum("nk,ckr->ncr", xhat, directions).abs()
    return (moved <= NULL_RTOL * torch.einsum("nk,ckr->ncr", xhat.abs(), directions.abs())).all(-1).all(-1)


def _deviation(jacobian: Tensor, covariance: Tensor) -> Tensor:
    return ((jacobian @ covariance) * jacobian).sum(-1).clamp(min=0).sqrt()


def _link(likelihood: Likelihood, scale: str) -> MeanFunction:
    mean = mean_function(likelihood)
    if scale == "identity":
        return mean
    if scale == "log":
        return lambda f: mean(f).log()
    if scale == "simplex":
        return lambda f: _simplex_logit(mean(f))
    if scale == "proportion":
        return lambda f: torch.logit(mean(f))

    # var = m (1 - m): through the variance 1 - m keeps its digits where m rounds to 1.
    def logit(f: Tensor) -> Tensor:
        m = mean(f)
        return 2 * m.log() - likelihood.variance(f).reshape(m.shape).log()

    return logit


def _simplex_logit(p: Tensor) -> Tensor:
    """Return ``log(p / (1 - p))`` with ``1 - p`` summed from the other entries, which keeps its digits."""
    others = p.unsqueeze(-2) * (1 - torch.eye(p.shape[-1], dtype=p.dtype, device=p.device))
    return p.log() - others.sum(-1).log()


def _inverse_link(value: Tensor, scale: str, *, lower: bool) -> Tensor:
    if scale == "identity":
        return value
    if scale == "log":
        return value.exp()
    # A logit beyond the range of floating point says nothing: the bound is then that of all probabilities.
    return torch.where(torch.isfinite(value), torch.sigmoid(value), 0.0 if lower else 1.0)
