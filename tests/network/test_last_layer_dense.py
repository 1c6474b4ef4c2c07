"""The dense curvature of a feed-forward network's last layer, which is made without a Jacobian."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.network.curvature import _structures


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chosen", [["2"], ["2.weight"], ["0"]])
@pytest.mark.parametrize("name", ["classes", "mean and scale", "weighted batches"])
def test_it_is_that_of_the_jacobian(bias, chosen, name, monkeypatch):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(11, 4, generator=g, dtype=torch.float64)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3 if name != "mean and scale" else 2, bias=bias)
    ).double()
    likelihood = rp.Categorical() if name != "mean and scale" else rp.HeteroscedasticGaussian()
    y = torch.arange(11) % 3 if name != "mean and scale" else torch.randn(11, generator=g, dtype=torch.float64)
    data = (x, y)
    if name == "weighted batches":
        weight = torch.rand(11, generator=g, dtype=torch.float64)
        data = [(x[:4], y[:4], weight[:4]), (x[4:], y[4:], weight[4:])]
    monkeypatch.setattr(_structures, "_JACOBIAN", 60)  # a few rows at a time
    objective = rp.Objective(model, likelihood, data, params=chosen)
    expected = 0.0
    batches = data if isinstance(data, list) else [(*data, torch.ones(11, dtype=torch.float64))]
    total = sum(float(w.sum()) for *_, w in batches)
    for bx, by, w in batches:
        jacobian = rp.jacobian(model, bx, params=chosen).to_dense()
        middle = likelihood.fisher(model(bx).detach(), by).to_dense()
        expected = expected + torch.einsum("n,ncp,ncd,ndq->pq", w / total, jacobian, middle, jacobian)
    if chosen[0] != "0":
        monkeypatch.delattr(_structures, "dense_jacobian")  # not needed
    found = rp.fisher(objective, structure="dense").to_dense()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, rp.fisher(objective).to_dense(), rtol=1e-12, atol=1e-14)
