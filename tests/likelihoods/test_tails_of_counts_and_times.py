"""Tails of counts and times against mpmath, the special functions inside, and the information on a dispersion."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch

from raphson.likelihoods import Gamma, InverseGaussian, NegativeBinomial, Poisson, Weibull
from raphson.likelihoods._special._binet import binet, binet_derivatives, log_remainder
from raphson.likelihoods._special._negative_binomial_information import dispersion_information
from raphson.likelihoods._special._small_counts import small_count_sums

from .conformance import DTYPE

# special functions


@pytest.mark.parametrize("x", [1e-6, 0.03, 0.5, 1.0, 7.9, 15.99, 16.0, 16.01, 40.0, 1e3, 1e8, 1e15, 1e300])
def test_binet(x):
    with mpmath.workdps(700):
        v = mpmath.mpf(x)
        value = mpmath.loggamma(v) - (v - 0.5) * mpmath.log(v) + v - mpmath.log(2 * mpmath.pi) / 2
        slope = v * (mpmath.digamma(v) - mpmath.log(v)) + 0.5
        bend = v**2 * mpmath.polygamma(1, v) - v - 0.5 if x < 1e100 else mpmath.mpf(1) / (6 * v)
        expected = [float(e) for e in (value, slope, bend)]
    at = torch.tensor(x, dtype=DTYPE)
    # absolute accuracy of a few units below 16, relative beyond
    tolerance = {"rel": 1e-12, "abs": 1e-14 if x < 16 else 0.0}
    assert [float(v) for v in (binet(at), *binet_derivatives(at))] == pytest.approx(expected, **tolerance)


def test_binet_vanishes_at_infinity():
    infinite = torch.tensor([torch.inf], dtype=DTYPE)
    assert binet(infinite).item() == 0
    assert [v.item() for v in binet_derivatives(infinite)] == [0, 0]


@pytest.mark.parametrize(
    "u", [-1e12, -3.0, -0.1001, -0.0999, -1e-5, -1e-300, 0.0, 1e-9, 0.0999, 0.1001, 0.9, 1 - 1e-15]
)
def test_log_remainder(u):
    with mpmath.workdps(700):
        v = mpmath.mpf(u)
        expected = 0.5 if u == 0 else float((-mpmath.log1p(-v) - v) / v**2)
    at = torch.tensor(u, dtype=DTYPE)
    assert log_remainder(at, 1 - at).item() == pytest.approx(expected, rel=3e-13, abs=0)


# tails, against mpmath


def _exact(family, f, y):
    """Value, gradient and Hessian in 60 digits of the textbook definition, by mpmath's differences."""
    f = [mpmath.mpf(v) for v in f]
    row = {"poisson": _mp_poisson, "nb2": _mp_negative_binomial, "gamma": _mp_gamma}[family]
    with mpmath.workdps(80):
        value = row(*f, mpmath.mpf(y))
        n = len(f)
        gradient = [
            mpmath.diff(lambda *v: row(*v, mpmath.mpf(y)), tuple(f) if n > 1 else f[0], _order(n, i)) for i in range(n)
        ]
        hessian = [
            [
                mpmath.diff(lambda *v: row(*v, mpmath.mpf(y)), tuple(f) if n > 1 else f[0], _order(n, i, j))
                for j in range(n)
            ]
            for i in range(n)
        ]
        return float(value), [float(v) for v in gradient], [[float(v) for v in r] for r in hessian]


def _order(n, *which):
    order = tuple(which.count(i) for i in range(n))
    return order if n > 1 else order[0]


def _mp_poisson(f, y):
    return mpmath.exp(f) - y * f + mpmath.loggamma(y + 1)


def _mp_negative_binomial(f, g, y):
    r, mean = mpmath.exp(-g), mpmath.exp(f)
    ways = mpmath.loggamma(y + r) - mpmath.loggamma(r) - mpmath.loggamma(y + 1)
    return -ways + (r + y) * mpmath.log1p(mean / r) - y * mpmath.log(mean / r)


def _mp_gamma(f, g, y):
    k = mpmath.exp(g)
    return mpmath.loggamma(k) - k * g + k * f - (k - 1) * mpmath.log(y) + k * y * mpmath.exp(-f)


