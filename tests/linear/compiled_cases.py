"""Objectives that compiled code takes, and the same through PyTorch."""

import torch
from torch import Tensor

from raphson import Bernoulli, Categorical
from raphson.data import DenseDesign
from tests.linear.objectives import linear_objective


def make(n, d, c, *, weighted=False, reference=True, logistic=False, l2=0.01, seed=0):
    """Return an objective of c outputs with d columns beside the intercept, and a point."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, dtype=torch.float64, generator=generator) * 3 + 1
    y = torch.randint(2 if logistic else c, (n,), generator=generator)
    objective = linear_objective(
        DenseDesign(x, standardize=True),
        Bernoulli() if logistic else Categorical(),
        y[:, None].double() if logistic else y,
        n_outputs=1 if logistic else c,
        weights=torch.rand(n, dtype=torch.float64, generator=generator) + 0.5 if weighted else None,
        l2=l2,
        reference=None if logistic or reference is False else c - 1 if reference is True else reference,
    )
    theta = torch.randn(objective.n_parameters, dtype=torch.float64, generator=generator)
    return objective, theta


def plain(objective):
    """Return the definition of the objective as a function, for automatic differentiation."""
    x = objective.design.standardized(slice(0, objective.n_rows))
    logistic = isinstance(objective.likelihood, Bernoulli)
    w = torch.ones(objective.n_rows, dtype=torch.float64) if objective.weights is None else objective.weights

    def value(theta: Tensor) -> Tensor:
        coef = theta.view(objective.output_map.basis.shape[1], -1)
        f = coef @ x
        if logistic or objective.output_map.left_out is not None:
            at = 1 if logistic else objective.output_map.left_out
            f = torch.cat([f[:at], torch.zeros(1, x.shape[1], dtype=torch.float64), f[at:]])
        label = 1 - objective.y[:, 0].long() if logistic else objective.y
        nll = torch.logsumexp(f, 0) - f.gather(0, label[None])[0]
        penalty = (objective.ridge.matrices[0] @ coef * coef * objective.ridge.columns).sum() / 2
        return (w * nll).sum() / w.sum() + penalty

    return value
