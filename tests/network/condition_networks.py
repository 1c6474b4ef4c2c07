"""A small network with its data, and networks that read words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import raphson as rp

from .condition_models import C

ROWS, WIDTH = 6, 4
X = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
Y = torch.arange(ROWS) % C


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, C))


class Inside(nn.Module):
    """A network whose forward pass goes through a function of it."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.run = network(), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.inner, x)


def ones(o: rp.Objective) -> Tensor:
    return torch.ones(o.n_parameters, dtype=o.dtype)


def made(model: nn.Module | None = None, x: Tensor = X, y: Tensor = Y) -> rp.Objective:
    return rp.Objective(model or network(), rp.Categorical(), (x, y))


def in_inference_mode(make: Callable[[], Any]) -> Any:
    with torch.inference_mode():
        return make()