def _compare(lik, family, f, y, rel, floor=1e-300):
    """Relative errors, and what a rounding of the outputs themselves does to value and gradient."""
    value, gradient, hessian = _exact(family, f, y)
    at = lik.derivatives(torch.tensor([f], dtype=DTYPE), torch.tensor([y], dtype=DTYPE))
    rounding = 2.2e-16 * np.abs(f)
    moved = np.abs(hessian) @ rounding
    assert at.nll.item() == pytest.approx(value, rel=1e-13, abs=np.abs(gradient) @ rounding)
    assert at.hessian is not None
    dense = at.hessian.to_dense()[0].numpy()
    np.testing.assert_array_less(np.abs(at.gradient[0].numpy() - gradient), rel * np.abs(gradient) + 2 * moved + floor)
    np.testing.assert_array_less(np.abs(dense - hessian), rel * np.abs(hessian) + 2 * moved.max() + floor)


@pytest.mark.parametrize("y", [0, 1, 1_000_000])
@pytest.mark.parametrize("f", [-30.0, -1.0, math.log(1e6), math.log(1e6) + 2e-3, 20.0])
def test_poisson_tails(f, y):
    _compare(Poisson(), "poisson", [f], y, 1e-13)


@pytest.mark.parametrize("log_dispersion", [-40.0, -18.0, -3.0, 1.0, 12.0])
@pytest.mark.parametrize(("y", "f"), [(0, -20.0), (0, 3.0), (7, 2.5), (7, -9.0), (1_000_000, 13.8), (1_000_000, 2.0)])
def test_negative_binomial_tails(f, y, log_dispersion):
    _compare(NegativeBinomial(), "nb2", [f, log_dispersion], y, 1e-11)


@pytest.mark.parametrize("log_dispersion", [-6.5, -0.7, 0.0, 3.0, 200.0])
def test_sums_over_small_counts_are_those_of_gamma_functions(log_dispersion):
    y = torch.arange(200.0, dtype=DTYPE).repeat(5)
    found = small_count_sums(y, torch.tensor(log_dispersion, dtype=DTYPE))
    assert found is not None
    with mpmath.workdps(250):
        r = 1 / mpmath.exp(mpmath.mpf(log_dispersion))
        for k in (0, 1, 2, 17, 199):
            change = mpmath.digamma(k + r) - mpmath.digamma(r)
            bent = mpmath.psi(1, k + r) - mpmath.psi(1, r)
            value = mpmath.loggamma(r) + mpmath.loggamma(k + 1) - mpmath.loggamma(k + r)
            expected = [float(value), float(r * change), float(-r * change - r * r * bent)]
            assert found[:, 200 + k].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_a_table_of_counts_is_left_where_it_would_not_do():
    y, one = torch.arange(8.0, dtype=DTYPE).repeat(10), torch.zeros((), dtype=DTYPE)
    assert small_count_sums(y, one) is not None
    assert small_count_sums(y[:8], one) is None  # as many counts as rows
    assert small_count_sums(y, torch.zeros(80, dtype=DTYPE)) is None
    assert small_count_sums(y, one - 8.0) is None  # nearly Poisson: what cancels would be seen
    assert small_count_sums(y.float(), one.float()) is None


def test_negative_binomial_goes_over_into_poisson():
    f = torch.tensor([-3.0, 0.5, 4.0, 13.8, 3.0], dtype=DTYPE)[:, None]
    y = torch.tensor([0.0, 3.0, 51.0, 1e6, 0.0], dtype=DTYPE)
    for log_dispersion in (-60.0, -400.0, -1000.0):
        at = NegativeBinomial().derivatives(torch.cat([f, torch.full_like(f, log_dispersion)], -1), y)
        limit = Poisson().derivatives(f, y)
        torch.testing.assert_close(at.nll, limit.nll, rtol=1e-13, atol=0)
        torch.testing.assert_close(at.gradient[:, :1], limit.gradient, rtol=1e-12, atol=1e-8)
        assert at.hessian is not None and limit.hessian is not None
        torch.testing.assert_close(at.hessian.diagonal()[:, :1], limit.hessian.diagonal(), rtol=1e-12, atol=0)
        assert bool((at.gradient[:, 1].abs() < 1e-10).all())


