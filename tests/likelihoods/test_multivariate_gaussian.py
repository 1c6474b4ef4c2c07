"""The multivariate Gaussian beside SciPy, PyTorch and the Gaussian in mean and scale."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from torch.func import hessian

from raphson.likelihoods import (
    HeteroscedasticGaussian,
    MultivariateGaussian,
)

from .family import check_family, check_sampling
from .gaussian_cases import DTYPE, MULTIVARIATE, factor_of


def test_multivariate_of_three_and_four():
    check_family(MULTIVARIATE, (3,), 3)
    check_family(MULTIVARIATE, (2,), 4)
    check_sampling(MULTIVARIATE, 3)


def test_multivariate_start_is_the_optimum_of_all_targets_alike():
    g = torch.Generator().manual_seed(2)
    y = torch.randn(8, 3, dtype=DTYPE, generator=g) @ torch.randn(3, 3, dtype=DTYPE, generator=g) + 5
    w = torch.rand(8, dtype=DTYPE, generator=g)
    lik = MultivariateGaussian()
    start = lik.start(y, 9, w)
    torch.testing.assert_close(w @ lik.gradient(start.expand(8, -1), y), torch.zeros(9, dtype=DTYPE))
    for degenerate in (torch.ones(4, 3), y[:2], torch.cat([y[:, :1]] * 3, -1)):
        f = lik.start(degenerate, 9)
        assert torch.isfinite(lik.nll(f.expand(len(degenerate), -1), degenerate.double())).all()


def test_multivariate_is_scipys_and_torchs():
    f, y = MULTIVARIATE.draw((6,), 3, 8)
    lik = MultivariateGaussian(3)
    precision = torch.stack([factor_of(row, 3) @ factor_of(row, 3).mT for row in f])
    covariance = torch.linalg.inv(precision)
    expected = [
        -scipy.stats.multivariate_normal(m.numpy(), v.numpy()).logpdf(t.numpy())
        for m, v, t in zip(f[:, :3], covariance, y, strict=True)
    ]
    np.testing.assert_allclose(lik.nll(f, y).numpy(), expected, rtol=1e-10)
    torchs = torch.distributions.MultivariateNormal(f[:, :3], precision_matrix=precision)
    torch.testing.assert_close(lik.nll(f, y), -torchs.log_prob(y))
    torch.testing.assert_close(lik.mean(f), f[:, :3])
    torch.testing.assert_close(lik.covariance(f), covariance)
    torch.testing.assert_close(lik.variance(f), torchs.variance)
    # the Fisher information is the curvature of the Kullback-Leibler divergence

    def divergence(g, f):
        p, q = (torch.distributions.MultivariateNormal(
            v[:3], precision_matrix=factor_of(v, 3) @ factor_of(v, 3).mT, validate_args=False) for v in (f, g)
        )  # fmt: skip
        return torch.distributions.kl_divergence(p, q)

    curved = torch.stack([hessian(divergence)(row, row) for row in f])
    torch.testing.assert_close(lik.fisher(f).to_dense(), curved, rtol=1e-9, atol=1e-9)


def test_multivariate_factor_is_triangular_up_to_order():
    f, _ = MULTIVARIATE.draw((2,), 3, 8)
    root = MultivariateGaussian().fisher_factor(f).to_dense()
    _, by_blocks = torch.linalg.slogdet(root)
    torch.testing.assert_close(2 * by_blocks, torch.linalg.slogdet(MultivariateGaussian().fisher(f).to_dense())[1])
    assert root.shape == (2, 9, 9)


def test_multivariate_tail_keeps_relative_accuracy():
    f = torch.tensor([1.0, -2.0, 7.0, -9.0, 30.0], dtype=DTYPE)
    y = torch.tensor([1e3, -1e5], dtype=DTYPE)
    a, b, c, d, e = (mpmath.mpf(v.item()) for v in f)
    with mpmath.workdps(60):

        def nll(a, b, c, d, e):
            u, v = 1000 - a, -100000 - b
            return ((mpmath.exp(c) * u + e * v) ** 2 + (mpmath.exp(d) * v) ** 2) / 2 - c - d + mpmath.log(2 * mpmath.pi)

        value = float(nll(a, b, c, d, e))
        order = [tuple(int(i == k) for i in range(5)) for k in range(5)]
        slopes = [float(mpmath.diff(nll, (a, b, c, d, e), n)) for n in order]
    assert MultivariateGaussian().nll(f, y).item() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(MultivariateGaussian().gradient(f, y).numpy(), slopes, rtol=1e-12)


def test_multivariate_of_one_is_the_heteroscedastic_one():
    f, y = MULTIVARIATE.draw((5,), 1, 1)
    one, two = MultivariateGaussian(1), HeteroscedasticGaussian("mean_log_scale")
    flip = torch.tensor([1.0, -1.0], dtype=DTYPE)
    torch.testing.assert_close(one.nll(f, y), two.nll(f * flip, y))
    torch.testing.assert_close(one.gradient(f, y), two.gradient(f * flip, y) * flip)
    torch.testing.assert_close(one.fisher(f).to_dense(), two.fisher(f * flip).to_dense())
