r"""Links of a probability: both tails of :math:`p = F(f)` and their derivatives, where either may underflow.

With :math:`q = 1 - p`, everything that a likelihood of successes and failures needs of a link is

.. math::
    \log p, \quad \log q, \quad \rho_p = p' / p, \quad \rho_q = p' / q, \quad
    \kappa_p = -(\log p)'' = \rho_p^2 - p'' / p, \quad \kappa_q = -(\log q)'' = \rho_q^2 + p'' / q:

s successes and u failures have the value :math:`-s \log p - u \log q`, the gradient :math:`u \rho_q - s \rho_p`, the
Hessian :math:`s \kappa_p + u \kappa_q` and, per trial, the information :math:`p'^2 / (p q) = \rho_p \rho_q`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from raphson._errors import InputError
from raphson.likelihoods._special import _cumulative_links as cumulative
from raphson.likelihoods._support import OPEN_UNIT_INTERVAL, REAL, Support

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Abbreviation, Symbol


class Tails(abc.ABC):
    """Both tails at outputs, as the module defines them."""

    log_p: Tensor
    log_q: Tensor

    @abc.abstractmethod
    def value(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Return the negative log-likelihood of each output, without the number of orders."""

    @abc.abstractmethod
    def gradient(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Return its derivative."""

    @abc.abstractmethod
    def hessian(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Return its second derivative."""

    @property
    @abc.abstractmethod
    def information(self) -> Tensor:
        """The information of one trial."""

    @property
    def mean(self) -> Tensor:
        """The probability."""
        return self.log_p.exp()

    @property
    def variance(self) -> Tensor:
        """The probability times that of a failure."""
        return (self.log_p + self.log_q).exp()


class LogitTails(Tails):
    """Both tails of the logistic distribution, each evaluated when something asks for it."""

    def __init__(self, f: Tensor) -> None:
        self._f, self._opposite = f, -f

    @cached_property
    def log_p(self) -> Tensor:  # type: ignore[override]
        return logsigmoid(self._f)

    @cached_property
    def log_q(self) -> Tensor:  # type: ignore[override]
        return logsigmoid(self._opposite)

    @cached_property
    def mean(self) -> Tensor:
        return torch.sigmoid(self._f)

    @cached_property
    def _rest(self) -> Tensor:
        return torch.sigmoid(self._opposite)

    @cached_property
    def information(self) -> Tensor:
        return self.mean * self._rest

    @property
    def variance(self) -> Tensor:
        return self.information

    def value(self, successes: Tensor, failures: Tensor) -> Tensor:
        return torch.addcmul(successes * self.log_p, failures, self.log_q).neg()

    def gradient(self, successes: Tensor, failures: Tensor) -> Tensor:
        return torch.addcmul(failures * self.mean, successes, self._rest, value=-1)

    def hessian(self, successes: Tensor, failures: Tensor) -> Tensor:
        return (successes + failures) * self.information


@dataclass(frozen=True, eq=False)
class KnownTails(Tails):
    """Both tails of a link whose parts are evaluated together; either may have no probability."""

    log_p: Tensor
    log_q: Tensor
    by_p: Tensor  # rho_p
    by_q: Tensor  # rho_q
    second_p: Tensor  # kappa_p
    second_q: Tensor  # kappa_q

    def value(self, successes: Tensor, failures: Tensor) -> Tensor:
        return -_times(successes, self.log_p) - _times(failures, self.log_q)

    def gradient(self, successes: Tensor, failures: Tensor) -> Tensor:
        return _times(failures, self.by_q) - _times(successes, self.by_p)

    def hessian(self, successes: Tensor, failures: Tensor) -> Tensor:
        return _times(successes, self.second_p) + _times(failures, self.second_q)

    @property
    def information(self) -> Tensor:
        # one of the two may be infinite where the other is zero
        return torch.where((self.by_p == 0) | (self.by_q == 0), 0.0, self.by_p * self.by_q)


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
    return count * torch.where(count == 0, 0.0, value)


def _probit(f: Tensor) -> KnownTails:
    # both tails together: phi / Phi by the scaled complementary error function, which neither over- nor underflows
    x = torch.stack((f, -f))
    ratio = math.sqrt(2 / math.pi) / torch.special.erfcx(x * -math.sqrt(0.5))
    curvature = ratio * cumulative.mills_excess(x, ratio)
    logs = torch.special.log_ndtr(x)
    return KnownTails(logs[0], logs[1], ratio[0], ratio[1], curvature[0], curvature[1])


def _cloglog(f: Tensor) -> KnownTails:
    # q = exp(-e^f) has derivatives of its own, e^f both
    rate = f.exp()
    # half of the range is far beyond where q is zero
    safe = rate.clamp(max=torch.finfo(f.dtype).max ** 0.5)
    excess, ratio = cumulative.exponential_ratios(safe)
    # log(1 - e^-x), where x may underflow: log x - x / 2
    tiny = rate < 1e-9
    log_p = torch.where(tiny, f - 0.5 * rate, cumulative.log_one_minus_exp(torch.where(tiny, 1.0, rate)))
    return KnownTails(log_p, -rate, ratio, rate, ratio * excess, rate)


def _loglog(f: Tensor) -> Tails:
    at = _cloglog(-f)
    return KnownTails(at.log_q, at.log_p, at.by_q, at.by_p, at.second_q, at.second_p)


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
    return KnownTails(log_p, log_q, by_p, by_q, by_p * (by_p - rate), by_q * (by_q + rate))


def _log(f: Tensor) -> Tails:
    one = torch.ones_like(f)
    inside = f < 0
    safe = torch.where(inside, f, -1.0)
    by_q = torch.expm1(-safe).reciprocal()
    log_q = torch.where(safe > -math.log(2), torch.log(-torch.expm1(safe)), torch.log1p(-safe.exp()))
    log_q = torch.where(inside, log_q, torch.where(f == 0, -math.inf, math.nan))
    log_p = torch.where(f <= 0, f, math.nan)
    return KnownTails(log_p, log_q, one, by_q, torch.zeros_like(f), by_q * (by_q + 1))


def _identity(f: Tensor) -> Tails:
    by_p, by_q = f.reciprocal(), (1 - f).reciprocal()
    # both are nan outside, where one of the two is a number
    outside = torch.where((f < 0) | (f > 1), math.nan, 0.0)
    return KnownTails(f.log() + outside, torch.log1p(-f) + outside, by_p, by_q, by_p.square(), by_q.square())


def _negative(f: Tensor) -> Tensor:
    return (f < 0) & torch.isfinite(f)


BINARY_LINKS: dict[str, BinaryLink] = {
    "logit": BinaryLink(LogitTails, torch.logit, "logit", "sigmoid"),
    "probit": BinaryLink(_probit, torch.special.ndtri, "probit", "normal_cdf"),
    "cloglog": BinaryLink(_cloglog, cumulative.LINKS["cloglog"].quantile, "cloglog", "cloglog_inverse"),
    "loglog": BinaryLink(_loglog, lambda p: -(-p.log()).log(), "loglog", "loglog_inverse"),
    "cauchit": BinaryLink(_cauchit, lambda p: torch.tan(math.pi * (p - 0.5)), "cauchit", "cauchy_cdf", concave=False),
    "log": BinaryLink(_log, torch.log, "log_probability", "exp", Support("a negative number", _negative)),
    "identity": BinaryLink(_identity, lambda p: p, "probability", "identity", OPEN_UNIT_INTERVAL),
}
"""By name: the output is the logit of the probability, its probit (the normal quantile), ... or the probability."""
