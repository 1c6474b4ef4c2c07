"""Gaussian families with their definitions of one row."""

from __future__ import annotations

import math

import torch

from raphson.likelihoods import (
    HeteroscedasticGaussian,
    MultivariateGaussian,
)

from .family import Family, normal

DTYPE = torch.float64


# outputs of one response to mean and scale, in the plainest terms
TO_MOMENTS = {
    "mean_scale": lambda a, b: (a, b),
    "mean_log_scale": lambda a, b: (a, torch.exp(b)),
    "mean_variance": lambda a, b: (a, torch.sqrt(b)),
    "mean_log_variance": lambda a, b: (a, torch.sqrt(torch.exp(b))),
    "mean_precision": lambda a, b: (a, 1 / torch.sqrt(b)),
    "mean_softplus_scale": lambda a, b: (a, torch.log(1 + torch.exp(b))),
    "natural": lambda a, b: (-a / (2 * b), torch.sqrt(-1 / (2 * b))),
}


NAMES = list(TO_MOMENTS)


def row_of(name):
    def row(f, y):
        mean, scale = TO_MOMENTS[name](f[0::2], f[1::2])
        return -torch.distributions.Normal(mean, scale, validate_args=False).log_prob(y).sum()

    return row


def outputs_of(name):
    def draw(leading, m, g):
        first, second = normal(leading, m, g), normal(leading, m, g)
        if name in {"mean_scale", "mean_variance", "mean_precision"}:
            second = torch.exp(0.5 * second)
        elif name == "natural":
            second = -torch.exp(0.5 * second)
        return torch.stack([first, second], -1).flatten(-2)

    return draw


HETEROSCEDASTIC = [
    Family(name, HeteroscedasticGaussian(name), row_of(name), outputs_of(name), lambda le, m, g: 2 * normal(le, m, g))
    for name in NAMES
]


def factor_of(f, m):
    """L of the precision, entry by entry."""
    rows = []
    rest = iter(f[2 * m :])
    for i in range(m):
        below = [next(rest) for _ in range(i)]
        rows.append(torch.stack([*below, torch.exp(f[m + i]), *[torch.zeros_like(f[0])] * (m - i - 1)]))
    return torch.stack(rows)


def determinant(a):
    """By cofactors: torch.logdet has wrong second derivatives under vmap."""
    if len(a) == 1:
        return a[0, 0]
    minors = (torch.cat([a[1:, :j], a[1:, j + 1 :]], 1) for j in range(len(a)))
    return sum((-1) ** j * a[0, j] * determinant(minor) for j, minor in enumerate(minors))


def multivariate_row(f, y):
    m = y.shape[-1]
    lower = factor_of(f, m)
    precision = lower @ lower.mT
    d = y - f[:m]
    return 0.5 * (d @ precision @ d - torch.log(determinant(precision)) + m * math.log(2 * math.pi))


MULTIVARIATE = Family(
    "multivariate",
    MultivariateGaussian(),
    multivariate_row,
    lambda leading, m, g: 0.7 * normal(leading, m + m * (m + 1) // 2, g),
    lambda leading, m, g: 2 * normal(leading, m, g),
)
