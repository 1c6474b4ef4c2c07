"""Curvature that is stored pickles and copies; curvature that is a function says how to store it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.linalg import SymmetricOperator


@pytest.fixture(scope="module")
def objective() -> rp.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return rp.Objective(model, rp.Categorical(), (torch.randn(20, 4).double(), torch.arange(20) % 3))


@pytest.mark.parametrize(
    "curvature",
    [
        rp.kfac,
        rp.ekfac,
        lambda o: rp.hessian(o, "dense"),
        lambda o: rp.hessian(o, "blocks"),
        lambda o: rp.ggn(o, "diagonal"),
    ],
    ids=["kfac", "ekfac", "dense", "blocks", "diagonal"],
)
def test_stored_curvature(objective, curvature):
    operator = curvature(objective)
    dense = operator.to_dense()
    for again in (pickle.loads(pickle.dumps(operator)), copy.deepcopy(operator)):
        assert isinstance(again, SymmetricOperator)
        assert type(again) is type(operator)
        assert again.labels == operator.labels
        assert torch.equal(again.to_dense(), dense)


@pytest.mark.parametrize("curvature", [rp.hessian, rp.ggn])
def test_curvature_as_a_function(objective, curvature):
    operator = curvature(objective)
    with pytest.raises(TypeError, match=r"cannot be pickled. Pickle Dense\(op.to_dense\(\)\) instead"):
        pickle.dumps(operator)
    assert torch.equal(copy.deepcopy(operator).to_dense(), operator.to_dense())
