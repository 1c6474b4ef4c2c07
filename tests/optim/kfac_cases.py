"""Networks, data and options that the tests of K-FAC share."""

from __future__ import annotations

import torch
from torch import nn

import raphson as rp

KFAC, CurvatureOptions, DampingOptions = rp.optim.KFAC, rp.optim.CurvatureOptions, rp.optim.DampingOptions
EXACT = CurvatureOptions(estimator="exact", factor_period=1, inverse_period=1, decay=0.0)
PLAIN = rp.optim.QuadraticStep(averaging=0.0, exponent=1.0)


def fixed(value):
    return DampingOptions(value, adapt=False)


def mlp(*sizes, activation=nn.Tanh, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1]).to(dtype)


def data(n=40, d=5, classes=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=dtype)
    return x, torch.randint(0, classes, (n,), generator=generator)


def vector(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def moved(opt, model, *batch):
    before = vector(model)
    opt.step(*batch)
    return vector(model) - before
