"""Products of networks whose convolutions and batch norms are rewritten, against plain differentiation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

import raphson as rp
from raphson.network._checks import probe
from raphson.network._module import Model
from raphson.network.autodiff._linearize import GradientGraph, Linearization, rewritten
from raphson.network.autodiff._rewrite import Rewritten

DTYPE = torch.float64


class Network(nn.Module):
    """Convolutions and norms with a smooth end, and a value that no gradient goes through."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layers(x)
        return (z * z.detach().sin()).flatten(2).sum(2).tanh()


class Twice(nn.Module):
    """A rectifier whose output is pooled, and used otherwise, and one before something else."""

    def forward(self, z: Tensor) -> Tensor:
        a = nn.functional.relu(input=z)
        b = torch.relu(z)
        b = 2 * b
        return nn.functional.max_pool2d(a, 2) + a[..., ::2, ::2][..., :2, :2] + nn.functional.max_pool2d(b, 2)


CASES = {
    "line": (lambda: [nn.Conv1d(2, 4, 3, padding=2, dilation=2), nn.Tanh(), nn.Conv1d(4, 2, 2, groups=2)], (2, 5)),
    "image": (
        lambda: [nn.Conv2d(2, 4, 3, (2, 1), padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 2, 1, bias=False)],
        (2, 4, 5),
    ),
    "same": (lambda: [nn.Conv2d(1, 2, (2, 3), padding="same"), nn.Sigmoid(), nn.Conv2d(2, 2, 2)], (1, 4, 4)),
    "pooled": (lambda: [nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.BatchNorm2d(2, affine=False)], (1, 6, 6)),
    "rectified": (lambda: [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), nn.ReLU()], (1, 8, 7)),
    "in place": (
        lambda: [nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(True), nn.MaxPool2d(3, 2, 1, ceil_mode=True)],
        (1, 6, 6),
    ),
    "seen twice": (lambda: [nn.Conv2d(1, 3, 3), Twice(), nn.Conv2d(3, 2, 2)], (1, 7, 7)),
    "volume": (lambda: [nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Tanh(), nn.Conv3d(2, 2, 2)], (1, 3, 3, 4)),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    layers, shape = CASES[request.param]
    network = Network(*layers()).to(DTYPE).eval()
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return network, torch.randn(3, *shape, dtype=DTYPE)


def _probed(network: nn.Module, x: Tensor):
    model = Model(network)
    return model, probe(model, x[:2], 2)[1]


def _flat(parts) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def test_jacobian_products(case):
    network, x = case
    model, traits = _probed(network, x)
    assert traits.rewritten
    lin = Linearization(model, x, traits)
    named = {name: p.detach() for name, p in network.named_parameters()}
    rows = jacrev(lambda params: functional_call(network, params, (x,)))(named)
    jacobian = torch.cat([part.flatten(2) for part in rows.values()], 2)
    v, u = torch.randn(jacobian.shape[-1], dtype=DTYPE), torch.randn(lin.outputs.shape, dtype=DTYPE)
    torch.testing.assert_close(lin.outputs, network(x).detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(lin.jvp(v), jacobian @ v, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(_flat(lin.vjp(u)), torch.einsum("ncp,nc->p", jacobian, u), rtol=1e-10, atol=1e-12)


def test_hessian_products(case):
    network, x = case
    model, traits = _probed(network, x)
    graph = GradientGraph(model, x, traits, lambda f: (f.exp(), lambda t: f.exp() * t))
    sizes = {name: p.shape for name, p in network.named_parameters()}

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in sizes.values()])
        params = {name: part.view(shape) for (name, shape), part in zip(sizes.items(), parts, strict=True)}
        return functional_call(network, params, (x,)).exp().sum()

    at = _flat(network.parameters()).detach()
    v = torch.randn_like(at)
    torch.testing.assert_close(_flat(graph.product(v)), hessian(loss)(at) @ v, rtol=1e-10, atol=1e-11)


def test_few_calls_are_made_of_a_convolution(case):
    """A product with the Jacobian differentiates no convolution in its weight or input."""
    network, x = case
    model, traits = _probed(network, x)
    lin = Linearization(model, x, traits)
    v = torch.randn(model.space.numel, dtype=DTYPE)
    with torch.profiler.profile() as seen:
        lin.jvp(v)
    names = [event.name for event in seen.events()]
    if not any(isinstance(part, nn.Conv2d) and part.padding == "same" for part in network.modules()):
        assert "aten::convolution" in names
        assert "aten::convolution_backward" not in names


@pytest.mark.parametrize("end", ["view", "flatten"])
def test_images_keep_their_order_in_memory_where_the_model_asks_for_it(end):
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(2, 3, 2), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            z = self.conv(x)
            return self.out(z.view(len(z), -1) if end == "view" else z.flatten(1))

    torch.manual_seed(0)
    network, x = Viewed().to(DTYPE), torch.randn(4, 2, 3, 3, dtype=DTYPE)
    objective = rp.Objective(network, rp.Categorical(), (x, torch.tensor([0, 1, 1, 0])))
    assert objective.traits.channels_last == (end == "flatten")
    v = torch.randn(objective.n_parameters, dtype=DTYPE)
    dense = rp.ggn(objective, "dense").to_dense()
    torch.testing.assert_close(rp.ggn(objective) @ v, dense @ v, rtol=1e-10, atol=1e-12)
    assert rp.kfac(objective).diagonal().shape == v.shape


def test_nothing_stays_behind(case):
    network, x = case
    _, traits = _probed(network, x)
    with rewritten(traits):
        inside = network(x)
    after = network(x)
    torch.testing.assert_close(inside, after, rtol=1e-12, atol=1e-14)
    with Rewritten(channels_last=True), torch.no_grad():
        torch.testing.assert_close(network(x), after, rtol=1e-12, atol=1e-14)
