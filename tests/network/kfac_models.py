"""Networks of every kind of layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import raphson as rp


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(5))


class Transformer(nn.Module):
    """Embedding tied to the output, positions, packed attention, norms, and a bare token put in front."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=1)
        self.position = nn.Parameter(torch.randn(5, 4))
        self.start = nn.Parameter(torch.randn(1, 1, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.norm, self.scale = nn.LayerNorm(4), nn.Parameter(torch.randn(4))
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embedding.weight
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.position
        h = torch.cat([self.start.expand(len(x), 1, 4), h], 1)
        h = h if self.batch_first else h.transpose(0, 1)
        h = h + self.attention(self.norm(h), self.norm(h), h)[0] * self.scale
        return self.out(h if self.batch_first else h.transpose(0, 1))[:, 1:]


class ClassToken(nn.Module):
    """Attention with a token put in front, the only one that is read: other positions of the last layer are unused."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.attention = nn.Parameter(torch.randn(1, 1, 4)), nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), 1, 4), x], 1)
        return self.out(self.attention(h, h, h)[0][:, 0])


class Heads(nn.Module):
    """A layer for each head, with heads folded into the axis of examples, and as many positions as examples."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.inside, self.head, self.out = inside, nn.Linear(2, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (2, 2)).movedim(2, 0 if self.inside else 1)
        mixed = self.head(heads.flatten(0, 1)).tanh().unflatten(0, heads.shape[:2])
        return self.out(mixed.movedim(0 if self.inside else 1, 2).flatten(2).mean(1))


class HandWritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pack, self.norm, self.out = nn.Linear(4, 12), nn.RMSNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.pack(self.norm(x)).unflatten(-1, (3, 2, 2)).unbind(2)
        mixed = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
        return self.out(x + mixed.transpose(1, 2).flatten(2))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.Linear(4, 3)
        self.norm.running_mean, self.norm.running_var = torch.randn(4), torch.rand(4) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x)), inplace=True)
        return self.head((self.second(h) + h).relu().mean((2, 3)))


class Tied(nn.Module):
    """An autoencoder whose decoder is the transpose of its encoder, applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.tanh(F.linear(x, self.weight, self.bias)) @ self.weight
        return x


class Twice(nn.Module):
    """One layer applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Recurrent(nn.Module):
    def __init__(self, hidden: int = 2) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(4, hidden, batch_first=True), nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Standardized(nn.Conv2d):
    """A convolution with a weight that is made of its parameter, which no layer then has."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight.std(), self.bias, padding=1)


def upsampling() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(4, 6, 3, padding="same", groups=2), nn.GELU(), nn.GroupNorm(2, 6)),
        *(nn.ConvTranspose1d(6, 4, 3, 2, 1, 1, 2, dilation=2), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(8, 2)),
    )


MODELS = {
    "mlp": lambda: (
        nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 2)),
        randn(4, 4),
        rp.Gaussian(),
        randn(4, 2),
    ),
    "sequence": lambda: (
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), Twice(), nn.Linear(4, 3)),
        *(randn(3, 6, 4), rp.Categorical(torch.tensor([1.0, 2.0, 0.5]), ignore_index=1), integers(3, 3, 6)),
    ),
    "transformer": lambda: (Transformer(), integers(7, 3, 5), rp.Categorical(ignore_index=2), integers(7, 3, 5)),
    "positions first": lambda: (Transformer(False), integers(7, 5, 5), rp.Categorical(), integers(7, 5, 5)),
    "class token": lambda: (ClassToken(), randn(4, 4, 4), rp.Categorical(), integers(3, 4)),
    "class token, as many as examples": lambda: (ClassToken(), randn(5, 4, 4), rp.Categorical(), integers(3, 5)),
    "heads": lambda: (Heads(False), randn(3, 3, 4), rp.Categorical(), integers(3, 3)),
    "heads first": lambda: (Heads(True), randn(3, 3, 4), rp.Categorical(), integers(3, 3)),
    "causal": lambda: (HandWritten(), randn(3, 4, 4), rp.Categorical(torch.tensor([1.0, 2.0, 0.5])), integers(3, 3, 4)),
    "resnet": lambda: (ResNet(), randn(3, 2, 5, 4), rp.Bernoulli(torch.tensor(2.0)), integers(2, 3, 3).double()),
    "weight of its own": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), Standardized(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)),
        *(randn(3, 2, 5, 4), rp.Categorical(), integers(3, 3)),
    ),
    "upsampling": lambda: (upsampling(), randn(3, 4, 10), rp.Gaussian(), randn(3, 2)),
    "tied": lambda: (Tied(), randn(4, 4), rp.Gaussian(), randn(4, 4)),
    "recurrent": lambda: (Recurrent(), randn(3, 5, 4), rp.Gaussian(), randn(3, 2)),
    "images": lambda: (
        nn.Sequential(
            *(nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 1), nn.Tanh()),
            *(nn.Flatten(), nn.Linear(12, 3), nn.ELU(), nn.Linear(3, 2, bias=False)),
        ),
        *(randn(5, 2, 8, 8), rp.Gaussian(), randn(5, 2)),
    ),
    "bag of words": lambda: (
        nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)),
        *(integers(6, 5, 3), rp.Gaussian(), randn(5, 2)),
    ),
}


def objective_of(name: str, weighted: bool = True) -> rp.Objective:
    torch.manual_seed(0)
    module, x, likelihood, y = MODELS[name]()
    data = (x, y, torch.rand(len(x), dtype=torch.float64) + 0.1) if weighted else (x, y)
    return rp.Objective(module.double().eval(), likelihood, data)
