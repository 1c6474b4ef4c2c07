"""Inputs, data and surroundings that an objective refuses, each in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import raphson as rp

from .condition_models import C
from .condition_networks import ROWS, WIDTH, Inside, X, Y, in_inference_mode, made, network, ones


def inside_autocast() -> Tensor:
    objective = made()
    with torch.autocast("cpu", torch.bfloat16):
        return objective.gradient()


def with_entry(value: float) -> nn.Module:
    model = network()
    with torch.no_grad():
        model[0].weight[1, 2] = value
    return model


def infinite_inputs() -> Tensor:
    x = X.clone()
    x[3, 1] = torch.inf  # behind the hyperbolic tangent the losses stay finite
    return x


class Words(nn.Module):
    """Adds rows of a table for words and of one for their places."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.out = nn.Embedding(7, 4), nn.Embedding(3, 4), nn.Linear(4, C)

    def forward(self, i: Tensor) -> Tensor:
        return self.out(torch.tanh(self.words(i) + self.places(torch.arange(i.shape[1]))).sum(1))


class Rows(nn.Module):
    """Looks rows up without a module for it."""

    def __init__(self, look_up: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.look_up = nn.Parameter(torch.zeros(7, C)), look_up

    def forward(self, i: Tensor) -> Tensor:
        return self.look_up(i, self.table).sum(1)


WORDS = torch.arange(ROWS * 3).view(ROWS, 3) % 7


def with_word(word: int) -> Tensor:
    words = WORDS.clone()
    words[3, 2] = word  # neither in the first row nor in the last, which are looked at first
    return words


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, a: Tensor) -> Tensor:
        return self.inner(a)


class Raises(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.inner, self.error = network(), error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


def broken_norm() -> nn.Module:
    model = nn.Sequential(nn.Linear(WIDTH, C), nn.BatchNorm1d(C)).eval()
    model[1].running_var[1] = torch.nan
    return model


def batches(*xs: Any) -> rp.Objective:
    model = Named() if isinstance(xs[0], dict) else network()
    return rp.Objective(model, rp.Categorical(), [(x, Y) for x in xs])


def complex_layer() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, C, dtype=torch.complex64))


TABLE = (
    r"Module 'words' .Embedding. was given the index {}, at \[3, 2\] of its indices, but its table has 7 rows, 0 to 6"
)