@pytest.mark.parametrize("f", [-1000.0, 1000.0])
def test_negative_binomial_is_finite_at_absurd_means(f):
    at = NegativeBinomial(0.5).derivatives(torch.full((2, 1), f, dtype=DTYPE), torch.tensor([0.0, 4.0]))
    # -log P is y |f| to the left and (f + log 0.5) / 0.5 to the right, up to a constant
    ways = -float(torch.lgamma(torch.tensor(6.0, dtype=DTYPE)) - math.log(24.0))
    right = 2 * (f + math.log(0.5))
    expected = [0.0, 4 * 1000 + ways - 4 * math.log(0.5)] if f < 0 else [right, right + ways]
    assert at.nll.tolist() == pytest.approx(expected, rel=1e-12)
    assert at.gradient[:, 0].tolist() == pytest.approx([0.0, -4.0] if f < 0 else [2.0, 2.0], rel=1e-12)


@pytest.mark.parametrize("log_shape", [-12.0, 0.0, 2.7, 2.8, math.log(1e8)])
@pytest.mark.parametrize(("y", "f"), [(1.0, 1e-4), (3e-200, 1.0), (1e3, -1.0), (2.5, 0.9)])
def test_gamma_tails(f, y, log_shape):
    # exp(d) - 1 - d is known to a rounding of d = log(y / mean)
    _compare(Gamma(), "gamma", [f, log_shape], y, 1e-11, 2.2e-16 * math.exp(log_shape) * abs(math.log(y) - f))


@pytest.mark.parametrize("d", [-40.0, -1.0, 1.0, 40.0])
def test_inverse_gaussian_and_weibull_tails(d):
    f, y = torch.zeros(1, 1, dtype=DTYPE), torch.tensor([math.exp(d)], dtype=DTYPE)
    ours = InverseGaussian(0.5).nll(f, y).item()
    assert ours == pytest.approx(-scipy.stats.invgauss(0.5, scale=2.0).logpdf(y.item()), rel=1e-12)
    ours = Weibull(3.0).nll(f, y).item()
    assert ours == pytest.approx(-scipy.stats.weibull_min(3.0).logpdf(y.item()), rel=1e-12)


# Fisher information of the dispersion


def _series(mean, dispersion):
    with mpmath.workdps(40):
        r, s = 1 / mpmath.mpf(dispersion), mpmath.mpf(dispersion) * mean / (1 + mpmath.mpf(dispersion) * mean)
        beta, total = 1 / r, mpmath.mpf(0)
        for j in range(2, 40_000):
            beta *= mpmath.mpf(j - 1) / (r + j - 1)
            term = s**j * beta / j
            total += term
            if term < 1e-16 * (1 - s) * total:
                break
        return float(r**2 * total)


@pytest.mark.parametrize(
    ("mean", "dispersion", "rel"),
    [
        (1e-3, 1e-8, 1e-9),
        (0.1, 1e-3, 1e-9),
        (3.0, 0.5, 1e-10),
        (1e3, 0.03, 1e-9),
        (50.0, 1.0, 1e-9),
        (2.0, 50.0, 1e-8),
    ],
)
def test_dispersion_information_is_fishers_series(mean, dispersion, rel):
    at = (torch.tensor(math.log(v), dtype=DTYPE) for v in (mean, dispersion))
    assert dispersion_information(*at).item() == pytest.approx(_series(mean, dispersion), rel=rel, abs=0)


@pytest.mark.parametrize(
    ("mean", "dispersion", "rel"), [(1e3, 1.0, 1e-8), (1e6, 1.0, 1e-5), (1e6, 1e4, 1e-5), (1e4, 10.0, 1e-5)]
)
def test_dispersion_information_within_its_stated_error(mean, dispersion, rel):
    """Far out the series is too long: the integral, by mpmath."""
    with mpmath.workdps(30):
        a = mpmath.mpf(dispersion)
        r, s, turn = 1 / a, a * mean / (1 + a * mean), mpmath.log(a * mean)

        def integrand(y):
            t = -mpmath.expm1(-y)
            return mpmath.exp(-r * y) * (-mpmath.log1p(-s * t) - s * t) / t if y > 1e-12 else mpmath.mpf(0)

        # a constant is left beyond 80 turns of exp(-y): integrate it in closed form
        end = turn + 80
        head = mpmath.quad(integrand, [mpmath.mpf(0), 1, 5, turn - 5, turn, turn + 5, turn + 30, end])
        expected = float(r**2 * (head + (-mpmath.log1p(-s) - s) * mpmath.exp(-r * end) / r))
    at = (torch.tensor(math.log(v), dtype=DTYPE) for v in (mean, dispersion))
    assert dispersion_information(*at).item() == pytest.approx(expected, rel=rel)
