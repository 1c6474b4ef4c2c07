r"""The negative binomial likelihood (NB2), by the log or another link: counts that vary more than Poisson ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from raphson.likelihoods import _parameters
from raphson.likelihoods._command import Command
from raphson.likelihoods._likelihood import Derivatives
from raphson.likelihoods._links import softplus
from raphson.likelihoods._special._binet import HALF_LOG_TWO_PI, binet, log_remainder
from raphson.likelihoods._special._binet_together import binet_together
from raphson.likelihoods._special._negative_binomial_information import dispersion_information
from raphson.likelihoods._special._small_counts import small_count_sums
from raphson.likelihoods._special._tracked import can_look
from raphson.likelihoods._support import COUNT
from raphson.likelihoods._target_distribution import TargetDistribution, Univariate, to_array
from raphson.likelihoods._targets import like_outputs, log_mean_count, start_rows, weighted_mean
from raphson.likelihoods.composed import _mean_link
from raphson.likelihoods.composed._mean_family import MeanFamily
from raphson.linalg import Diagonal, SymmetricOperator, is_near

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition, Expr


_LARGEST_SIZE = 1e9
"""Sizes (inverse dispersions) in SciPy's distribution: 1 - p is rounded by 1e-16, and a larger size is a Poisson's."""


_LEAST = -8.0
"""Logarithm of dispersion times mean above which what cancels in the plain formulas leaves 12 digits at least."""


class _OfCount(NamedTuple):
    """What depends on count and dispersion only."""

    log_y: Tensor  # 0 where the count is 0
    log_whole: Tensor  # log(1 + dispersion * y)
    share: Tensor  # y / (y + size)
    rest: Tensor  # size / (y + size)
    # log(y! Gamma(r) / Gamma(y + r)) and powers, by Stirling's formula with Binet's function
    stirling: Tensor
    # what Binet's terms add to the first and the second derivative in the log dispersion
    first: Tensor
    second: Tensor


@dataclass(eq=False)
class _Parts:
    f: Tensor  # all outputs
    y: Tensor
    some: Tensor  # whether the count is positive
    of_count: _OfCount
    log_mean: Tensor
    log_dispersion: Tensor
    log_whole: Tensor  # log(1 + dispersion * mean)
    size: Tensor  # 1 / dispersion
    mean_share: Tensor  # mean / (mean + size)
    mean_rest: Tensor  # size / (mean + size)

    @cached_property
    def d(self) -> Tensor:
        """The logarithm of mean over count, where there is one, or of the mean."""
        return torch.where(self.some, self.log_mean - self.of_count.log_y, self.log_mean)

    @cached_property
    def by_mean(self) -> Tensor:
        """The derivative in the log mean."""
        return self.scaled_mean - self.y * self.mean_rest

    @cached_property
    def scaled_mean(self) -> Tensor:
        """``mean / (1 + dispersion * mean)``."""
        return (self.log_mean - self.log_whole).exp()

    @cached_property
    def growth(self) -> tuple[Tensor, Tensor]:
        """``log((1 + dispersion * mean) / (1 + dispersion * y))``, and the size times it."""
        bound = math.log(torch.finfo(self.f.dtype).max) - 0.1
        low = self.d.clamp(-bound, bound)
        excess = torch.where(self.some, torch.expm1(low), low.exp())
        # of no count it is dispersion * mean, either of which may overflow
        none = (self.log_mean + self.log_dispersion).clamp(max=bound).exp()
        z = torch.where(self.some, self.of_count.share * excess, none)
        log_z = torch.where(self.some, -softplus(-(self.of_count.log_y + self.log_dispersion)), self.log_dispersion)
        far = (z < -0.5) | (log_z + self.d > 0)
        z = torch.where(far, 0.0, z)
        near = torch.log1p(z)
        logarithm = torch.where(far, self.log_whole - self.of_count.log_whole, near)
        ratio = torch.where(z == 0, 1.0, near / torch.where(z == 0, 1.0, z))
        # the size times z without the size, which may be infinite
        scaled = self.y.clamp(min=1.0) * self.of_count.rest * torch.where(self.d > bound, math.inf, excess) * ratio
        return logarithm, torch.where(far, self.size * logarithm, scaled)

    @cached_property
    def u(self) -> Tensor:
        """``dispersion * (mean - y) / (1 + dispersion * mean)``."""
        return -torch.expm1(-self.growth[0])

    @cached_property
    def by_dispersion(self) -> Tensor:
        """The derivative in the log dispersion.

        psi and psi' are 1/(2x) and 1/x + 1/(2x^2) from their logarithm and its derivative, and Binet's terms further.
        """
        near = self.u.abs() < 0.1
        u = torch.where(near, self.u, 0.0)
        change = torch.where(
            near,
            -_parameters.product(log_remainder(u, 1 - u) * u, self.by_mean),
            self.by_mean - self.growth[1].clamp(max=torch.finfo(self.f.dtype).max),
        )
        return 0.5 * self.of_count.share + change + self.of_count.first


@dataclass(frozen=True, eq=False)
class NegativeBinomial(MeanFamily[_Parts]):
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

        link: ``"log"``, ``"identity"`` or ``"sqrt"``: what the first output is of the mean.

    Raises:
        InputError: ``dispersion`` is not positive and finite (0 is ``Poisson``), or there is no such link.

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

    link_names = ("log", "identity", "sqrt")
    support = COUNT
    second = "log_dispersion"
    concave_links = ("log",)
    commands = (Command("negative-binomial"),)

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Diagonal:
        """Return a batched diagonal: mean and dispersion are orthogonal. The class says how exact it is."""
        log_mean, log_dispersion = self._split(f)
        mean = _scaled_mean(log_mean, log_dispersion)
        if self.dispersion is not None:
            return Diagonal(mean)
        return _parameters.uncorrelated(mean, dispersion_information(log_mean, log_dispersion))

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian at once: of small counts and one dispersion from a table of sums."""
        log_mean, log_dispersion = self._split(f)
        y, log_dispersion = like_outputs(log_mean, y), _parameters.constant(log_dispersion)
        sums, x = small_count_sums(y, log_dispersion), log_mean + log_dispersion
        if sums is None or not can_look(x) or float(x.min()) < _LEAST:
            return super().derivatives(f, y, hessian)
        size = (-log_dispersion).exp()
        share, rest = torch.sigmoid(x), torch.sigmoid(-x)
        both = logsigmoid(x.abs()).neg()  # what softplus(x) and softplus(-x) are beside x and -x, if positive
        of_size = (x.clamp(min=0.0) + both).mul_(size)
        nll = _parameters.total(sums[0] + of_size + y * (both - x.clamp(max=0.0)), f)
        scaled_mean = share * size
        by_mean = scaled_mean - y * rest
        gradient = by_mean
        curvature: SymmetricOperator | None = None
        if self.dispersion is None:
            gradient = _parameters.interleaved(by_mean, sums[1] - of_size + by_mean)
        if hessian == "expected":
            curvature = self.fisher(f)
        elif hessian is not None:
            of_mean = (y + size) * share * rest
            if self.dispersion is not None:
                return Derivatives(nll, gradient, Diagonal(of_mean))
            mixed = -share * by_mean
            curvature = _parameters.blocks(of_mean, mixed, sums[2] + of_size - scaled_mean + mixed)
        return Derivatives(nll, gradient, curvature)

    @property
    def self_concordance(self) -> float | None:
        """1 with a log link and a given dispersion: in the log mean the loss is a softplus and a linear term."""
        return 1.0 if self.dispersion is not None and self.link == "log" else None

    def extended_gradient(self, f: NDArray[np.longdouble], y: Tensor) -> NDArray[np.longdouble] | None:
        r"""Return :math:`(\mu - y) / (1 + \alpha \mu)` in extended precision."""
        if self.self_concordance is None:
            return None
        mean = np.exp(f)
        target = y.reshape(f.shape).double().cpu().numpy()
        found: NDArray[np.longdouble] = (mean - target) / (1 + np.longdouble(self.dispersion) * mean)
        return found

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw counts, ``(..., M)``: Poisson ones with a gamma mean."""
        log_mean, log_dispersion = self._split(f.detach())
        size = (-log_dispersion).exp().clamp(max=1.0 / torch.finfo(f.dtype).eps).expand_as(log_mean)
        rate = torch._standard_gamma(size, generator=generator) * (log_mean - size.log()).exp()
        return torch.poisson(rate, generator=generator)

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return negative binomial distributions, ``(..., M)``; the deviance keeps the dispersion."""
        from scipy import stats

        log_mean, log_dispersion = self._split(f)
        value, size = to_array(like_outputs(log_mean, y)), to_array((-log_dispersion).exp().clamp(max=_LARGEST_SIZE))
        laws = [stats.nbinom(size, size / (size + mean)) for mean in (to_array(log_mean.exp()), value)]
        return Univariate(laws[0], value, laws[1])

    def variance(self, f: Tensor) -> Tensor:
        """Return the variances, mean plus dispersion times its square, ``(..., M)``."""
        log_mean, log_dispersion = self._split(f)
        return log_mean.exp() + (2 * log_mean + log_dispersion).exp()

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the logarithms of the mean and of the moment estimate of the dispersion, from 1e-3 to 1e3."""
        rows = start_rows(y, n_outputs, len(self.parameters))
        log_mean = log_mean_count(rows, weights)
        mean = log_mean.exp()
        variance = weighted_mean((rows - mean).square(), weights)
        dispersion = ((variance - mean) / mean.square()).clamp(1e-3, 1e3)
        return _parameters.join(log_mean, dispersion.log(), self.dispersion is not None)

    def second_given(self, first: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the logarithm of the moment estimate of the dispersion ``(M,)``, from 1e-3 to 1e3."""
        mean = first.exp()
        excess = weighted_mean((like_outputs(mean, y) - mean).square() - mean, weights)
        return (excess / weighted_mean(mean.square(), weights)).clamp(1e-3, 1e3).log()

    def _parts(self, f: Tensor, y: Tensor, *, once: bool = False) -> _Parts:
        log_mean, log_dispersion = self._split(f)
        y = like_outputs(log_mean, y)
        if once:
            log_dispersion = _parameters.constant(log_dispersion)
        curved = self.dispersion is None
        count = _looked_up(y, log_dispersion, curved) if once else _of_count(y, log_dispersion, curved)
        x = log_mean + log_dispersion
        return _Parts(
            f,
            y,
            y > 0,
            count,
            log_mean,
            log_dispersion,
            softplus(x),
            (-log_dispersion).exp(),
            torch.sigmoid(x),
            torch.sigmoid(-x),
        )

    def _value(self, p: _Parts) -> Tensor:
        # Half of the deviance is y log(1 + rest (y / mean - 1)) + r log(1 + share (mean / y - 1)): no large terms
        # cancel, whatever the dispersion. Far from 1 the arguments are sums of two positive terms, each by its log.
        d, of_count = p.d, p.of_count
        below = torch.expm1(d.clamp(max=0.0)).neg() * (-of_count.log_whole - d).exp()
        change = torch.where(d < 0, below, of_count.rest * torch.expm1(-d.clamp(min=0.0)))
        far = (change < -0.5) | (change > 1)
        log_share = of_count.log_whole - (of_count.log_y + p.log_dispersion)
        first = p.y * torch.where(far, torch.logaddexp(-log_share, -of_count.log_whole - d), torch.log1p(change))
        return _parameters.total(p.growth[1] + torch.where(p.some, first + of_count.stirling, 0.0), p.f)

    def _gradient(self, p: _Parts) -> Tensor:
        return p.by_mean if self.dispersion is not None else _parameters.interleaved(p.by_mean, p.by_dispersion)

    def _observed(self, p: _Parts) -> SymmetricOperator:
        of_mean = (p.log_mean - p.log_whole - p.growth[0]).exp()
        if self.dispersion is not None:
            return Diagonal(of_mean)
        share, rest = p.of_count.share, p.of_count.rest
        near = 0.5 * share - p.by_dispersion - _parameters.product(rest * p.u, p.by_mean)
        # far from the mean the same without terms of the size of the count, which would cancel
        # a mean that overflows is less than the growth, which does so as well
        scaled_mean = p.scaled_mean.clamp(max=torch.finfo(p.f.dtype).max / 4)
        far = p.growth[1] + (of_mean + p.y * rest - 2 * scaled_mean) - p.of_count.first
        of_dispersion = torch.where(p.u.abs() < 0.5, near, far) + (0.5 * share * rest + p.of_count.second)
        return _parameters.blocks(of_mean, -_parameters.product(p.mean_share, p.by_mean), of_dispersion)

    def _expected(self, p: _Parts) -> Diagonal:
        return self.fisher(p.f)

    def power_curvature(self, f: Tensor, y: Tensor, power: float) -> Tensor:
        r"""Return the second derivative by a power of the mean, times its square, from its terms in the mean's share.

        With :math:`s = 1 - r = \alpha\mu / (1 + \alpha\mu)` it is
        :math:`c\,[(c - 1) \mu r^2 - \mu r s + y r (r + (c + 1) s)]`.
        """
        p = self._parts(f, y)
        share, rest = p.mean_share, p.mean_rest
        of_mean = p.scaled_mean * ((power - 1) * rest - share)
        return power * (of_mean + p.y * rest * (rest + (power + 1) * share))

    def definition(self) -> Definition:
        """Return the formulas, with the dispersion as an output or as a constant."""
        from raphson.likelihoods import formulas as fm
        from raphson.likelihoods.formulas import factored, grouped, mean_of, positive, real, sympy

        y, log_alpha, a, b = real("y a A B")
        m, k, alpha = positive("mu k alpha")
        gamma, source = sympy.loggamma, "J. F. Lawless (1987), Can. J. Stat. 15, 209-225 (NB2)."
        eta, mean = _mean_link.mean_formula(self.link, m)
        log_mean = eta if self.link == "log" else sympy.log(m)
        if self.dispersion is not None:
            inverse = 1 / alpha
            made = fm.Definition(
                likelihood=self,
                outputs=(eta,),
                targets=(y,),
                nll=(y + inverse) * sympy.log(1 + alpha * m)
                - y * (log_mean + sympy.log(alpha))
                - gamma(y + inverse)
                + gamma(inverse)
                + gamma(y + 1),
                abbreviations=(mean,),
                moments={y: m},
                constants={alpha: self.dispersion},
                example=((0.4,), 3.0),
                convexity=fm.STRICTLY_CONVEX,
                arrange=factored,
                source=source,
                target_words="a count with mean μ and variance μ + α μ²",
            )
            return _mean_link.at_link(made, self.link)
        # A is the score of k in a form with mean zero, B its derivative: differences that belong together.
        ratio = sympy.log(1 + m / k)
        score = fm.Abbreviation(a, sympy.digamma(y + k) - sympy.digamma(k) - ratio, {k: b, m: -1 / (k + m)})
        rest_of_b = -sympy.trigamma(k) + m / (k * (k + m))

        def rewrite(entry: Expr) -> Expr:
            entry = entry.subs(sympy.digamma(y + k), a + sympy.digamma(k) + ratio)
            return entry.subs(sympy.trigamma(y + k), b - rest_of_b)

        mean_trigamma = mean_of(sympy.trigamma(y + k))
        made = fm.Definition(
            likelihood=self,
            outputs=(eta, log_alpha),
            targets=(y,),
            nll=(y + k) * ratio - y * (log_mean + log_alpha) - gamma(y + k) + gamma(k) + gamma(y + 1),
            abbreviations=(
                mean,
                fm.Abbreviation(k, sympy.exp(-log_alpha), {log_alpha: -k}),
                score,
                fm.Abbreviation(b, sympy.trigamma(y + k) + rest_of_b),
            ),
            moments={y: m, a: sympy.Integer(0), b: mean_trigamma + rest_of_b},
            example=((0.4, -0.5), 3.0),
            convexity=fm.Convexity(
                "Strictly convex in the log mean for a fixed dispersion, not in both outputs: the observed Hessian is "
                "indefinite at counts away from the mean (at mean 1 and dispersion 1 at all but the counts 1 and 2). "
                "The Fisher information is positive definite everywhere.",
            ),
            source=source,
            target_words="a count with mean μ and variance μ + μ²/k",
            notes=("E is a mean over counts y drawn from the model; it has no closed form and is summed.",),
            rewrite=rewrite,
            arrange=lambda entry: grouped(entry, [a, b, sympy.trigamma(k), mean_trigamma]),
        )
        return _mean_link.at_link(made, self.link)


