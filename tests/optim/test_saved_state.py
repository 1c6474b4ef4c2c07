"""A saved state of K-FAC or Adasecant that does not fit is refused in one sentence, and nothing of it is taken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import raphson as rp
from tests.optim.kfac_cases import KFAC, CurvatureOptions, data, mlp

State = dict[str, Any]


def trained(**options: Any) -> Any:
    opt, (x, y) = KFAC(mlp(5, 4, 3), rp.Categorical(), **options), data()
    for _ in range(3):
        opt.step(x, y)
    return opt


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def without(*path: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        *inside, last = path
        for key in inside:
            state = state[key]
        del state[last]

    return change


def with_value(value: Any, *path: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        *inside, last = path
        for key in inside:
            state = state[key]
        state[last] = value(state[last]) if callable(value) else value

    return change


KEYS = sorted(trained().state_dict()["kfac"])
INSIDE = sorted(trained().state_dict()["kfac"]["curvature"])
BLOCK = ("kfac", "curvature", "blocks", "0.weight")
CHANGES: list[tuple[Callable[[State], None], str]] = [
    *((without("kfac", key), f"another version of raphson: it lacks {key}") for key in KEYS),
    *((without("kfac", "curvature", key), f"lacks curvature: {key}") for key in INSIDE),
    (without("kfac", "length", "at"), "lacks length: at"),
    (without("param_groups"), "no 'param_groups'"),
    (lambda state: without("lr")(state["param_groups"][0]), "Group 0 of the saved state has no 'lr'"),
    (lambda state: state["kfac"].update(new=1), "has new, which this one"),
    (with_value(lambda t: t.float(), "kfac", "gradient"), r"'gradient' is .* of torch.float32, and .* torch.float64"),
    (with_value(lambda t: t[:-1], "kfac", "previous"), "saved 'previous' is"),
    (with_value(lambda t: t * torch.nan, "kfac", "gradient"), "'gradient' has entries that are not finite"),
    (with_value(float("nan"), "kfac", "damping"), "'damping' is nan"),
    (with_value("x", "kfac", "damping"), "'damping' is the text 'x'"),
    (with_value("x", "kfac", "count"), "'count' is the text 'x'"),
    (with_value(None, "kfac", "average"), "averaging=False"),
    (with_value(lambda some: some[:1], "kfac", "average"), "not one of 4 tensors"),
    (with_value(lambda some: [t[:1] for t in some], "kfac", "average"), "average of 0.weight"),
    (with_value("Gaussian", "kfac", "likelihood"), "another likelihood: its curvature is that of Gaussian"),
    (with_value(lambda t: t[..., :-1], *BLOCK, "left_factor"), r"'0.weight' a left_factor of shape \(1, 4, 3\)"),
    (without(*BLOCK, "left_factor"), "none of this optimizer: it has"),
    (without(*BLOCK), "no factors of the layer with parameter '0.weight'"),
    (with_value(lambda t: torch.ones(3, dtype=t.dtype), "kfac", "curvature", "diagonal"), "diagonal of 3 entries"),
]


@pytest.mark.parametrize(("change", "match"), CHANGES)
def test_a_state_that_does_not_fit_changes_nothing(change: Callable[[State], None], match: str) -> None:
    opt = trained()
    state = copy.deepcopy(trained().state_dict())
    change(state)
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(rp.InputError, match=match):
        opt.load_state_dict(state)
    assert same(opt.state_dict(), before)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (with_value(lambda t: t[..., :-1], *BLOCK, "left_factor"), "which does not fit its matrices"),
        (without(*BLOCK), "no factors of the layer"),
    ],
)
def test_a_new_optimizer_refuses_them_at_the_first_batch_and_the_next(
    change: Callable[[State], None], match: str
) -> None:
    """The first batch shows which blocks there are; a second one must not go on with half of them."""
    opt, (x, y) = KFAC(mlp(5, 4, 3), rp.Categorical()), data()
    state = copy.deepcopy(trained().state_dict())
    change(state)
    opt.load_state_dict(state)
    for _ in range(2):
        with pytest.raises(rp.InputError, match=match):
            opt.step(x, y)


def test_other_networks_and_structures() -> None:
    state = trained().state_dict()
    with pytest.raises(rp.InputError, match=r"'0.weight' of shape \(4, 5\) where this one has '0.weight' of shape \(6"):
        KFAC(mlp(5, 6, 3), rp.Categorical()).load_state_dict(state)
    with pytest.raises(rp.InputError, match="structure='kfac', and this optimizer has 'ekfac'"):
        trained(curvature=CurvatureOptions(structure="ekfac")).load_state_dict(state)
    for other in ([1], {}, {"kfac": 1}):
        with pytest.raises(rp.InputError, match="not the state of a KFAC optimizer"):
            trained().load_state_dict(other)


def test_the_state_before_the_first_step_forgets_what_was_learned() -> None:
    new, used, (x, y) = KFAC(mlp(5, 4, 3), rp.Categorical()), trained(), data()
    weights = {name: p.clone() for name, p in new._trained.module.state_dict().items()}
    used._trained.module.load_state_dict(weights)
    used.load_state_dict(new.state_dict())
    losses = [[float(opt.step(x, y)) for _ in range(4)] for opt in (new, used)]
    assert losses[0] == losses[1]


def test_states_of_adasecant() -> None:
    def made() -> Any:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        opt = rp.optim.Adasecant(model.parameters())
        model(torch.ones(2, 3)).square().sum().backward()
        opt.step()
        return opt

    for change in (
        lambda state: state["state"][0].pop("mean"),
        lambda state: state["state"][0].update(new=1),
        lambda state: state["state"][0].update(mean=torch.zeros(2, 2)),
        lambda state: state["state"].update({7: state["state"].pop(0)}),
        lambda state: state["param_groups"][0].pop("decay"),
        lambda state: state.pop("state"),
    ):
        opt, state = made(), copy.deepcopy(made().state_dict())
        change(state)
        before = copy.deepcopy(opt.state_dict())
        with pytest.raises(rp.InputError, match="Nothing was loaded"):
            opt.load_state_dict(state)
        assert same(opt.state_dict(), before)
