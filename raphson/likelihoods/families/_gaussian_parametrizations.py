r"""The two outputs of a Gaussian response, in seven parametrizations.

One response has the negative log-likelihood :math:`\ell = a + \frac12 r^2 + \frac12 \log 2\pi` with log scale
:math:`a`, inverse scale :math:`p = e^{-a}` and standardized residual :math:`r = p\,(y - \mu)`. What differs between
parametrizations is how the outputs give :math:`(\mu, a)` and what the chain rule makes of it:

* ``MeanAnd``: the outputs are :math:`\mu` and some :math:`\theta` with :math:`a = a(\theta)`. The chain rule is
  written once, for any ``ScaleMap``.
* ``Natural``: an exponential family, whose Hessian is the covariance of :math:`(y, y^2)`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raphson.likelihoods._definiteness import Definiteness
from raphson.likelihoods._links import softplus, softplus_inverse
from raphson.likelihoods._parameters import product
from raphson.likelihoods._support import NEGATIVE, POSITIVE, REAL, Support
from raphson.likelihoods._units import add_exponent, times_power, unit_exponent

Number = Tensor | float


class Moments(NamedTuple):
    """Mean, log scale and inverse scale of each response, ``(..., M)``."""

    mean: Tensor
    log_scale: Tensor
    inverse_scale: Tensor


class Units(NamedTuple):
    """Both outputs in units of the scale, and powers of two: of the targets and of the derivatives in each output."""

    target: Tensor
    outputs: tuple[Tensor, Tensor]
    gradient: tuple[Tensor, Tensor]


class LogUnit(NamedTuple):
    """An output that is a multiple of the log scale, everywhere or (to all digits) below some log scale."""

    multiple: float
    below: float | None = None


class Entries(NamedTuple):
    """The distinct entries of symmetric or lower triangular 2 x 2 matrices; no ``cross`` means zero."""

    first: Tensor
    cross: Tensor | None
    second: Tensor


@dataclass(frozen=True, eq=False)
class Parametrization(abc.ABC):
    """How two outputs ``(..., M)`` stand for mean and scale, and the derivatives in them.

    Args:
        names: Names of the two outputs.
        domains: Where they must lie.
        definiteness: What is known about the output Hessians.
    """

    names: tuple[str, str]
    domains: tuple[Support, Support]
    definiteness: Definiteness

    @abc.abstractmethod
    def moments(self, first: Tensor, second: Tensor) -> Moments:
        """Return mean, log scale and inverse scale."""

    @abc.abstractmethod
    def outputs(self, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two outputs that stand for a mean and a scale."""

    @abc.abstractmethod
    def in_units(self, first: Tensor, second: Tensor) -> Units:
        """Return both outputs in units of the scale."""

    @abc.abstractmethod
    def gradient(self, second: Tensor, at: Moments, r: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives in the two outputs, given the standardized residual."""

    @abc.abstractmethod
    def observed(self, second: Tensor, at: Moments, r: Tensor) -> Entries:
        """Return the second derivatives."""

    @abc.abstractmethod
    def expected(self, second: Tensor, at: Moments) -> Entries:
        """Return the mean of the second derivatives over targets drawn from the model."""

    @abc.abstractmethod
    def root(self, second: Tensor, at: Moments) -> Entries:
        """Return the Cholesky factor of ``expected``."""


@dataclass(frozen=True, eq=False)
class ScaleMap:
    r"""How an output :math:`\theta` gives the log scale ``a``, with its derivatives.

    Args:
        domain: Where the output must lie.
        scales: Gives log scale and inverse scale, :math:`a` and :math:`p = e^{-a}`.
        first: Gives :math:`a'`.
        second: Gives, from :math:`\theta` and :math:`a'`, :math:`a''` and :math:`b = 2 a'^2 - a''`, which is
            :math:`q'' / 2q` of the precision :math:`q = e^{-2a}`; on its own because the two terms can cancel.
        of_scale: Gives the output for a scale.
        unit: Which power of the scale the output is, or which multiple of its logarithm.
    """

    domain: Support
    scales: Callable[[Tensor], tuple[Tensor, Tensor]]
    first: Callable[[Tensor], Number]
    second: Callable[[Tensor, Number], tuple[Number, Number]]
    of_scale: Callable[[Tensor], Tensor]
    unit: float | LogUnit


@dataclass(frozen=True, eq=False)
class MeanAnd(Parametrization):
    r"""The outputs are the mean and a function of the scale.

    .. math::
        \nabla\ell = \begin{pmatrix} -rp \\ a'(1 - r^2) \end{pmatrix}, \quad
        \nabla^2\ell = \begin{pmatrix} p^2 & 2 r p a' \\ 2 r p a' & a'' + r^2 b \end{pmatrix}, \quad
        \mathrm{E}\nabla^2\ell = \begin{pmatrix} p^2 & 0 \\ 0 & 2 a'^2 \end{pmatrix}

    Args:
        scale_map: The function.
    """

    scale_map: ScaleMap

    def moments(self, first: Tensor, second: Tensor) -> Moments:
        return Moments(first, *self.scale_map.scales(second))

    def outputs(self, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return mean, self.scale_map.of_scale(scale)

    def in_units(self, first: Tensor, second: Tensor) -> Units:
        unit, log_scale = self.scale_map.unit, self.scale_map.scales(second)[0]
        if isinstance(unit, LogUnit):
            exponent = unit_exponent((log_scale - unit.below).clamp(max=0.0) if unit.below is not None else log_scale)
            moved, power = add_exponent(second, exponent, unit.multiple), torch.zeros_like(exponent)
        else:
            exponent = unit_exponent(log_scale)
            power = unit * exponent
            moved = times_power(second, power)
        return Units(exponent, (times_power(first, exponent), moved), (exponent, power))

    def gradient(self, second: Tensor, at: Moments, r: Tensor) -> tuple[Tensor, Tensor]:
        return -r * at.inverse_scale, _times_zero(1 - r * r, self.scale_map.first(second))

    def observed(self, second: Tensor, at: Moments, r: Tensor) -> Entries:
        first = self.scale_map.first(second)
        a, b = self.scale_map.second(second, first)
        # a number b of zero is that of the precision, in which the value is linear but for a logarithm
        second_derivative = (
            _filled(a, second) if isinstance(b, float) and b == 0 else _times_zero(r * r, b) + _bounded(a)
        )
        cross = 2 * _times_zero(r * at.inverse_scale, first)
        return Entries(at.inverse_scale.square(), cross, second_derivative)

    def expected(self, second: Tensor, at: Moments) -> Entries:
        """Return the expected second derivatives: mean and scale are orthogonal."""
        first = self.scale_map.first(second)
        return Entries(at.inverse_scale.square(), None, _filled(2 * first * first, second))

    def root(self, second: Tensor, at: Moments) -> Entries:
        """Return the diagonal of roots."""
        return Entries(at.inverse_scale, None, 2**0.5 * _filled(self.scale_map.first(second), second).abs())


@dataclass(frozen=True, eq=False)
class Natural(Parametrization):
    r"""The natural parameters :math:`\eta_1 = \mu / s^2`, :math:`\eta_2 = -1 / (2 s^2)`, with statistic ``(y, y^2)``.

    Everything is written in central moments, in which nothing cancels.
    """

    def moments(self, first: Tensor, second: Tensor) -> Moments:
        precision = -2 * second
        return Moments(first / precision, -0.5 * precision.log(), precision.sqrt())

    def outputs(self, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        precision = scale.square().reciprocal()
        return mean * precision, -0.5 * precision

    def in_units(self, first: Tensor, second: Tensor) -> Units:
        exponent = unit_exponent(-0.5 * (-2 * second).log())
        power = -exponent, -2 * exponent
        return Units(exponent, (times_power(first, power[0]), times_power(second, power[1])), power)

    def gradient(self, second: Tensor, at: Moments, r: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means of the statistic less the statistic."""
        residual = r / at.inverse_scale
        variance = -0.5 / second
        return -residual, variance - residual * (residual + 2 * at.mean)

    def observed(self, second: Tensor, at: Moments, r: Tensor) -> Entries:
        """Return the covariance of the statistic, free of the target."""
        return self.expected(second, at)

    def expected(self, second: Tensor, at: Moments) -> Entries:
        """Return the covariance of the statistic."""
        variance = -0.5 / second
        twice = 2 * at.mean
        cross = twice * variance
        return Entries(variance, cross, twice * cross + 2 * variance.square())

    def root(self, second: Tensor, at: Moments) -> Entries:
        scale = at.inverse_scale.reciprocal()
        return Entries(scale, 2 * at.mean * scale, (-(0.5**0.5)) / second)


def _filled(x: Number, like: Tensor) -> Tensor:
    return x if isinstance(x, Tensor) else torch.full_like(like, x)


def _times_zero(x: Tensor, factor: Number) -> Tensor:
    """Return the product, zero with its first factor though the second, the inverse of a tiny output, be infinite."""
    return product(x, factor) if isinstance(factor, Tensor) else x * factor


def _bounded(a: Number) -> Number:
    # the other term may be infinite, of the other sign
    return a.clamp(min=torch.finfo(a.dtype).min) if isinstance(a, Tensor) else a


def _times(x: Number, factor: float) -> Number:
    return factor if factor == 0 else x * factor


def _power(exponent: float) -> ScaleMap:
    # theta = s^(1 / exponent), so that a = exponent * log(theta)
    return ScaleMap(
        POSITIVE,
        lambda theta: (exponent * theta.log(), theta.pow(-exponent)),
        lambda theta: exponent / theta,
        lambda theta, first: (first * first * (-1 / exponent), _times(first * first, 2 + 1 / exponent)),
        lambda scale: scale.pow(1 / exponent),
        1 / exponent,
    )


def _log(multiple: float) -> ScaleMap:
    # theta = log(s) / multiple
    return ScaleMap(
        REAL,
        lambda theta: (multiple * theta, torch.exp(-multiple * theta)),
        lambda theta: multiple,
        lambda theta, first: (0.0, 2 * first * first),
        lambda scale: scale.log() / multiple,
        LogUnit(1 / multiple),
    )


def _softplus(theta: Tensor) -> Tensor:
    return softplus(theta).clamp(min=torch.finfo(theta.dtype).tiny)


def _softplus_scales(theta: Tensor) -> tuple[Tensor, Tensor]:
    scale = _softplus(theta)
    # far down it is e^theta, which may underflow where its inverse is a number
    small = theta < -40
    return torch.where(small, theta, scale.log()), torch.where(small, (-theta).exp(), scale.reciprocal())


def _softplus_first(theta: Tensor) -> Tensor:
    # with s the scale, the derivative of softplus is 1 - e^-s
    s = _softplus(theta)
    return -torch.expm1(-s) / s


def _softplus_second(theta: Tensor, first: Number) -> tuple[Number, Number]:
    # a'' = a' (e^-s - a'), by the series of (e^s - 1 - s) / s^2 where the two nearly cancel
    s = _softplus(theta)
    rest = torch.exp(-s)
    small = s.clamp(max=0.5)
    one = s.new_ones(())
    series = one
    for n in range(14, 2, -1):
        series = torch.addcmul(one, small, series, value=1 / n)
    second = first * torch.where(s < 0.5, -0.5 * s * rest * series, rest - first)
    return second, 2 * first * first - second


_SOFTPLUS = ScaleMap(REAL, _softplus_scales, _softplus_first, _softplus_second, softplus_inverse, LogUnit(1.0, -40.0))

_NEVER = "Use the expected one, or natural parameters, where a positive definite matrix is needed."


_NATURAL = Definiteness(
    observed="positive definite",
    positive_where="true",
    determinant="2*s**6",
    expected_determinant="2*s**6",
    sentence=(
        "The observed Hessian is Cov[y, y^2], positive definite for every output and target and free of the "
        "target: it equals the expected one, and the loss is convex in both outputs together."
    ),
)


def _mean_and(second: str, scale_map: ScaleMap, definiteness: Definiteness) -> MeanAnd:
    return MeanAnd(("mean", second), (REAL, scale_map.domain), definiteness, scale_map)


PARAMETRIZATIONS: dict[str, Parametrization] = {
    "mean_scale": _mean_and(
        "scale",
        _power(1.0),
        Definiteness(
            "indefinite",
            "false",
            "-(1 + r**2)/s**4",
            "2/s**4",
            "The observed Hessian is indefinite for every target (determinant -(1 + r^2)/s^4 < 0); the expected one, "
            f"diag(1/s^2, 2/s^2), is positive definite. {_NEVER}",
        ),
    ),
    "mean_log_scale": _mean_and(
        "log_scale",
        _log(1.0),
        Definiteness(
            "indefinite or singular",
            "false",
            "-2*r**2/s**2",
            "2/s**2",
            "The observed Hessian is indefinite for every target but y = mean, where it is singular (determinant "
            "-2 r^2/s^2), though the loss is convex in each output by itself; the expected one, diag(1/s^2, 2), is "
            f"positive definite. {_NEVER}",
        ),
    ),
    "mean_variance": _mean_and(
        "variance",
        _power(0.5),
        Definiteness(
            "indefinite",
            "false",
            "-1/(2*s**6)",
            "1/(2*s**6)",
            "The observed Hessian is indefinite for every target (determinant -1/(2 s^6), whatever the target); the "
            f"expected one, diag(1/s^2, 1/(2 s^4)), is positive definite. {_NEVER}",
        ),
    ),
    "mean_log_variance": _mean_and(
        "log_variance",
        _log(0.5),
        Definiteness(
            "indefinite or singular",
            "false",
            "-r**2/(2*s**2)",
            "1/(2*s**2)",
            "The observed Hessian is indefinite for every target but y = mean, where it is singular (determinant "
            "-r^2/(2 s^2)), though the loss is convex in each output by itself; the expected one, diag(1/s^2, 1/2), "
            f"is positive definite. {_NEVER}",
        ),
    ),
    "mean_precision": _mean_and(
        "precision",
        _power(-0.5),
        Definiteness(
            "indefinite or positive definite",
            "r**2 < 1/2",
            "s**2*(1 - 2*r**2)/2",
            "s**2/2",
            "The observed Hessian is positive definite where r^2 < 1/2 (about 52% of targets drawn from the model), "
            "singular where r^2 = 1/2 and indefinite beyond (determinant s^2 (1 - 2 r^2)/2), though the loss is "
            f"convex in each output by itself; the expected one, diag(1/s^2, s^4/2), is positive definite. {_NEVER}",
        ),
    ),
    "mean_softplus_scale": _mean_and(
        "softplus_scale",
        _SOFTPLUS,
        Definiteness(
            "indefinite",
            "false",
            "-(1 - exp(-s))*((1 - exp(-s) - s*exp(-s)) + r**2*(1 - exp(-s) + s*exp(-s)))/s**4",
            "2*(1 - exp(-s))**2/s**4",
            "The observed Hessian is indefinite for every target (the log of softplus is strictly concave); the "
            f"expected one, diag(1/s^2, 2 (1 - e^-s)^2/s^2), is positive definite. {_NEVER}",
        ),
    ),
    "natural": Natural(("eta1", "eta2"), (REAL, NEGATIVE), _NATURAL),
}
"""By name: the first six have the mean as first output."""