REFUSED_INPUTS: dict[str, tuple[str, Callable[[], object]]] = {
    **{
        f"an index beyond a table, {name}": (TABLE.format(7), lambda use=use: use(made(Words(), with_word(7))))
        for name, use in {
            "gradient": lambda o: o.gradient(),
            "value": lambda o: o.value(),
            "ggn": lambda o: rp.ggn(o) @ ones(o),
            "hessian": lambda o: rp.hessian(o) @ ones(o),
            "kfac": rp.kfac,
            "diagonal": lambda o: rp.ggn(o, "diagonal"),
            "norms": rp.example_gradient_norms,
        }.items()
    },
    "a negative index": (TABLE.format(-1), lambda: made(Words(), with_word(-1)).gradient()),
    "an index in a Jacobian": (TABLE.format(9), lambda: rp.jacobian(Words(), with_word(9)).to_dense()),
    "too many places": (
        r"Module 'places' .Embedding. was given the index 3, at \[3\] .*, 0 to 2",
        lambda: made(Words(), torch.zeros(ROWS, 5, dtype=torch.long)),
    ),
    "an index of the function": (
        r"model .Rows. was given the index 8, at \[3, 2\] ",
        lambda: made(Rows(nn.functional.embedding), with_word(8)).gradient(),
    ),
    "an index in brackets": (
        r"model .Rows. says: index 8 is out of bounds for dimension 0 with size 7",
        lambda: made(Rows(lambda i, table: table[i]), with_word(8)).gradient(),
    ),
    "words that are numbers": ("Module 'words' .Embedding. says: Expected.*Long", lambda: made(Words(), WORDS.float())),
    "whole numbers into a layer": (
        "Module '0' .Linear. says: .*Long and Float",
        lambda: made(x=X.long()),
    ),
    "another width later": (r"Batch 1: .* Module '0' .Linear. says: mat1", lambda: batches(X, X[:, :2])),
    "another type later": ("Batch 1: The inputs have type torch.float64", lambda: batches(X, X.double())),
    "other names later": ("Batch 1: .*unexpected keyword argument 'b'", lambda: batches({"a": X}, {"b": X})),
    "more names later": (
        "Batch 2: .*unexpected keyword argument 'b'",
        lambda: batches(*[{"a": X}] * 2, {"a": X, "b": X}),
    ),
    "more inputs later": ("Batch 1: .*positional arguments", lambda: batches(X, (X, X))),
    "outputs of another kind later": (
        r"Batch 1: its outputs have shape \(1, 1, 3\) for one example, and those of batch 0 \(1, 3\)",
        lambda: batches(X, X[:, None]),
    ),
    "nan in a buffer": (r"Buffer '1.running_var' is nan at \[1\]", lambda: made(broken_norm())),
    "an error without words": (r"\(Raises\) says: AssertionError\. ", lambda: made(Raises(AssertionError()))),
    "an error whose words are a key": (r"\(Raises\) says: KeyError 'mask'", lambda: made(Raises(KeyError("mask")))),
    "a class": ("model is the class Linear", lambda: made(nn.Linear)),  # type: ignore[arg-type]
    "a word": ("model is a str", lambda: made("linear")),  # type: ignore[arg-type]
    "targets from 1": (r"Batch 0: The target in row 2 is 3, but .* from 0 to 2", lambda: made(y=Y + 1)),
    "targets that are numbers": ("Floating-point targets .* class probabilities", lambda: made(y=Y.float())),
    "nothing trained": ("none has requires_grad=True", lambda: made(network().requires_grad_(False))),
    "two types": (
        "'2.weight' has dtype torch.float64 but '0.weight' has torch.float32",
        lambda: made(nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, C).double())),
    ),
    "complex parameters": (
        "'0.weight' has type torch.complex64.*real numbers.*view_as_real",
        lambda: made(complex_layer()),
    ),
    "nan inputs": (
        "loss in batch 0, row 3 is nan",
        lambda: made(x=torch.where(torch.arange(ROWS)[:, None] == 3, torch.nan, X)).gradient(),
    ),
    "no examples": ("Batch 0 has no example", lambda: made(x=X[:0], y=Y[:0])),
    "a batch without examples": (
        "Batch 1 has no example",
        lambda: rp.Objective(network(), rp.Categorical(), [(X, Y), (X[:0], Y[:0])]),
    ),
}


