"""What each likelihood is, in multiple precision: value, expected information, mean and variance, found by its name.

Values are textbook formulas of ``Jet`` numbers, whose derivatives come with them; nothing here uses the library, and
nothing is arranged to save digits: the caller takes as many as it needs.
"""

from __future__ import annotations

import functools
from typing import Any

import mpmath as mp

from . import jet
from .exact import Exact, Number, congruent, half_log_two_pi
from .exact_probabilities import _Multinomial
from .jet import Jet, exp, expm1, log, log1p, loggamma, power, sigmoid, softplus, square

# means and a second parameter ----------------------------------------------------------------------------------------


def log_mean(link: str, f: Jet) -> Jet:
    return (
        f
        if link == "log"
        else log(f) * {"identity": 1, "sqrt": 2, "inverse": -1, "inverse_squared": mp.mpf(-1) / 2}[link]
    )


def mean(link: str, f: Jet) -> Jet:
    return f if link == "identity" else exp(f) if link == "log" else 1 / f


def second(f: list[Jet], fixed: Number) -> Jet:
    """The second parameter, or the fixed number as one that no output moves."""
    return f[1] if len(f) > 1 else f[0] * 0 + fixed


class _Gaussian(Exact):
    def _scale(self, m):
        return mp.mpf(float(m.scale))

    def value(self, m, f, y):
        value = square((y[0] - mean(m.link, f[0])) / self._scale(m)) / 2
        return value + (mp.log(self._scale(m)) + half_log_two_pi()) * int(m.normalized)

    def information(self, m, f, y):
        return congruent([[self._scale(m) ** -2]], [mean(m.link, f[0])])

    def moments(self, m, f):
        return [mean(m.link, f[0]).v], [self._scale(m) ** 2]


class _HeteroscedasticGaussian(Exact):
    def _parameters(self, m, f):
        """Mean and log scale."""
        name, x = m.parametrization, f[1]
        if name == "natural":
            return f[0] / x / -2, log(x * -2) / -2
        forms = {"mean_scale": (log, 1), "mean_variance": (log, 0.5), "mean_precision": (log, -0.5)}
        forms |= {"mean_log_scale": (lambda x: x, 1), "mean_log_variance": (lambda x: x, 0.5)}
        forms |= {"mean_softplus_scale": (lambda x: log(softplus(x)), 1)}
        function, multiple = forms[name]
        return mean(m.link, f[0]), function(x) * mp.mpf(multiple)

    def value(self, m, f, y):
        mu, a = self._parameters(m, f)
        return a + square((y[0] - mu) * exp(-a)) / 2 + half_log_two_pi()

    def information(self, m, f, y):
        mu, a = self._parameters(m, f)
        return congruent([[exp(-2 * a.v), 0], [0, 2]], [mu, a])

    def moments(self, m, f):
        mu, a = self._parameters(m, f)
        return [mu.v], [exp(2 * a.v)]


class _MultivariateGaussian(Exact):
    """Two responses: means, log diagonal and the entry below it of the precision's factor."""

    def _factor(self, f):
        return exp(f[2]), f[4], exp(f[3])

    def value(self, m, f, y):
        a, c, b = self._factor(f)
        d = [y[0] - f[0], y[1] - f[1]]
        return (square(a * d[0] + c * d[1]) + square(b * d[1])) / 2 - f[2] - f[3] + 2 * half_log_two_pi()

    def information(self, m, f, y):
        a, c, b = self._factor(f)
        precision = [[square(a), a * c], [a * c, square(c) + square(b)]]
        corner = -c.v / (a.v * b.v**2)
        inverse = mp.matrix([[a.v**-2 + (c.v / (a.v * b.v)) ** 2, corner], [corner, b.v**-2]])
        changes = [inverse * mp.matrix([[x.g[i] for x in row] for row in precision]) for i in range(5)]

        def entry(i, j):
            if i < 2 and j < 2:
                return precision[i][j].v
            product = changes[i] * changes[j]
            return (product[0, 0] + product[1, 1]) / 2

        return [[entry(i, j) for j in range(5)] for i in range(5)]

    def moments(self, m, f):
        a, c, b = (x.v for x in self._factor(f))
        return [f[0].v, f[1].v], [1 / a**2 + (c / (a * b)) ** 2, 1 / b**2]


class _Poisson(Exact):
    def value(self, m, f, y):
        eta = log_mean(m.link, f[0])
        return exp(eta) - eta * y[0] + mp.loggamma(y[0] + 1)

    def information(self, m, f, y):
        eta = log_mean(m.link, f[0])
        return congruent([[exp(eta.v)]], [eta])

    def moments(self, m, f):
        rate = exp(log_mean(m.link, f[0]).v)
        return [rate], [rate]


