"""Calls whose derivative torch does not differentiate, or not for many gradients at once, against plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

import raphson as rp

DTYPE = torch.float64


class Net(nn.Module):
    """Something between two linear layers, as torch has it or in the plainest terms."""

    def __init__(self, kind: str, plain: bool) -> None:
        super().__init__()
        self.kind, self.plain = kind, plain
        self.before, self.after = nn.Linear(3, 4), nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.before(x)
        if self.kind.startswith("hardsigmoid"):
            there = (z / 6 + 0.5).clamp(0, 1)
            return self.after(there if self.plain else nn.Hardsigmoid("in place" in self.kind)(z))
        z = z.unflatten(-1, (2, 2))
        p = float(self.kind.rpartition(" ")[2])
        other = z.flip(-1) * 2 + 1
        apart = (z[:, :, None] - other[:, None]).abs().pow(p).sum(-1).pow(1 / p)
        return self.after((apart if self.plain else torch.cdist(z, other, p=p)).flatten(1))


@pytest.mark.parametrize("kind", ["hardsigmoid", "hardsigmoid in place", "distances 2", "distances 1", "distances 3"])
def test_all_derivatives(kind):
    torch.manual_seed(0)
    x, y = 2 * torch.randn(6, 3, dtype=DTYPE), torch.tensor([0, 1, 1, 0, 1, 0])
    network, plain = Net(kind, False).double().eval(), Net(kind, True).double().eval()
    network(x.clone()), plain(x)
    plain.load_state_dict(network.state_dict())
    named = {name: p.detach() for name, p in plain.named_parameters()}
    jacobian = jacrev(lambda params: functional_call(plain, params, (x,)))(named)
    dense = torch.cat([part.flatten(2) for part in jacobian.values()], 2)
    p = plain(x).softmax(-1).detach()
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    ggn = torch.einsum("ncp,ncd,ndq->pq", dense, middle, dense) / 6
    objective = rp.Objective(network, rp.Categorical(), (x, y))
    v = torch.randn(len(ggn), 3, dtype=DTYPE)
    close = {"rtol": 1e-7, "atol": 1e-9}  # torch has the slope of a hard sigmoid as a sixth in single precision
    torch.testing.assert_close(rp.jacobian(network, x).to_dense(), dense, **close)
    torch.testing.assert_close(rp.ggn(objective, "dense").to_dense(), ggn, **close)
    torch.testing.assert_close(rp.ggn(objective) @ v[:, 0], ggn @ v[:, 0], **close)
    torch.testing.assert_close(rp.ggn(objective) @ v, ggn @ v, **close)
    torch.testing.assert_close(rp.ggn(objective, "diagonal").diagonal(), ggn.diagonal(), **close)

    def loss(flat: Tensor) -> Tensor:
        f = functional_call(plain, objective.space.unflatten(flat), (x,))
        return nn.functional.cross_entropy(f, y)

    curvature = hessian(loss)(objective.space.vector())
    torch.testing.assert_close(rp.hessian(objective) @ v, curvature @ v, **close)
    torch.testing.assert_close(rp.hessian(objective, "dense").to_dense(), curvature, **close)


def test_a_chain_with_a_hard_sigmoid():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 4), nn.Hardsigmoid(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = 2 * torch.randn(6, 3, dtype=DTYPE), torch.randn(6, 2, dtype=DTYPE)
    objective = rp.Objective(network, rp.Gaussian(), (x, y))

    def loss(flat: Tensor) -> Tensor:
        params = objective.space.unflatten(flat)
        z = (x @ params["0.weight"].mT + params["0.bias"]) / 6 + 0.5
        z = torch.tanh(z.clamp(0, 1) @ params["2.weight"].mT + params["2.bias"])
        return 0.5 * (z @ params["4.weight"].mT + params["4.bias"] - y).square().sum() / 6

    curvature = hessian(loss)(objective.space.vector())
    torch.testing.assert_close(rp.hessian(objective, "dense").to_dense(), curvature, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(rp.hessian(objective, "diagonal").diagonal(), curvature.diagonal(), rtol=1e-7, atol=1e-9)
