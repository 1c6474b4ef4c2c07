r"""Cumulative links: the probability of an interval and how it changes with its ends, where both may underflow.

For a distribution function F with density F' and :math:`p = F(b) - F(a)`, everything that an ordinal likelihood
needs of a link is

.. math::
    \log p, \qquad \rho_a = F'(a) / p, \qquad \rho_b = F'(b) / p, \qquad
    \tau_a = \rho_a + F''(a) / F'(a), \qquad \tau_b = \rho_b - F''(b) / F'(b):

the gradient of :math:`-\log p` in (a, b) is :math:`(\rho_a, -\rho_b)` and its Hessian is
:math:`\begin{pmatrix} \rho_a\tau_a & -\rho_a\rho_b \\ -\rho_a\rho_b & \rho_b\tau_b \end{pmatrix}`. Each link has a
form of them in which nothing cancels. An end may be infinite: ``a = -inf`` for the first, ``b = inf`` for the last
level; its ratio is zero then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from raphson.likelihoods._special._binet import HALF_LOG_TWO_PI
from raphson.likelihoods._special._tracked import tracked


class Interval(NamedTuple):
    """The logarithm of the probability and the four ratios, as the module defines them."""

    log_p: Tensor
    lower: Tensor  # rho_a
    upper: Tensor  # rho_b
    lower_second: Tensor  # tau_a
    upper_second: Tensor  # tau_b


class CumulativeLink(NamedTuple):
    """A cumulative link: ``interval(a, b)`` for ``a < b``, elementwise, and the quantile function."""

    interval: Callable[[Tensor, Tensor], Interval]
    quantile: Callable[[Tensor], Tensor]


def _logit(a: Tensor, b: Tensor) -> Interval:
    # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - e^(a - b))
    if not tracked(a) and not tracked(b):
        # at an infinite end each function has its limit, and 1 - e^-d is 1 / (1 + k)
        k = torch.expm1(b - a).reciprocal_()
        log_p = logsigmoid(b).add_(logsigmoid(-a)).sub_(k.log1p())
        above_a, below_b = torch.sigmoid(-a), torch.sigmoid(b)
        lower, upper = torch.sigmoid(a).add_(k), torch.sigmoid(-b).add_(k)
        return Interval(log_p, lower, upper, above_a.add_(k), below_b.add_(k))
    first, last, a, b = _finite(a, b)
    end = first | last
    d = torch.where(end, 1.0, b - a)
    log_p = torch.where(last, 0.0, logsigmoid(b)) + torch.where(first, 0.0, logsigmoid(-a))
    log_p = log_p + torch.where(end, 0.0, log_one_minus_exp(d))
    k = torch.where(end, 0.0, torch.expm1(d).reciprocal())
    below_a, below_b = torch.sigmoid(a), torch.sigmoid(b)
    above_a, above_b = torch.sigmoid(-a), torch.sigmoid(-b)
    lower, upper = torch.where(first, 0.0, below_a + k), torch.where(last, 0.0, above_b + k)
    return Interval(log_p, lower, upper, above_a + k, below_b + k)


def _finite(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return where an end is infinite, and the ends with a finite number there: infinity has no derivatives."""
    first, last = a == -math.inf, b == math.inf
    return first, last, torch.where(first, b - 1, a), torch.where(last, a + 1, b)


def log_one_minus_exp(d: Tensor) -> Tensor:
    """Return ``log(1 - e^-d)`` for ``d > 0``."""
    small = d < math.log(2)
    near, far = torch.where(small, d, 1.0), torch.where(small, 1.0, d)
    return torch.where(small, (-torch.expm1(-near)).log(), torch.log1p(-torch.exp(-far)))


def _cloglog(a: Tensor, b: Tensor) -> Interval:
    # with A = e^a, B = e^b, D = B - A: p = e^-A (1 - e^-D)
    first, last, a, b = _finite(a, b)
    # e^b could overflow; half of the range is far beyond where e^-B is zero
    limit = 0.5 * math.log(torch.finfo(b.dtype).max)
    rate_a, rate_b = torch.where(first, 0.0, a.exp()), b.clamp(max=limit).exp()
    d = b - a
    width, step = torch.expm1(d), torch.where(first, 0.0, (-d).exp())
    share = torch.where(first, 1.0, -torch.expm1(-d))
    x = rate_b * share
    # log(1 - e^-x), where e^b may underflow: log x - x / 2
    tiny = x < 1e-9
    log_rest = torch.where(tiny, b + share.log() - 0.5 * x, log_one_minus_exp(torch.where(tiny, 1.0, x)))
    log_p = torch.where(last, 0.0, log_rest) - rate_a
    excess, ratio = exponential_ratios(x)
    lower = torch.where(x > 1, rate_a / -torch.expm1(-x), (1 + excess) / width)
    return Interval(
        log_p,
        torch.where(first, 0.0, torch.where(last, rate_a, lower)),
        torch.where(last, 0.0, ratio / share),
        torch.where(last, 1.0, 1 + ratio / width),
        (excess + step) / share,
    )