REFUSED: dict[str, tuple[str, Callable[[], object]]] = {
    "lazy": ("'0.weight' has no shape yet", lambda: made(nn.Sequential(nn.LazyLinear(C)))),
    "made in inference mode": (
        r"'0.weight' was made in torch.inference_mode\(\)",
        lambda: made(in_inference_mode(network)),
    ),
    "inside inference mode": (r"inside torch.inference_mode\(\)", lambda: in_inference_mode(made().gradient)),
    "inside autocast": (r"inside torch.autocast\(\)", inside_autocast),
    "nan parameter": (r"'0.weight' is nan at \[1, 2\]", lambda: made(with_entry(torch.nan))),
    "infinite parameter": (r"'0.weight' is -inf at \[1, 2\]", lambda: made(with_entry(-torch.inf))),
    "infinite inputs": (
        r"gradient of batch 0 is nan in parameter '0.weight\[0,1\]'",
        lambda: made(x=infinite_inputs()),
    ),
    "sparse inputs": ("batch 0 have layout torch.sparse_coo", lambda: made(x=X.to_sparse())),
    "inputs without values": ("batch 0 are on the meta device", lambda: made(x=X.to("meta"))),
    "inputs of another width": (
        r"shape \(2, 2\). Module .0. .Linear. says: mat1 and mat2 shapes",
        lambda: made(x=X[:, :2]),
    ),
    "one-hot integers": (
        r"targets have shape \(6, 3\) and type torch.int64.*y.argmax\(-1\)",
        lambda: made(y=nn.functional.one_hot(Y, C)),
    ),
    "whole outputs": ("outputs of type torch.int64", lambda: made(Inside(lambda m, x: m(x).argmax(1, keepdim=True)))),
    "complex outputs": ("outputs of type torch.complex64", lambda: made(Inside(lambda m, x: m(x) * 1j))),
    "sparse outputs": ("layout torch.sparse_coo", lambda: made(Inside(lambda m, x: m(x).to_sparse()))),
    "detached": (
        "outputs do not depend on inner.0.weight",
        lambda: made(Inside(lambda m, x: m(x).detach())).gradient(),
    ),
    "sparse vector": (
        r"layout torch.sparse_coo: convert it by v.to_dense",
        lambda: rp.ggn(made()) @ torch.ones(43).to_sparse(),
    ),
    "parameters for a vector": ("got a list", lambda: rp.ggn(made()) @ list(network().parameters())),
    "meta": (
        r"'0.weight' is on the meta device.*to_empty",
        lambda: rp.Objective(network().to("meta"), rp.Categorical(), (X, Y)),
    ),
    "script": ("torch.jit module", lambda: rp.Objective(torch.jit.script(network()), rp.Categorical(), (X, Y))),
    "trace": ("torch.jit module", lambda: rp.jacobian(torch.jit.trace(network(), X), X)),
    "reentrant": (
        "use_reentrant=False",
        lambda: rp.Objective(Inside(lambda m, x: checkpoint(m, x, use_reentrant=True)), rp.Categorical(), (X, Y)),
    ),
    "targets (N, 1)": (
        r"Batch 0: the targets have shape \(6, 1\).*y.squeeze\(-1\)",
        lambda: rp.Objective(network(), rp.Categorical(), (X, Y[:, None])),
    ),
    "inputs of another type": (
        "inputs have type torch.float64 and the parameters torch.float32",
        lambda: rp.Objective(network(), rp.Categorical(), (X.double(), Y)),
    ),
    "arrays": ("x is a ndarray.*as_tensor", lambda: rp.Objective(network(), rp.Categorical(), (X.numpy(), Y.numpy()))),
    "array of targets": ("y is a ndarray", lambda: rp.Objective(network(), rp.Categorical(), (X, Y.numpy()))),
    "list of targets": ("y is a list", lambda: rp.Objective(network(), rp.Categorical(), (X, Y.tolist()))),
    "dictionary": ("data is a dictionary of x, y", lambda: rp.Objective(network(), rp.Categorical(), {"x": X, "y": Y})),
    "batch with labels": (
        r"Batch 0 is a dictionary of input_ids, labels.*causal.*F.pad\(labels",
        lambda: rp.Objective(network(), rp.Categorical(), [{"input_ids": X, "labels": Y}]),
    ),
    "classes on one of two equal axes": (
        r"nn.CrossEntropyLoss has the classes on axis 1.*rp.Categorical\(\)",
        lambda: rp.Objective(network(), nn.CrossEntropyLoss(), (X.expand(2, ROWS, WIDTH)[:, :C], Y[:C].expand(2, C))),
    ),
    "probabilities with classes on axis 1": (
        r"nn.CrossEntropyLoss has the classes on axis 1.*rp.Categorical\(\)",
        lambda: rp.Objective(
            network(), nn.CrossEntropyLoss(), (X.expand(2, ROWS, WIDTH), torch.full((2, ROWS, C), 1 / ROWS))
        ),
    ),
    "classes on one of two equal axes, in training": (
        r"nn.CrossEntropyLoss has the classes on axis 1.*rp.Categorical\(\)",
        lambda: rp.optim.KFAC(network(), nn.CrossEntropyLoss()).step(
            X.expand(2, ROWS, WIDTH)[:, :C], Y[:C].expand(2, C)
        ),
    ),
    **{
        f"a model for an objective, {use.__name__}": (
            "takes an objective, and got a Sequential",
            lambda use=use: use(network()),
        )
        for use in (rp.kfac, rp.ekfac, rp.ggn, rp.fisher, rp.hessian, rp.example_gradients, rp.example_gradient_norms)
    },
    **{
        f"{name}, {use.__name__}": (words, lambda use=use, more=more: use(made(), "mc", **more))
        for use in (rp.kfac, rp.ekfac, rp.fisher)
        for name, words, more in (
            ("half a sample", "samples is 1.5", {"samples": 1.5}),
            ("no sample", "samples is 0", {"samples": 0}),
            ("NumPy's generator", "generator is a Generator.*torch.Generator", {"generator": np.random.default_rng(0)}),
        )
    },
    "no example in a Jacobian": ("no example", lambda: rp.jacobian(network(), X[:0])),
    "no example in a penalty": ("no example", lambda: rp.contractive_penalty(network(), X[:0])),
    "no encoder": ("encoder is a str", lambda: rp.contractive_penalty("tanh", X)),  # type: ignore[arg-type]
    "a class for a likelihood": (
        r"is the class Categorical.*Categorical\(\)",
        lambda: rp.Objective(network(), rp.Categorical, (X, Y)),  # type: ignore[arg-type]
    ),
    "a matrix for an operator": (
        "got a Tensor. Wrap a matrix as rp.Dense",
        lambda: rp.cg(torch.eye(3), torch.ones(3)),  # type: ignore[arg-type]
    ),
    "words for rows": (
        "rows are numbers of rows",
        lambda: rp.influence(rp.laplace(network(), rp.Categorical(), (X, Y)), "all"),  # type: ignore[arg-type]
    ),
    "vector of another type": (
        "has dtype torch.float32, but the vector in mv has torch.float64",
        lambda: rp.ggn(rp.Objective(network(), rp.Categorical(), (X, Y))) @ torch.ones(43, dtype=torch.float64),
    ),
    "Jacobian, vector of another type": (
        "got a tensor of torch.float64.*J.dtype",
        lambda: rp.jacobian(network(), X).mv(torch.ones(43, dtype=torch.float64)),
    ),
    "Jacobian, array": ("got a ndarray", lambda: rp.jacobian(network(), X).rmv(np.ones((ROWS, C)))),
}


