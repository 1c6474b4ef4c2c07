"""Data that are written into after an objective or an operator was made: refused, never mixed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import raphson as rp

D = torch.float64


def made() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return net, torch.randn(12, 5, dtype=D), torch.randint(3, (12,)), torch.rand(12, dtype=D)


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("form", ["whole", "list"])
@pytest.mark.parametrize("quantity", [rp.hessian, rp.ggn, rp.fisher])
def test_products_after_data_were_written_into_are_refused(part: int, form: str, quantity: Any) -> None:
    net, *data = made()
    given = tuple(data) if form == "whole" else [tuple(t[:6] for t in data), tuple(t[6:] for t in data)]
    objective = rp.Objective(net, nn.CrossEntropyLoss(), given)
    operator, v = quantity(objective), torch.ones(objective.n_parameters, dtype=D)
    before = operator @ v
    assert torch.equal(operator @ v, before)
    data[part][7] = 1
    with pytest.raises(rp.InputError, match="changed in place after this operator was made"):
        operator @ v
    with pytest.raises(rp.InputError, match="changed in place since the first pass.*make a new one"):
        objective.value()
    if part != 1:  # the output Hessian of classes knows no targets
        fresh = rp.Objective(net, nn.CrossEntropyLoss(), given)
        assert not torch.equal(quantity(fresh) @ v, before)


def test_a_jacobian_keeps_to_the_inputs_that_it_was_made_for() -> None:
    net, x, *_ = made()
    jacobian = rp.jacobian(net, {"input": x})
    before = jacobian.rmv(torch.ones(12, 3, dtype=D))
    x.mul_(2.0)
    for use in (lambda: jacobian.rmv(torch.ones(12, 3, dtype=D)), jacobian.to_dense):
        with pytest.raises(rp.InputError, match="changed in place after this operator was made"):
            use()
    assert not torch.equal(rp.jacobian(net, x).rmv(torch.ones(12, 3, dtype=D)), before)


def test_copies_of_data_may_change_and_loaders_are_compared_by_what_they_give() -> None:
    net, x, y, _ = made()
    objective = rp.Objective(net, nn.CrossEntropyLoss(), (x.clone(), y.clone()))
    before = objective.value()
    loader = rp.Objective(net, nn.CrossEntropyLoss(), DataLoader(TensorDataset(x, y), batch_size=5))
    torch.testing.assert_close(loader.value(), before)
    x.mul_(2.0)
    assert objective.value() == before
    with pytest.raises(rp.InputError, match="Batch 0 is not the one that the first pass read"):
        loader.value()
