"""Feed-forward networks in closed form, against torch.func and against the recorded forward pass."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.utils import prune

import raphson as rp
from raphson.network._module import Model
from raphson.network.layers._feed_forward import find_feed_forward
from raphson.network.layers._feed_forward_products import FeedForwardProducts, in_parts
from raphson.network.layers._recorder import record_feed_forward, record_layers

DTYPE = torch.float64

NETWORKS = {
    "smooth": lambda: [nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Softplus(), nn.Linear(4, 2)],
    "kinked": lambda: [nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)],
    "several activations": lambda: [nn.Linear(3, 5), nn.ELU(inplace=True), nn.SiLU(), nn.Linear(5, 2), nn.Sigmoid()],
    "linear": lambda: [nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2), nn.Dropout(0.5)],
    "one layer": lambda: [nn.Tanh(), nn.ELU(inplace=True), nn.Linear(3, 2)],
    "nested": lambda: [nn.Sequential(nn.Linear(3, 4), nn.GELU()), nn.Sequential(nn.Linear(4, 2, bias=False))],
}


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return nn.Sequential(*NETWORKS[request.param]()).to(DTYPE).eval()


def choices(network: nn.Module) -> list[list[str] | None]:
    """All parameters, the last layer's, the weights, and the biases of all layers."""
    names = [name for name, _ in network.named_parameters()]
    weights, biases = ([name for name in names if name.endswith(end)] for end in ("weight", "bias"))
    return [None, weights[-1:], weights[:1], weights, biases, names[1:-1]]


def by_definition(model: Model, x: Tensor, loss):
    """Return the Jacobian ``(N, T, C, P)`` and the Hessian of a loss in the parameters of the space."""
    sizes = [t.numel() for t in model.space.tensors.values()]

    def f(vector: Tensor) -> Tensor:
        parts = zip(model.space.tensors.items(), vector.split(sizes), strict=True)
        return functional_call(model.module, {name: part.view(t.shape) for (name, t), part in parts}, (x,))

    at = model.space.vector()
    return jacrev(f)(at), hessian(lambda v: loss(f(v)))(at)


def test_products_are_those_of_torch_func(network):
    x = torch.randn(4, 3, 3, dtype=DTYPE)
    for params in choices(network):
        if params == []:
            continue
        model = Model(network, params)
        feed_forward = find_feed_forward(network)
        jacobian, second = by_definition(model, x, lambda f: f.exp().sum())
        for k in (1, 3):
            rows = torch.randn(k, model.space.numel, dtype=DTYPE)
            products = FeedForwardProducts(feed_forward, model.space, feed_forward.features(x), second=True)
            f = products.outputs.clone()
            torch.testing.assert_close(f, network(x.clone()).detach(), rtol=1e-13, atol=0)
            moved = products.jvp(rows)
            torch.testing.assert_close(moved, torch.einsum("...p,kp->k...", jacobian, rows), rtol=1e-10, atol=1e-12)
            u = torch.randn(k, *f.shape, dtype=DTYPE)
            pulled = torch.einsum("ntcp,kntc->kp", jacobian, u)
            torch.testing.assert_close(products.vjp(u), pulled, rtol=1e-10, atol=1e-12)
            products.set_gradient(f.exp())
            found = in_parts(partial(products.hessian_product, middle=f.exp().mul), rows, 2)
            torch.testing.assert_close(found, rows @ second, rtol=1e-10, atol=1e-11)


def test_nothing_that_is_cached_is_written_into(network):
    x = torch.randn(4, 3, dtype=DTYPE)
    before = x.clone()
    objective = rp.Objective(network, rp.Gaussian(), (x, torch.randn(4, 2, dtype=DTYPE)))
    v = torch.randn(objective.n_parameters, 3, dtype=DTYPE)
    cached = v.clone()
    for operator in (rp.ggn(objective), rp.hessian(objective)):
        first = operator @ v
        assert torch.equal(operator @ v, first)
        torch.testing.assert_close(operator @ v[:, 0], first[:, 0], rtol=1e-12, atol=1e-14)
    assert torch.equal(x, before) and torch.equal(v, cached)


