"""The 27 nonlinear regressions of NIST's Statistical Reference Datasets: models, and a reader of the files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

exp = torch.exp


def rational(n: int, m: int) -> Callable[..., Tensor]:
    def f(x: Tensor, *b: Tensor) -> Tensor:
        top = sum(c * x**i for i, c in enumerate(b[:n]))
        return top / (1 + sum(c * x ** (i + 1) for i, c in enumerate(b[n : n + m])))

    return f


def gauss(x, b1, b2, b3, b4, b5, b6, b7, b8):
    return b1 * exp(-b2 * x) + b3 * exp(-((x - b4) ** 2) / b5**2) + b6 * exp(-((x - b7) ** 2) / b8**2)


def lanczos(x, b1, b2, b3, b4, b5, b6):
    return b1 * exp(-b2 * x) + b3 * exp(-b4 * x) + b5 * exp(-b6 * x)


def enso(x, b1, b2, b3, b4, b5, b6, b7, b8, b9):
    def wave(period, c, s):
        angle = 2 * math.pi * x / period
        return c * torch.cos(angle) + s * torch.sin(angle)

    return b1 + wave(12.0, b2, b3) + wave(b4, b5, b6) + wave(b7, b8, b9)


def chwirut(x, b1, b2, b3):
    return exp(-b1 * x) / (b2 + b3 * x)


MODELS: dict[str, Callable[..., Tensor]] = {
    "Bennett5": lambda x, b1, b2, b3: b1 * (b2 + x) ** (-1 / b3),
    "BoxBOD": lambda x, b1, b2: b1 * (1 - exp(-b2 * x)),
    "Chwirut1": chwirut,
    "Chwirut2": chwirut,
    "DanWood": lambda x, b1, b2: b1 * x**b2,
    "ENSO": enso,
    "Eckerle4": lambda x, b1, b2, b3: (b1 / b2) * exp(-0.5 * ((x - b3) / b2) ** 2),
    "Gauss1": gauss,
    "Gauss2": gauss,
    "Gauss3": gauss,
    "Hahn1": rational(4, 3),
    "Kirby2": rational(3, 2),
    "Lanczos1": lanczos,
    "Lanczos2": lanczos,
    "Lanczos3": lanczos,
    "MGH09": lambda x, b1, b2, b3, b4: b1 * (x**2 + x * b2) / (x**2 + x * b3 + b4),
    "MGH10": lambda x, b1, b2, b3: b1 * exp(b2 / (x + b3)),
    "MGH17": lambda x, b1, b2, b3, b4, b5: b1 + b2 * exp(-x * b4) + b3 * exp(-x * b5),
    "Misra1a": lambda x, b1, b2: b1 * (1 - exp(-b2 * x)),
    "Misra1b": lambda x, b1, b2: b1 * (1 - (1 + b2 * x / 2) ** -2),
    "Misra1c": lambda x, b1, b2: b1 * (1 - (1 + 2 * b2 * x) ** -0.5),
    "Misra1d": lambda x, b1, b2: b1 * b2 * x * (1 + b2 * x) ** -1,
    "Nelson": lambda x, b1, b2, b3: b1 - b2 * x[:, :1] * exp(-b3 * x[:, 1:]),
    "Rat42": lambda x, b1, b2, b3: b1 / (1 + exp(b2 - b3 * x)),
    "Rat43": lambda x, b1, b2, b3, b4: b1 / (1 + exp(b2 - b3 * x)) ** (1 / b4),
    "Roszman1": lambda x, b1, b2, b3, b4: b1 - b2 * x - torch.arctan(b3 / (x - b4)) / math.pi,
    "Thurber": rational(4, 3),
}


class Regression(nn.Module):
    """A model with parameters b1, b2, ..."""

    def __init__(self, name: str, start: list[float]) -> None:
        super().__init__()
        self.function = MODELS[name]
        self.b = nn.ParameterList(torch.tensor(value, dtype=torch.float64) for value in start)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.b)


@dataclass
class Problem:
    """A problem: two starts, certified parameters, residual standard deviation, and the data."""

    name: str
    starts: list[list[float]]
    certified: Tensor
    deviation: float
    x: Tensor
    y: Tensor


def read(file: Path) -> Problem:
    lines = file.read_text(encoding="latin-1").splitlines()
    rows = [re.split(r"\s+", line.split("=")[1].strip()) for line in lines if re.match(r"\s*b\d+ =", line)]
    table = [[float(value) for value in row] for row in rows]
    deviation = next(float(line.split(":")[1]) for line in lines if line.startswith("Residual Standard Deviation"))
    begin = max(i for i, line in enumerate(lines) if line.startswith("Data:")) + 1
    data = torch.tensor(
        [[float(v) for v in line.split()] for line in lines[begin:] if line.strip()], dtype=torch.float64
    )
    y = data[:, :1].log() if file.stem == "Nelson" else data[:, :1]
    starts = [[row[i] for row in table] for i in (0, 1)]
    certified = torch.tensor([row[2] for row in table], dtype=torch.float64)
    return Problem(file.stem, starts, certified, deviation, data[:, 1:], y)


def digits(found: Tensor, certified: Tensor) -> float:
    """Number of correct significant digits, of the worst parameter (log relative error)."""
    error = ((found - certified).abs() / certified.abs()).max()
    return float(-error.clamp_min(1e-16).log10())
