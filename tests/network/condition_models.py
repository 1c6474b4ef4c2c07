"""Small models whose layers and functions once gave a wrong number in silence."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .network_cases import DTYPE

N, D, C, WORDS = 5, 3, 3, 7


def body(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, 4), *parts, nn.Linear(4, C))


class Calls(nn.Module):
    """Two linear layers with a function between them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(D, 4), nn.Linear(4, C), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def hooked_node(h: Tensor) -> Tensor:
    if h.grad_fn is not None:
        h.grad_fn.register_hook(lambda into, out: tuple(None if g is None else 2 * g for g in into))
    return h


def hooked_before_node(h: Tensor) -> Tensor:
    if h.grad_fn is not None:
        h.grad_fn.register_prehook(lambda out: tuple(2 * g for g in out))
    return h


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_empty(len(x), 1).bernoulli_(0.999) if self.training else x


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.001, self.training)


GENERATOR = random.Random(0)


def noisy(h: Tensor) -> Tensor:
    return h + 1e-13 * GENERATOR.random()


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-13 * float(self.generator.random())


def doubled_back(h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda g: 2 * g)
    return h


def hooked_back() -> nn.Module:
    model = body(nn.Tanh())
    model[1].register_full_backward_hook(lambda module, inputs, outputs: None)
    return model


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(torch.tanh(x))
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        return g[0] * (1 - ctx.saved_tensors[0] ** 2)


class TwiceTanh(Tanh):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        return g[0] * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


class OnceTanh(Tanh):
    backward = staticmethod(once_differentiable(Tanh.backward))


class SilentTanh(Tanh):
    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        with torch.no_grad():
            return g[0] * (1 - ctx.saved_tensors[0] ** 2)


class DetachedTanh(Tanh):
    """Its Jacobian is right, its second derivative is lost."""

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        return g[0] * (1 - ctx.saved_tensors[0].detach() ** 2)


class Words(nn.Module):
    """Scores of rows of words."""

    def __init__(self, table: nn.Module, tied: bool = False, total: bool = True) -> None:
        super().__init__()
        self.table, self.out, self.total = table, nn.Linear(4, WORDS if tied else C), total
        if tied:
            self.out.weight = table.weight

    def forward(self, i: Tensor) -> Tensor:
        h = self.table(i)
        return self.out(torch.tanh(h.sum(1) if self.total and h.ndim == 3 else h))[..., :C]


class Positions(nn.Module):
    """Words plus positions that all examples share."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.out = nn.Embedding(WORDS, 4), nn.Embedding(3, 4), nn.Linear(4, C)

    def forward(self, i: Tensor) -> Tensor:
        h = self.words(i) + self.positions(torch.arange(i.shape[1], device=i.device))
        return self.out(torch.tanh(h).sum(1))


class Counts(nn.Module):
    """Keeps a running mean in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9)
        return x - self.mean


class Slope(nn.Module):
    """Computes with the gradient of a network inside of it, as models of forces do."""

    def __init__(self, function: bool) -> None:
        super().__init__()
        self.inner, self.out, self.function = (
            nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 1)),
            nn.Linear(D, C),
            function,
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.function:
            return self.out(torch.func.vmap(torch.func.grad(lambda row: self.inner(row).sum()))(x))
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.inner(z).sum(), z, create_graph=True)
        return self.out(g)


class Scaled(nn.Module):
    """Runs a network inside of it with other parameters than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = body(nn.Tanh()), nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor) -> Tensor:
        values = {name: p * self.scale for name, p in self.inner.named_parameters()}
        return torch.func.functional_call(self.inner, values, (x,))


class Adapted(nn.Module):
    """A frozen layer with an adapter of low rank, added to what it makes or to its weight."""

    def __init__(self, merged: bool) -> None:
        super().__init__()
        self.base, self.out, self.merged = nn.Linear(D, 4).requires_grad_(False), nn.Linear(4, C), merged
        self.down, self.up = nn.Parameter(torch.randn(2, D)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return self.out(torch.tanh(F.linear(x, self.base.weight + self.up @ self.down, self.base.bias)))
        return self.out(torch.tanh(self.base(x) + x @ self.down.mT @ self.up.mT))


class Routed(nn.Module):
    """Sends each example through one of two layers, by its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts, self.out = (
            nn.Linear(D, 2),
            nn.ModuleList(nn.Linear(D, 4) for _ in "ab"),
            nn.Linear(4, C),
        )

    def forward(self, x: Tensor) -> Tensor:
        p = self.gate(x).softmax(-1)
        h = x.new_zeros(len(x), 4)
        for number, expert in enumerate(self.experts):
            rows = (p.argmax(-1) == number).nonzero()[:, 0]
            h = h.index_add(0, rows, p[rows, number, None] * expert(x[rows]))
        return self.out(torch.tanh(h))


class Phase(nn.Module):
    """Complex numbers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(D, 4), nn.Linear(D, 4), nn.Linear(8, C)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.complex(self.a(x), self.b(x))
        return self.out(torch.view_as_real(z / (1 + z.abs())).flatten(1))


class Spectral(nn.Module):
    """Sees pairs of parameters as complex numbers; with an odd number of all, those of a second vector begin oddly."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs, self.shift = nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.zeros(D))
        self.out, self.function = nn.Linear(4, C), torch.view_as_complex
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x + self.shift)
        z = torch.complex(h[:, :2], h[:, 1:]) * self.function(self.pairs)
        return self.factor * self.out(torch.cat([z.real, z.imag], 1))


class Generated(nn.Module):
    """A layer whose weight another layer makes, for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.out = nn.Linear(D, 4 * D), nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(torch.einsum("noi,ni->no", self.make(x).view(-1, 4, D), x)))


def normed_as_before() -> nn.Module:
    """The weight norm that leaves what it computed on the module as an attribute."""
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(D, 4)), nn.Tanh(), nn.Linear(4, C))


def distances(h: Tensor) -> Tensor:
    return torch.linalg.vector_norm(h.view(-1, 2, 1, 2) - h.new_ones(2, 2), dim=-1).flatten(1)


def attention(h: Tensor) -> Tensor:
    q = h.view(-1, 2, 2)
    return ((q @ q.mT / 2**0.5).softmax(-1) @ q).flatten(1)


def reals() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1), dtype=DTYPE)


def images() -> Tensor:
    return torch.randn(N, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=DTYPE)


def indices() -> Tensor:
    return torch.randint(0, WORDS, (N, 3), generator=torch.Generator().manual_seed(1))


def tied_layers() -> nn.Module:
    model = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))
    model[2].weight = model[0].weight
    return model


def first_frozen(model: nn.Module) -> nn.Module:
    next(model.parameters()).requires_grad_(False)
    return model


def norm_model(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(D, 4), norm, nn.Tanh(), nn.Linear(4, C))


def convolution(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *more, nn.Flatten(), nn.Linear(32, C))


class Tempered(nn.Module):
    """Computes with attributes, and has some that are its own affair."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D, 4), nn.Linear(4, C)
        self.temperature, self.scale, self.calls = 1.5, torch.ones(4, dtype=DTYPE), 0
        self.seen: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.seen = self.calls + 1, tuple(x.shape)
        return self.b(torch.tanh(self.a(x) * self.scale)) / self.temperature
