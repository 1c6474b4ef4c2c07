"""Many output gradients backward node by node, against automatic differentiation of one at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.checkpoint import checkpoint

from raphson.network.autodiff._batched_vjp import BatchedVJP
from raphson.network.autodiff._rewrite import Rewritten
from raphson.network.autodiff._vjp_rules import graph_nodes

WEIGHT = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
KERNEL = torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def two_ways(h: Tensor) -> Tensor:
    """A residual branch, whose gradients meet, and a value that is used three times."""
    a = torch.relu(h)
    b = a @ WEIGHT + a
    return b * a.exp() - 0.5 * a


def split(h: Tensor) -> Tensor:
    a, b, c = h.unflatten(-1, (3, 2)).unbind(-2)
    d, _ = torch.sort(h, -1)  # one of two results leads to the outputs
    return torch.cat([a * b + c, d[:, :2].sum(1, keepdim=True).expand(-1, 2)], -1)


def written_into(h: Tensor) -> Tensor:
    a = h * 2
    a[:, 1:3] = a[:, 3:5].tanh()
    return a.sigmoid_() + h


def mixed_types(h: Tensor) -> Tensor:
    return torch.add(h, h.float().cos(), alpha=2) / h.float().square().mean(1, keepdim=True)


def recomputed(h: Tensor) -> Tensor:
    return checkpoint(two_ways, h, use_reentrant=False)


FUNCTIONS = {
    **{
        f.__name__: f
        for f in (
            *(torch.tanh, torch.sigmoid, F.gelu, F.silu, F.softplus, F.elu, F.leaky_relu, F.hardtanh, F.hardswish),
            *(F.mish, F.logsigmoid, torch.exp, torch.sin, torch.cos, torch.neg, torch.abs, torch.erf),
        )
    },
    "scales and shifts": lambda h: torch.relu(torch.tanh(h * 2 + 1) * WEIGHT[0] + WEIGHT[1]) * WEIGHT[2] + h,
    "log": lambda h: (h.square() + 1).log(),
    "roots": lambda h: (h.square() + 1).sqrt() + (h**4 + 1).rsqrt(),
    "power": lambda h: h**3,
    "clamp": lambda h: h.clamp(-0.5, 0.7),
    "clamp between tensors": lambda h: h.clamp(-h.detach().abs() / 2, h * 0.3),
    "threshold": lambda h: F.threshold(h, 0.1, -1.0),
    "softmax": lambda h: h.softmax(-1) * h,
    "norm": lambda h: F.layer_norm(h, (6,)) + F.rms_norm(h, (6,)),
    "shapes": lambda h: (
        h.reshape(2, 3, 5).transpose(0, 1).permute(2, 0, 1).squeeze(0).flatten(1)[:, 1:].unsqueeze(0)[0]
    ),
    "sums": lambda h: (
        h.sum(0, keepdim=True) + h.mean(1, keepdim=True) * h.sum() + h.mean() + torch.ones(4, 5, 6).double()
    ),
    "broadcast": lambda h: h[0] * h.unsqueeze(1) + h[:, :1],
    "linear": lambda h: F.linear(F.linear(h, WEIGHT, WEIGHT[0]), WEIGHT).unsqueeze(0) @ WEIGHT,
    **{f.__name__: f for f in (two_ways, split, written_into, mixed_types, recomputed)},
}


def check(function, shape, k=3, mode=None):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    with mode if mode is not None else torch.enable_grad():
        inner = h * 1.5
        output = function(inner)
    edges = [get_gradient_edge(output), get_gradient_edge(h)]
    u = torch.randn(k, *output.shape, generator=generator, dtype=output.dtype)
    expected = [torch.stack([torch.autograd.grad(output, h, c, retain_graph=True)[0] for c in u])]
    assert BatchedVJP.supports(graph_nodes(output)[0])
    found: dict[int, Tensor] = {}
    batched_vjp = BatchedVJP(output, edges)
    for _ in range(2):  # what is cached from the first time must serve the second
        batched_vjp(u, lambda number, g: found.__setitem__(number, g.clone()))
        torch.testing.assert_close(found[0], u)
        torch.testing.assert_close(found[1], expected[0])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_graphs(name):
    check(FUNCTIONS[name], (5, 6))


@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_images(rewritten, last):
    def images(h: Tensor) -> Tensor:
        h = h.contiguous(memory_format=torch.channels_last) if last else h
        a = F.max_pool2d(torch.relu(F.conv2d(h, KERNEL, padding=1)), 2, stride=1)
        a = a + F.max_pool2d(h.repeat(1, 1, 2, 1)[:, :, ::2], 2, stride=1).mean()  # a view with gaps
        b = F.conv2d(F.avg_pool2d(h, 3, 1, 1), KERNEL, dilation=2, padding=1)
        c = F.batch_norm(a + b, WEIGHT[0, :3], WEIGHT[1, :3].abs(), WEIGHT[2, :3], WEIGHT[3, :3], False)
        c = F.relu(c, inplace=True) + F.adaptive_avg_pool2d(c, 1)
        return F.conv_transpose2d(c, KERNEL, stride=2).flatten(1)

    check(images, (2, 3, 7, 6), mode=Rewritten(channels_last=last) if rewritten else None)


@pytest.mark.parametrize("groups", [1, 3])
def test_convolutions_with_weights_that_are_made(groups):
    def made(h: Tensor) -> Tensor:
        weight = (h[0, :1] * KERNEL[:, : 3 // groups]).tanh()
        return F.conv2d(h.sin(), weight, padding=1, groups=groups).square() + F.conv2d(h, KERNEL, padding=1)

    def its_own_gradient(h: Tensor) -> Tensor:
        energy = F.conv2d(h, KERNEL[:, : 3 // groups], groups=groups).tanh().sum()
        return torch.autograd.grad(energy, h, create_graph=True)[0] * h

    check(made, (3, 3, 2, 2), mode=Rewritten(channels_last=False, once=False))
    check(its_own_gradient, (3, 3, 4, 5), mode=Rewritten(channels_last=False, once=False))


def test_gradients_are_whole_when_they_are_seen_and_what_was_given_is_not_changed():
    h = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    a = h * 2
    b = a.tanh()
    output = b.exp() + b
    u = torch.ones(2, 4, 3, dtype=torch.float64)
    cached: dict[int, Tensor] = {}
    edges = [get_gradient_edge(t) for t in (h, a, b, output)]
    BatchedVJP(output, edges)(u, lambda number, g: cached.__setitem__(number, g.clone()))
    for number, t in enumerate((h, a, b, output)):
        expected = torch.autograd.grad(output, t, u[0], retain_graph=True)[0]
        torch.testing.assert_close(cached[number], expected.expand(2, -1, -1))
    assert torch.equal(u, torch.ones_like(u))


def test_gradients_pass_through_sums_in_their_memory():
    h = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    scaled = h * WEIGHT[0]
    shifted = scaled + WEIGHT[1]
    seen: dict[int, int] = {}
    vjp = BatchedVJP(torch.tanh(shifted), [get_gradient_edge(t) for t in (shifted, scaled, h)])
    vjp(torch.randn(3, 4, 6, dtype=torch.float64), lambda number, g: seen.update({number: g.data_ptr()}))
    assert seen[0] == seen[1] == seen[2]


def test_an_edge_without_gradient_has_zeros():
    h = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    values, _ = torch.max(h, 1)
    a, b = torch.frexp(h)[0], h.unbind(1)
    output = values + a.sum(1) + b[0]
    found: dict[int, Tensor] = {}
    BatchedVJP(output, [get_gradient_edge(b[1])])(torch.ones(2, 4, dtype=torch.float64), found.__setitem__)
    assert torch.equal(found[0], torch.zeros(2, 4, dtype=torch.float64))


def test_a_function_of_the_models_own_is_left_to_automatic_differentiation():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * g

    x = torch.ones(2, 1, requires_grad=True)
    assert not BatchedVJP.supports(graph_nodes(Square.apply(x))[0])
    assert BatchedVJP.supports(graph_nodes(nn.Linear(1, 1)(x))[0])
