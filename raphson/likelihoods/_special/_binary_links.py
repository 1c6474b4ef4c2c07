r"""Links of a probability: both tails of :math:`p = F(f)` and their derivatives, where either may underflow.

With :math:`q = 1 - p`, everything that a likelihood of successes and failures needs of a link is

.. math::
    \log p, \quad \log q, \quad \rho_p = p' / p, \quad \rho_q = p' / q, \quad
    \kappa_p = -(\log p)'' = \rho_p^2 - p'' / p, \quad \kappa_q = -(\log q)'' = \rho_q^2 + p'' / q:

s successes and u failures have the value :math:`-s \log p - u \log q`, the gradient :math:`u \rho_q - s \rho_p`, the
Hessian :math:`s \kappa_p + u \kappa_q` and, per trial, the information :math:`p'^2 / (p q) = \rho_p \rho_q`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._likelihood import Likelihood
from raphson.likelihoods._links import softplus
from raphson.likelihoods._special import _cumulative_links as cumulative
from raphson.likelihoods._support import OPEN_UNIT_INTERVAL, REAL, Support

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Abbreviation, Symbol


class Tails(NamedTuple):
    """Both tails at outputs, as the module defines them."""

    log_p: Tensor
    log_q: Tensor
    by_p: Tensor  # rho_p
    by_q: Tensor  # rho_q
    second_p: Tensor  # kappa_p
    second_q: Tensor  # kappa_q

    def value(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Return the negative log-likelihood of each output, without the number of orders."""
        return -_times(successes, self.log_p) - _times(failures, self.log_q)

    def gradient(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Return its derivative."""
        return _times(failures, self.by_q) - _times(successes, self.by_p)

    def hessian(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Return its second derivative."""
        return _times(successes, self.second_p) + _times(failures, self.second_q)

    @property
    def information(self) -> Tensor:
        """The information of one trial."""
        return _times(self.by_p, torch.where(self.by_p == 0, 0.0, self.by_q))


class BinaryLink(NamedTuple):
    """A link of a probability.

    Attributes:
        tails: Both tails at outputs.
        quantile: The output of a probability.
        output: What the output is called.
        function: What ``formulas`` calls the probability as a function of the output.
        domain: Where outputs must lie.
        concave: Whether both log tails are concave.
    """

    tails: Callable[[Tensor], Tails]
    quantile: Callable[[Tensor], Tensor]
    output: str
    function: str
    domain: Support = REAL
    concave: bool = True

    def formula(self, p: Symbol, helper: Symbol) -> tuple[Symbol, tuple[Abbreviation, ...]]:
        """Return the symbol of the output, and ``p`` as a function of it."""
        from raphson.likelihoods.formulas import as_function, real

        eta = real("eta")
        return eta, tuple(as_function(self.function, eta, p, helper))


def binary_link(name: str) -> BinaryLink:
    """Return a link by its key in ``BINARY_LINKS``; another name is an ``InputError``."""
    if name not in BINARY_LINKS:
        raise InputError(f"There is no link '{name}' for a probability; choose one of {', '.join(BINARY_LINKS)}.")
    return BINARY_LINKS[name]


def _times(count: Tensor, value: Tensor) -> Tensor:
    # no successes say nothing, however improbable a success is
    return torch.where(count == 0, 0.0, count * torch.where(count == 0, 0.0, value))


def _logit(f: Tensor) -> Tails:
    up, down = torch.sigmoid(f), torch.sigmoid(-f)
    return Tails(-softplus(-f), -softplus(f), down, up, up * down, up * down)


def _of_cumulative(name: str) -> Callable[[Tensor], Tails]:
    interval = cumulative.LINKS[name].interval

    def tails(f: Tensor) -> Tails:
        end = torch.full_like(f, math.inf)
        below, above = interval(-end, f), interval(f, end)
        return Tails(
            below.log_p,
            above.log_p,
            below.upper,
            above.lower,
            below.upper * below.upper_second,
            above.lower * above.lower_second,
        )

    return tails


_cloglog_tails = _of_cumulative("cloglog")


def _cloglog(f: Tensor) -> Tails:
    # q = exp(-e^f) has derivatives of its own, e^f both
    rate = f.exp()
    return _cloglog_tails(f)._replace(log_q=-rate, by_q=rate, second_q=rate)


def _loglog(f: Tensor) -> Tails:
    at = _cloglog(-f)
    return Tails(at.log_q, at.log_p, at.by_q, at.by_p, at.second_q, at.second_p)


def _cauchit(f: Tensor) -> Tails:
    one = torch.ones_like(f)
    # arctangents of two arguments keep the digits of the small tail
    p, q = torch.atan2(one, -f) / math.pi, torch.atan2(one, f) / math.pi
    # f^2 would overflow where 1 / f does not
    low = torch.where(f.abs() > 1, f, 1.0).reciprocal()
    small = torch.where(f.abs() > 1, 0.0, f)
    density = torch.where(f.abs() > 1, low.square() / (1 + low.square()), 1 / (1 + small.square())) / math.pi
    rate = torch.where(f.abs() > 1, -2 * low / (1 + low.square()), -2 * small / (1 + small.square()))  # p'' / p'
    by_p, by_q = density / p, density / q
    log_p, log_q = (torch.where(x < 0.5, x.log(), torch.log1p(-rest)) for x, rest in ((p, q), (q, p)))
    return Tails(log_p, log_q, by_p, by_q, by_p * (by_p - rate), by_q * (by_q + rate))


def _log(f: Tensor) -> Tails:
    one = torch.ones_like(f)
    inside = f < 0
    safe = torch.where(inside, f, -1.0)
    by_q = torch.expm1(-safe).reciprocal()
    log_q = torch.where(safe > -math.log(2), torch.log(-torch.expm1(safe)), torch.log1p(-safe.exp()))
    log_q = torch.where(inside, log_q, torch.where(f == 0, -math.inf, math.nan))
    log_p = torch.where(f <= 0, f, math.nan)
    return Tails(log_p, log_q, one, by_q, torch.zeros_like(f), by_q * (by_q + 1))


def _identity(f: Tensor) -> Tails:
    by_p, by_q = f.reciprocal(), (1 - f).reciprocal()
    # both are nan outside, where one of the two is a number
    outside = torch.where((f < 0) | (f > 1), math.nan, 0.0)
    return Tails(f.log() + outside, torch.log1p(-f) + outside, by_p, by_q, by_p.square(), by_q.square())


def _negative(f: Tensor) -> Tensor:
    return (f < 0) & torch.isfinite(f)


BINARY_LINKS: dict[str, BinaryLink] = {
    "logit": BinaryLink(_logit, torch.logit, "logit", "sigmoid"),
    "probit": BinaryLink(_of_cumulative("probit"), torch.special.ndtri, "probit", "normal_cdf"),
    "cloglog": BinaryLink(_cloglog, cumulative.LINKS["cloglog"].quantile, "cloglog", "cloglog_inverse"),
    "loglog": BinaryLink(_loglog, lambda p: -(-p.log()).log(), "loglog", "loglog_inverse"),
    "cauchit": BinaryLink(_cauchit, lambda p: torch.tan(math.pi * (p - 0.5)), "cauchit", "cauchy_cdf", concave=False),
    "log": BinaryLink(_log, torch.log, "log_probability", "exp", Support("a negative number", _negative)),
    "identity": BinaryLink(_identity, lambda p: p, "probability", "identity", OPEN_UNIT_INTERVAL),
}
"""By name: the output is the logit of the probability, its probit (the normal quantile), ... or the probability."""


class BinaryFamily(Likelihood):
    """A likelihood of successes and failures by a link of their probability."""

    link: str
    link_names = tuple(BINARY_LINKS)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The logit of each response's probability, or what the link makes of it."""
        return (self._link.output,)

    @property
    def domains(self) -> tuple[Support, ...]:
        """Where the link is defined."""
        return (self._link.domain,)

    @property
    def _link(self) -> BinaryLink:
        return binary_link(self.link)
