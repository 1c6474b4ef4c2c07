"""The adaptive secant method: its formula, entry by entry, and what it does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import raphson as rp

Adasecant = rp.optim.Adasecant


def test_the_first_steps_by_hand():
    """The formulas of the paper for one number, with unit gradients 1 and then -1, written out."""
    theta = nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
    opt = Adasecant([theta], first_step=0.1, decay=0.5, eps=1e-12)
    tau, mean, square, last = 2.2, 0.0, 0.0, 0.0
    change_mean = change_square = cross = top = bottom = 0.0
    step_mean, step_square, expected = 0.1, 0.01, 0.0
    for i, g in enumerate((1.0, -1.0, -1.0, 1.0)):
        new = 1 / tau
        mean, square = 0.5 * mean + 0.5 * g, 0.5 * square + 0.5 * g * g
        top += new * (((g - last) * (last - mean)) ** 2 - top)
        bottom += new * (((mean - g) * (last - mean)) ** 2 - bottom)
        gamma = min(math.sqrt(top / bottom), 1.8)
        reduced = (g + gamma * mean) / (1 + gamma)
        change = g - last
        change_mean += new * (change - change_mean)
        change_square += new * (change**2 - change_square)
        rate = math.sqrt(step_square / change_square) - cross / change_square
        step = -rate * reduced
        memory = (1 - step_mean**2 / step_square) * tau + 1
        outlier = abs(g - mean) > 2 * math.sqrt(max(square - mean**2, 0)) or abs(change - change_mean) > 2 * math.sqrt(
            max(change_square - change_mean**2, 0)
        )
        cross += new * (step * change - cross)
        step_mean += new * (step - step_mean)
        step_square += new * (step**2 - step_square)
        tau, last, expected = max(2.2 if outlier else memory, 1.5), g, expected + step
        theta.grad = torch.tensor([7.0 * g], dtype=torch.float64)  # only the direction counts
        opt.step()
        assert float(theta) == pytest.approx(expected, rel=1e-6), i


def test_it_trains_and_resumes(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(200, 5)
    y = x[:, :3].argmax(1)

    def fresh():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
        return model, Adasecant(model.parameters(), lr=0.3)

    def run(model, opt, steps):
        losses = []
        for i in range(steps):
            rows = slice(50 * (i % 4), 50 * (i % 4) + 50)

            def closure(rows=rows):
                opt.zero_grad()
                loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
                loss.backward()
                return loss

            losses.append(float(opt.step(closure)))
        return losses

    model, opt = fresh()
    first = run(model, opt, 100)
    assert sum(first[-4:]) < 0.9 * sum(first[:4])
    torch.save((model.state_dict(), opt.state_dict()), tmp_path / "s.pt")
    expected = run(model, opt, 20)
    again, other = fresh()
    states = torch.load(tmp_path / "s.pt", weights_only=True)
    again.load_state_dict(states[0])
    other.load_state_dict(states[1])
    assert run(again, other, 20) == expected


def test_what_cannot_be_used_is_refused():
    theta = nn.Parameter(torch.ones(2))
    with pytest.raises(rp.InputError, match="lr is 0"):
        Adasecant([theta], lr=0.0)
    opt = Adasecant([theta])
    theta.grad = torch.tensor([1.0, float("nan")])
    with pytest.raises(rp.InputError, match="not finite"):
        opt.step()
    assert torch.equal(theta, torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_trains_as_single_does(dtype: torch.dtype) -> None:
    """Squares and memories are kept in single: in float16 the longest memory was an overflow."""
    torch.manual_seed(0)
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    found = []
    for kind in (torch.float32, dtype):
        torch.manual_seed(1)
        model = nn.Linear(4, 3).to(kind)
        opt = Adasecant(model.parameters())
        for step in range(20):
            opt.zero_grad()
            loss = nn.functional.cross_entropy(model(x.to(kind)).float(), y)
            loss.backward()
            opt.step()
            if step == 9:
                opt.load_state_dict(opt.state_dict())
        found.append(loss.item())
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_complex_parameters_are_refused() -> None:
    theta = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    theta.grad = torch.ones_like(theta)
    with pytest.raises(rp.InputError, match="has type torch.complex64.*view_as_real"):
        Adasecant([theta]).step()