def _of_count(y: Tensor, log_dispersion: Tensor, curved: bool) -> _OfCount:
    some = y > 0
    log_y = torch.where(some, y, 1.0).log()
    # not from a logarithm of zero, whose second derivatives PyTorch makes nan
    x = log_y + log_dispersion
    share, rest = torch.where(some, torch.sigmoid(x), 0.0), torch.where(some, torch.sigmoid(-x), 1.0)
    log_whole = torch.where(some, softplus(x), 0.0)
    # where the square of the size would underflow, all functions of it have their limits
    size = (-log_dispersion).exp().clamp_min(torch.finfo(y.dtype).tiny ** 0.4)
    numbers = torch.cat(((y + size).reshape(-1), size.reshape(-1)))
    value, first, second = (
        None if v is None else (v[: y.numel()].view_as(y), v[y.numel() :].view_as(size))
        for v in binet_together(numbers, second=curved)
    )
    assert value is not None and first is not None
    # Binet's function of a size that underflows is half of its logarithm
    below = (log_dispersion + math.log(torch.finfo(y.dtype).tiny ** 0.4)).clamp(min=0)
    at_y = HALF_LOG_TWO_PI + 0.5 * (log_y + log_whole + below) + binet(y.clamp(min=1.0))
    stirling = at_y + (value[1] - value[0])
    change = rest * first[0] - first[1]
    curvature = change if second is None else second[1] - rest.square() * second[0]
    return _OfCount(log_y, log_whole, share, rest, stirling, change, curvature)


def _looked_up(y: Tensor, log_dispersion: Tensor, curved: bool) -> _OfCount:
    """Return ``_of_count`` from a table of small counts where the dispersion is one number: a fifth of the time."""
    if log_dispersion.ndim or y.numel() == 0 or not is_near(y) or not (most := float(y.max())) < y.numel() / 4:
        return _of_count(y, log_dispersion, curved)
    table = _of_count(torch.arange(int(most) + 1, dtype=y.dtype, device=y.device), log_dispersion, curved)
    found = torch.stack(table).index_select(1, y.reshape(-1).long())
    return _OfCount(*(column.view(y.shape) for column in found))


def _scaled_mean(log_mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """Return ``mean / (1 + dispersion mean)``."""
    return (log_mean - torch.logaddexp(log_mean + log_dispersion, log_mean.new_zeros(()))).exp()
