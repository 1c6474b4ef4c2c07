"""What a forward pass does beside its operations is refused by its calls: random numbers, however small, and hooks."""

from __future__ import annotations

import cProfile
import datetime
import functools
import logging
import os
import random
import secrets
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import raphson as rp

from .condition_models import hooked_before_node, hooked_node

TINY = 1e-15
"""What is drawn changes no output by more than rounding: nothing could be seen by looking at outputs."""

GENERATOR = np.random.default_rng(7)


class Part:
    """Holds generators where a search of a module's attributes would not look."""

    __slots__ = ("inner", "rng")

    shared = np.random.default_rng(3)

    def __init__(self) -> None:
        self.rng, self.inner = np.random.default_rng(1), {"deep": [[random.Random(2)]]}

    @property
    def noise(self) -> float:
        return self.inner["deep"][0][0].random()


class Net(nn.Module):
    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.call, self.part = nn.Linear(3, 4), nn.Linear(4, 3), call, Part()
        self.partial, self.method = functools.partial(GENERATOR.normal, 0.0), GENERATOR.normal

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.call(self, self.a(x))))


def helper() -> float:
    return GENERATOR.normal()


def noise(generator: np.random.Generator) -> float:
    return float(generator.normal())


def counter() -> Callable[[], float]:
    seen = [0]

    def count() -> float:
        seen[0] += 1
        return 1e-9 * seen[0]

    return count


COUNT = counter()

DRAWN: dict[str, tuple[str, Callable[[Any], float]]] = {
    "a generator of NumPy's without a seed": (r"\(Net\) .*urandom", lambda net: np.random.default_rng().normal()),
    "one of the old kind": (r"\(Net\) .*urandom", lambda net: np.random.RandomState().rand()),
    "one made of bits": (r"\(Net\) .*urandom", lambda net: np.random.Generator(np.random.PCG64()).normal()),
    "one of Python's": (r"\(Net\) .*random.Random\(\)", lambda net: random.Random().random()),
    "the system's": (r"\(Net\) .*urandom", lambda net: random.SystemRandom().random()),
    "os.urandom": (r"\(Net\) .*urandom", lambda net: os.urandom(1)[0]),
    "secrets": (r"\(Net\) .*urandom", lambda net: secrets.randbelow(9)),
    "uuid": (r"\(Net\) .*urandom", lambda net: uuid.uuid4().int % 7),
    "PyTorch's seed": (r"\(Net\) .*torch.Generator.seed", lambda net: torch.Generator().seed() % 7),
    "PyTorch's own generator": (
        r"\(Net\) draws random numbers .aten.randn",
        lambda net: torch.randn(1, generator=torch.Generator().manual_seed(0)),
    ),
    "Python's random": ("from Python's random", lambda net: random.random()),
    "NumPy's random": ("from NumPy's generator", lambda net: np.random.rand()),  # noqa: NPY002
    "a counter of time": (r"differ by .* on the same inputs twice", lambda net: time.perf_counter() % 1 / TINY),
    "the date": (
        r"differ by .* on the same inputs twice",
        lambda net: datetime.datetime.now().timestamp() % 1 / TINY,
    ),
    **{
        name: ("a generator of its own", call)
        for name, call in {
            "a slot": lambda net: net.part.rng.normal(),
            "a class": lambda net: net.part.shared.normal(),
            "a property, deep inside": lambda net: net.part.noise,
            "a global name": lambda net: helper(),
            "a partial function": lambda net: net.partial(),
            "a method": lambda net: net.method(),
            "compiled code": lambda net: next(map(GENERATOR.normal, [0.0])),
            "another one's bits": lambda net: np.random.Generator(GENERATOR.bit_generator).normal(),
        }.items()
    },
    "what is kept from call to call": (r"differ by .* on the same inputs twice", lambda net: COUNT() / TINY),
}

FIXED: dict[str, Callable[[Any], float]] = {
    "a seed": lambda net: np.random.default_rng(0).normal() / TINY,
    "a seed of Python's": lambda net: random.Random(0).gauss(0, 1) / TINY,
    "a seeded generator that is handed over": lambda net: noise(np.random.default_rng(3)) / TINY,
    "a generator that is held, and not used": lambda net: float(net.part.rng is GENERATOR),
    "a pass that times itself": lambda net: 0.0 * time.perf_counter(),
    "a message": lambda net: logging.getLogger("raphson.tests").warning("one") or 0.0,
    "an import": lambda net: float(bool(__import__("tempfile"))),
}


def objective(call: Callable[[Any], float]) -> rp.Objective:
    torch.manual_seed(0)
    model = Net(lambda net, h: h + TINY * call(net)).double()
    return rp.Objective(model, rp.Categorical(), (torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 3))


def states() -> list[Any]:
    return [
        random.getstate(),
        str(np.random.get_state()),
        str(GENERATOR.bit_generator.state),
        str(torch.get_rng_state()),
    ]  # noqa: NPY002