@pytest.mark.parametrize("condition", [*REFUSED, *REFUSED_INPUTS])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_refused_in_one_sentence(condition: str) -> None:
    match, call = {**REFUSED, **REFUSED_INPUTS}[condition]
    with pytest.raises(rp.InputError, match=match):
        call()


def test_the_loss_says_where_classes_are() -> None:
    """With as many positions as classes a likelihood, whose classes are last, is taken at its word."""
    x, y = X.expand(2, ROWS, WIDTH)[:, :C], Y[:C].expand(2, C)
    objective = rp.Objective(network(), rp.Categorical(), (x, y))
    expected = nn.functional.cross_entropy(network()(x).movedim(-1, 1), y)
    torch.testing.assert_close(objective.value(), expected.detach())
    longer = rp.Objective(network(), nn.CrossEntropyLoss(), (X.expand(2, ROWS, WIDTH)[:, :5], Y[:5].expand(2, 5)))
    assert longer.n_outputs == C


@pytest.mark.parametrize("size", [2, 3, 6])
def test_a_loader_that_gives_indices_too_is_pointed_out(size: int) -> None:
    batches = [(X[i : i + size], Y[i : i + size], torch.arange(i, i + size)) for i in range(0, ROWS, size)]
    with pytest.warns(rp.RaphsonWarning, match="look like indices"):
        rp.Objective(network(), rp.Categorical(), batches)


def test_indices_in_a_training_step_are_pointed_out() -> None:
    opt = rp.optim.KFAC(network(), rp.Categorical())
    with pytest.warns(rp.RaphsonWarning, match="weights of the batch .* look like indices"):
        opt.step(X, Y, torch.arange(ROWS))
