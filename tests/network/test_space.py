"""Parameters as one vector, and models as functions of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.network import _parameters as space_module
from raphson.network._module import Model
from raphson.network._parameters import ParameterSpace, chosen


def space():
    return ParameterSpace({
        "a.weight": torch.arange(6.0).reshape(2, 3),
        "a.bias": torch.tensor([6.0, 7.0]),
        "s": torch.tensor(8.0),
    })


def test_vectors_and_named_tensors_are_two_forms_of_the_same():
    s = space()
    assert (s.numel, s.sizes, s.names) == (9, (6, 2, 1), ("a.weight", "a.bias", "s"))
    assert torch.equal(s.vector(), torch.arange(9.0))
    for v in (torch.randn(9), torch.randn(9, 4)):
        named = s.unflatten(v)
        assert named["a.weight"].shape == (2, 3, *v.shape[1:]) and named["s"].shape == v.shape[1:]
        assert torch.equal(s.flatten(named), v)
        assert torch.equal(named["a.bias"], v[s.slices["a.bias"]])
    rows = torch.randn(4, 9)
    assert [part.shape for part in s.split_rows(rows)] == [(4, 2, 3), (4, 2), (4,)]
    with pytest.raises(rp.InputError, match=r"10 entries, but there are 9 parameters \(a.weight, a.bias, s\)"):
        s.unflatten(torch.zeros(10))


def test_every_entry_has_a_name(monkeypatch):
    s = space()
    names = ("a.weight[0,0]", "a.weight[0,1]", "a.weight[0,2]", "a.weight[1,0]", "a.weight[1,1]", "a.weight[1,2]")
    assert s.labels() == (*names, "a.bias[0]", "a.bias[1]", "s")
    assert tuple(s.label(i) for i in range(9)) == s.labels()
    with pytest.raises(rp.InputError, match="no parameter 9: they are numbered from 0 to 8"):
        s.label(9)
    monkeypatch.setattr(space_module, "MAX_LABELS", 8)
    assert s.labels() is None and s.label(8) == "s"


def test_some_parameters_by_name_or_prefix():
    s = space()
    assert chosen(s.tensors, "a").names == ("a.weight", "a.bias")
    assert chosen(s.tensors, ["s", "a.bias"]).names == ("a.bias", "s")
    with pytest.raises(rp.InputError, match="Did you mean 'a.bias'"):
        chosen(s.tensors, ["a.bios"])
    # a prefix ends at a dot
    with pytest.raises(rp.InputError, match="no parameter 'a.w'"):
        chosen(s.tensors, "a.w")


def test_a_model_gives_its_outputs_for_other_parameters():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    module[1].weight = nn.Parameter(torch.eye(3))
    model = Model(module)
    x = torch.randn(4, 2)
    torch.testing.assert_close(model.call(None, x), module(x).detach())
    assert not model.call(None, x).requires_grad and model.call(model.leaves(), x).requires_grad
    other = model.call({"1.weight": 2 * torch.eye(3)}, x)
    torch.testing.assert_close(other - module[1].bias, 2 * (model.call(None, x) - module[1].bias))
    assert torch.equal(module[1].weight, torch.eye(3))
    versions = model.versions()
    with torch.no_grad():
        module[0].bias.add_(1.0)
    with pytest.raises(rp.RaphsonError, match="changed after"):
        model.check_unchanged(versions)


def test_outputs_of_another_form_are_refused():
    for function, seen in ((lambda p, x: x.sum(), r"a tensor of shape \(\)"), (lambda p, x: (x, x), "a tuple")):
        with pytest.raises(rp.InputError, match=f"The model returned {seen}"):
            Model(function, {"a": torch.zeros(1)}).call(None, torch.zeros(3, 2))

    class Output:
        logits = torch.ones(3, 2)

    assert Model(lambda p, x: Output(), {"a": torch.zeros(1)}).call(None, torch.zeros(3)).shape == (3, 2)
    with pytest.raises(rp.InputError, match="has type torch.int64, which has no derivative"):
        Model(lambda p, x: x, {"a": torch.zeros(1, dtype=torch.long)})
    with pytest.raises(rp.InputError, match="params of a module must be names"):
        Model(nn.Linear(1, 1), {"weight": torch.zeros(1)})


def test_outputs_without_gradient_are_refused():
    o = rp.Objective(lambda p, x: x, rp.Gaussian(), (torch.ones(2, 1), torch.ones(2, 1)), params={"a": torch.zeros(1)})
    with pytest.raises(rp.InputError, match="outputs do not depend on a"):
        rp.ggn(o).mv(torch.ones(1))
