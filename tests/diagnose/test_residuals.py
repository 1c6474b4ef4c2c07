"""Quantile residuals are standard normal under the model, drawn by torch, and are not under another one."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy import stats

import raphson as rp
from raphson.diagnose import residuals
from raphson.likelihoods import catalogue

DTYPE = torch.float64
MEMBERS = [member for kind in catalogue().values() for member in kind.examples()]


def normal(f, y):
    return -torch.distributions.Normal(f[0], f[1].exp()).log_prob(y)


def draw_normal(f, generator):
    return f[:, 0] + f[:, 1].exp() * torch.randn(len(f), dtype=f.dtype, generator=generator)


COMPOSED = [
    rp.Linked(rp.Gaussian(), "exp"),
    rp.ScaledLikelihood(rp.Poisson(), factor=2.0),
    rp.as_likelihood(torch.distributions.Gumbel),
    rp.as_likelihood(torch.distributions.Geometric),
]


def outputs(likelihood, n, generator):
    """Outputs around the example of the definition, each row its own."""
    try:
        center = likelihood.definition().example[0]
    except rp.InputError:
        center = (0.3,) * len(likelihood.parameters)
    middle = torch.tensor(center, dtype=DTYPE)
    f = middle + 0.15 * torch.randn(n, len(center), dtype=DTYPE, generator=generator)
    if isinstance(likelihood, rp.Ordinal):
        f = f.sort(-1).values
    for c in range(f.shape[1]):
        domain = likelihood.domains[c % len(likelihood.domains)]
        f[:, c] = torch.where(domain.contains(f[:, c]), f[:, c], middle[c])
    likelihood.check_outputs(f)
    return f


def moved(likelihood, f, output):
    """Other outputs in the domain, far from these in one of them."""
    for factor, shift in ((1.0, 1.5), (1.0, 1.0), (2.0, 0.0), (0.4, 0.0)):
        g = f.clone()
        g[:, output] = factor * g[:, output] + shift
        if isinstance(likelihood, rp.Ordinal):
            g = g.sort(-1).values
        try:
            likelihood.check_outputs(g)
        except rp.InputError:
            continue
        return g
    raise AssertionError(likelihood)


def defined(likelihood):
    try:
        return likelihood.definition().likelihood
    except rp.InputError:
        return likelihood


def draw(likelihood, f, generator):
    """Targets from torch's own draws; trials, totals and censoring as data have them."""
    if isinstance(likelihood, rp.Binomial) and likelihood.trials is None:
        p = likelihood.mean(f)
        trials = torch.randint(1, 9, p.shape, generator=generator).to(DTYPE)
        successes = torch.binomial(trials, p, generator=generator)
        return torch.cat([successes, trials - successes], -1)
    if isinstance(likelihood, rp.Multinomial):
        return sum(likelihood.sample(f, generator) for _ in range(6))
    y = likelihood.sample(f, generator)
    if getattr(likelihood, "censored", False):
        time = y[..., 0]
        limit = likelihood.mean(f) * 2 * torch.rand(time.shape, dtype=DTYPE, generator=generator)
        y = torch.stack([torch.minimum(time, limit), (time <= limit).to(DTYPE)], -1)
    return y


def of_seed(likelihood, seed, n, output=None):
    generator = torch.Generator().manual_seed(seed)
    f = outputs(likelihood, n, generator)
    y = draw(likelihood, f, generator)
    at = f if output is None else moved(likelihood, f, output)
    return residuals(likelihood.distribution(at, y), "quantile", seed).ravel()


def check_standard_normal(likelihood, seeds, n=120):
    likelihood = defined(likelihood)
    sets = [of_seed(likelihood, seed, n) for seed in range(seeds)]
    p_values = np.array([stats.kstest(z, "norm").pvalue for z in sets])
    rejected = int((p_values < 0.05).sum())
    assert rejected <= stats.binom.ppf(1 - 1e-5, seeds, 0.05), rejected
    assert stats.kstest(np.concatenate(sets), "norm").pvalue > 1e-5


IDS = [
    re.sub(r" at 0x\w+", "", repr(likelihood)) for likelihood in MEMBERS + COMPOSED
]  # addresses differ between workers


@pytest.mark.parametrize("likelihood", MEMBERS + COMPOSED, ids=IDS)
def test_quantile_residuals_of_the_model_are_standard_normal(likelihood):
    check_standard_normal(likelihood, 20)


@pytest.mark.nightly
@pytest.mark.parametrize("likelihood", MEMBERS + COMPOSED, ids=IDS)
def test_quantile_residuals_of_the_model_are_standard_normal_over_many_seeds(likelihood):
    check_standard_normal(likelihood, 200)


@pytest.mark.parametrize("likelihood", MEMBERS + COMPOSED, ids=IDS)
def test_quantile_residuals_of_another_model_are_not(likelihood):
    """Each output in turn is moved: every parameter is seen."""
    likelihood = defined(likelihood)
    c = outputs(likelihood, 1, torch.Generator().manual_seed(0)).shape[-1]
    for output in range(c):
        z = of_seed(likelihood, 1, 6000, output)
        assert stats.kstest(z, "norm").pvalue < 1e-3, likelihood.output_names(c)[output]


def test_randomization_and_seeds():
    f, y = torch.zeros(200, 1, dtype=DTYPE), torch.zeros(200)
    predicted = rp.Poisson().distribution(f, y)
    z = residuals(predicted, "quantile", 3)
    assert np.array_equal(z, residuals(predicted, "quantile", 3))
    assert not np.array_equal(z, residuals(predicted, "quantile", 4))
    # below P(Y <= 0) = exp(-1), and spread over all of it
    assert z.max() <= stats.norm.ppf(np.exp(-1)) and np.unique(z).size == 200
    generator = torch.Generator().manual_seed(0)
    first = residuals(predicted, "quantile", generator)
    assert not np.array_equal(first, residuals(predicted, "quantile", generator))


