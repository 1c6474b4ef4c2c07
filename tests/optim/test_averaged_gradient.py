"""The averages of gradients that steps go along, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.optim._preconditioner import Preconditioner
from tests.optim.kfac_cases import KFAC, data, fixed, mlp


@pytest.mark.parametrize("ahead", [True, False])
def test_steps_go_along_nesterovs_average_where_the_model_judges_them(monkeypatch, ahead):
    seen, solve = [], Preconditioner.solve
    monkeypatch.setattr(Preconditioner, "solve", lambda self, v: seen.append(v.clone()) or solve(self, v))
    rule = rp.optim.QuadraticStep(averaging=0.7) if ahead else rp.optim.FixedStep(averaging=0.7)
    model, average = mlp(5, 4, 3), None
    opt = KFAC(model, rp.Categorical(), damping=fixed(0.1), step_size=rule)
    for i in range(4):
        x, y = data(seed=i)
        loss = nn.functional.cross_entropy(model(x), y)
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
        average = gradient if average is None else 0.7 * average + 0.3 * gradient
        opt.step(x, y)
        torch.testing.assert_close(seen[i], 0.7 * average + 0.3 * gradient if ahead else average)
