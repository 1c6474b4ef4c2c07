r"""The gamma likelihood, by the log or another link: positive responses of constant coefficient of variation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson.likelihoods import _parameters
from raphson.likelihoods._command import Command
from raphson.likelihoods._special._binet import HALF_LOG_TWO_PI, binet, binet_derivatives
from raphson.likelihoods._support import POSITIVE
from raphson.likelihoods._target_distribution import TargetDistribution, Univariate, to_array
from raphson.likelihoods._targets import like_outputs, start_rows, weighted_mean
from raphson.likelihoods.composed import _mean_link
from raphson.likelihoods.composed._mean_family import MeanFamily
from raphson.linalg import Diagonal, SymmetricOperator

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition


@dataclass(eq=False)
class _Parts:
    f: Tensor  # all outputs
    log_y: Tensor
    d: Tensor  # log(y / mean)
    log_shape: Tensor | float
    shape: Tensor | float

    @cached_property
    def ratio(self) -> Tensor:
        """``shape * y / mean``."""
        return (self.d + self.log_shape).exp()

    @cached_property
    def scaled(self) -> Tensor:
        """``shape * (y / mean - 1)``, of which one factor may be zero and the other infinite."""
        small = torch.expm1(self.d.clamp(max=1.0))
        if isinstance(self.shape, float):
            return torch.where(self.d > 1, self.ratio - self.shape, small * self.shape)
        near = torch.where(small == 0, small, small * self.shape)
        return torch.where(self.d > 1, self.ratio * -torch.expm1(-self.d), near)

    @cached_property
    def scaled_rest(self) -> Tensor:
        """``shape * (y / mean - 1 - log(y / mean))``."""
        if isinstance(self.shape, float):
            return torch.sub(self.scaled, self.d, alpha=self.shape)
        small, large = self.d.clamp(max=1.0), self.d.clamp(min=1.0)
        above = (self.log_shape + large).exp() * (1 - (1 + large) * (-large).exp())
        rest = _exponential_rest(small)
        return torch.where(self.d > 1, above, torch.where(rest == 0, rest, rest * self.shape))

    @cached_property
    def binet(self) -> tuple[Tensor, Tensor]:
        """The derivatives of Binet's function at the shape: only a shape that is an output has any use for them."""
        assert isinstance(self.shape, Tensor)
        return binet_derivatives(_away_from_zero(self.shape))


