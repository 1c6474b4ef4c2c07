"""Products with a Jacobian that is cached by layer, against the dense matrices, for layers of every kind."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.network.autodiff._per_example import example_jacobian
from raphson.network.curvature import _cached_jacobian, _gauss_newton, _products
from raphson.network.curvature._cached_jacobian import cached_jacobian
from raphson.network.layers._layer_jacobian import LayerJacobian

from .kfac_models import integers, objective_of, randn

EXPLAINED = ["mlp", "sequence", "causal", "resnet", "upsampling", "tied", "bag of words", "images", "transformer"]
EXPLAINED += [
    "positions first",
    "weight of its own",
    "class token",
    "class token, as many as examples",
    "heads",
    "heads first",
]
UNEXPLAINED = ["recurrent"]


def made(name: str, limit: int = 2**30) -> tuple[rp.Objective, LayerJacobian | None, torch.Tensor]:
    """Return an objective, the cached Jacobian of its batch, and the dense one, ``(N, ..., C, P)``."""
    objective = objective_of(name, weighted=False)
    (batch,) = objective.batches()
    dense = example_jacobian(objective.model, batch.x, batch.n_examples, objective.traits)
    f = objective.outputs(batch, 0).detach()

    def transposed(u: torch.Tensor) -> torch.Tensor:
        return u.flatten(1) @ dense.flatten(0, -2)

    return objective, cached_jacobian(objective, batch, 0, f, transposed, limit), dense


@pytest.mark.parametrize("name", EXPLAINED)
@pytest.mark.parametrize("together", [1, 2**25])
def test_products_of_every_layer(name, together, monkeypatch):
    monkeypatch.setattr(_cached_jacobian, "_TOGETHER", together)
    objective, cached, dense = made(name)
    assert cached is not None
    v = randn(4, objective.n_parameters, seed=1)
    expected = torch.einsum("n...p,kp->kn...", dense, v)
    u = randn(4, *dense.shape[:-1], seed=2)
    for rows in (v, v.mT.contiguous().mT):
        torch.testing.assert_close(cached.jvp(rows).view(expected.shape), expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(cached.jvp(rows[:1]).view(expected[:1].shape), expected[:1], rtol=1e-10, atol=1e-12)
    expected = u.flatten(1) @ dense.flatten(0, -2)
    torch.testing.assert_close(cached.vjp(cached.shaped(u)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", UNEXPLAINED)
def test_a_parameter_outside_of_layers_is_not_cached(name, monkeypatch):
    objective, cached, _ = made(name)
    assert cached is None
    monkeypatch.setattr(_gauss_newton, "_FROM", 0.0)
    v = randn(objective.n_parameters, 2, seed=1)
    dense = rp.ggn(objective, "dense", kind="expected").to_dense()
    torch.testing.assert_close(rp.ggn(objective, kind="expected") @ v, dense @ v, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", EXPLAINED)
def test_memory_is_what_was_announced(name):
    _, cached, _ = made(name)
    held = [*cached._blocks.values(), *(t for at in cached._factors.values() for t in (at.inputs, at.gradients))]
    assert cached.nbytes == sum(t.untyped_storage().nbytes() for t in held) > 0
    assert made(name, cached.nbytes)[1] is not None
    assert made(name, cached.nbytes - 1)[1] is None


@pytest.mark.parametrize("name", ["tied", "images", "sequence", "resnet"])
def test_what_the_layers_do_not_explain_is_not_cached(name, monkeypatch):
    fill = LayerJacobian.fill

    def spoiled(self, number, call, layout, g, examples, outputs):
        fill(self, number, call, layout, g * (1 + 1e-6 * (outputs.start == 0)), examples, outputs)

    monkeypatch.setattr(LayerJacobian, "fill", spoiled)
    objective, cached, dense = made(name)
    assert cached is None
    monkeypatch.setattr(_gauss_newton, "_FROM", 0.0)
    dense = rp.fisher(objective, structure="dense").to_dense()
    v = randn(objective.n_parameters, 2, seed=1)
    torch.testing.assert_close(rp.fisher(objective) @ v, dense @ v, rtol=1e-9, atol=1e-12)


def counted(monkeypatch):
    """Count how often a Jacobian is made, and hold it weakly."""
    found = []

    def keep(*args):
        jacobian = cached_jacobian(*args)
        found.append(jacobian and weakref.ref(jacobian))
        return jacobian

    monkeypatch.setattr(_gauss_newton, "cached_jacobian", keep)
    return found


def test_it_is_cached_after_as_many_vectors_as_outputs(monkeypatch):
    found = counted(monkeypatch)
    objective = objective_of("images")
    dense = rp.fisher(objective, structure="dense").to_dense()
    operator, v = rp.fisher(objective), randn(objective.n_parameters, 3, seed=1)
    for times in range(4):
        torch.testing.assert_close(operator @ v[:, 0], dense @ v[:, 0], rtol=1e-9, atol=1e-12)
        assert len(found) == (times >= 1)  # two outputs
    torch.testing.assert_close(operator @ v, dense @ v, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.vmap(operator.mv, 1, 1)(v), dense @ v, rtol=1e-9, atol=1e-12)
    assert len(found) == 1 and found[0]() is not None
    del operator
    gc.collect()
    assert found[0]() is None


def test_batches_share_the_memory(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = randn(12, 4), randn(12, 2)
    whole = rp.Objective(model, rp.Gaussian(), (x, y))
    batches = rp.Objective(model, rp.Gaussian(), [(x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)])
    v = randn(whole.n_parameters, 2, seed=1)
    expected = rp.ggn(whole, "dense").to_dense() @ v
    for bytes_, times in ((2**29, 3), (0, 6)):
        monkeypatch.setattr(_products, "CACHE_BYTES", bytes_)
        found = counted(monkeypatch)
        operator = rp.ggn(batches)
        for _ in range(2):
            torch.testing.assert_close(operator @ v, expected, rtol=1e-9, atol=1e-12)
        assert len(found) == times
        assert all((jacobian is not None) == bool(bytes_) for jacobian in found)


def test_inside_a_transformation_nothing_is_made(monkeypatch):
    found = counted(monkeypatch)
    objective = objective_of("mlp")
    operator, v = rp.ggn(objective), randn(objective.n_parameters, 5, seed=1)
    dense = rp.ggn(objective, "dense").to_dense()
    assert (operator @ v[:, 0]).isfinite().all()
    torch.testing.assert_close(torch.vmap(operator.mv, 1, 1)(v), dense @ v, rtol=1e-9, atol=1e-12)
    assert not found


def test_examples_are_told_apart_where_axes_are_as_long_as_the_batch(monkeypatch):
    """As many positions as examples, pooled or not."""
    found = counted(monkeypatch)
    monkeypatch.setattr(_gauss_newton, "_FROM", 0.0)
    x, y = randn(4, 4, 4), integers(3, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Conv1d(4, 3, 2), nn.Flatten(), nn.Linear(9, 3)).double()
    objective = rp.Objective(model, rp.Categorical(), (x, y))
    v = randn(objective.n_parameters, 3, seed=1)
    expected = rp.ggn(objective, "dense").to_dense() @ v
    torch.testing.assert_close(rp.ggn(objective) @ v, expected, rtol=1e-9, atol=1e-12)
    assert len(found) == 1 and found[0] is not None


@pytest.mark.parametrize("name", ["mlp", "images", "tied", "transformer", "recurrent"])
@pytest.mark.parametrize("kind", ["expected", "mc", "empirical"])
def test_products_do_not_depend_on_what_is_cached(name, kind):
    objective = objective_of(name)
    v = randn(objective.n_parameters, 3, seed=1)
    never, always, auto = (rp.fisher(objective, kind, keep=keep) for keep in (False, True, "auto"))
    before = auto @ v[:, 0]  # by passes
    size = (never @ v).norm(dim=0)

    def same(a, b, column=slice(None)):
        assert float(((a - b).norm(dim=0) / size[column]).max()) < 1e-12

    same(always @ v, never @ v)
    for _ in range(20):
        after = auto @ v
    same(after, never @ v)
    same(auto @ v[:, 0], before, 0)
    same(rp.ggn(objective, kind="expected", keep=True) @ v, rp.ggn(objective, kind="expected", keep=False) @ v)


def test_keep_decides_when_a_jacobian_is_made(monkeypatch):
    found = counted(monkeypatch)
    objective = objective_of("images")
    v = randn(objective.n_parameters, seed=1)
    never, always = rp.ggn(objective, keep=False), rp.ggn(objective, keep=True)
    for _ in range(5):
        never @ v
    assert not found
    always @ v
    always @ v
    assert len(found) == 1 and found[0]() is not None
    with pytest.raises(rp.InputError, match="keep is 'never', but it must be 'auto', True or False"):
        rp.ggn(objective, keep="never")


def test_a_jacobian_that_is_asked_for_is_cached_however_large(monkeypatch):
    monkeypatch.setattr(_products, "CACHE_BYTES", 0)
    found = counted(monkeypatch)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = randn(12, 4), randn(12, 2)
    objective = rp.Objective(model, rp.Gaussian(), [(x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)])
    operator, v = rp.ggn(objective, keep=True), randn(objective.n_parameters, 2, seed=1)
    expected = rp.ggn(objective, "dense").to_dense() @ v
    for _ in range(3):
        torch.testing.assert_close(operator @ v, expected, rtol=1e-9, atol=1e-12)
    assert len(found) == 3 and all(jacobian is not None for jacobian in found)
