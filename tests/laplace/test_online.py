"""Priors that follow the evidence while a network trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from torch import nn

import raphson as rp

from .laplace_cases import CASES, DTYPE


@pytest.mark.parametrize("structure", ["dense", "kfac"])
def test_a_linear_model_finds_the_maximum_of_its_exact_evidence(structure: str) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(40, 5, generator=g, dtype=DTYPE)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0], [1.5]], dtype=DTYPE)
    y = y + 0.5 * torch.randn(40, 1, generator=g, dtype=DTYPE)
    torch.manual_seed(0)
    model = nn.Linear(5, 1, bias=False).to(DTYPE)
    prior = rp.OnlineEvidence(model, rp.Gaussian(), (x, y), structure=structure, scale=True)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = prior.likelihood.nll(model(x), y).mean() + prior.penalty()
        loss.backward()
        return loss

    for _ in range(40):
        optimizer.step(closure)
        prior.update()

    def negative(log: np.ndarray) -> float:
        covariance = (x @ x.mT).numpy() / np.exp(log[0]) + np.exp(2 * log[1]) * np.eye(40)
        return -float(multivariate_normal(np.zeros(40), covariance).logpdf(y[:, 0].numpy()))

    best = minimize(negative, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10})
    delta = prior.prior_precision
    assert isinstance(delta, dict) and delta["weight"] == pytest.approx(np.exp(best.x[0]), rel=1e-4)
    assert isinstance(prior.likelihood, rp.Gaussian)
    assert float(prior.likelihood.scale) == pytest.approx(np.exp(best.x[1]), rel=1e-4)
    assert float(prior.posterior().log_marginal_likelihood()) == pytest.approx(-best.fun, rel=1e-6)
    assert prior.log_evidence[-1] == pytest.approx(-best.fun, rel=1e-6)


@pytest.mark.parametrize("per", ["all", "layer", "tensor"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_the_penalty_is_weight_decay(case, per: str) -> None:
    model, likelihood, data, _ = case.make()
    model.train()
    prior = rp.OnlineEvidence(model, likelihood, data, per=per)
    prior.update()
    assert model.training and all(m.training for m in model.modules())
    assert len(prior.log_evidence) == 1 and np.isfinite(prior.log_evidence[0])
    decay, delta = prior.weight_decay, prior.prior_precision
    total = rp.Objective(model.eval(), likelihood, data).total_weight
    expected = 0.0
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if isinstance(decay, dict):
            assert isinstance(delta, dict)
            key = max((k for k in decay if name == k or name.startswith(f"{k}.")), key=len)
            assert decay[key] * total == pytest.approx(delta[key])
            own = decay[key]
        else:
            own = decay
        expected += 0.5 * own * float(p.square().sum())
    assert float(prior.penalty()) == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(prior.penalty(), [next(p for p in model.parameters() if p.requires_grad)])
    assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("structure", ["kfac", "ekfac", "dense"])
def test_a_layer_that_is_the_whole_model(structure: str) -> None:
    x, model = torch.randn(20, 3, dtype=DTYPE), nn.Linear(3, 1).to(DTYPE)
    for per in ("layer", "tensor", "all"):
        post = rp.laplace(model, rp.Gaussian(), (x, x[:, :1]), structure=structure).tune_prior(per=per)
        assert float(post.evidence().log_prior.abs().max()) < 1e-2
    both = rp.laplace(
        model, rp.Gaussian(), (x, x[:, :1]), structure=structure, prior_precision={"weight": 1, "bias": 2}
    )
    assert both.prior_precision == {"weight": 1.0, "bias": 2.0}


def test_clear_errors() -> None:
    model, likelihood, data, _ = CASES[0].make()
    with pytest.raises(rp.InputError, match="learns the scale of a Gaussian"):
        rp.OnlineEvidence(model, likelihood, data, scale=True)
    with pytest.raises(rp.InputError, match="a module that is trained"):
        rp.OnlineEvidence(lambda p, x: x, likelihood, data)  # type: ignore[arg-type]
    with pytest.raises(rp.InputError, match="per is 'row'"):
        rp.OnlineEvidence(model, likelihood, data, per="row")  # type: ignore[arg-type]
