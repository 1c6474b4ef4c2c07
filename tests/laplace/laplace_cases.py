"""Small networks with data, and the covariance of their outputs by torch.func and dense matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import raphson as rp

DTYPE = torch.float64


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    likelihood: Callable[[], Any]
    inputs: Callable[[int, torch.Generator], Any]
    targets: Callable[[int, torch.Generator], Tensor]

    def __repr__(self) -> str:
        return self.name

    def make(self, n: int = 12) -> tuple[nn.Module, Any, tuple[Any, Tensor], Any]:
        """Return the model, its likelihood, data and other inputs."""
        torch.manual_seed(0)
        g = torch.Generator().manual_seed(1)
        model = self.build().to(DTYPE).eval()
        data = self.inputs(n, g), self.targets(n, g)
        return model, self.likelihood(), data, self.inputs(5, g)


def reals(*shape: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, g: torch.randn(n, *shape, generator=g, dtype=DTYPE)


def labels(k: int, *shape: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, g: torch.randint(0, k, (n, *shape), generator=g)


def tokens(v: int, t: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, g: torch.randint(0, v, (n, t), generator=g)


class Attention(nn.Module):
    """Tokens through an embedding, attention, a norm and a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        h = self.norm(h + self.attention(h, h, h, need_weights=False)[0])
        return self.head(h.mean(1))


class Tied(nn.Module):
    """A weight used twice, and a scale outside recognized layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.exponent = nn.Parameter(torch.tensor([0.3, -0.2, 0.1, 0.4]))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(torch.tanh(self.inner(x))))
        return self.head(h * torch.exp(self.exponent * h))


class TiedTable(nn.Module):
    """A table that is the output layer's weight, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(torch.tanh(self.inner(self.table(x).sum(1))), self.table.weight)


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter (LoRA), before a head."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(4, 5).requires_grad_(False)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 5, bias=False)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.base(x) + 0.5 * self.up(self.down(x))))


def mlp(inputs: int, outputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, outputs))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def positionwise() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))


CASES = [
    Case("categorical", mlp(3, 3), rp.Categorical, reals(3), labels(3)),
    Case("gaussian", mlp(3, 2), lambda: rp.Gaussian(0.7), reals(3), reals(2)),
    Case("natural", mlp(3, 2), lambda: rp.HeteroscedasticGaussian("mean_log_scale"), reals(3), reals(1)),
    Case("convolutions", convolutions, rp.Categorical, reals(2, 4, 4), labels(3)),
    Case("positions", positionwise, rp.Categorical, reals(4, 3), labels(3, 4)),
    Case("attention", Attention, rp.Categorical, tokens(7, 4), labels(3)),
    Case("tied", Tied, lambda: rp.Gaussian(0.5), reals(4), reals(2)),
    Case("tied table", TiedTable, rp.Categorical, tokens(5, 3), labels(5)),
    Case("adapters", Adapted, rp.Categorical, reals(4), labels(3)),
]


def jacobian(model: nn.Module, x: Any, names: list[str]) -> Tensor:
    """Return the Jacobian of all outputs in the parameters, ``(N, ..., C, P)``, by torch.func."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    chosen = {name: params[name] for name in names}

    def f(part: dict[str, Tensor]) -> Tensor:
        return functional_call(model, {**params, **part}, (x,))

    parts = jacrev(f)(chosen)
    lead = f(chosen).shape
    return torch.cat([parts[name].reshape(*lead, -1) for name in names], -1)
