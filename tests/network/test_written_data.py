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


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.running_var"])
@pytest.mark.parametrize("quantity", ["ggn", "kept", "hessian", "jacobian", "posterior"])
def test_parameters_that_are_written_through_data_are_seen(quantity: str, name: str) -> None:
    """``p.data.mul_`` counts no change: products were of new weights and old activations, those of no model."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).to(D).eval()
    x, y = torch.randn(12, 5, dtype=D), torch.randint(3, (12,))
    objective = rp.Objective(net, nn.CrossEntropyLoss(), (x, y))
    v = torch.ones(objective.n_parameters, dtype=D)
    ggn, kept, hessian = rp.ggn(objective), rp.ggn(objective, keep=True), rp.hessian(objective)
    jacobian, post = rp.jacobian(net, x), rp.laplace(net, rp.Categorical(), (x, y))
    use = {
        "ggn": lambda: ggn @ v,
        "kept": lambda: kept @ v,
        "hessian": lambda: hessian @ v,
        "jacobian": lambda: jacobian.mv(v),
        "posterior": lambda: post.predict(x),
    }[quantity]
    use()
    dict([*net.named_parameters(), *net.named_buffers()])[name].data.mul_(1.5)
    with pytest.raises(rp.RaphsonError, match="parameters of the model changed after this operator was made"):
        use()
    assert torch.equal(objective.gradient(), rp.Objective(net, nn.CrossEntropyLoss(), (x, y)).gradient())


def test_transposed_and_empty_parameters_are_looked_at_in_place() -> None:
    net = nn.Linear(6, 5).double()
    net.weight = nn.Parameter(torch.randn(6, 5, dtype=D).T)
    net.register_buffer("nothing", torch.zeros(0))
    objective = rp.Objective(net, rp.Gaussian(), (torch.randn(4, 6, dtype=D), torch.zeros(4, 5, dtype=D)))
    operator, v = rp.hessian(objective), torch.ones(35, dtype=D)
    assert torch.equal(operator @ v, operator @ v)
    net.weight.data += 1.0
    with pytest.raises(rp.RaphsonError, match="changed after"):
        operator @ v
