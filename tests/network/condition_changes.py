"""What is done to a model after its objective was made."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .condition_models import C
from .network_cases import DTYPE


def replace_layer(model: Any) -> None:
    model[2] = nn.Linear(4, C).to(DTYPE)


def replace_activation(model: Any) -> None:
    model[1] = nn.Sigmoid()


def add_hook(model: Any) -> None:
    model[1].register_forward_hook(lambda module, args, out: 2 * out)


def other_forward(model: Any) -> None:
    model[1].forward = torch.sin


def replace_parameter(model: Any) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach() + 1)


def assign_state(model: Any) -> None:
    model.load_state_dict({name: p + 0.5 for name, p in model.state_dict().items()}, assign=True)


def copy_state(model: Any) -> None:
    model.load_state_dict({name: p - 0.5 for name, p in model.state_dict().items()})


def there_and_back(model: Any) -> None:
    model.float().double()
    step(model)


def step(model: Any) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.25)


def vector_step(model: Any) -> None:
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(vector + 0.25, model.parameters())


def untie(model: Any) -> None:
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())


def tie(model: Any) -> None:
    model[2].weight = model[0].weight


def freeze(model: Any) -> None:
    model[0].weight.requires_grad_(False)


def no_bias(model: Any) -> None:
    model[0].bias = None


def buffers(model: Any) -> None:
    model[1].running_var = model[1].running_var * 4


def set_slope(model: Any) -> None:
    model[1].negative_slope = 0.5


def set_rate(model: Any) -> None:
    model[1].p = 0.5


def set_temperature(model: Any) -> None:
    model.temperature = 2.0


def set_scale(model: Any) -> None:
    model.scale = model.scale * 3


def write_scale(model: Any) -> None:
    model.scale.mul_(3)


def transpose(model: Any) -> None:
    model[0].weight.data = model[0].weight.data.mT


def same_number(model: Any) -> None:
    model[1].weight = nn.Parameter(model[1].weight.detach().clone())
    with torch.no_grad():
        model[1].weight.mul_(3)
