"""Every entry point that takes a model, in the conditions that models come in: right, or refused in one sentence."""

from __future__ import annotations

import copy
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import raphson as rp

from .condition_cases import CASES, Case, plain, refused
from .condition_models import C, Calls, N, hooked_before_node, hooked_node
from .entry_points import ENTRIES, Entry
from .network_cases import DTYPE


def packed(h: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t.double()):
        return torch.tanh(h)


def in_half(h: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return torch.tanh(h)


def hook_back(model: Any) -> None:
    model[1].register_full_backward_hook(lambda module, into, out: tuple(2 * g for g in into))


def hook_back_before(model: Any) -> None:
    model[1].register_full_backward_pre_hook(lambda module, out: tuple(2 * g for g in out))


MORE = [
    refused("hook on a node", lambda: Calls(hooked_node), "Calls. puts a hook on a"),
    refused("hook before a node", lambda: Calls(hooked_before_node), "Calls. puts a hook on a"),
    refused("packed", lambda: Calls(packed), "Calls. packs what the backward pass needs"),
    Case("half inside", lambda: Calls(in_half), twin=torch.tanh),
    Case("moved later", plain, later=lambda model: model.to("meta")),
    Case("backward hook later", plain, "Module '1' .Tanh.", later=hook_back),
    Case("backward hook before later", plain, "Module '1' .Tanh.", later=hook_back_before),
]
NAMES = {
    *("plain", "prelu", "prelu by channel", "tied layers", "frozen", "batch norm", "attention", "weight norm"),
    *("own function", "detached function", "once differentiable", "silently once", "differentiable function"),
    *("checkpoint", "reentrant checkpoint", "broadcast positions", "embedding", "gradient inside", "complex inside"),
    *("step", "replaced parameter", "assigned state", "there and back", "other type", "replaced layer"),
    *("replaced activation", "added layer", "hook", "other forward", "untied", "tied later", "frozen later"),
    *("bias taken away", "other statistics", "batch norm in training mode later", "dropout in training mode later"),
    *("drop path in training mode later", "another slope", "another number", "changed constant", "transposed"),
    *("drop path", "noise", "a generator of its own", "tensor hook", "backward hook", "counting buffer"),
    *("scale_grad_by_freq", "sparse", "max_norm", "EmbeddingBag", "statistics of the batch"),
}
TABLE = [case for case in [*CASES, *MORE] if case.name in NAMES or case in MORE]
CHANCE = {"drop path", "noise", "a generator of its own", "statistics of the batch", "counting buffer"}
"""What is no trouble while a model is trained."""

TWICE = {"own function", "detached function", "once differentiable", "silently once"}
"""What has no second derivative, or not the right one."""

DETACHES = "gradient inside"
"""It detaches its inputs: a derivative in these is zero, and a penalty on it is refused."""

PRODUCTS = {"Jacobian.to_dense", "Jacobian.mv", "Jacobian.rmv", "jacobian"}


def must_refuse(case: Case, entry: Entry) -> bool:
    if case.name in CHANCE and entry.trains:
        return case.name == "statistics of the batch" and entry.name == "contractive_penalty"
    if entry.name == "contractive_penalty" and case.name in {*TWICE, DETACHES}:
        return True
    return not case.made or case.name == "moved later"


def may_refuse(case: Case, entry: Entry) -> bool:
    """Whether an entry point may refuse; what is ordinary must work."""
    if must_refuse(case, entry) or case.later is not None:
        return True  # of a change the next test says what must work
    if case.name in TWICE:
        return entry.name in {*PRODUCTS, "second_derivatives", "NewtonCG.step", "LevenbergMarquardt.step"}
    return False


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", ENTRIES, ids=repr)
@pytest.mark.parametrize("case", TABLE, ids=repr)
def test_an_entry_point_is_right_or_refuses(case: Case, entry: Entry) -> None:
    torch.manual_seed(0)
    model = case.build().to(DTYPE).train(case.training)
    x, y = case.inputs(), torch.arange(N) % C
    if entry.reals and not x.is_floating_point():
        with pytest.raises(rp.InputError, match="floating-point type|Module 'table'"):
            entry.make(model, x, y)()
        return
    try:
        use = entry.make(model, x, y)
        if case.later is not None:
            if not entry.once:
                use()
            case.later(model)
        twin: Any = model
        if case.twin is not None and not (entry.reals and case.name == DETACHES):
            twin = copy.deepcopy(model)
            twin.function = case.twin
        before = twin if entry.trains and model.training else copy.deepcopy(twin)
        value = use()
    except rp.RaphsonError as error:
        assert may_refuse(case, entry), error
        assert str(error).count("\n") == 0
        if must_refuse(case, entry) and case.refused is not None:
            assert re.search(f"{case.refused}|mixes examples", str(error)), error
        return
    assert not must_refuse(case, entry)
    if entry.trains and (case.name in CHANCE or model.training):
        assert bool(torch.isfinite(value).all())
        return
    expected = entry.expected(before, x, y)
    tol = 0.02 if case.name == "half inside" else max(1e-6, case.rtol)
    torch.testing.assert_close(value.double(), expected, rtol=tol, atol=tol * float(expected.abs().max()))


FOLLOWED = {"step", "replaced parameter", "assigned state", "there and back", "transposed", "another slope"}
"""What happens to a model between two uses that each make their own account of it: nobody may be stopped by it."""

HOLDS = "Jacobian.", "Posterior", "influence", "KFAC"
"""Beginnings of the names of those that hold on to a model."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", [e for e in ENTRIES if not e.name.startswith(HOLDS)], ids=repr)
@pytest.mark.parametrize("case", [case for case in TABLE if case.name in FOLLOWED], ids=repr)
def test_a_call_that_looks_at_the_model_anew_follows_it(case: Case, entry: Entry) -> None:
    torch.manual_seed(0)
    model = case.build().to(DTYPE)
    x, y = case.inputs(), torch.arange(N) % C
    entry.make(model, x, y)()
    case.later(model)
    before = copy.deepcopy(model)
    value = entry.make(model, x, y)()
    torch.testing.assert_close(value, entry.expected(before, x, y), rtol=1e-6, atol=1e-7)


def used(context: Any) -> Any:
    def use(entry: Entry) -> None:
        model, x, y = plain().to(DTYPE), CASES[0].inputs(), torch.arange(N) % C
        made = entry.make(model, x, y)
        with context():
            made()

    return use


AROUND = {
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), r"inside torch.autocast\(\)"),
    "inference mode": (torch.inference_mode, r"inside torch.inference_mode\(\)"),
    "saved tensors": (
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t.double()),
        "inside torch.autograd.graph.saved_tensors_hooks",
    ),
}


@pytest.mark.parametrize("entry", ENTRIES, ids=repr)
@pytest.mark.parametrize("around", AROUND)
def test_an_entry_point_refuses_what_is_around_it(around: str, entry: Entry) -> None:
    context, words = AROUND[around]
    with pytest.raises(rp.InputError, match=words):
        used(context)(entry)


@pytest.mark.parametrize("entry", ENTRIES, ids=repr)
def test_an_entry_point_works_without_gradients_around_it(entry: Entry) -> None:
    torch.manual_seed(0)
    model, x, y = plain().to(DTYPE), CASES[0].inputs(), torch.arange(N) % C
    before = copy.deepcopy(model)
    if entry.name == "contractive_penalty":
        with torch.no_grad():
            value = rp.contractive_penalty(model, x)
        torch.testing.assert_close(value.detach(), entry.expected(before, x, y)[0])
        return
    with torch.no_grad():
        value = entry.make(model, x, y)()
    torch.testing.assert_close(value, entry.expected(before, x, y), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: m.forward, lambda m: lambda x: m(x), lambda m: partial(m)])
def test_an_encoder_in_a_function_is_seen_as_well(wrap: Any) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh()).to(DTYPE).eval(), CASES[0].inputs()
    encoder = wrap(model)
    before = rp.contractive_penalty(encoder, x)
    torch.testing.assert_close(before, rp.input_jacobian(model, x).square().sum() / N)
    model.train()
    statistics = model[1].running_mean.clone()
    with pytest.raises(rp.InputError, match="mixes examples"):
        rp.contractive_penalty(encoder, x)
    assert torch.equal(model[1].running_mean, statistics)
    model.eval()
    assert torch.equal(rp.contractive_penalty(encoder, x), before)
    handle = model[2].register_full_backward_hook(lambda module, into, out: None)
    with pytest.raises(rp.InputError, match="Module '2' .Tanh. has a backward hook"):
        rp.contractive_penalty(encoder, x)
    handle.remove()
    assert torch.equal(rp.contractive_penalty(encoder, x), before)
