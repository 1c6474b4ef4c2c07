"""Influence of single examples against fitting again without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import raphson as rp

from .laplace_cases import CASES, DTYPE
from .test_evidence import ridge, table


@pytest.mark.parametrize("structure", ["dense", "kfac", "ekfac"])
def test_a_linear_model_is_that_of_fitting_again(structure: str) -> None:
    x, y = table()
    sigma, delta = 0.4, 0.7
    model = ridge(x, y, sigma, delta)
    weight = torch.linspace(0.5, 2.0, 30, dtype=DTYPE)
    for w in (None, weight):
        root = torch.ones(30, 1, dtype=DTYPE) if w is None else w.sqrt()[:, None]
        model = ridge(root * x, root * y, sigma, delta)
        data = (x, y) if w is None else (x, y, w)
        post = rp.laplace(model, rp.Gaussian(sigma), data, structure=structure, prior_precision=delta)
        rows = [3, 0, 29]
        found = rp.influence(post, rows)
        for i, row in enumerate(rows):
            keep = torch.arange(30) != row
            again = ridge((root * x)[keep], (root * y)[keep], sigma, delta)
            change = (again.weight - model.weight).detach()[0]
            torch.testing.assert_close(found.parameters[i], change, rtol=1e-8, atol=1e-11)
            torch.testing.assert_close(found.outputs[i], change @ x[row : row + 1].mT[:, 0:1])
            lik = rp.Gaussian(sigma)
            losses = [lik.nll(m(x[row]), y[row]).detach() for m in (again, model)]
            torch.testing.assert_close(found.loss[i], losses[0] - losses[1])
    assert torch.equal(rp.influence(post, slice(None, 4, 3)).rows, torch.tensor([0, 3]))
    assert torch.equal(rp.influence(post, [-1]).parameters, rp.influence(post, [29]).parameters)


def test_cooks_distance_of_least_squares_is_the_textbook_one() -> None:
    x, y = table()
    beta = torch.linalg.lstsq(x, y).solution
    residual = (y - x @ beta)[:, 0]
    s2 = float(residual.square().sum() / (30 - 4))
    model = nn.Linear(4, 1, bias=False).to(DTYPE)
    with torch.no_grad():
        model.weight.copy_(beta.mT)
    post = rp.laplace(model, rp.Gaussian(s2**0.5), (x, y), structure="dense", prior_precision=1e-9)
    leverage = (x @ torch.linalg.inv(x.mT @ x) * x).sum(1)
    expected = residual.square() * leverage / (4 * s2 * (1 - leverage) ** 2)
    np.testing.assert_allclose(rp.influence(post, range(30)).cook, expected, rtol=1e-6)


def test_one_step_of_a_softmax_model_is_near_fitting_again() -> None:
    model, likelihood, (x, y), _ = CASES[0].make(60)
    linear = nn.Linear(3, 3).to(DTYPE)

    def fitted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for p in linear.parameters():
                p.zero_()
        objective = rp.Objective(linear, likelihood, (x, y), reduction="sum", l2=0.1)
        for _ in range(30):
            step = rp.hessian(objective, "dense").solve(objective.gradient())
            theta = objective.space.vector() - step
            torch.nn.utils.vector_to_parameters(theta, linear.parameters())
        return objective.space.vector()

    again = fitted(x[1:], y[1:])
    whole = fitted(x, y)
    post = rp.laplace(linear, likelihood, (x, y), structure="dense", prior_precision=0.1)
    found = rp.influence(post, [0]).parameters[0]
    gap = (found - (again - whole)).norm() / (again - whole).norm()
    assert float(gap) < 0.05
    assert model is not None


def test_clear_errors(tmp_path) -> None:
    model, likelihood, data, _ = CASES[0].make()
    post = rp.laplace(model, likelihood, data)
    with pytest.raises(rp.InputError, match="Row 12 is none of the 12"):
        rp.influence(post, [12])
    post.save(tmp_path / "p")
    with pytest.raises(rp.InputError, match="has no data"):
        rp.influence(rp.Posterior.load(tmp_path / "p", model), [0])
    model, likelihood, data, _ = CASES[4].make()
    with pytest.raises(rp.InputError, match="several positions"):
        rp.influence(rp.laplace(model, likelihood, data), [0])
