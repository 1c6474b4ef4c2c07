"""Lengths of steps kept between quadratic models, and eigenvectors between dampings: what is not computed again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.optim._kept_length import KeptLength
from raphson.optim._quadratic_model import QuadraticModel


def kept(*found, count=1000, longest=5):
    length = KeptLength()
    for i, value in enumerate(found):
        values = value if isinstance(value, list) else [value]
        length.put(values, [-8.0, -4.0][-len(values) :], count + i, longest)
    return length


@pytest.mark.parametrize(
    ("found", "period"),
    [
        ([0.2], 1),
        ([0.2, 0.2], 2),
        ([0.2, 0.25, 0.2, 0.25], 4),
        ([0.2] * 9, 5),
        ([0.2] * 9 + [0.59], 5),
        ([0.2] * 9 + [0.61], 1),
        ([0.2, -0.2], 1),
        ([[0.2, 0.9], [0.25, 0.8]], 2),
        ([[0.2, 0.9], [0.2, 0.1]], 1),
    ],
)
def test_models_are_made_less_often_where_they_find_the_same(found, period):
    length = kept(*found)
    last = 1000 + len(found) - 1
    assert length.period == period
    assert [length.due(last + k) for k in range(1, 7)] == [k >= period for k in range(1, 7)]


@pytest.mark.parametrize(
    ("found", "count", "now"),
    [
        ([0.2, 0.4], 1000, [0.3]),
        ([0.2, 0.4, 0.1], 1000, [0.2]),
        ([[0.2, 0.9], [0.3, 0.7]], 1000, [0.25, 0.8]),
        ([0.2, 0.4], 0, [0.4]),  # steps change at the start
        ([0.2, 0.7], 1000, [0.7]),  # so does the network
        ([0.2, -0.2], 1000, [-0.2]),
    ],
)
def test_lengths_that_count_as_the_same_are_averaged(found, count, now):
    length = kept(*found, count=count)
    assert length.found == pytest.approx(now)
    slopes = [-8.0, -4.0][-len(now) :]
    assert length.along(slopes) == pytest.approx(now)  # its own decrement is that of the average


def test_at_the_start_each_step_has_a_model():
    assert KeptLength().due(0)
    assert kept(*[0.2] * 9, count=0).period == 1


@pytest.mark.parametrize(("slope", "length"), [(-4.0, 0.2), (-1.0, 0.2), (-16.0, 0.2), (-64.0, 0.1), (-6400.0, 0.01)])
def test_a_step_without_a_model_is_at_most_twice_as_long_in_the_metric_of_the_curvature(slope, length):
    assert kept(0.2).along([slope]) == pytest.approx([length])
    assert kept([0.2, 0.4]).along([2 * slope, slope]) == pytest.approx([length, 2 * length])


def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.sigmoid(torch.randn(1600, 4, generator=generator) @ torch.randn(4, 12, generator=generator))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 12))
    return model, [part for _ in range(20) for part in x.split(320)]


def counted(monkeypatch, owner, name):
    calls, original = [], getattr(owner, name)

    def count(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, count)
    return calls


def test_training_makes_fewer_models_and_learns_as_much(monkeypatch):
    models = counted(monkeypatch, QuadraticModel, "longer")
    ends, made = [], []
    for period in (1, 5):
        model, batches = problem()
        opt = rp.optim.KFAC(model, rp.Gaussian(0.2), step_size=rp.optim.QuadraticStep(period=period))
        opt.step(batches[0], batches[0])
        models.clear()
        for x in batches[1:]:
            end = opt.step(x, x)
        ends.append(float(end))
        made.append(len(models))
    assert made[0] == 99
    assert made[1] < 80, (made, ends)
    assert ends[1] == pytest.approx(ends[0], rel=0.05), (ends, made)


def test_training_resumes_between_two_models():
    model, batches = problem()
    opt = rp.optim.KFAC(model, rp.Gaussian(0.2))
    for x in batches[:71]:
        opt.step(x, x)
    while opt._products:
        x = batches.pop()
        opt.step(x, x)
    saved, parameters = copy.deepcopy(opt.state_dict()), copy.deepcopy(model.state_dict())
    losses = [float(opt.step(x, x)) for x in batches[:12]]
    again, _ = problem()
    again.load_state_dict(parameters)
    other = rp.optim.KFAC(again, rp.Gaussian(0.2))
    other.load_state_dict(saved)
    assert [float(other.step(x, x)) for x in batches[:12]] == losses


def test_the_first_damping_is_searched_with_one_set_of_eigenvectors(monkeypatch):
    decompositions = counted(monkeypatch, torch.linalg, "eigh")
    model, batches = problem()
    before = [p.detach().clone() for p in model.parameters()]
    opt = rp.optim.KFAC(model, rp.Gaussian(0.2))
    opt.step(batches[0], batches[0])
    assert len(decompositions) == 2 * 3 - 1  # the last layer's factor on the side of the outputs is diagonal
    taken = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    assert torch.allclose(torch.cat([t.reshape(-1) for t in taken]), opt._progress.previous, atol=1e-6)


def test_a_period_is_a_whole_number():
    with pytest.raises(rp.InputError, match="period is 0"):
        rp.optim.QuadraticStep(period=0)