class _NegativeBinomial(Exact):
    def digits(self, f):
        return 60 if len(f) == 1 or not -2000 < f[1] < -100 else 1200

    def _parameters(self, m, f):
        return log_mean(m.link, f[0]), second(f, mp.log(mp.mpf(m.dispersion or 1)))

    def value(self, m, f, y):
        eta, a = self._parameters(m, f)
        size, x = exp(-a), eta + a
        growth = loggamma(size) - loggamma(size + y[0]) if a.v > -2000 else a * y[0] - exp(a) * (y[0] * (y[0] - 1) / 2)
        # the same with the logarithm of 1 + dispersion * mean, whose digits a huge size would take
        spread = size * softplus(x) if a.v > -2000 else exp(eta) - exp(eta + x) / 2
        return growth + mp.loggamma(y[0] + 1) + spread + y[0] * softplus(x) - x * y[0]

    def information(self, m, f, y):
        eta, a = self._parameters(m, f)
        of_mean = exp(eta.v - softplus(eta.v + a.v))
        if len(f) == 1:
            return congruent([[of_mean]], [eta])
        return congruent([[of_mean, 0], [0, _dispersion_information(float(eta.v + a.v), float(a.v))]], [eta, a])

    def moments(self, m, f):
        eta, a = self._parameters(m, f)
        return [exp(eta.v)], [exp(eta.v) + exp(2 * eta.v + a.v)]


@functools.cache
def _dispersion_information(log_share: float, log_dispersion: float) -> Number:
    """Fisher's integral, with breaks where the integrand changes; 30 digits are enough for it."""
    with mp.workdps(30):
        return _integral(mp.mpf(log_share), exp(mp.mpf(-log_dispersion)))


def _integral(x: Number, size: Number) -> Number:
    s, rest = sigmoid(x), sigmoid(-x)

    def change(y):
        fall = exp(-y)
        z, kept = -s * expm1(-y), rest + s * fall
        less = sum(z**k / (k + 2) for k in range(16)) if z < 0.01 else (-mp.log(kept) - z) / z**2
        return fall * s**2 * (1 / kept - less)

    if s == 0:
        return mp.mpf(0)
    end = min(90 / size, max(x, 0) + 90)
    near = [mp.mpf(b) for b in (0.5, 2, 8, 32)]
    breaks = {mp.mpf(0), end, *near, *(b / size for b in near), *(x + b for b in near), *(x - b for b in near), x}
    points = sorted(b for b in breaks if 0 <= b <= end)
    return mp.quad(lambda y: size * exp(-size * y) * change(y), points)


def _trigamma_rest(x: Number) -> Number:
    """``x^2 psi'(x) - x``, a difference that few digits would call zero at large numbers."""
    return x * (x * jet.gamma_function(1, x) - 1) if x < 1e90 else mp.mpf(1) / 2 + 1 / (6 * x)


class _Gamma(Exact):
    def _parameters(self, m, f):
        return log_mean(m.link, f[0]), second(f, -mp.log(mp.mpf(m.dispersion or 1)))

    def value(self, m, f, y):
        eta, a = self._parameters(m, f)
        k, d = exp(a), mp.log(y[0]) - eta
        return k * (exp(d) - d - a) + loggamma(k) + mp.log(y[0])

    def information(self, m, f, y):
        eta, a = self._parameters(m, f)
        k = exp(a.v)
        return congruent([[k, 0], [0, _trigamma_rest(k)]], [eta, a])

    def moments(self, m, f):
        eta, a = self._parameters(m, f)
        return [exp(eta.v)], [exp(2 * eta.v - a.v)]


class _InverseGaussian(_Gamma):
    def value(self, m, f, y):
        eta, a = self._parameters(m, f)
        return (
            exp(a - mp.log(y[0])) * square(expm1(mp.log(y[0]) - eta)) / 2
            - a / 2
            + mp.log(y[0]) * 1.5
            + half_log_two_pi()
        )

    def information(self, m, f, y):
        eta, a = self._parameters(m, f)
        return congruent([[exp(a.v - eta.v), 0], [0, mp.mpf(1) / 2]], [eta, a])

    def moments(self, m, f):
        eta, a = self._parameters(m, f)
        return [exp(eta.v)], [exp(3 * eta.v - a.v)]


class _Weibull(Exact):
    def _parameters(self, m, f):
        return f[0], second(f, mp.log(mp.mpf(m.shape or 1)))

    def value(self, m, f, y):
        eta, kappa = self._parameters(m, f)
        z, event = exp(kappa) * (mp.log(y[0]) - eta), y[1] if m.censored else 1
        return exp(z) - (z + kappa - mp.log(y[0])) * event

    def information(self, m, f, y):
        eta, kappa = self._parameters(m, f)
        k = exp(kappa.v)
        if m.censored and y is not None:
            z = k * (mp.log(y[0]) - eta.v)
            info = [[exp(z) * k**2, -exp(z) * k * z], [-exp(z) * k * z, exp(z) * (1 + z**2)]]
        else:
            c = 1 - mp.euler
            info = [[k**2, -k * c], [-k * c, mp.pi**2 / 6 + c**2]]
        return congruent(info, [eta, kappa])

    def moments(self, m, f):
        eta, kappa = self._parameters(m, f)
        s = exp(-kappa.v)
        once, twice = (jet.gamma_function(-1, 1 + x) for x in (s, 2 * s))
        # a difference that few digits would call zero
        share = -expm1(2 * once - twice) if s > 1e-60 else mp.pi**2 / 6 * s**2
        return [exp(eta.v + once)], [exp(2 * eta.v + twice) * share]


