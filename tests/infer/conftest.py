from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from torch import Tensor

from raphson.infer import Estimates, inverse_information
from raphson.linalg import Dense


@dataclass(frozen=True)
class Problem:
    """A multinomial fit by statsmodels, with the scores and information that raphson is given."""

    x: Tensor  # (N, D), no intercept
    scores: Tensor  # (N, P), class by class, intercept first, without the reference class
    information: Dense
    estimates: Estimates
    full: Estimates  # with the reference class, whose coefficients are zero
    fit: Any
    design: np.ndarray


def softmax_problem(x: np.ndarray, y: np.ndarray, features: tuple[str, ...]) -> Problem:
    design = np.column_stack([np.ones(len(x)), x])
    model = sm.MNLogit(y, design)
    fit = model.fit(method="newton", tol=1e-12, disp=0)
    classes = tuple(str(c) for c in range(model.J))
    beta = torch.tensor(np.asarray(fit.params).T.copy())
    xhat = torch.tensor(design)
    p = torch.softmax(torch.cat([torch.zeros(len(x), 1, dtype=torch.float64), xhat @ beta.mT], 1), 1)[:, 1:]
    onehot = torch.eye(model.J, dtype=torch.float64)[torch.tensor(np.asarray(y), dtype=torch.long)][:, 1:]
    outer = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    width, free = xhat.shape[1], model.J - 1
    information = torch.einsum("ncd,nk,nl->ckdl", outer, xhat, xhat).reshape(free * width, free * width)
    scores = torch.einsum("nc,nk->nck", onehot - p, xhat).reshape(len(x), -1)
    names = ("intercept", *features)
    labels = tuple((c, name) for c in classes[1:] for name in names)
    operator = Dense(information)
    estimates = Estimates(beta.flatten(), inverse_information(operator), labels, "observed information")
    embed = torch.cat([torch.zeros(width, free * width), torch.eye(free * width)]).double()
    full = estimates.transform(embed, tuple((c, name) for c in classes for name in names))
    return Problem(torch.tensor(x), scores, operator, estimates, full, fit, design)


@pytest.fixture(scope="session")
def anes() -> Problem:
    data = sm.datasets.anes96.load_pandas()
    return softmax_problem(data.exog.to_numpy(), data.endog.to_numpy().astype(int), tuple(data.exog.columns))


@pytest.fixture(scope="session")
def spector() -> Problem:
    data = sm.datasets.spector.load_pandas()
    return softmax_problem(data.exog.to_numpy(), data.endog.to_numpy().astype(int), ("GPA", "TUCE", "PSI"))


@pytest.fixture(scope="session")
def anes_vote() -> Problem:
    data = sm.datasets.anes96.load_pandas()
    x = np.column_stack([data.exog, data.data["vote"]])
    return softmax_problem(x, data.endog.to_numpy().astype(int), (*data.exog.columns, "vote"))
