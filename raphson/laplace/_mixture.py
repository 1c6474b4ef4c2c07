r"""What several posteriors of one network predict together: the mixture of their predictive distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.laplace._predictive import Predictive, check_level, quantiles


@dataclass(frozen=True, eq=False)
class PredictiveMixture:
    r"""The mixture, in equal shares, of the predictive distributions of several posteriors.

    The posterior of a network has many modes, which a Gaussian at one of them does not see; K networks from different
    start values have the density :math:`\frac1K \sum_k p_k(y \mid x)`. What is called epistemic is the mean of their
    epistemic variances plus the variance of their means.

    Args:
        members: Predictive distributions of the same inputs.

    Raises:
        InputError: There are no members, or their inputs differ in number.

    References:
        R. Eschenhagen, E. Daxberger, P. Hennig and A. Kristiadi (2021), Mixtures of Laplace approximations for improved
        post-hoc uncertainty in deep learning, arXiv:2111.03577.
    """

    members: Sequence[Predictive]

    def __post_init__(self) -> None:
        shapes = {tuple(member.output_mean.shape) for member in self.members}
        if len(shapes) != 1:
            raise InputError(f"A mixture is of predictions of the same inputs, and these have shapes {sorted(shapes)}.")

    @cached_property
    def output_mean(self) -> Tensor:
        """``(N, ..., C)``."""
        return torch.stack([member.output_mean for member in self.members]).mean(0)

    @cached_property
    def output_covariance(self) -> Tensor:
        """The mean of the members' covariances plus the covariance of their means, ``(N, ..., C, C)``."""
        apart = torch.stack([member.output_mean for member in self.members], -1) - self.output_mean.unsqueeze(-1)
        within = sum(member.output_covariance for member in self.members) / len(self.members)
        return within + apart @ apart.mT / len(self.members)

    @cached_property
    def mean(self) -> Tensor:
        """The mean of the response: probabilities of classes ``(N, ..., K)``, or ``(N, ..., M)``."""
        return self._means.mean(0)

    @cached_property
    def aleatoric(self) -> Tensor:
        """The mean of the response's variance, shaped like ``mean``."""
        return torch.stack([member.aleatoric for member in self.members]).mean(0)

    @cached_property
    def epistemic(self) -> Tensor:
        """The variance of the response's mean, within the members and between them, shaped like ``mean``."""
        within = torch.stack([member.epistemic for member in self.members]).mean(0)
        return within + self._means.var(0, correction=0)

    @property
    def variance(self) -> Tensor:
        """The variance of the response, shaped like ``mean``."""
        return self.aleatoric + self.epistemic

    def log_density(self, y: Tensor) -> Tensor:
        """Return the log density (or probability) of responses, ``(N, ...)``."""
        parts = torch.stack([member.log_density(y) for member in self.members])
        return torch.logsumexp(parts, 0) - math.log(len(self.members))

    def sample(self, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draw responses, ``(n, N, ...)``, each draw of a member chosen at random."""
        device = self.output_mean.device
        chosen = torch.randint(len(self.members), (n,), generator=generator, device=device)
        parts = [
            member.sample(int(count), generator)
            for member, count in zip(self.members, chosen.bincount(minlength=len(self.members)), strict=True)
            if count
        ]
        return torch.cat(parts)[torch.randperm(n, generator=generator, device=device)]

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return limits between which a response lies with probability ``level``; of classes, those of probabilities.

        Args:
            level: Between 0 and 1.

        Returns:
            Lower and upper limits, shaped like ``mean``; another level is an ``InputError``.
        """
        check_level(level)
        generator = torch.Generator(self.output_mean.device).manual_seed(0)
        draws = zip(*(member.draws(generator) for member in self.members), strict=True)
        low, high = torch.cat([quantiles(torch.cat(parts), level) for parts in draws]).unbind(1)
        return low, high

    @cached_property
    def _means(self) -> Tensor:
        return torch.stack([member.mean for member in self.members])
