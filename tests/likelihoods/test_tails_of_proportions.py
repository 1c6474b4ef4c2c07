"""Tails of proportions, levels and Student's t, to 70 digits."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
import scipy.stats
import torch

from raphson.likelihoods import Beta, Binomial, Multinomial, StudentT

from .conformance import DTYPE


def _exact(definition, f):
    """Value, gradient and Hessian of a definition in mpmath."""
    with mp.workdps(70):
        point = tuple(mp.mpf(v) for v in f)
        n = len(point)
        unit = np.eye(n, dtype=int)
        value = definition(*point)
        gradient = [float(mp.diff(definition, point, tuple(unit[i]))) for i in range(n)]
        curvature = [[float(mp.diff(definition, point, tuple(unit[i] + unit[j]))) for j in range(n)] for i in range(n)]
        return float(value), torch.tensor(gradient, dtype=DTYPE), torch.tensor(curvature, dtype=DTYPE)


def _check_tail(lik, definition, f, y, rtol=1e-9, floor=0.0):
    value, gradient, curvature = _exact(definition, f)
    at = lik.derivatives(torch.tensor([f], dtype=DTYPE), torch.as_tensor(y).unsqueeze(0))
    assert at.nll.item() == pytest.approx(value, rel=rtol, abs=1e-300)
    scale = float(gradient.abs().max())
    torch.testing.assert_close(at.gradient[0], gradient, rtol=rtol, atol=1e-12 * max(scale, floor))
    scale = float(curvature.abs().max())
    torch.testing.assert_close(at.hessian.to_dense()[0], curvature, rtol=rtol, atol=1e-11 * max(scale, floor))


def _beta_exact(y):
    def definition(logit, log_precision):
        precision = mp.exp(log_precision)
        a, b = precision / (1 + mp.exp(-logit)), precision / (1 + mp.exp(logit))
        log_norm = mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(precision)
        return log_norm - (a - 1) * mp.log(mp.mpf(y)) - (b - 1) * mp.log1p(-mp.mpf(y))

    return definition


@pytest.mark.parametrize(
    ("f", "y"),
    [
        ([0.3, math.log(1e8)], 0.5744),
        ([0.3, math.log(1e8)], 0.57445),
        ([-2.0, math.log(1e12)], 0.1192029),
        ([40.0, 3.0], 0.999),
        ([-40.0, 0.0], 1e-16),
        ([-700.0, 1.0], 0.5),
        ([800.0, 1.0], 1 - 1e-16),
        ([0.0, -30.0], 1e-300),
        ([1.0, 2.0], 5e-324),
    ],
)
def test_beta_in_the_tails(f, y):
    # far out the score is flat: its derivative is a difference of terms of size 1
    _check_tail(Beta(), _beta_exact(y), f, torch.tensor([y], dtype=DTYPE), floor=1.0)


@pytest.mark.parametrize("log_precision", [-40.0, 0.0, math.log(1e8), math.log(1e14)])
@pytest.mark.parametrize("logit", [-30.0, -1.0, 0.0, 700.0])
def test_the_information_of_beta_is_that_of_its_trigamma_form(logit, log_precision):
    with mp.workdps(60):
        precision = mp.exp(mp.mpf(log_precision))
        a, b = precision / (1 + mp.exp(-mp.mpf(logit))), precision / (1 + mp.exp(mp.mpf(logit)))
        # in the shapes the information is diag(psi'(a), psi'(b)) - psi'(a + b)
        slope = a * b / precision
        t_a, t_b, t_sum = mp.psi(1, a), mp.psi(1, b), mp.psi(1, precision)
        cross = slope * (a * t_a - b * t_b)
        expected = [[slope**2 * (t_a + t_b), cross], [cross, a**2 * t_a + b**2 * t_b - precision**2 * t_sum]]
        expected = torch.tensor([[float(v) for v in row] for row in expected], dtype=DTYPE)
    fisher = Beta().fisher(torch.tensor([logit, log_precision], dtype=DTYPE)).to_dense()
    torch.testing.assert_close(fisher, expected, rtol=1e-9, atol=1e-13)


def _t_exact(y, df=None):
    def definition(location, log_scale, log_df=None):
        nu = mp.mpf(df) if df else mp.exp(log_df)
        r = (mp.mpf(y) - location) / mp.exp(log_scale)
        constant = mp.loggamma(nu / 2) - mp.loggamma((nu + 1) / 2) + mp.log(nu * mp.pi) / 2
        return constant + log_scale + (nu + 1) / 2 * mp.log1p(r * r / nu)

    return definition


@pytest.mark.parametrize("df", [0.01, 0.7, 4.0, 31.9, 32.1, 1e3, 1e8])
@pytest.mark.parametrize("r", [0.0, 0.5, 3.0, 1e3, 1e8])
def test_student_t_in_the_tails(r, df):
    y = torch.tensor([0.25 + 2 * r], dtype=DTYPE)
    f = [0.25, math.log(2.0)]
    _check_tail(StudentT(df), _t_exact(y.item(), df), f, y)
    _check_tail(StudentT(), _t_exact(y.item()), [*f, math.log(df)], y)


@pytest.mark.parametrize("df", [1e-3, 1.0, 31.9, 32.1, 500.0, 1e8])
def test_the_information_on_degrees_of_freedom(df):
    with mp.workdps(60):
        nu = mp.mpf(float(torch.tensor(math.log(df), dtype=DTYPE).exp()))
        own = nu**2 / 4 * (mp.psi(1, nu / 2) - mp.psi(1, (nu + 1) / 2))
        own -= nu * (nu + 5) / (2 * (nu + 1) * (nu + 3))
        cross = -2 * nu / ((nu + 1) * (nu + 3))
    dense = StudentT().fisher(torch.tensor([0.0, 0.0, math.log(df)], dtype=DTYPE)).to_dense()
    assert dense[2, 2].item() == pytest.approx(float(own), rel=1e-9)
    assert dense[1, 2].item() == pytest.approx(float(cross), rel=1e-12)
    assert bool((torch.linalg.eigvalsh(dense) > 0).all())


def test_many_degrees_of_freedom_are_the_normal_distribution():
    y = torch.linspace(-3, 3, 7, dtype=DTYPE)
    for log_df in (40.0, 800.0, 1e6):
        f = torch.tensor([0.5, 0.1, log_df], dtype=DTYPE).expand(7, 3)
        at = StudentT().derivatives(f, y)
        expected = -scipy.stats.norm(0.5, math.exp(0.1)).logpdf(y.numpy())
        np.testing.assert_allclose(at.nll.numpy(), expected, rtol=1e-12)
        assert bool(torch.isfinite(at.gradient).all() & torch.isfinite(at.hessian.to_dense()).all())


@pytest.mark.parametrize("logit", [-800.0, -40.0, 0.0, 12.0, 800.0])
@pytest.mark.parametrize(
    ("successes", "failures"), [(0, 0), (0, 1_000_000), (1_000_000, 0), (370_000, 630_000), (5, 70)]
)
def test_binomial_in_the_tails(logit, successes, failures):
    def definition(f):
        value = successes * mp.log1p(mp.exp(-f)) + failures * mp.log1p(mp.exp(f))
        return value - mp.log(mp.binomial(successes + failures, successes))

    _check_tail(Binomial(), definition, [logit], torch.tensor([successes, failures]))
    if successes + failures:
        _check_tail(Binomial(successes + failures), definition, [logit], torch.tensor([successes]))


def test_the_binomial_near_its_maximum_keeps_nine_digits():
    for n in (10, 63, 64, 65, 10_000, 1_000_000):
        s = int(0.37 * n)
        f = math.log(s / (n - s))
        value = Binomial(n).nll(torch.tensor([[f]], dtype=DTYPE), torch.tensor([s])).item()
        with mp.workdps(50):
            p = 1 / (1 + mp.exp(-mp.mpf(f)))
            exact = -mp.log(mp.binomial(n, s)) - s * mp.log(p) - (n - s) * mp.log(1 - p)
        assert value == pytest.approx(float(exact), rel=1e-10)


def test_multinomial_counts_of_a_million():
    counts = [1_000_000, 0, 2_500_000, 17]
    f = [0.1, -800.0, 1.0, -10.0]

    def definition(*f):
        log_total = mp.log(mp.fsum(mp.exp(v) for v in f))
        value = mp.fsum(mp.loggamma(c + 1) for c in counts) - mp.loggamma(sum(counts) + 1)
        return value + mp.fsum(c * (log_total - v) for c, v in zip(counts, f, strict=True))

    _check_tail(Multinomial(), definition, f, torch.tensor(counts))