@dataclass(frozen=True, eq=False)
class Gamma(MeanFamily[_Parts]):
    r"""Independent gamma responses with the logarithms of the mean and of the shape as outputs.

    With mean :math:`\mu = e^{f_1}` and shape :math:`k = e^{f_2}`, variance :math:`\mu^2 / k`, one response has

    .. math::
        \ell = k \left(\frac{y}{\mu} - \log\frac{y}{\mu}\right) - k \log k + \log\Gamma(k) + \log y, \qquad
        \nabla\ell = \begin{pmatrix} -k\,(y/\mu - 1) \\
            k\,(y/\mu - 1 - \log(y/\mu) - \log k + \psi(k)) \end{pmatrix},

    .. math::
        I = \begin{pmatrix} k & 0 \\ 0 & k^2 \psi'(k) - k \end{pmatrix}.

    With ``dispersion`` a number :math:`\phi = 1/k` the shape is fixed and the mean is the only output: then
    :math:`\ell` is convex in ``f``. With both it is not: where ``y`` is far from the mean the observed
    Hessian is indefinite. Shapes up to 1e8 and beyond keep their digits, by Binet's function.

    Shapes: outputs ``(..., 2 M)``, mean and shape of response 0, then of response 1, or ``(..., M)`` with
    ``dispersion``; targets ``(..., M)``, or ``(...,)`` where ``M = 1``, in the units of the mean.

    Args:
        dispersion: ``phi``, the squared coefficient of variation; None makes the shape an output.

        link: ``"log"``, ``"inverse"`` or ``"identity"``: what the first output is of the mean.

    Raises:
        InputError: ``dispersion`` is not positive and finite, or there is no such link.

    References:
        P. McCullagh and J. A. Nelder (1989), Generalized Linear Models, 2nd ed., chapter 8.

    Examples:
        At ``y`` equal to the mean the gradient in the mean is 0; an exponential response has shape 1.

        >>> import torch
        >>> from raphson.likelihoods import Gamma
        >>> f, y = torch.zeros(1, 1), torch.tensor([[3.0]])
        >>> Gamma(dispersion=1.0).nll(f, y)
        tensor([3.])
        >>> Gamma(dispersion=0.5).gradient(f, y)
        tensor([[-4.]])
        >>> Gamma().fisher(torch.zeros(1, 2)).diagonal()
        tensor([[1.0000, 0.6449]])
    """

    link_names = ("log", "inverse", "identity")
    support = POSITIVE
    concave_links = ("log", "inverse")
    commands = (Command("gamma"),)

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Diagonal:
        r"""Return :math:`k` and :math:`k^2 \psi'(k) - k`, a batched diagonal: mean and shape are orthogonal."""
        log_mean, log_shape = self._split(f)
        shape = log_shape.exp()
        if self.dispersion is not None:
            return Diagonal(shape.expand_as(log_mean))
        return _information(log_mean, shape, binet_derivatives(_away_from_zero(shape))[1])

    def negative_exponential(self, y: Tensor) -> tuple[Tensor, Tensor] | None:
        r"""Return :math:`y / \phi` and :math:`1 / \phi`: with a log link the loss is :math:`(y e^{-f} + f) / \phi`."""
        if self.dispersion is None or self.link != "log":
            return None
        a = y.double().reshape(-1) / self.dispersion
        return (a, torch.full_like(a, 1.0 / self.dispersion)) if bool(a.isfinite().all()) else None

    @property
    def self_concordance(self) -> float | None:
        r"""1 with a log link and a given dispersion: the third derivative of :math:`y e^{-f}` is minus its second."""
        return 1.0 if self.dispersion is not None and self.link == "log" else None

    def extended_gradient(self, f: NDArray[np.longdouble], y: Tensor) -> NDArray[np.longdouble] | None:
        r"""Return :math:`(1 - y e^{-f}) / \phi` in extended precision."""
        if self.self_concordance is None:
            return None
        target = y.reshape(f.shape).double().cpu().numpy()
        found: NDArray[np.longdouble] = (1 - target * np.exp(-f)) / np.longdouble(self.dispersion)
        return found

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw responses, ``(..., M)``."""
        log_mean, log_shape = self._split(f.detach())
        shape = log_shape.exp().expand_as(log_mean)
        y = torch._standard_gamma(shape, generator=generator) * (log_mean - log_shape).exp()
        return y.clamp(min=torch.finfo(f.dtype).tiny)

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return gamma distributions, ``(..., M)``; the deviance keeps the shape."""
        from scipy import stats

        log_mean, log_shape = self._split(f)
        value, shape = to_array(like_outputs(log_mean, y)), to_array(log_shape.exp())
        return Univariate(
            stats.gamma(shape, scale=to_array(log_mean.exp()) / shape), value, stats.gamma(shape, scale=value / shape)
        )

    def variance(self, f: Tensor) -> Tensor:
        """Return the variances, mean squared over shape, ``(..., M)``."""
        log_mean, log_shape = self._split(f)
        return (2 * log_mean - log_shape).exp()

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the logarithms of the mean and of Minka's approximation of the shape's estimate, at most 1e8."""
        rows = start_rows(y, n_outputs, len(self.parameters))
        mean = weighted_mean(rows, weights)
        log_shape = _minka(mean.log() - weighted_mean(rows.log(), weights))
        return _parameters.join(mean.log(), log_shape, self.dispersion is not None)

    def second_given(self, first: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the logarithm of Minka's approximation of the shape's estimate, ``(M,)``."""
        d = like_outputs(first, y).log() - first
        return _minka(weighted_mean(torch.expm1(d) - d, weights))

    @cached_property
    def _fixed(self) -> tuple[float, float, float]:
        """The logarithm of the fixed shape, the shape, and its part of the value."""
        assert self.dispersion is not None
        log_shape = torch.tensor(-math.log(self.dispersion), dtype=torch.float64)
        return float(log_shape), float(log_shape.exp()), float(_of_shape(log_shape))

    def _parts(self, f: Tensor, y: Tensor, *, once: bool = False) -> _Parts:
        if self.dispersion is not None:
            log_y = like_outputs(f, y).log()
            return _Parts(f, log_y, log_y - f, *self._fixed[:2])
        log_mean, log_shape = self._split(f)
        if once:
            log_shape = _parameters.constant(log_shape)
        log_y = like_outputs(log_mean, y).log()
        return _Parts(f, log_y, log_y - log_mean, log_shape, log_shape.exp())

    def _value(self, p: _Parts) -> Tensor:
        if self.dispersion is not None:
            return _parameters.total_of(p.scaled_rest + p.log_y + self._fixed[2])
        assert isinstance(p.log_shape, Tensor)
        return _parameters.total(p.scaled_rest + (p.log_y + _of_shape(p.log_shape)), p.f)

    def _gradient(self, p: _Parts) -> Tensor:
        if self.dispersion is not None:
            return -p.scaled
        return _parameters.interleaved(-p.scaled, p.scaled_rest + (p.binet[0] - 0.5))

    def _observed(self, p: _Parts) -> SymmetricOperator:
        if self.dispersion is not None:
            return Diagonal(p.ratio)
        first, second = p.binet
        return _parameters.blocks(p.ratio, -p.scaled, p.scaled_rest + (first + second))

    def _expected(self, p: _Parts) -> Diagonal:
        if isinstance(p.shape, float):
            return Diagonal(torch.full_like(p.d, p.shape))
        return _information(p.d, p.shape, p.binet[1])

    def power_curvature(self, f: Tensor, y: Tensor, power: float) -> Tensor:
        """Return ``power * shape * ((power + 1) y / mean - 1)``."""
        p = self._parts(f, y)
        if power == -1:
            return torch.zeros_like(p.d) + p.shape
        near = ((power + 1) * p.d.clamp(max=1.0).exp() - 1) * p.shape
        return power * torch.where(p.d > 1, p.ratio * ((power + 1) - (-p.d).exp()), near)

    def definition(self) -> Definition:
        """Return the formulas, with the shape as an output or the dispersion as a constant."""
        from raphson.likelihoods import formulas as fm
        from raphson.likelihoods.formulas import exponential, positive, real, sympy

        y, k, m, r, phi = positive("y k mu u phi")
        kappa = real("kappa")
        eta, mean = _mean_link.mean_formula(self.link, m)
        ratio = fm.Abbreviation(r, y / m, {m: -r / m})
        nll = sympy.loggamma(k) - k * sympy.log(k) - k * sympy.log(r) + sympy.log(y) + k * r
        log_mean = sympy.digamma(k) - sympy.log(k)
        known = self.dispersion is not None
        of_both = fm.Convexity(
            "Strictly convex in the log mean for a fixed shape. In both outputs convex only near the mean: where "
            "u (ψ(k) - log k + k ψ′(k) - log u) ≥ 1, which holds at u = 1 and fails for small and for large u.",
            r * (log_mean + k * sympy.trigamma(k) - sympy.log(r)) >= 1,
        )
        made = fm.Definition(
            likelihood=self,
            outputs=(eta,) if known else (eta, kappa),
            targets=(y,),
            nll=sympy.expand_log(nll.subs(k, 1 / phi), force=True) if known else nll,
            abbreviations=(mean, ratio) if known else (mean, exponential(k, kappa), ratio),
            moments={r: sympy.Integer(1), sympy.log(r): log_mean},
            constants={} if self.dispersion is None else {phi: self.dispersion},
            example=((0.4,) if known else (0.4, 0.3), 2.0),
            convexity=fm.STRICTLY_CONVEX if known else of_both,
            source=fm.GLM_BOOK + "chapter 8.",
            target_words=f"a positive number with mean μ and variance {'φ μ²' if known else 'μ²/k'}",
        )
        return _mean_link.at_link(made, self.link)


