"""Batch norms that become part of the convolution before them, against plain automatic differentiation."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

import raphson as rp


class Net(nn.Module):
    """A convolution and a batch norm, with something in between or beside."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if kind == "1d" else (nn.Conv2d, nn.BatchNorm2d)
        self.conv = conv(2, 4, 3, padding=1, bias=kind != "no bias", groups=2 if kind == "groups" else 1)
        self.norm = norm(4, affine=kind != "not affine")
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 1.5)
        self.act, self.out = nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs ``(N, 3)``."""
        z = self.conv(x)
        if self.kind == "in place":
            z.mul_(2)
        if self.kind == "other":
            z = self.norm(z.tanh())
        elif self.kind == "shared":
            z = self.norm(z) + z.sin()
        elif self.kind == "twice":
            z = self.norm(z) * self.norm(z).tanh()
        else:
            z = self.norm(z)
        return self.out(self.act(z).square().flatten(2).mean(2))


KINDS = ["plain", "no bias", "1d", "groups", "not affine", "in place", "other", "shared", "twice"]


@pytest.mark.parametrize("params", [None, ["norm", "out"], ["conv.bias", "norm.bias"]])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_network(kind, params):
    torch.manual_seed(0)
    network = Net(kind).double().eval()
    if params and kind in {"no bias", "not affine"}:
        pytest.skip("has no such parameter")
    x = torch.randn(5, 2, 4, dtype=torch.float64) if kind == "1d" else torch.randn(5, 2, 3, 4, dtype=torch.float64)
    y = torch.tensor([0, 2, 1, 1, 0])
    objective = rp.Objective(network, rp.Categorical(), (x, y), params=params)
    names = list(objective.space.names)
    buffers = dict(network.named_buffers())
    fixed = {k: p.detach() for k, p in network.named_parameters()}

    def outputs(flat: Tensor) -> Tensor:
        return functional_call(network, fixed | objective.space.unflatten(flat) | buffers, x)

    def loss(flat: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs(flat), y)

    theta = objective.space.vector()
    v = torch.randn(len(theta), 3, dtype=torch.float64)
    jacobian = jacrev(outputs)(theta)
    p = outputs(theta).softmax(-1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    ggn = torch.einsum("ncp,ncd,ndq->pq", jacobian, middle, jacobian) / 5
    for operator, dense in ((rp.ggn(objective), ggn), (rp.hessian(objective), hessian(loss)(theta))):
        torch.testing.assert_close(operator @ v, dense @ v, rtol=1e-9, atol=1e-11, msg=f"{kind} {names}")
        torch.testing.assert_close(operator @ v[:, 0], dense @ v[:, 0], rtol=1e-9, atol=1e-11)


def test_products_pass_over_no_image_for_the_norm():
    """Nothing but convolutions, activations and sums for the shift touch a tensor of the images' size."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3), nn.Flatten())
    x = torch.randn(5, 2, 6, 6)
    objective = rp.Objective(network.eval(), rp.Gaussian(), (x, torch.zeros(5, 12)))
    operator, v = rp.ggn(objective), torch.randn(objective.n_parameters)
    operator @ v
    with torch.profiler.profile(record_shapes=True) as seen:
        operator @ v
    products = [event for event in seen.events() if event.name == "aten::mul" and [5, 4, 4, 4] in event.input_shapes]
    assert not products
