"""Definitions of likelihoods of classes and counts out of a number."""

from __future__ import annotations

import functools

import mpmath as mp

from . import jet
from .exact import Exact, outer
from .jet import Jet, exp, log, log1p, softplus


def log_tails(link: str, f: Jet) -> tuple[Jet, Jet]:
    """The logarithms of a probability and of its complement."""
    if link == "logit":
        return -softplus(-f), -softplus(f)
    if link == "probit":
        return jet.log_normal_cdf(f), jet.log_normal_cdf(-f)
    if link == "cloglog":
        return jet.log_complement(-exp(f)), -exp(f)
    if link == "loglog":
        return -exp(-f), jet.log_complement(-exp(-f))
    if link == "cauchit":
        part = jet.atan(f) / mp.pi
        return log(part + mp.mpf(1) / 2), log(-part + mp.mpf(1) / 2)
    return (f, jet.log_complement(f)) if link == "log" else (log(f), log1p(-f))


class _Bernoulli(Exact):
    def _weights(self, m):
        return [1 if w is None else mp.mpf(float(w.reshape(-1)[0])) for w in (m.pos_weight, m.label_weight)]

    def value(self, m, f, y):
        w, v = self._weights(m)
        p, q = log_tails(m.link, f[0])
        return -p * (v * w * y[0]) - q * (v * (1 - y[0]))

    def information(self, m, f, y):
        w, v = self._weights(m)
        p, q = log_tails(m.link, f[0])
        positive, negative = (exp(p.v), exp(q.v)) if y is None else (y[0], 1 - y[0])
        return [[-v * (w * positive + negative) * p.g[0] * q.g[0]]]

    def moments(self, m, f):
        p, q = log_tails(m.link, f[0])
        return [exp(p.v)], [exp(p.v + q.v)]


class _Binomial(Exact):
    def value(self, m, f, y):
        s, u = y if m.trials is None else (y[0], m.trials - y[0])
        p, q = log_tails(m.link, f[0])
        return -p * s - q * u - (mp.loggamma(s + u + 1) - mp.loggamma(s + 1) - mp.loggamma(u + 1))

    def information(self, m, f, y):
        n = (m.trials or 1) if y is None or m.trials else y[0] + y[1]
        p, q = log_tails(m.link, f[0])
        return [[-n * p.g[0] * q.g[0]]]

    def moments(self, m, f):
        p, q = log_tails(m.link, f[0])
        return [exp(p.v)], [exp(p.v + q.v) / (m.trials or 1)]


def log_shares(f: list[Jet]) -> list[Jet]:
    top = max(f, key=lambda x: x.v)
    total = functools.reduce(lambda a, b: a + b, (exp(x - top) for x in f))
    return [x - top - log(total) for x in f]


class _Categorical(Exact):
    def _row(self, m, k, y):
        eps = mp.mpf(float(m.label_smoothing))
        w = [mp.mpf(1)] * k if m.class_weight is None else [mp.mpf(float(x)) for x in m.class_weight[:k]]
        return [w[i] * ((1 - eps) * (i == int(y[0])) + eps / k) for i in range(k)]

    def value(self, m, f, y):
        terms = [-a * t for a, t in zip(log_shares(f), self._row(m, len(f), y), strict=True)]
        return functools.reduce(lambda a, b: a + b, terms)

    def information(self, m, f, y):
        k, shares = len(f), [exp(x.v) for x in log_shares(f)]
        if y is None:
            weight = sum(p * sum(self._row(m, k, [i])) for i, p in enumerate(shares))
        else:
            weight = sum(self._row(m, k, y))
        return outer([(weight * p, x.g) for p, x in zip(shares, log_shares(f), strict=True)], k)

    def moments(self, m, f):
        p = [exp(x.v) for x in log_shares(f)]
        return p, [a * sum(b for j, b in enumerate(p) if j != i) for i, a in enumerate(p)]


class _Multinomial(_Categorical):
    def _row(self, m, k, y):
        return list(y) if len(y) == k else [mp.mpf(int(i == y[0])) for i in range(k)]

    def value(self, m, f, y):
        ways = mp.loggamma(sum(y) + 1) - sum(mp.loggamma(x + 1) for x in y)
        return super().value(m, f, y) - ways


class _Ordinal(Exact):
    def _levels(self, m, f):
        """The logarithms of the probabilities of all levels, each from what lies below, between or above its cuts."""
        first, last = log_tails(m.link, f[0])[0], log_tails(m.link, f[-1])[1]
        between = []
        for a, b in zip(f, f[1:], strict=False):
            # from the side on which both probabilities are small
            side = 0 if a.v + b.v < 0 and m.link != "cloglog" else 1
            low, high = (log_tails(m.link, x)[side] for x in ((a, b) if side == 0 else (b, a)))
            between.append(high + jet.log_complement(low - high))
        return [first, *between, last]

    def value(self, m, f, y):
        return -self._levels(m, f)[int(y[0])]

    def information(self, m, f, y):
        return outer([(exp(p.v), p.g) for p in self._levels(m, f)], len(f))

    def moments(self, m, f):
        p = [exp(x.v) for x in self._levels(m, f)]
        return p, [a * sum(b for j, b in enumerate(p) if j != i) for i, a in enumerate(p)]
