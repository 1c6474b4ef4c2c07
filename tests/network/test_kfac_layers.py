"""Layers of every kind: blocks, diagonals and per-example gradients against automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.network.curvature._layer_diagonal import layer_diagonal, layer_gradient_norms
from raphson.network.curvature.factors._recorded_batches import recorded_batches
from raphson.network.layers._layer_record import LayerRecord

from .kfac_models import MODELS, integers, objective_of, randn
from .kfac_oracle import block_places, gauss_newton


@pytest.mark.parametrize("name", MODELS)
def test_blocks_of_every_layer(name: str) -> None:
    """What is stored exactly is exact; a corrected block has the exact trace and is nearer."""
    objective = objective_of(name)
    exact = gauss_newton(objective)
    corrected, plain = rp.ekfac(objective), rp.kfac(objective)
    kinds = [row[2] for row in plain.report().rows]
    assert any("Kronecker" in kind or "blocks" in kind for kind in kinds)
    for rows, kind in zip(block_places(plain), kinds, strict=True):
        truth = exact[rows[:, None], rows]
        ours, better = (op.to_dense()[rows[:, None], rows] for op in (plain, corrected))
        if kind == "exact block":
            torch.testing.assert_close(ours, truth, rtol=1e-8, atol=1e-12)
        elif ("Kronecker" in kind and " + " not in kind) or "blocks of" in kind:
            torch.testing.assert_close(better.diagonal().sum(), truth.diagonal().sum(), rtol=1e-8, atol=1e-12)
            assert (better - truth).norm() <= (ours - truth).norm() * (1 + 1e-9) + 1e-12 * truth.norm()
    v = randn(objective.n_parameters, seed=3)
    torch.testing.assert_close(plain @ v, plain.to_dense() @ v)


@pytest.mark.parametrize("name", MODELS)
def test_exact_diagonal(name: str) -> None:
    objective = objective_of(name)
    expected = gauss_newton(objective).diagonal()
    torch.testing.assert_close(layer_diagonal(objective), expected, rtol=1e-9, atol=1e-13)
    empirical = gauss_newton(objective, "empirical").diagonal()
    torch.testing.assert_close(layer_diagonal(objective, "empirical"), empirical, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(layer_diagonal(objective, "observed"), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_sampled_diagonal_is_that_of_the_other_structures(name: str) -> None:
    objective = objective_of(name)
    diagonal, dense = (rp.fisher(objective, "mc", structure, samples=2) for structure in ("diagonal", "dense"))
    torch.testing.assert_close(diagonal.diagonal(), dense.diagonal(), rtol=1e-9, atol=1e-13)


def test_sampled_diagonal_costs_as_many_backward_passes_as_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = []
    deliver = LayerRecord.deliver
    monkeypatch.setattr(LayerRecord, "deliver", lambda self, u, jobs: (vectors.append(len(u)), deliver(self, u, jobs)))
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 100)).double()
    objective = rp.Objective(module, rp.Categorical(), (randn(30, 4), integers(100, 30)))
    rp.fisher(objective, "mc", "diagonal", samples=3)
    assert sum(vectors) == 3


@pytest.mark.parametrize("name", MODELS)
def test_example_gradients_and_norms(name: str) -> None:
    objective = objective_of(name)
    recorded = next(recorded_batches(objective))
    leaves = objective.model.leaves()
    f = objective.model.call(leaves, recorded.batch.x)
    of_loss = objective.likelihood.gradient(f.detach(), recorded.batch.y)
    for u in (of_loss, randn(*f.shape, seed=9)):
        expected = []
        for n in range(len(u)):
            parts = torch.autograd.grad(f[n], list(leaves.values()), u[n], retain_graph=True, materialize_grads=True)
            expected.append(torch.cat([part.reshape(-1) for part in parts]))
        if u is of_loss:
            torch.testing.assert_close(rp.example_gradients(objective), torch.stack(expected), rtol=1e-9, atol=1e-12)
        norms = layer_gradient_norms(objective, recorded, u)
        torch.testing.assert_close(norms, torch.stack(expected).square().sum(1), rtol=1e-9, atol=1e-12)
