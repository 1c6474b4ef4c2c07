"""Products with the Jacobian of networks with batch norms, which run forward with tangents."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from raphson.model import Linearization, Model
from raphson.model._checks import Traits


class Cube(torch.autograd.Function):
    """An operation without a forward derivative."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, *g: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * g[0]


class Network(nn.Module):
    """Two convolutions and a batch norm, with values that no gradient goes through."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm, self.last = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.first(x)).tanh()
        if self.kind == "fixed":
            with torch.no_grad():
                gate = self.second(z)
            return self.last((self.second(z) * gate + z.detach()[..., 2:, 2:]).mean((2, 3)))
        z = Cube.apply(self.second(z)) if self.kind == "custom" else self.second(z)
        return self.last(z.mean((2, 3)))


@pytest.mark.parametrize("kind", ["plain", "fixed", "custom"])
def test_products_with_tangents_are_those_of_the_reverse_pass(kind):
    torch.manual_seed(0)
    network = Network(kind).double().eval()
    x = torch.randn(2**12, 2, 6, 6, dtype=torch.float64)
    lin = Linearization(Model(network), x, Traits({"convolution"}))
    v = torch.randn(lin._space.numel, dtype=torch.float64)
    found = lin.jvp(v)
    assert not lin.together
    assert lin._forward == (kind != "custom")
    # one row of the Jacobian at a time, by plain backward passes
    named = dict(network.named_parameters())
    f = functional_call(network, named, (x[:2],))
    for n, c in [(0, 0), (1, 2)]:
        row = torch.autograd.grad(f[n, c], list(named.values()), retain_graph=True)
        expected = torch.cat([part.reshape(-1) for part in row]) @ v
        torch.testing.assert_close(found[n, c], expected, rtol=1e-10, atol=1e-12)
    assert torch.is_grad_enabled()
    assert torch._C._is_fwd_grad_enabled()
