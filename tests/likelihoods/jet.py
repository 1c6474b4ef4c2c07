"""Numbers of any size and precision with their first and second derivatives in the outputs, by mpmath."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import mpmath as mp

Number = Any


class Jet:
    """A value, its gradient and its Hessian in ``n`` outputs: Taylor arithmetic of second order."""

    __slots__ = ("g", "h", "v")

    def __init__(self, v: Number, g: list[Number], h: list[list[Number]]) -> None:
        self.v, self.g, self.h = v, g, h

    def of(self, value: Number, first: Number, second: Number) -> Jet:
        """A function of this number, by its value and its two derivatives there."""
        r = range(len(self.g))
        return Jet(
            value,
            [first * a for a in self.g],
            [[first * self.h[i][j] + second * self.g[i] * self.g[j] for j in r] for i in r],
        )

    def __add__(self, other: Jet | Number) -> Jet:
        if not isinstance(other, Jet):
            return Jet(self.v + other, self.g, self.h)
        r = range(len(self.g))
        return Jet(
            self.v + other.v,
            [a + b for a, b in zip(self.g, other.g, strict=True)],
            [[self.h[i][j] + other.h[i][j] for j in r] for i in r],
        )

    def __mul__(self, other: Jet | Number) -> Jet:
        if not isinstance(other, Jet):
            return Jet(self.v * other, [a * other for a in self.g], [[a * other for a in row] for row in self.h])
        r, a, b = range(len(self.g)), self, other
        return Jet(
            a.v * b.v,
            [a.v * b.g[i] + b.v * a.g[i] for i in r],
            [[a.v * b.h[i][j] + b.v * a.h[i][j] + a.g[i] * b.g[j] + a.g[j] * b.g[i] for j in r] for i in r],
        )

    def __neg__(self) -> Jet:
        return self * -1

    def __sub__(self, other: Jet | Number) -> Jet:
        return self + (-other)

    def __rsub__(self, other: Number) -> Jet:
        return -self + other

    def __truediv__(self, other: Jet | Number) -> Jet:
        return self * (power(other, -1) if isinstance(other, Jet) else 1 / mp.mpf(other))

    def __rtruediv__(self, other: Number) -> Jet:
        return power(self, -1) * other

    __radd__, __rmul__ = __add__, __mul__


def variables(values: Sequence[float]) -> list[Jet]:
    """The outputs themselves."""
    n, zero = range(len(values)), mp.mpf(0)
    return [
        Jet(mp.mpf(x), [mp.mpf(int(i == j)) for j in n], [[zero for _ in n] for _ in n]) for i, x in enumerate(values)
    ]


def _function(rule: Callable[[Number], tuple[Number, Number, Number]]) -> Callable[[Any], Any]:
    """A function of jets, and of numbers, from a rule that gives value and two derivatives."""

    def at(x: Any) -> Any:
        return x.of(*rule(x.v)) if isinstance(x, Jet) else rule(mp.mpf(x))[0]

    return at


def _log_normal_cdf(x: Number) -> tuple[Number, Number, Number]:
    tail = mp.erfc(-x / mp.sqrt(2)) / 2
    ratio = _exp(-(x**2) / 2) / mp.sqrt(2 * mp.pi) / tail
    value = mp.log1p(-mp.erfc(x / mp.sqrt(2)) / 2) if x > 0 else mp.log(tail)
    return value, ratio, -ratio * (x + ratio)


def _normal_cdf(x: Number) -> tuple[Number, Number, Number]:
    density = _exp(-(x**2) / 2) / mp.sqrt(2 * mp.pi)
    return mp.erfc(-x / mp.sqrt(2)) / 2, density, -x * density


def _softplus(x: Number) -> tuple[Number, Number, Number]:
    e = _exp(-abs(x))
    up, down = (1 / (1 + e), e / (1 + e)) if x > 0 else (e / (1 + e), 1 / (1 + e))
    return mp.log1p(e) + max(x, 0), up, up * down


def _sigmoid(x: Number) -> tuple[Number, Number, Number]:
    _, up, product = _softplus(x)
    return up, product, product * _softplus(-x)[1] - product * up


def gamma_function(order: int, x: Number) -> Number:
    """The logarithm of the gamma function (-1), digamma (0) or trigamma (1): many rows share their arguments."""
    return _gamma_function(order, x, mp.mp.prec)


@functools.lru_cache(4096)
def _gamma_function(order: int, x: Number, bits: int) -> Number:
    # what needs thousands of digits are differences of functions of large arguments, which Stirling's series gives fast
    digits = mp.mp.dps if x > 1e90 else min(mp.mp.dps, 420)
    del bits  # part of the key
    with mp.workdps(digits):
        return mp.loggamma(x) if order < 0 else mp.psi(order, x)


def _exp(x: Number) -> Number:
    if abs(x) < 1e9:
        return mp.exp(x)
    with mp.workdps(80):  # beyond any double; with more digits mpmath takes half a minute
        return mp.exp(x)


exp = _function(lambda x: (_exp(x),) * 3)
expm1 = _function(lambda x: (mp.expm1(x) if abs(x) < 1 else _exp(x) - 1, _exp(x), _exp(x)))
log = _function(lambda x: (mp.log(x), 1 / x, -1 / x**2))
log1p = _function(lambda x: (mp.log1p(x), 1 / (1 + x), -1 / (1 + x) ** 2))
loggamma = _function(lambda x: (gamma_function(-1, x), gamma_function(0, x), gamma_function(1, x)))
atan = _function(lambda x: (mp.atan(x), 1 / (1 + x**2), -2 * x / (1 + x**2) ** 2))
softplus, sigmoid = _function(_softplus), _function(_sigmoid)
normal_cdf, log_normal_cdf = _function(_normal_cdf), _function(_log_normal_cdf)


def power(x: Any, p: Number) -> Any:
    """``x ** p``."""
    p = mp.mpf(p)
    return _function(lambda v: (v**p, p * v ** (p - 1), p * (p - 1) * v ** (p - 2)))(x)


def square(x: Any) -> Any:
    """``x ** 2``, at zero too."""
    return x * x


def log_complement(x: Any) -> Any:
    """``log(1 - e^x)`` for negative ``x``."""
    return log(-expm1(x)) if (x.v if isinstance(x, Jet) else x) > -1 else log1p(-exp(x))


def _agree(a: Number, b: Number) -> bool:
    if mp.isnan(a) or mp.isinf(a):
        return mp.isnan(b) if mp.isnan(a) else a == b
    return abs(a - b) <= abs(b) * mp.mpf(10) ** -13 or abs(a - b) < mp.mpf(10) ** -340


def settled(evaluate: Callable[[], list[Number]], digits: int = 60, most: int = 16_000) -> list[Number]:
    """Evaluate with more and more digits until nothing changes that a double could hold."""
    with mp.workdps(digits):
        before = evaluate()
    while digits < most:
        # few digits may agree on what cancels in both
        digits = max(400, 2 * digits)
        with mp.workdps(digits):
            now = evaluate()
            if all(map(_agree, before, now)):
                return now
        before = now
    raise AssertionError(f"{most} digits are not enough")