def test_tails_are_precise_on_both_sides():
    predicted = rp.Gaussian().distribution(torch.zeros(2, 1, dtype=DTYPE), torch.tensor([-30.0, 30.0]))
    np.testing.assert_allclose(residuals(predicted).ravel(), [-30, 30], rtol=1e-12)


def test_pearson_and_deviance_against_statsmodels():
    sm = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    cases = [
        (rp.Poisson(), sm.families.Poisson(), rng.poisson(np.exp(0.3 * x[:, 0] + 0.5))),
        (rp.Gamma(0.5), sm.families.Gamma(sm.families.links.Log()), rng.gamma(2.0, np.exp(0.2 * x[:, 1]))),
        (rp.Bernoulli(), sm.families.Binomial(), (rng.random(60) < 0.4).astype(float)),
        (
            rp.NegativeBinomial(0.7),
            sm.families.NegativeBinomial(alpha=0.7),
            rng.negative_binomial(2, 0.4, 60).astype(float),
        ),
        (rp.InverseGaussian(0.4), sm.families.InverseGaussian(sm.families.links.Log()), rng.wald(1.0, 2.0, 60)),
    ]
    for likelihood, family, y in cases:
        model = rp.VectorGLM(likelihood).fit(x, y)
        other = sm.GLM(y, sm.add_constant(x), family=family).fit(tol=1e-14)
        # statsmodels leaves a given dispersion to its scale parameter
        phi = likelihood.dispersion if isinstance(likelihood, rp.Gamma | rp.InverseGaussian) else 1.0
        mine = {kind: model.residuals(kind).to_numpy()[:, 0] for kind in ("response", "pearson", "deviance")}
        np.testing.assert_allclose(mine["response"], other.resid_response, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mine["pearson"] * phi**0.5, other.resid_pearson, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mine["deviance"] * phi**0.5, other.resid_deviance, rtol=1e-5, atol=1e-6)


def test_residuals_of_class_labels_counts_and_joint_targets():
    f = torch.log(torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]], dtype=DTYPE))
    predicted = rp.Categorical().distribution(f, torch.tensor([1, -100]))
    np.testing.assert_allclose(residuals(predicted, "response")[0], [-0.2, 0.7, -0.5])
    np.testing.assert_allclose(residuals(predicted, "deviance")[0], np.sqrt(-2 * np.log(0.3)))
    assert np.isnan(residuals(predicted, "quantile")[1]) and np.isnan(residuals(predicted, "response")[1]).all()
    below, above = predicted.tails()
    np.testing.assert_allclose([below[0], above[0]], [0.2, 0.5])

    counts = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=DTYPE)
    predicted = rp.Multinomial().distribution(f, counts)
    np.testing.assert_allclose(residuals(predicted, "response")[0], [1 / 6 - 0.2, 2 / 6 - 0.3, 0.0])
    below, above = predicted.tails()
    np.testing.assert_allclose(below[0], [stats.binom.cdf(0, 6, 0.2), stats.binom.cdf(1, 5, 0.375)])
    np.testing.assert_allclose(above[0], [stats.binom.sf(1, 6, 0.2), stats.binom.sf(2, 5, 0.375)])

    lik, g = rp.MultivariateGaussian(), torch.tensor([[0.1, -0.2, 0.3, 0.1, 0.4]], dtype=DTYPE)
    y = torch.tensor([[1.0, 0.5]], dtype=DTYPE)
    covariance, d = lik.covariance(g)[0].numpy(), (y - lik.mean(g)).numpy()[0]
    distance = d @ np.linalg.solve(covariance, d)
    predicted = lik.distribution(g, y)
    np.testing.assert_allclose(residuals(predicted, "deviance"), np.sqrt(distance))
    # the first given the second
    slope = covariance[0, 1] / covariance[1, 1]
    first = (d[0] - slope * d[1]) / np.sqrt(covariance[0, 0] - slope * covariance[0, 1])
    np.testing.assert_allclose(residuals(predicted, "quantile")[0], [first, d[1] / np.sqrt(covariance[1, 1])])


def test_errors_are_sentences():
    predicted = rp.StudentT(df=2.0).distribution(torch.zeros(3, 2, dtype=DTYPE), torch.zeros(3))
    with pytest.raises(rp.InputError, match="no finite variance"):
        residuals(predicted, "pearson")
    with pytest.raises(rp.InputError, match="choose 'response'"):
        residuals(predicted, "studentized")
    with pytest.raises(rp.InputError, match="row 1 is 0.3"):
        rp.Bernoulli().distribution(torch.zeros(2, 1), torch.tensor([1.0, 0.3]))
    with pytest.raises(rp.InputError, match="one label per row"):
        rp.Categorical().distribution(torch.zeros(1, 2), torch.tensor([[0.5, 0.5]]))
    gumbel = rp.as_likelihood(torch.distributions.Gumbel)
    with pytest.raises(rp.InputError, match="give no deviance"):
        residuals(gumbel.distribution(torch.zeros(2, 2, dtype=DTYPE), torch.zeros(2)), "deviance")
    only_value = rp.as_likelihood(normal, parameters=("mean", "log_scale"))
    with pytest.raises(rp.InputError, match="sample"):
        only_value.distribution(torch.zeros(2, 2, dtype=DTYPE), torch.zeros(2))