@pytest.mark.parametrize("leading", [(4,), (4, 4), (4, 2)])
def test_records_are_those_of_the_recorded_pass(network, leading):
    x = torch.randn(*leading, 3, dtype=DTYPE)
    feed_forward = find_feed_forward(network)
    for params in choices(network):
        if params == []:
            continue
        model = Model(network, params)
        found = record_feed_forward(feed_forward, model.space, x)
        recorded = record_layers(model.call, model.space.tensors, x.clone())
        if recorded.unrecognized:
            assert found is None
            continue
        torch.testing.assert_close(found.output, recorded.output.detach(), rtol=1e-13, atol=0)
        u = torch.randn(2, *found.output.shape, dtype=DTYPE)
        assert len(found.calls) == len(recorded.calls) and not found.unrecognized
        for a, b in zip(found.calls, recorded.calls, strict=True):
            assert (a.weight, a.bias, a.shape, a.tail) == (b.weight, b.bias, b.shape, b.tail)
            torch.testing.assert_close(a.input(), b.input(), rtol=1e-13, atol=0)
        for a, b in zip(found.gradients(u), recorded.gradients(u), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        assert found.layouts() == recorded.layouts()


def test_only_feed_forward_networks_are_taken_for_such():
    linear, tanh = nn.Linear(3, 3), nn.Tanh()
    assert find_feed_forward(nn.Sequential(linear, tanh, nn.Linear(3, 2), tanh)) is not None
    assert find_feed_forward(linear) is not None
    hooked = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    hooked[1].register_forward_hook(lambda module, args, out: 2 * out)
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    tied = nn.Linear(3, 3)
    tied.weight = linear.weight
    replaced = nn.Sequential(nn.Linear(3, 3))
    replaced[0].forward = lambda x: x
    pruned = nn.Linear(3, 3)
    prune.random_unstructured(pruned, "weight", amount=2)
    for network in (
        None,
        hooked,
        parametrized,
        replaced,
        pruned,
        nn.Tanh(),
        nn.Sequential(linear, tanh, linear),
        nn.Sequential(linear, tied),
        nn.Sequential(linear, nn.LayerNorm(3)),
        nn.Sequential(linear, nn.Flatten()),
    ):
        assert find_feed_forward(network) is None


def test_curvature_of_a_hooked_network_sees_the_hook():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2)).to(DTYPE)
    network[0].register_forward_hook(lambda module, args, out: 3 * out)
    x = torch.randn(4, 3, dtype=DTYPE)
    objective = rp.Objective(network, rp.Gaussian(), (x, torch.zeros(4, 2, dtype=DTYPE)))
    expected = torch.kron(torch.eye(2, dtype=DTYPE), 9 * x.mT @ x / 4)
    found = rp.ggn(objective, params=["0.weight"]) @ torch.eye(6, dtype=DTYPE)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_network_is_looked_at_once_per_objective(monkeypatch):
    from raphson.network import _objective

    looked = []
    monkeypatch.setattr(
        _objective, "find_feed_forward", lambda module: looked.append(module) or find_feed_forward(module)
    )
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(DTYPE)
    objective = rp.Objective(model, rp.Gaussian(), (torch.randn(4, 3, dtype=DTYPE), torch.zeros(4, 2, dtype=DTYPE)))
    rp.ggn(objective) @ objective.gradient()
    (
        rp.hessian(objective, "diagonal"),
        rp.hessian(objective, "blocks"),
        rp.kfac(objective),
        rp.kfac(objective, "recursive"),
    )
    assert looked == [model]


def test_passes_by_onednn_in_single_precision(longer_vectors):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(70, 90), nn.Tanh(), nn.Linear(90, 60, bias=False), nn.ReLU(), nn.Linear(60, 10))
    x, u = torch.randn(1000, 100)[:, :70], torch.randn(3, 1000, 10)
    objective = rp.Objective(network.eval(), rp.Categorical(), (x, torch.zeros(1000, dtype=torch.long)))
    record = record_feed_forward(find_feed_forward(network), objective.space, x)
    gradients = record.gradients(u)
    assert len(longer_vectors) == 3  # two layers forward, one backward; those of the last layer are small
    x, u, model = x.double(), u.double(), Model(network.double())
    expected = record_layers(model.call, model.space.tensors, x)
    torch.testing.assert_close(record.output.double(), expected.output.detach(), rtol=1e-4, atol=1e-5)
    for found, reference in zip(gradients, expected.gradients(u), strict=True):
        torch.testing.assert_close(found.double(), reference, rtol=1e-4, atol=1e-5)
