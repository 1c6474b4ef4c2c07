"""Parameters that are moved, and moved only for a look."""

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.network import TrainedModel
from raphson.optim._groups import GroupValues, torch_groups
from raphson.optim._position import Position


def made():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return model, TrainedModel(model, rp.Gaussian(), None)


def vector(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@torch.no_grad()
def test_a_step_is_added_in_the_order_of_the_parameters():
    model, trained = made()
    before, step = vector(model), torch.arange(8.0)
    Position(trained).move(step)
    torch.testing.assert_close(vector(model), before + step)


def test_a_look_puts_parameters_back_bit_for_bit_and_leaves_graphs_alone():
    model, trained = made()
    x, before, step = torch.randn(4, 3), vector(model), 1e-3 + torch.arange(8.0)
    loss = model(x).square().sum()
    with pytest.raises(KeyError), Position(trained).moved(step):
        torch.testing.assert_close(vector(model), before + step)
        raise KeyError
    assert torch.equal(vector(model), before)
    loss.backward()  # which refuses where autograd has seen a change


def test_the_penalty_has_the_weight_decay_of_each_group():
    model, trained = made()
    groups = [{"params": ["weight"], "weight_decay": 0.5}, {"params": ["bias"], "weight_decay": 2.0}]
    values = GroupValues(trained.space.slices, torch_groups(trained.tensors, groups))
    wanted = 0.25 * model.weight.square().sum() + model.bias.square().sum()
    assert Position(trained).penalty(values) == pytest.approx(wanted.item())


def test_a_step_that_is_not_finite_is_refused_by_name():
    _, trained = made()
    step = torch.zeros(8)
    assert Position(trained).checked(step) is step
    step[-1] = float("nan")
    with pytest.raises(rp.InputError, match="parameter 'bias' is not finite"):
        Position(trained).checked(step)
