"""Evidence and tuning against closed forms and finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, nn

import raphson as rp

from .laplace_cases import CASES, DTYPE

STRUCTURES = ["dense", "diagonal", "kfac", "ekfac", "low_rank"]


def ridge(x: Tensor, y: Tensor, sigma: float, delta: float) -> nn.Linear:
    """Return the linear model at the mode of its posterior."""
    model = nn.Linear(x.shape[1], 1, bias=False).to(DTYPE)
    gram = x.mT @ x / sigma**2 + delta * torch.eye(x.shape[1], dtype=DTYPE)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(gram, x.mT @ y / sigma**2).mT)
    return model


def table() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=g, dtype=DTYPE)
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]], dtype=DTYPE) + 0.3 * torch.randn(
        30, 1, generator=g, dtype=DTYPE
    )


def test_a_linear_model_is_bayesian_linear_regression() -> None:
    x, y = table()
    sigma, delta = 0.4, 0.7
    model = ridge(x, y, sigma, delta)
    post = rp.laplace(model, rp.Gaussian(sigma), (x, y), structure="dense", prior_precision=delta)
    precision = x.mT @ x / sigma**2 + delta * torch.eye(4, dtype=DTYPE)
    torch.testing.assert_close(post.precision.to_dense(), precision)
    # the evidence is the density of y under N(0, X X^T / delta + sigma^2 I)
    marginal = (x @ x.mT / delta + sigma**2 * torch.eye(30, dtype=DTYPE)).numpy()
    expected = multivariate_normal(np.zeros(30), marginal).logpdf(y[:, 0].numpy())
    assert float(post.log_marginal_likelihood()) == pytest.approx(expected, rel=1e-12)
    new = torch.randn(3, 4, dtype=DTYPE)
    pred = post.predict(new)
    covariance = new @ torch.linalg.inv(precision) @ new.mT
    sd = (covariance.diagonal() + sigma**2).sqrt().numpy()
    target = torch.randn(3, 1, dtype=DTYPE)
    torch.testing.assert_close(pred.epistemic[:, 0], covariance.diagonal())
    torch.testing.assert_close(pred.variance[:, 0], covariance.diagonal() + sigma**2)
    z = (target - pred.mean)[:, 0].numpy() / sd
    assert pred.log_density(target).numpy() == pytest.approx(-0.5 * z**2 - np.log(sd) - 0.5 * math.log(2 * math.pi))
    joint = post.predict(new, joint=True).log_density(target)
    both = multivariate_normal(pred.mean[:, 0].numpy(), (covariance + sigma**2 * torch.eye(3, dtype=DTYPE)).numpy())
    assert float(joint) == pytest.approx(both.logpdf(target[:, 0].numpy()))
    low, high = pred.interval(0.9)
    torch.testing.assert_close((high - low)[:, 0].numpy(), 2 * 1.6448536269514722 * sd)


@pytest.mark.parametrize("per", ["all", "layer", "tensor"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradient_of_the_evidence(structure: str, per: str) -> None:
    model, likelihood, data, _ = CASES[1].make()
    post = rp.laplace(model, likelihood, data, structure=structure, prior_precision=0.4, rank=6, temperature=1.5)
    post = post.tune_prior(per=per)
    values = post.prior.values * torch.linspace(0.5, 2.0, len(post.prior.values), dtype=DTYPE)
    post = replace(post, prior=post.prior.with_values(values))
    h = 1e-4

    def at(log: Tensor) -> float:
        return float(replace(post, prior=post.prior.with_values(log.exp())).log_marginal_likelihood())

    log = values.log()
    numeric = torch.stack([
        torch.tensor((at(log + h * e) - at(log - h * e)) / (2 * h), dtype=DTYPE)
        for e in torch.eye(len(log), dtype=DTYPE)
    ])
    torch.testing.assert_close(post.evidence().log_prior, numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_evidence_by_definition_and_its_derivative_in_the_scale(structure: str) -> None:
    model, _, data, _ = CASES[1].make()

    def made(sigma: float) -> rp.Posterior:
        return rp.laplace(model, rp.Gaussian(sigma), data, structure=structure, prior_precision=0.4, rank=6)

    post = made(0.7)
    theta, dense = post.mean, post.precision.to_dense()
    prior = torch.distributions.Normal(0.0, 0.4**-0.5).log_prob(theta).sum()
    fit = -rp.Gaussian(0.7).nll(model(data[0]).detach(), data[1]).sum()
    by_definition = fit + prior + 0.5 * len(theta) * math.log(2 * math.pi) - 0.5 * torch.logdet(dense)
    torch.testing.assert_close(post.log_marginal_likelihood(), by_definition)
    h = 1e-4
    values = [float(made(0.7 * math.exp(s)).log_marginal_likelihood()) for s in (h, -h)]
    assert float(post.evidence().log_scale) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_tuning_by_evidence_finds_the_maximum(structure: str) -> None:
    model, likelihood, data, _ = CASES[1].make(40)
    post = rp.laplace(model, likelihood, data, structure=structure, rank=6).tune_prior(per="layer", scale=True)
    found = post.evidence()
    bound = 1e-3 * post.prior.sizes
    assert bool((found.log_prior.abs() < bound).all()) and abs(float(found.log_scale)) < 0.05
    fresh = rp.laplace(
        model, post.objective.likelihood, data, structure=structure, prior_precision=post.prior_precision, rank=6
    )
    torch.testing.assert_close(fresh.log_marginal_likelihood(), post.log_marginal_likelihood())
    torch.testing.assert_close(fresh.precision.to_dense(), post.precision.to_dense())


def test_tuning_on_other_data() -> None:
    model, likelihood, data, x = CASES[0].make(40)
    held_out = (
        CASES[0].inputs(200, torch.Generator().manual_seed(5)),
        CASES[0].targets(200, torch.Generator().manual_seed(6)),
    )
    post = rp.laplace(model, likelihood, data, structure="kfac", prior_precision=1e-3)
    tuned = post.tune_prior(by="validation", data=held_out)
    scores = [p.predict(held_out[0]).log_density(held_out[1]).mean() for p in (post, tuned, tuned.with_prior(1.0))]
    assert float(scores[1]) >= max(float(scores[0]), float(scores[2])) - 1e-9
    with pytest.raises(rp.InputError, match="Validation needs data"):
        post.tune_prior(by="validation")