@pytest.mark.parametrize("name", DRAWN)
def test_random_numbers_are_refused_by_their_source(name: str) -> None:
    match, call = DRAWN[name]
    before = states()[:3]
    with pytest.raises(rp.InputError, match=match):
        objective(call)
    assert states()[:3] == before and sys.getprofile() is None


@pytest.mark.parametrize("name", FIXED)
def test_what_is_the_same_each_time_is_taken(name: str) -> None:
    before = states()[:3]
    made = objective(FIXED[name])
    assert torch.equal(made.value(), made.value())
    assert states()[:3] == before and sys.getprofile() is None


def test_a_profiler_goes_on() -> None:
    seen = []
    sys.setprofile(lambda frame, event, arg: seen.append(event))
    try:
        with pytest.raises(rp.InputError, match="urandom"):
            objective(DRAWN["secrets"][1])
        again = len(seen)
        states()
        assert len(seen) > again
    finally:
        sys.setprofile(None)
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        objective(FIXED["a seed"])
        with pytest.raises(rp.InputError, match="on the same inputs twice|urandom"):
            objective(lambda net: np.random.default_rng().normal() / TINY)
    finally:
        profiler.disable()


def test_jacobians_are_refused_too() -> None:
    model = Net(lambda net, h: h + TINY * secrets.randbelow(9)).double()
    with pytest.raises(rp.InputError, match=r"\(Net\) draws random numbers"):
        rp.jacobian(model, torch.randn(5, 3, dtype=torch.float64))


# hooks


def plain(h: Tensor) -> Tensor:
    return h


def on_tensors(h: Tensor) -> Tensor:
    if h.requires_grad:
        torch.autograd.graph.register_multi_grad_hook((h,), lambda gradients: None)
    return h


def packed(h: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: 2 * t, lambda t: t):
        return torch.sin(h)


def offloaded(h: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return torch.sin(h)


def hooked(function: Callable[[Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return Net(lambda net, h: function(h)).double()


def made(model: nn.Module) -> rp.Objective:
    torch.manual_seed(1)
    return rp.Objective(model, rp.Categorical(), (torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 3))


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (hooked_node, r"\(Net\) puts a hook on a graph .grad_fn.register_hook"),
        (hooked_before_node, r"\(Net\) puts a hook on a graph .grad_fn.register_prehook"),
        (on_tensors, r"\(Net\) puts a hook on a tensor"),
        (packed, r"\(Net\) packs what the backward pass needs .saved_tensors_hooks, packed"),
    ],
)
def test_hooks_that_a_forward_pass_makes_are_refused(function: Callable[[Tensor], Tensor], match: str) -> None:
    for use in (made, lambda model: rp.jacobian(model, torch.ones(2, 3, dtype=torch.float64))):
        with pytest.raises(rp.InputError, match=match):
            use(hooked(function))


def double(module: nn.Module, *values: Any) -> Any:
    if not isinstance(module, nn.Linear):
        return None
    last = values[-1]
    return tuple(g if g is None else 2 * g for g in last) if isinstance(last, tuple) else 2 * last


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
        nn.modules.module.register_module_full_backward_pre_hook,
    ],
    ids=lambda register: register.__name__,
)
def test_hooks_on_all_modules_are_refused_at_every_use(register: Callable[..., Any]) -> None:
    objective = made(hooked(plain))
    operator, v = rp.ggn(objective), torch.ones(objective.n_parameters, dtype=torch.float64)
    before = objective.gradient(), operator @ v
    handle = register(double)
    try:
        for use in (
            lambda: made(hooked(plain)),
            lambda: rp.jacobian(hooked(plain), torch.ones(2, 3, dtype=torch.float64)),
            objective.gradient,
            lambda: operator @ v,
            lambda: rp.kfac(objective),
        ):
            with pytest.raises(rp.InputError, match=r"hook on all modules is registered .double"):
                use()
    finally:
        handle.remove()
    assert torch.equal(objective.gradient(), before[0]) and torch.equal(operator @ v, before[1])


def test_hooks_on_saved_tensors() -> None:
    objective, expected = made(hooked(plain)), made(hooked(torch.sin)).gradient()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: 2 * t, lambda t: t):
        for use in (objective.gradient, lambda: made(hooked(plain)), lambda: rp.ggn(objective, "diagonal")):
            with pytest.raises(rp.InputError, match=r"inside torch.autograd.graph.saved_tensors_hooks"):
                use()
    # PyTorch's own change nothing
    assert torch.equal(made(hooked(offloaded)).gradient(), expected)
    with torch.autograd.graph.save_on_cpu():
        assert torch.equal(made(hooked(torch.sin)).gradient(), expected)


@pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("later", [False, True])
def test_hooks_on_parameters_see_nothing(hook: str, later: bool) -> None:
    """Derivatives are taken in leaves of one's own, which share the memory of the parameters and nothing else."""
    model = hooked(plain)
    expected = made(model).gradient()
    objective = made(model) if later else None
    getattr(model.a.weight, hook)(lambda g: pytest.fail("a hook ran"))
    assert torch.equal((objective or made(model)).gradient(), expected)