def exponential_ratios(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x / (1 - e^-x) - 1`` and ``x / (e^x - 1)`` for ``x >= 0``; 0 and 1 at zero."""
    near = x < 0.1
    square = x.square()
    series = 0.5 * x + square / 12 * (1 - square / 60 * (1 - square / 42 * (1 - square / 40)))
    far = torch.where(near, 1.0, x)
    excess = torch.where(near, series, far / -torch.expm1(-far) - 1)
    return excess, torch.where(near, 1 + series - x, far / torch.expm1(far))


def _probit(a: Tensor, b: Tensor) -> Interval:
    # the interval and its mirror image have one probability: work with the one whose middle is not positive
    mirrored = a + b > 0
    a, b = torch.where(mirrored, -b, a), torch.where(mirrored, -a, b)
    whole, _, a, b = _finite(a, b)
    d, middle = b - a, 0.5 * (a + b)
    weight = torch.where(whole, 0.0, torch.exp(d * middle))  # phi(a) / phi(b)

    # on one side of zero: Phi(x) = e^(-x^2 / 2) erfcx(-x / sqrt 2) / 2 for x <= 0, the exponential taken out
    low_a, low_b = a.clamp(max=0.0), b.clamp(max=0.0)
    narrow = ~whole & (d * (1 - middle) < 0.1)
    scaled = _scaled_tail(low_b) - weight * _scaled_tail(low_a)
    scaled = torch.where(narrow | (b > 0), 1.0, scaled)
    log_side = scaled.log() - 0.5 * low_b.square() - math.log(2)
    ratio = math.sqrt(2 / math.pi) / scaled

    # on both sides: a sum, and near 1 one less the tails
    high = b.clamp(min=0.0)
    tails = 0.5 * (torch.erfc(high / math.sqrt(2)) + torch.where(whole, 0.0, torch.erfc(-low_a / math.sqrt(2))))
    inside = 0.5 * (torch.erf(high / math.sqrt(2)) + torch.where(whole, 1.0, torch.erf(-low_a / math.sqrt(2))))
    most = tails < 0.5
    log_both = torch.where(most, torch.log1p(-torch.where(most, tails, 0.0)), torch.where(most, 1.0, inside).log())
    log_p = torch.where(b > 0, log_both, log_side)
    upper = torch.where(b > 0, torch.exp(-0.5 * high.square() - HALF_LOG_TWO_PI - log_both), ratio)

    # narrow: the density at the middle times the width, with Hermite polynomials for the rest
    step, center = torch.where(narrow, d, 0.1), torch.where(narrow, middle, 0.0)
    series = _midpoint(center, step)
    log_narrow = series.log() + step.log() - 0.5 * center.square() - HALF_LOG_TWO_PI
    log_p = torch.where(narrow, log_narrow, log_p)
    upper = torch.where(narrow, torch.exp(-0.5 * step * (center + 0.25 * step)) / (step * series), upper)

    lower = upper * weight
    lower_second = lower - a
    upper_second = torch.where(weight < 1e-18, mills_excess(b, upper), upper + b)
    return Interval(
        log_p,
        torch.where(mirrored, upper, lower),
        torch.where(mirrored, lower, upper),
        torch.where(mirrored, upper_second, lower_second),
        torch.where(mirrored, lower_second, upper_second),
    )


_FAR = -30.0


def mills_excess(x: Tensor, ratio: Tensor) -> Tensor:
    r"""Return :math:`\phi(x) / \Phi(x) + x`, given the first term: far down, where it cancels, by its series."""
    far = x < _FAR
    z = torch.where(far, x, _FAR).reciprocal()
    s = z.square()
    # 1e-13 relative from 30 on
    series = -z * (1 - s * (2 - s * (10 - s * (74 - s * (706 - s * 8162)))))
    return torch.where(far, series, ratio + x)


def _scaled_tail(x: Tensor) -> Tensor:
    tail: Tensor = torch.special.erfcx(x / -math.sqrt(2))
    return tail


def _midpoint(m: Tensor, d: Tensor) -> Tensor:
    """Return the integral of ``phi`` over a width ``d`` about ``m`` by ``d phi(m)``; 1e-16 where d (1 + m) < 0.1."""
    x, z = m.square(), d.square()
    he4 = x * (x - 6) + 3
    he6 = x * (x * (x - 15) + 45) - 15
    he8 = x * (x * (x * (x - 28) + 210) - 420) + 105
    return 1 + z / 24 * ((x - 1) + z / 80 * (he4 + z / 168 * (he6 + z / 288 * he8)))


LINKS: dict[str, CumulativeLink] = {
    "logit": CumulativeLink(_logit, torch.logit),
    "probit": CumulativeLink(_probit, torch.special.ndtri),
    "cloglog": CumulativeLink(_cloglog, lambda u: (-torch.log1p(-u)).log()),
}