class _Beta(Exact):
    def _shapes(self, f):
        return exp(f[1] - softplus(-f[0])), exp(f[1] - softplus(f[0])), exp(f[1])

    def value(self, m, f, y):
        a, b, both = self._shapes(f)
        logs = (a - 1) * mp.log(y[0]) + (b - 1) * mp.log1p(-y[0])
        return loggamma(a) + loggamma(b) - loggamma(both) - logs

    def information(self, m, f, y):
        a, b, both = self._shapes(f)
        # that of the logarithms of a and b, with what is left of trigamma functions of large numbers
        rest = [_trigamma_rest(x.v) for x in (a, b, both)]
        share, other = a.v / both.v, b.v / both.v
        cross = -(share * other) * (both.v + rest[2])
        own = [
            r + x.v * s2 - s**2 * rest[2] for x, r, s, s2 in ((a, rest[0], share, other), (b, rest[1], other, share))
        ]
        return congruent([[own[0], cross], [cross, own[1]]], [log(a), log(b)])

    def moments(self, m, f):
        mu, rest = sigmoid(f[0].v), sigmoid(-f[0].v)
        return [mu], [mu * rest / (1 + exp(f[1].v))]


class _StudentT(Exact):
    def _parameters(self, m, f):
        return (*f[:2], f[2] if len(f) > 2 else f[0] * 0 + mp.log(mp.mpf(m.df)))

    def value(self, m, f, y):
        mu, omega, kappa = self._parameters(m, f)
        df = exp(kappa)
        spread = log1p(square((y[0] - mu) * exp(-omega)) / df)
        constant = loggamma(df / 2) - loggamma((df + 1) / 2) + (kappa + mp.log(mp.pi)) / 2
        if kappa.v > 200:  # a difference that few digits would call zero
            constant = exp(-kappa) / 4 + half_log_two_pi()
        return omega + (df + 1) * spread / 2 + constant

    def information(self, m, f, y):
        mu, omega, kappa = self._parameters(m, f)
        v = exp(kappa.v)
        cross = -2 * v / ((v + 1) * (v + 3))
        own = (
            7 / (2 * v**2)
            if v > 1e90
            else v**2 / 4 * (jet.gamma_function(1, v / 2) - jet.gamma_function(1, (v + 1) / 2))
            - v * (v + 5) / (2 * (v + 1) * (v + 3))
        )
        of_location = (v + 1) / (v + 3) * exp(-2 * omega.v)
        return congruent([[of_location, 0, 0], [0, 2 * v / (v + 3), cross], [0, cross, own]], [mu, omega, kappa])

    def moments(self, m, f):
        mu, omega, kappa = self._parameters(m, f)
        v = exp(kappa.v)
        variance = exp(2 * omega.v) * v / (v - 2) if v > 2 else mp.inf if v > 1 else mp.nan
        return [mu.v if v > 1 else mp.inf], [variance]


# made of others ------------------------------------------------------------------------------------------------------

_MAPS = {
    "identity": lambda f: f,
    "log": log,
    "softplus": softplus,
    "exp": exp,
    "sigmoid": sigmoid,
    "logit": lambda f: log(f) - log1p(-f),
    "square": square,
    "inverse": lambda f: power(f, -1),
    "normal_cdf": jet.normal_cdf,
    "cloglog_inverse": lambda f: -expm1(-exp(f)),
}


class _Linked(Exact):
    def _theta(self, m, f):
        maps = m.maps
        return [_MAPS[maps[i % len(maps)].name](x) for i, x in enumerate(f)]

    def value(self, m, f, y):
        return exact(m.base).value(m.base, self._theta(m, f), y)

    def information(self, m, f, y):
        theta = self._theta(m, f)
        return congruent(exact(m.base).information(m.base, jet.variables([t.v for t in theta]), y), theta)

    def moments(self, m, f):
        return exact(m.base).moments(m.base, self._theta(m, f))


class _ScaledLikelihood(Exact):
    def _factor(self, m, f):
        return mp.mpf(m.factor) / (len(f) if m.mean_over_outputs else 1)

    def value(self, m, f, y):
        return exact(m.base).value(m.base, f, y) * self._factor(m, f) + mp.mpf(m.constant)

    def information(self, m, f, y):
        factor = self._factor(m, f)
        return [[factor * entry for entry in row] for row in exact(m.base).information(m.base, f, y)]

    def moments(self, m, f):
        return exact(m.base).moments(m.base, f)


def exact(likelihood: Any) -> Exact:
    """The definition of a likelihood, by the name of its class."""
    return EXACT[type(likelihood).__name__]


EXACT: dict[str, Exact] = {kind.__name__[1:]: kind() for kind in Exact.__subclasses__()}


EXACT |= {"Multinomial": _Multinomial(), "InverseGaussian": _InverseGaussian()}
