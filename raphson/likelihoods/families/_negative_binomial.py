r"""The negative binomial likelihood with a log link (NB2): counts that vary more than Poisson ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raphson.likelihoods import _pairs
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._special._binet import HALF_LOG_TWO_PI, binet, log_remainder
from raphson.likelihoods._special._binet_together import binet_together
from raphson.likelihoods._special._negative_binomial_information import dispersion_information
from raphson.likelihoods._support import COUNT
from raphson.likelihoods._targets import like_outputs
from raphson.linalg import Diagonal, SymmetricOperator


class _OfCount(NamedTuple):
    """What depends on count and dispersion only."""

    log_y: Tensor  # 0 where the count is 0
    share: Tensor  # y / (y + size)
    rest: Tensor  # size / (y + size)
    # log(y! Gamma(r) / Gamma(y + r)) and powers, by Stirling's formula with Binet's function
    stirling: Tensor
    # what Binet's terms add to the slope and the bend in the log dispersion
    slope: Tensor
    bend: Tensor


class _Parts(NamedTuple):
    f: Tensor  # all outputs
    y: Tensor
    some: Tensor  # whether the count is positive
    of_count: _OfCount
    log_mean: Tensor
    log_dispersion: Tensor
    size: Tensor  # 1 / dispersion
    mean_share: Tensor  # mean / (mean + size)
    mean_rest: Tensor  # size / (mean + size)
    scaled_mean: Tensor  # mean size / (mean + size)


@dataclass(frozen=True, eq=False)
class NegativeBinomial(Likelihood):
    r"""Independent negative binomial counts with the logarithms of the mean and of the dispersion as outputs.

    With mean :math:`\mu = e^{f_1}` and dispersion :math:`\alpha = e^{f_2}` the variance is
    :math:`\mu + \alpha \mu^2`: :math:`\alpha` is statsmodels' ``alpha`` and one over the ``theta`` of R's MASS.
    With :math:`r = 1/\alpha`, one response has

    .. math::
        \ell = \log\frac{\Gamma(r)\, y!}{\Gamma(y + r)} + (y + r) \log(1 + \alpha \mu) - y \log(\alpha \mu),

    .. math::
        \nabla\ell = \begin{pmatrix} \dfrac{\mu - y}{1 + \alpha\mu} \\[1ex]
            r \left[\psi(y + r) - \psi(r) - \log(1 + \alpha\mu) + \alpha \dfrac{\mu - y}{1 + \alpha\mu}\right]
            \end{pmatrix}, \qquad
        I = \begin{pmatrix} \dfrac{\mu}{1 + \alpha\mu} & 0 \\ 0 & I_{\alpha} \end{pmatrix},

    where :math:`I_\alpha` is a one-dimensional integral with no elementary form, evaluated by a quadrature of 40
    nodes. Its relative error is below 1e-8 for dispersions up to 2 and means up to 1000, below 1e-5 for
    dispersions up to 1e4 and means up to 1e6.

    With ``dispersion`` a number the mean is the only output and :math:`\ell` is convex in ``f``; with both it is
    not. As :math:`\alpha \to 0` value and derivatives go over into Poisson's without loss of digits.

    Shapes: outputs ``(..., 2 M)``, mean and dispersion of response 0, then of response 1, or ``(..., M)`` with
    ``dispersion``; targets ``(..., M)``, or ``(...,)`` where ``M = 1``.

    Args:
        dispersion: ``alpha``; None makes it an output.

    Raises:
        InputError: ``dispersion`` is not positive and finite (0 is ``Poisson``).

    References:
        J. F. Lawless (1987), Negative binomial and mixed Poisson regression, Can. J. Stat. 15, 209-225.
        A. C. Cameron and P. K. Trivedi (2013), Regression Analysis of Count Data, 2nd ed., section 3.3 (NB2).

    Examples:
        With dispersion 1 the counts are geometric: at mean 1 a count ``y`` has probability 2^-(y + 1).

        >>> import torch
        >>> from raphson.likelihoods import NegativeBinomial
        >>> f, y = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([0, 3])
        >>> NegativeBinomial(dispersion=1.0).nll(f, y).exp().round(decimals=9)
        tensor([ 2., 16.], dtype=torch.float64)
        >>> NegativeBinomial(dispersion=1.0).fisher(f).diagonal()
        tensor([[0.5000],
                [0.5000]], dtype=torch.float64)
    """

    dispersion: float | None = None

    support = COUNT

    def __post_init__(self) -> None:
        _pairs.check_number("dispersion", self.dispersion)
        object.__setattr__(self, "concave", self.dispersion is not None)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The logarithms of the mean and, unless ``dispersion`` is given, of the dispersion of each response."""
        return ("log_mean", "log_dispersion") if self.dispersion is None else ("log_mean",)

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the negative log-likelihood summed over responses, ``(...,)``.

        Args:
            f: Outputs ``(..., C)``.
            y: Counts.

        Returns:
            One value per row.
        """
        return self._value(self._parts(f, y))

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the gradient, ``(..., C)``.

        Args:
            f: Outputs ``(..., C)``.
            y: Counts.

        Returns:
            The gradient.
        """
        return self._slopes(self._parts(f, y), curved=False)[0]

    def hessian(self, f: Tensor, y: Tensor) -> SymmetricOperator:
        """Return the observed Hessian, a batched operator ``(..., C, C)`` of blocks ``2 x 2`` or diagonal.

        Args:
            f: Outputs ``(..., C)``.
            y: Counts.

        Returns:
            The operator.
        """
        curvature = self._slopes(self._parts(f, y), curved=True)[1]
        assert curvature is not None
        return curvature

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Diagonal:
        """Return the expected information, a batched diagonal: mean and dispersion are orthogonal.

        Args:
            f: Outputs ``(..., C)``.
            y: Not used.

        Returns:
            The operator ``(..., C, C)``; the class says how exact its entries for the dispersion are.
        """
        log_mean, log_dispersion = self._split(f)
        mean = _scaled_mean(log_mean, log_dispersion)
        if self.dispersion is not None:
            return Diagonal(mean)
        return _pairs.uncorrelated(mean, dispersion_information(log_mean, log_dispersion), fixed=False)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw counts, ``(..., M)``, in the element type of ``f``: Poisson ones with a gamma mean.

        Args:
            f: Outputs ``(..., C)``.
            generator: Source of randomness, on the device of ``f``.

        Returns:
            The counts.
        """
        log_mean, log_dispersion = self._split(f.detach())
        size = (-log_dispersion).exp().clamp(max=1.0 / torch.finfo(f.dtype).eps).expand_as(log_mean)
        rate = torch._standard_gamma(size, generator=generator) * (log_mean - size.log()).exp()
        return torch.poisson(rate, generator=generator)

    def mean(self, f: Tensor) -> Tensor:
        """Return the means, ``(..., M)``."""
        return self._split(f)[0].exp()

    def variance(self, f: Tensor) -> Tensor:
        """Return the variances, mean plus dispersion times its square, ``(..., M)``."""
        log_mean, log_dispersion = self._split(f)
        return log_mean.exp() * (1 + (log_mean + log_dispersion).exp())

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise for the first row outside the support.

        Args:
            y: Counts ``(..., M)``, or ``(...,)`` where ``M = 1``.
            n_outputs: Number of outputs ``C``.

        Raises:
            InputError: A target is negative, not whole or not finite, or their number does not match the outputs.
        """  # noqa: DOC502
        _pairs.check_columns(y, n_outputs, len(self.parameters), self.support)

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the logarithms of the mean and of the moment estimate of the dispersion, ``(C,)``.

        Args:
            y: Counts.
            n_outputs: ``C``.
            weights: ``(N,)`` example weights; None means 1 each.

        Returns:
            The outputs; the dispersion is from 1e-3 to 1e3.
        """
        rows = _pairs.start_rows(y, n_outputs, len(self.parameters))
        log_mean = _pairs.log_mean_count(rows, weights)
        mean = log_mean.exp()
        variance = _pairs.weighted_mean((rows - mean).square(), weights)
        dispersion = ((variance - mean) / mean.square()).clamp(1e-3, 1e3)
        return _pairs.join(log_mean, dispersion.log(), self.dispersion is not None)

    def second_given(self, first: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the logarithm of the moment estimate of the dispersion ``(M,)``, from 1e-3 to 1e3."""
        mean = first.exp()
        excess = _pairs.weighted_mean((like_outputs(mean, y) - mean).square() - mean, weights)
        return (excess / _pairs.weighted_mean(mean.square(), weights)).clamp(1e-3, 1e3).log()

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian from one evaluation of the parts they share.

        Args:
            f: Outputs ``(..., C)``.
            y: Counts.
            hessian: ``"observed"``, ``"expected"`` or None for no Hessian.

        Returns:
            The three, each as its own method gives it.
        """
        p = self._parts(f, y, look_up=True)
        gradient, curvature = self._slopes(p, curved=hessian == "observed")
        return Derivatives(self._value(p), gradient, self.fisher(f) if hessian == "expected" else curvature)

    def _split(self, f: Tensor) -> tuple[Tensor, Tensor]:
        return _pairs.split(f, None if self.dispersion is None else math.log(self.dispersion))

    def _parts(self, f: Tensor, y: Tensor, look_up: bool = False) -> _Parts:
        log_mean, log_dispersion = self._split(f)
        y = like_outputs(log_mean, y)
        if look_up:
            log_dispersion = _pairs.constant(log_dispersion)
        curved = self.dispersion is None
        count = _looked_up(y, log_dispersion, curved) if look_up else _of_count(y, log_dispersion, curved)
        mean_rest = torch.sigmoid(-(log_mean + log_dispersion))
        mean_share = torch.sigmoid(log_mean + log_dispersion)
        scaled = _scaled_mean(log_mean, log_dispersion)
        size = (-log_dispersion).exp()
        return _Parts(f, y, y > 0, count, log_mean, log_dispersion, size, mean_share, mean_rest, scaled)

    def _value(self, p: _Parts) -> Tensor:
        # Half of the deviance is y log(1 + rest (y / mean - 1)) + r log(1 + share (mean / y - 1)): no large terms
        # cancel, whatever the dispersion. Beyond exp's range both logarithms are linear.
        bound = 0.4 * math.log(torch.finfo(p.f.dtype).max)
        d = torch.where(p.some, p.log_mean - p.of_count.log_y, p.log_mean)
        low = d.clamp(-bound, bound)
        mean_excess = torch.where(p.some, torch.expm1(low), low.exp())
        z = torch.where(p.some, p.of_count.share, p.log_dispersion.exp()) * mean_excess
        slope = torch.where(z == 0, 1.0, torch.log1p(z) / torch.where(z == 0, 1.0, z))
        second = p.y.clamp(min=1.0) * p.of_count.rest * mean_excess * slope + p.size.clamp(max=math.exp(bound)) * (
            d - bound
        ).clamp(min=0)
        first = p.y * (torch.log1p(p.of_count.rest * torch.expm1(-low)) + (-d - bound).clamp(min=0))
        return _pairs.total(second + torch.where(p.some, first + p.of_count.stirling, 0.0), p.f)

    def _slopes(self, p: _Parts, curved: bool) -> tuple[Tensor, SymmetricOperator | None]:
        mean = p.scaled_mean - p.y * p.mean_rest
        ratio = p.mean_rest / p.of_count.rest
        of_mean = p.scaled_mean * ratio
        if self.dispersion is not None:
            return mean, Diagonal(of_mean) if curved else None
        # psi and psi' are 1/(2x) and 1/x + 1/(2x^2) from their logarithm and its slope, and Binet's terms further
        u = p.log_dispersion.exp() * mean
        dispersion = 0.5 * p.of_count.share - log_remainder(u, ratio) * u * mean + p.of_count.slope
        gradient = _pairs.join(mean, dispersion, fixed=False)
        if not curved:
            return gradient, None
        of_dispersion = (
            0.5 * p.of_count.share * (1 + p.of_count.rest) - dispersion - p.of_count.rest * u * mean
        ) + p.of_count.bend
        return gradient, _pairs.blocks(of_mean, -mean * p.mean_share, of_dispersion)


def _of_count(y: Tensor, log_dispersion: Tensor, curved: bool) -> _OfCount:
    some = y > 0
    log_y = torch.where(some, y, 1.0).log()
    x = torch.where(some, log_y, -math.inf) + log_dispersion
    share, rest = torch.sigmoid(x), torch.sigmoid(-x)
    # where the square of the size would underflow, all functions of it have their limits
    size = (-log_dispersion).exp().clamp_min(torch.finfo(y.dtype).tiny ** 0.4)
    numbers = torch.cat(((y + size).reshape(-1), size.reshape(-1)))
    value, slope, bend = (
        None if v is None else (v[: y.numel()].view_as(y), v[y.numel() :].view_as(size))
        for v in binet_together(numbers, bend=curved)
    )
    assert value is not None and slope is not None
    at_y = HALF_LOG_TWO_PI + 0.5 * (log_y - rest.log()) + binet(y.clamp(min=1.0))
    stirling = at_y + (value[1] - value[0])
    slopes = rest * slope[0] - slope[1]
    return _OfCount(log_y, share, rest, stirling, slopes, slopes if bend is None else bend[1] - rest.square() * bend[0])


def _looked_up(y: Tensor, log_dispersion: Tensor, curved: bool) -> _OfCount:
    """Return ``_of_count`` from a table of small counts where the dispersion is one number: a fifth of the time."""
    if log_dispersion.ndim or y.numel() == 0 or not (most := float(y.max())) < y.numel() / 4:
        return _of_count(y, log_dispersion, curved)
    table = _of_count(torch.arange(int(most) + 1, dtype=y.dtype, device=y.device), log_dispersion, curved)
    found = torch.stack(table).index_select(1, y.reshape(-1).long())
    return _OfCount(*(column.view(y.shape) for column in found))


def _scaled_mean(log_mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """Return ``mean / (1 + dispersion mean)``."""
    return (log_mean - torch.logaddexp(log_mean + log_dispersion, log_mean.new_zeros(()))).exp()
