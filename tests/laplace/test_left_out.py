"""Predictions as if rows had been left out, and targets beside their predictive distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import raphson as rp
from raphson.diagnose import dispersion_test, residuals
from raphson.laplace import left_out

DTYPE = torch.float64


def posterior(likelihood, y, seed=0, columns=3, outputs=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(len(y), columns, generator=g, dtype=DTYPE)
    model = torch.nn.Linear(columns, outputs, dtype=DTYPE)
    return x, model, g


@pytest.mark.parametrize("outputs", [1, 2])
def test_without_a_row_it_is_the_posterior_of_the_others(outputs):
    """A linear model with squared error: against normal equations without each row, written out in NumPy."""
    scale, tau = 0.7, 0.3
    x, model, g = posterior(None, range(20), outputs=outputs)
    y = torch.randn(20, outputs, generator=g, dtype=DTYPE)
    columns = np.column_stack([x.numpy(), np.ones(20)])

    def solved(rows):
        precision = columns[rows].T @ columns[rows] / scale**2 + tau * np.eye(4)
        return np.linalg.solve(precision, columns[rows].T @ y.numpy()[rows] / scale**2), np.linalg.inv(precision)

    mode, _ = solved(np.arange(20))
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(mode[:3].T))
        model.bias.copy_(torch.from_numpy(mode[3]))
    likelihood = rp.Gaussian(scale)
    post = rp.laplace(model, likelihood, (x, y), structure="dense", prior_precision=tau)
    found = post.predict(x)
    f = found.output_mean
    alone = left_out(found, likelihood.gradient(f, y), likelihood.fisher(f, y).to_dense())
    for i in range(20):
        coefficients, covariance = solved(np.delete(np.arange(20), i))
        np.testing.assert_allclose(alone.output_mean[i], columns[i] @ coefficients, rtol=1e-8)
        variance = columns[i] @ covariance @ columns[i]
        np.testing.assert_allclose(alone.output_covariance[i], variance * np.eye(outputs), rtol=1e-6, atol=1e-12)


def test_a_row_that_decides_its_own_prediction_moves_it_three_deviations_at_most():
    x, model, _ = posterior(None, range(6), columns=1)
    x[-1] = 50.0
    y = torch.zeros(6, 1, dtype=DTYPE)
    y[-1] = 1e6
    likelihood = rp.Gaussian(0.1)
    post = rp.laplace(model, likelihood, (x, y), structure="dense", prior_precision=1e-9)
    found = post.predict(x)
    f = found.output_mean
    alone = left_out(found, likelihood.gradient(f, y), likelihood.fisher(f, y).to_dense())
    moved = (alone.output_mean - f)[-1, 0] / alone.output_covariance[-1, 0, 0].sqrt()
    assert abs(float(moved)) == pytest.approx(3.0)
    assert bool(torch.isfinite(alone.output_covariance).all())


def test_tails_are_those_of_the_mixture():
    """A Poisson mean with a normal logarithm, by quadrature; a Gaussian in closed form."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(30, 2, generator=g, dtype=DTYPE)
    y = torch.poisson(torch.ones(30, dtype=DTYPE), generator=g)
    post = rp.laplace(torch.nn.Linear(2, 1, dtype=DTYPE), rp.Poisson(), (x, y), structure="dense")
    predicted = post.predict(x, samples=2000)
    law = predicted.distribution(y)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    f, sd = predicted.output_mean.detach().numpy(), predicted.output_covariance[..., 0].sqrt().detach().numpy()
    rates = np.exp(f + sd * nodes)
    below, above = law.tails()
    np.testing.assert_allclose(below[:, 0], stats.poisson.cdf(y[:, None] - 1, rates) @ weights, atol=2e-3)
    np.testing.assert_allclose(above[:, 0], stats.poisson.sf(y[:, None], rates) @ weights, atol=2e-3)
    np.testing.assert_allclose(law.mass(2)[:, 0], stats.poisson.pmf(2, rates) @ weights, atol=2e-3)
    np.testing.assert_allclose(law.mean[:, 0], rates @ weights, rtol=1e-2)
    assert law.observed.shape == law.mean.shape == law.variance.shape == (30, 1)
    # targets drawn from the posterior have the mixture's spread
    drawn = [law.simulate(np.random.default_rng(s)).observed for s in range(400)]
    np.testing.assert_allclose(np.var(drawn, axis=0).mean(), law.variance.mean(), rtol=0.1)
    with pytest.raises(rp.InputError, match="Simulated"):
        law.simulate(np.random.default_rng(0)).tails()

    normal = rp.laplace(torch.nn.Linear(2, 1, dtype=DTYPE), rp.Gaussian(), (x, y[:, None]), structure="dense")
    found = normal.predict(x)
    z = residuals(found.distribution(y[:, None]))
    expected = (y[:, None] - found.mean) / found.variance.sqrt()
    np.testing.assert_allclose(z, expected.detach().numpy(), rtol=1e-9)
    with pytest.raises(rp.InputError, match="joint"):
        normal.predict(x, joint=True).distribution(y)


@pytest.mark.parametrize("link", ["mixture", "probit"])
def test_classes_and_simulation(link):
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(60, 2, generator=g, dtype=DTYPE), torch.randint(3, (60,), generator=g)
    post = rp.laplace(torch.nn.Linear(2, 3, dtype=DTYPE), rp.Categorical(), (x, y), structure="dense")
    predicted = post.predict(x, link=link)
    law = predicted.distribution(y)
    np.testing.assert_allclose(law.mean, predicted.mean.detach(), rtol=1e-9)
    below, above = law.tails()
    p = predicted.mean.detach().numpy()
    np.testing.assert_allclose(1 - below - above, p[np.arange(60), y], rtol=1e-6)
    assert dispersion_test(law).simulated.shape == (250,)
