"""Small networks with losses in the plainest terms, and their curvature by torch.func in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

import raphson as rp

DTYPE = torch.float64
N, T, D, HIDDEN, C = 5, 2, 3, 4, 3


@dataclass(frozen=True)
class Loss:
    """``build()`` is the likelihood or torch loss; ``row(f, y)`` its definition at one position.

    ``weight(y)`` is what a target adds to the denominator of a mean; ``fisher(f, y)`` the expected Hessian of a row,
    where it is not the observed one; ``targets(leading, g)`` draws targets.
    """

    name: str
    build: Callable[[], Any]
    row: Callable[[Tensor, Tensor], Tensor]
    targets: Callable[[tuple[int, ...], torch.Generator], Tensor]
    weight: Callable[[Tensor], Tensor] | None = None
    fisher: Callable[[Tensor, Tensor], Tensor] | None = None
    outputs: int = C

    def __repr__(self) -> str:
        return self.name


CLASS_WEIGHT = torch.tensor([0.5, 2.0, 1.25], dtype=DTYPE)
POS_WEIGHT = torch.tensor([0.5, 3.0, 1.5], dtype=DTYPE)


def labels(leading: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.randint(0, C, leading, generator=g)


def labels_with_ignored(leading: tuple[int, ...], g: torch.Generator) -> Tensor:
    y = labels(leading, g)
    y.view(-1)[::4] = -100
    return y


def bits(leading: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (*leading, C), generator=g).to(DTYPE)


def reals(leading: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.randn(*leading, C, generator=g, dtype=DTYPE)


def cross_entropy(**options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda f, y: F.cross_entropy(f.unsqueeze(0), y.unsqueeze(0), reduction="sum", **options)


def bce(f: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(f, y, pos_weight=POS_WEIGHT, reduction="sum")


def normal(f: Tensor, y: Tensor) -> Tensor:
    return (0.5 * ((y - f) / 0.7) ** 2 + math.log(0.7) + 0.5 * math.log(2 * math.pi)).sum()


def mean_and_log_scale(f: Tensor, y: Tensor) -> Tensor:
    return 0.5 * ((y[0] - f[0]) * torch.exp(-f[1])) ** 2 + f[1] + 0.5 * math.log(2 * math.pi)


LOSSES = [
    Loss("categorical", rp.Categorical, cross_entropy(), labels),
    Loss(
        "class_weight",
        lambda: nn.CrossEntropyLoss(weight=CLASS_WEIGHT),
        cross_entropy(weight=CLASS_WEIGHT),
        labels,
        lambda y: CLASS_WEIGHT[y],
    ),
    Loss(
        "ignore_index",
        nn.CrossEntropyLoss,
        cross_entropy(),
        labels_with_ignored,
        lambda y: (y != -100).to(DTYPE),
    ),
    Loss(
        "smoothed",
        lambda: rp.Categorical(class_weight=CLASS_WEIGHT, label_smoothing=0.2),
        cross_entropy(weight=CLASS_WEIGHT, label_smoothing=0.2),
        labels,
        lambda y: CLASS_WEIGHT[y],
    ),
    Loss("pos_weight", lambda: rp.Bernoulli(pos_weight=POS_WEIGHT), bce, bits),
    Loss("gaussian", lambda: rp.Gaussian(scale=0.7), normal, reals),
    Loss("mse", nn.MSELoss, lambda f, y: ((f - y) ** 2).mean(), reals),
    Loss(
        "heteroscedastic",
        lambda: rp.HeteroscedasticGaussian("mean_log_scale"),
        mean_and_log_scale,
        lambda leading, g: torch.randn(*leading, 1, generator=g, dtype=DTYPE),
        fisher=lambda f, y: torch.diag(torch.stack([torch.exp(-2 * f[1]), torch.full((), 2.0, dtype=DTYPE)])),
        outputs=2,
    ),
    Loss(
        "poisson",
        rp.Poisson,
        lambda f, y: (torch.exp(f) - y * f + torch.lgamma(y + 1)).sum(),
        lambda leading, g: torch.randint(0, 5, (*leading, C), generator=g).to(DTYPE),
    ),
]
BY_NAME = {loss.name: loss for loss in LOSSES}


def network(outputs: int = C, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs)).to(DTYPE)


def draw(loss: Loss, leading: tuple[int, ...] = (N, T), seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, targets and example weights."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*leading, D, generator=g, dtype=DTYPE)
    return x, loss.targets(leading, g), torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0], dtype=DTYPE)[: leading[0]]


@dataclass(frozen=True)
class Dense:
    """Value, gradient and matrices of the objective by its definition."""

    value: Tensor
    gradient: Tensor
    hessian: Tensor
    ggn: Tensor
    expected: Tensor
    empirical: Tensor
    jacobian: Tensor  # (positions, C, P)


def flat_call(model: nn.Module, x: Any) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return outputs as a function of the vector of all parameters, and that vector."""
    named = dict(model.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def call(theta: Tensor) -> Tensor:
        parts = theta.split(sizes)
        params = {name: part.reshape(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}
        return functional_call(model, params, x if isinstance(x, tuple) else (x,))

    return call, torch.cat([p.detach().reshape(-1) for p in named.values()])


def by_definition(
    model: nn.Module, loss: Loss, x: Any, y: Tensor, weight: Tensor | None, reduction: str, l2: float
) -> Dense:
    call, theta = flat_call(model, x)
    f = call(theta)
    leading = f.shape[:-1]
    rows = y.reshape(leading.numel(), *y.shape[len(leading) :])
    w = torch.ones(leading, dtype=DTYPE)
    w = (w if weight is None else w * weight.reshape(-1, *[1] * (len(leading) - 1))).reshape(-1)
    counted = w if loss.weight is None else w * loss.weight(rows.clamp(min=0)) * (rows != -100)
    s = 1 / counted.sum() if reduction == "mean" else torch.ones((), dtype=DTYPE)

    def total(t: Tensor) -> Tensor:
        out = call(t).reshape(-1, f.shape[-1])
        return s * sum(w[i] * loss.row(out[i], rows[i]) for i in range(len(rows))) + l2 / 2 * (t @ t)

    flat = f.detach().reshape(-1, f.shape[-1])
    jacobian = jacrev(lambda t: call(t).reshape(-1, f.shape[-1]))(theta)
    curvature = torch.stack([hessian(loss.row)(a, b) for a, b in zip(flat, rows, strict=True)])
    score = torch.stack([grad(loss.row)(a, b) for a, b in zip(flat, rows, strict=True)])
    information = curvature
    if loss.fisher is not None:
        information = torch.stack([loss.fisher(a, b) for a, b in zip(flat, rows, strict=True)])

    def sandwich(middle: Tensor) -> Tensor:
        dense = torch.einsum("ncp,n,ncd,ndq->pq", jacobian, s * w, middle, jacobian)
        return dense + l2 * torch.eye(len(theta), dtype=DTYPE)

    return Dense(
        total(theta),
        grad(total)(theta),
        # reverse over reverse: torch's forward mode of LayerNorm's backward gives an asymmetric matrix (torch 2.13)
        jacrev(grad(total))(theta),
        sandwich(curvature),
        sandwich(information),
        sandwich(vmap(torch.outer)(score, score)),
        jacobian,
    )