def _information(like: Tensor, shape: Tensor, second: Tensor) -> Diagonal:
    return _parameters.uncorrelated(shape.expand_as(like), (0.5 + second).expand_as(like))


def _away_from_zero(shape: Tensor) -> Tensor:
    """Return shapes at which no square underflows; below, Binet's function has its limit but for a logarithm."""
    return shape.clamp_min(torch.finfo(shape.dtype).tiny ** 0.4)


def _of_shape(log_shape: Tensor) -> Tensor:
    r"""Return :math:`\log\Gamma(k) - k \log k + k`."""
    shape = log_shape.exp()
    # Binet's function of a shape that underflows is half of its logarithm
    below = (math.log(torch.finfo(shape.dtype).tiny ** 0.4) - log_shape).clamp(min=0)
    return binet(_away_from_zero(shape)) + 0.5 * (below - log_shape) + HALF_LOG_TWO_PI


def _exponential_rest(d: Tensor) -> Tensor:
    """Return ``e^d - 1 - d``; near zero by its series, where the difference has no digits."""
    near = d.abs() < 1e-3
    x = torch.where(near, d, 0.0)
    series = 0.5 * x.square() * (1 + x / 3 * (1 + x / 4 * (1 + x / 5)))
    return torch.where(near, series, torch.expm1(d) - d)


def _minka(s: Tensor) -> Tensor:
    """Return the logarithm of the shape at which its log exceeds its digamma function by about ``s``."""
    s = s.clamp(min=0.5e-8)
    return ((3 - s + ((s - 3).square() + 24 * s).sqrt()) / (12 * s)).log()
