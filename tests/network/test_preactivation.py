"""The recursion over pre-activations against Hessians by products and by torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.network.curvature import _hessian, _preactivation
from raphson.network.layers._feed_forward import find_feed_forward

from .network_cases import BY_NAME, DTYPE, LOSSES, C, D, by_definition, draw


def deep(outputs=C, activation=nn.Tanh):
    torch.manual_seed(0)
    parts = [nn.Linear(D, 5), activation(), nn.Linear(5, 2), nn.Softplus(), nn.Linear(2, 4, bias=False), activation()]
    return nn.Sequential(*parts, nn.Linear(4, outputs)).to(DTYPE)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_the_diagonal_of_a_feed_forward_network(loss, monkeypatch):
    model = deep(loss.outputs)
    x, y, weight = draw(loss)
    dense = by_definition(model, loss, x, y, weight, "mean", 0.2).hessian
    o = rp.Objective(model, loss.build(), [(x[:2], y[:2], weight[:2]), (x[2:], y[2:], weight[2:])], l2=0.2)
    assert find_feed_forward(model) is not None
    monkeypatch.setattr(_preactivation, "_CHUNK", 100)
    monkeypatch.setattr(_hessian, "_implicit", None)  # no products
    torch.testing.assert_close(rp.hessian(o, "diagonal").diagonal(), dense.diagonal(), rtol=1e-9, atol=1e-12)
    some = rp.hessian(o, "diagonal", params=["2.bias", "4"]).diagonal()
    torch.testing.assert_close(some, dense.diagonal()[30:40], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.Identity, lambda: nn.ELU(inplace=True)])
def test_blocks_are_inputs_times_preactivation_hessians(activation):
    # Botev, Ritter and Barber (2017), eq. 8: the block of a layer is the sum of a a^T (x) H
    loss = BY_NAME["class_weight"]
    model = deep(activation=activation)
    x, y, weight = draw(loss)
    dense = by_definition(model, loss, x, y, weight, "mean", 0.0).hessian
    o = rp.Objective(model, loss.build(), (x, y, weight))

    def to_dense(at):
        parts = [part if hasattr(part, "factor") else part.factored() for part in at.parts]
        total = sum(part.factor.mT @ part.middle(part.factor) for part in parts)
        return total if at.residual is None else total + torch.diag_embed(at.residual)

    found = list(_preactivation.preactivations(o, find_feed_forward(model), next(o.batches()), 0))
    assert [at.layer.linear for at in found] == [model[6], model[4], model[2], model[0]]
    for at, start in zip(found, (40, 32, 20, 0), strict=True):
        h = to_dense(at) * at.weights[:, None, None]
        block = torch.einsum("nij,na,nb->iajb", h, at.inputs, at.inputs).reshape(2 * [at.layer.w.numel()])
        n = block.shape[0]
        torch.testing.assert_close(block, dense[start : start + n, start : start + n], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(at.diagonal(), to_dense(at).diagonal(dim1=1, dim2=2), rtol=1e-9, atol=1e-12)


def test_activations_above_the_last_layer():
    loss = BY_NAME["gaussian"]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C), nn.Sigmoid()).to(DTYPE)
    x, y, _ = draw(loss)
    dense = by_definition(model, loss, x, y, None, "mean", 0.0).hessian
    o = rp.Objective(model, loss.build(), (x, y))
    torch.testing.assert_close(rp.hessian(o, "diagonal").diagonal(), dense.diagonal(), rtol=1e-9, atol=1e-12)


def test_a_layer_used_twice_is_left_to_products_and_stays_as_it_is():
    loss = BY_NAME["categorical"]
    shared = nn.Linear(D, D)
    model = nn.Sequential(shared, nn.Tanh(), shared).to(DTYPE)
    weight, bias = shared.weight, shared.bias
    x, y, _ = draw(loss)
    o = rp.Objective(model, loss.build(), (x, y))
    assert find_feed_forward(model) is None

    def total(w, b):
        f = torch.tanh(x @ w.mT + b) @ w.mT + b
        return nn.functional.cross_entropy(f.flatten(0, 1), y.flatten())

    expected = torch.autograd.functional.hessian(total, (weight.detach(), bias.detach()))
    diagonal = torch.cat([expected[0][0].reshape(9, 9).diagonal(), expected[1][1].diagonal()])
    torch.testing.assert_close(rp.hessian(o, "diagonal").diagonal(), diagonal, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rp.hessian(o).to_dense()[:9, 9:], expected[0][1].reshape(9, 3), rtol=1e-9, atol=1e-12)
    # torch.func.functional_call with tied weights would leave copies here
    assert shared.weight is weight and shared.bias is bias
