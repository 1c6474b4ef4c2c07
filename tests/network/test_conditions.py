"""Models and data in the conditions that they come in: each quantity is right, or refused by name in one sentence."""

from __future__ import annotations

import copy
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import raphson as rp

from .condition_cases import (
    ALL,
    CASES,
    DIAGONAL,
    DTYPE,
    GGN,
    HESSIAN,
    KFAC,
    LOSS,
    MATRICES,
    NORMS,
    C,
    Case,
    N,
    TwiceTanh,
    body,
    reals,
)
from .network_cases import Dense, by_definition


def found(objective: rp.Objective, quantity: str) -> Tensor:
    v = torch.linspace(-1, 1, objective.n_parameters, dtype=objective.dtype)
    if quantity == KFAC:
        # the factors are an approximation; their traces are not, one by one, for one position per example
        return rp.kfac(objective, "empirical").diagonal()
    if quantity == DIAGONAL:
        return rp.ggn(objective, "diagonal").diagonal()
    if quantity == NORMS:
        return rp.example_gradient_norms(objective)
    if quantity == MATRICES[0]:
        return rp.ggn(objective).to_dense()
    if quantity == MATRICES[1]:
        return rp.hessian(objective, "dense").to_dense()
    if quantity == MATRICES[2]:
        return rp.example_gradients(objective)
    return (rp.ggn if quantity == GGN else rp.hessian)(objective) @ v


def trained(model: nn.Module) -> Tensor:
    """Which entries of the vector of all parameters are differentiated."""
    return torch.cat([torch.full((p.numel(),), p.requires_grad) for p in model.parameters()])


def check(model: nn.Module, value: Tensor, x: Tensor, y: Tensor, quantity: str, rtol: float) -> None:
    # torch's own second derivative of it is wrong under vmap, by 31 % here (torch 2.13)
    def plain_norm(v: Tensor, g: Tensor, dim: int) -> Tensor:
        return v * g / v.norm(dim=1, keepdim=True)

    old = sys.modules["torch.nn.utils.weight_norm"]
    with mock.patch.object(torch, "_weight_norm", plain_norm), mock.patch.object(old, "_weight_norm", plain_norm):
        dense: Dense = by_definition(model, LOSS, x, y, None, "mean", 0.0)
    keep = trained(model)
    v = torch.linspace(-1, 1, int(keep.sum()), dtype=DTYPE)
    if quantity in (GGN, HESSIAN):
        matrix = dense.ggn if quantity == GGN else dense.hessian
        near(value, matrix[keep][:, keep] @ v, rtol)
    elif quantity in MATRICES[:2]:
        matrix = dense.ggn if quantity == MATRICES[0] else dense.hessian
        near(value, matrix[keep][:, keep], rtol)
    elif quantity == MATRICES[2]:
        near(value, gradients(dense, model, x, y)[:, keep], rtol)
    elif quantity == DIAGONAL:
        near(value, dense.ggn.diagonal()[keep], rtol)
    elif quantity == NORMS:
        near(value, gradients(dense, model, x, y)[:, keep].norm(dim=1), rtol)
    else:
        exact = kfac_biases(dense, model, x, y)[keep]
        at = ~exact.isnan()
        near(value[at], exact[at], rtol)


def gradients(dense: Dense, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Each example's gradient in all parameters."""
    with torch.no_grad():
        score = model(x).softmax(-1) - F.one_hot(y, C)
    return torch.einsum("nc,ncp->np", score, dense.jacobian)


def kfac_biases(dense: Dense, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The empirical diagonal where K-FAC's is exact: all that is no matrix, if it is used once; nan elsewhere."""
    square = gradients(dense, model, x, y).square().mean(0)
    owners = [p for part in model.modules() for p in part._parameters.values() if p is not None]
    once = {id(p): sum(p is q for q in owners) for p in owners}
    if isinstance(model, nn.Sequential) and len({*model}) < len(model):
        once = dict.fromkeys(once, 2)
    if x.ndim != 2 or not x.is_floating_point():  # positions share what is not in the last layer
        once = {key: 2 for key in once} | {id(owners[-1]): 1}
    parts = square.split([p.numel() for p in model.parameters()])
    exact = [
        part if p.ndim < 2 and once[id(p)] == 1 else torch.full_like(part, torch.nan)
        for part, p in zip(parts, model.parameters(), strict=True)
    ]
    return torch.cat(exact)


def near(value: Tensor, expected: Tensor, rtol: float) -> None:
    torch.testing.assert_close(value, expected, rtol=rtol, atol=0.01 * rtol)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantity", ALL)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_quantity_is_right_or_refused_by_name(case: Case, quantity: str) -> None:
    torch.manual_seed(0)
    model = case.build().to(DTYPE).train(case.training)
    x, y = case.inputs(), torch.arange(N) % C
    if not case.made:
        with pytest.raises(rp.RaphsonError, match=case.refused):
            rp.Objective(model, rp.Categorical(), (x, y))
        return
    objective = rp.Objective(model, rp.Categorical(), (x, y))
    if case.later is not None:
        found(objective, quantity)
        case.later(model)
    try:
        value = found(objective, quantity)
    except rp.RaphsonError as error:
        assert case.refused is not None and quantity in case.quantities, error
        assert re.search(case.refused, str(error)), error
        return
    twin: Any = model
    if case.twin is not None:
        twin = copy.deepcopy(model)
        twin.function = case.twin
    check(twin, value, x, y, quantity, case.rtol)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantity", [GGN, HESSIAN, DIAGONAL, NORMS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["plain", "prelu", "layer norm", "embedding", "weight norm"])
def test_lower_precision_is_right_to_its_digits(name: str, dtype: torch.dtype, quantity: str) -> None:
    torch.manual_seed(0)
    case = next(case for case in CASES if case.name == name)
    model, x, y = case.build().to(dtype).eval(), case.inputs(), torch.arange(N) % C
    x = x.to(dtype) if x.is_floating_point() else x
    value = found(rp.Objective(model, rp.Categorical(), (x, y)), quantity).double()
    exact = rp.Objective(model.double(), rp.Categorical(), (x.double() if x.is_floating_point() else x, y))
    expected = found(exact, quantity)
    assert (value - expected).norm() <= 20 * torch.finfo(dtype).eps * expected.norm()


def test_an_objective_that_was_refused_is_usable_when_the_model_is_back() -> None:
    model = body(nn.Dropout(0.5))
    objective = rp.Objective(model.to(DTYPE).eval(), rp.Categorical(), (reals(), torch.arange(N) % C))
    operator = rp.ggn(objective)
    v = torch.ones(objective.n_parameters, dtype=DTYPE)
    before = operator @ v
    model.train()
    for use in (lambda: operator @ v, objective.value, objective.gradient, lambda: rp.kfac(objective)):
        with pytest.raises(rp.InputError, match=r"Module '1' \(Dropout\) is in training mode"):
            use()
    model.eval()
    assert torch.equal(operator @ v, before)


def test_a_function_follows_its_dictionary() -> None:
    params = {"a": torch.ones(2, C, dtype=DTYPE)}
    data = torch.randn(N, 2, dtype=DTYPE), torch.arange(N) % C
    objective = rp.Objective(lambda p, x: torch.tanh(x @ p["a"]), rp.Categorical(), data, params=params)
    params["a"] = torch.linspace(0, 1, 2 * C, dtype=DTYPE).view(2, C)
    again = rp.Objective(lambda p, x: torch.tanh(x @ p["a"]), rp.Categorical(), data, params=params)
    assert torch.equal(objective.gradient(), again.gradient())
    params["a"] = params["a"].float()
    with pytest.raises(rp.InputError, match="Parameter 'a' is now .*torch.float32"):
        objective.value()
    del params["a"]
    with pytest.raises(rp.InputError, match="Parameter 'a' is gone"):
        objective.value()


@pytest.mark.parametrize("n", [2, 3, 4])
def test_jacobians_of_a_prelu(n: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 3), nn.PReLU(3), nn.Linear(3, 2)).to(DTYPE), torch.randn(n, 2, dtype=DTYPE)
    w, a, out = (p.detach() for p in (model[0].weight, model[1].weight, model[2].weight))
    z = model[0](x).detach()
    slope = torch.where(z > 0, torch.ones_like(z), a * torch.ones_like(z))
    near(rp.input_jacobian(model, x), torch.einsum("ch,nh,hd->ncd", out, slope, w), 1e-10)
    jacobian = rp.jacobian(model, x).by_parameter()
    near(jacobian["1.weight"], torch.einsum("ch,nh->nch", out, z.clamp(max=0)), 1e-10)
    second = rp.second_derivatives(model, x, ["1.weight", "2.weight"])
    expected = torch.zeros(n, 2, 3, 2, 3, dtype=DTYPE)
    for c in range(2):
        expected[:, c, range(3), c, range(3)] = z.clamp(max=0)
    near(second[:, :, :3, 3:], expected.flatten(3), 1e-10)


# the same network by other ways, and what data and surroundings may be

ROWS, WIDTH = 6, 4
X = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
Y = torch.arange(ROWS) % C


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, C))


class Inside(nn.Module):
    """A network whose forward pass goes through a function of it."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.run = network(), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.inner, x)


def autocast(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return module(x)


def ones(o: rp.Objective) -> Tensor:
    return torch.ones(o.n_parameters, dtype=o.dtype)


QUANTITIES: dict[str, Callable[[rp.Objective], Tensor]] = {
    "gradient": lambda o: o.gradient(),
    "ggn": lambda o: rp.ggn(o) @ ones(o),
    "cached": lambda o: rp.ggn(o, keep=True) @ ones(o),
    "hessian": lambda o: rp.hessian(o) @ ones(o),
    "dense": lambda o: rp.ggn(o, "dense").shift(0.1).solve(ones(o)),
    "blocks": lambda o: rp.ggn(o, "blocks").diagonal(),
    "diagonal": lambda o: rp.ggn(o, "diagonal").diagonal(),
    "sampled": lambda o: rp.fisher(o, "mc", "diagonal").diagonal(),
    "kfac": lambda o: rp.kfac(o).shift(0.1).solve(ones(o)),
    "ekfac": lambda o: rp.ekfac(o).shift(0.1).solve(ones(o)),
    "kfac mc": lambda o: rp.kfac(o, "mc").diagonal(),
    "gradients": rp.example_gradients,
    "norms": rp.example_gradient_norms,
    "some parameters": lambda o: rp.ggn(o, "diagonal", params=[o.space.names[-1]]).diagonal(),
}

CONDITIONS: dict[str, tuple[Callable[[], nn.Module], torch.dtype, float]] = {
    "bfloat16": (lambda: network().bfloat16(), torch.bfloat16, 5e-2),
    "float16": (lambda: network().half(), torch.float16, 1e-2),
    "bfloat16, recorded": (lambda: Inside(lambda m, x: m(x)).bfloat16(), torch.bfloat16, 5e-2),
    "autocast": (lambda: Inside(autocast), torch.float32, 5e-2),
    "autocast, float outputs": (lambda: Inside(lambda m, x: autocast(m, x).float()), torch.float32, 5e-2),
    "checkpoint": (
        lambda: Inside(lambda m, x: checkpoint(m, x, use_reentrant=False)).double(),
        *(torch.float64, 1e-9),
    ),
    "checkpoints of a sequence": (
        lambda: Inside(lambda m, x: checkpoint_sequential(m, 2, x, use_reentrant=False)).double(),
        *(torch.float64, 1e-9),
    ),
    "compiled part": (
        lambda: Inside(lambda m, x: torch.compile(m, backend="aot_eager")(x)).double(),
        torch.float64,
        1e-9,
    ),
    "compiled": (lambda: torch.compile(network().double(), backend="aot_eager"), torch.float64, 1e-9),
    "data parallel": (lambda: nn.DataParallel(network().double()), torch.float64, 1e-9),
}


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.filterwarnings("ignore::raphson.RaphsonWarning")
def test_a_condition_changes_nothing_but_rounding(condition: str, quantity: str) -> None:
    make, dtype, tol = CONDITIONS[condition]
    ours = QUANTITIES[quantity](rp.Objective(make(), rp.Categorical(), (X.to(dtype), Y))).double()
    expected = QUANTITIES[quantity](rp.Objective(network().double(), rp.Categorical(), (X.double(), Y)))
    assert float((ours - expected).norm() / expected.norm()) < tol


def test_checkpoints_are_pointed_out() -> None:
    model = Inside(lambda m, x: checkpoint(m, x, use_reentrant=False))
    with pytest.warns(rp.RaphsonWarning, match="kept instead"):
        rp.Objective(model, rp.Categorical(), (X, Y))


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("all_padded", [True, False], ids=["a position that all leave out", "all lengths"])
def test_an_encoder_with_a_padding_mask(nested: bool, all_padded: bool) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 5, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested)
            self.head = nn.Linear(WIDTH, C)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.head(self.encoder(x, src_key_padding_mask=mask))

    torch.manual_seed(0)
    model = Encoder().double().eval()
    x, mask = torch.randn(ROWS, 5, WIDTH, dtype=torch.float64), torch.zeros(ROWS, 5, dtype=torch.bool)
    mask[1, 3:], mask[2, 4:] = True, True
    mask[:, 4] |= all_padded
    y = torch.arange(ROWS * 5).view(ROWS, 5) % C
    y[mask] = -100
    fast = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rp.RaphsonWarning)
        objective = rp.Objective(model, nn.CrossEntropyLoss(), ((x, mask), y))
    assert torch.backends.mha.get_fastpath_enabled() == fast
    named = dict(model.named_parameters())

    def loss(theta: Tensor) -> Tensor:
        values = objective.space.unflatten(theta)
        f = torch.func.functional_call(model, values, (x, mask))
        return nn.functional.cross_entropy(f.movedim(-1, 1), y)

    theta = torch.cat([p.detach().reshape(-1) for p in named.values()]).requires_grad_()
    torch.testing.assert_close(objective.value(), loss(theta).detach())
    (gradient,) = torch.autograd.grad(loss(theta), theta)
    torch.testing.assert_close(objective.gradient(), gradient)
    dense = rp.ggn(objective, "dense").to_dense()
    torch.testing.assert_close(rp.ggn(objective) @ ones(objective), dense @ ones(objective))
    torch.testing.assert_close(rp.ggn(objective, "diagonal").diagonal(), dense.diagonal())
    rows = rp.example_gradients(objective)
    torch.testing.assert_close(rp.example_gradient_norms(objective), rows.norm(dim=1))


def made(model: nn.Module | None = None, x: Tensor = X, y: Tensor = Y) -> rp.Objective:
    return rp.Objective(model or network(), rp.Categorical(), (x, y))


def in_inference_mode(make: Callable[[], Any]) -> Any:
    with torch.inference_mode():
        return make()


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
        "'0.weight' has type torch.complex64, which has no derivative",
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


def test_no_curvature_moves_the_global_source_of_randomness() -> None:
    objective = rp.Objective(network(), rp.Categorical(), (X, Y))
    before = torch.get_rng_state()
    first = rp.kfac(objective, "mc").to_dense()
    rp.ekfac(objective, "mc"), rp.fisher(objective, "mc", "diagonal"), rp.fisher(objective, "mc") @ ones(objective)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(rp.kfac(objective, "mc").to_dense(), first)


def test_copies_of_a_jacobian() -> None:
    jacobian = rp.jacobian(network(), X)
    v = torch.ones(43)
    assert torch.equal(copy.deepcopy(jacobian).mv(v), jacobian.mv(v))
    for operator in (jacobian, jacobian.matrix()):
        with pytest.raises(TypeError, match=r"cannot be pickled. Pickle .*to_dense\(\)"):
            pickle.dumps(operator)


def test_surroundings_that_change_nothing() -> None:
    objective = made()
    with torch.no_grad():
        assert torch.equal(objective.gradient(), made().gradient())
    assert torch.equal(made(x=in_inference_mode(lambda: X * 1)).gradient(), objective.gradient())
    for operator in (rp.ggn(objective), rp.kfac(objective), rp.ggn(objective, "diagonal")):
        assert (operator @ torch.ones(43, 0)).shape == (43, 0)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_a_loader_that_gives_indices_too_is_pointed_out(size: int) -> None:
    batches = [(X[i : i + size], Y[i : i + size], torch.arange(i, i + size)) for i in range(0, ROWS, size)]
    with pytest.warns(rp.RaphsonWarning, match="look like indices"):
        rp.Objective(network(), rp.Categorical(), batches)


def test_indices_in_a_training_step_are_pointed_out() -> None:
    opt = rp.optim.KFAC(network(), rp.Categorical())
    with pytest.warns(rp.RaphsonWarning, match="weights of the batch .* look like indices"):
        opt.step(X, Y, torch.arange(ROWS))


def test_scipy_takes_products() -> None:
    operator = rp.ggn(rp.Objective(network().double(), rp.Categorical(), (X.double(), Y)))
    dense = np.asarray(operator)
    np.testing.assert_allclose(dense, operator.to_dense().numpy())
    found = eigsh(operator.as_scipy(), 2, return_eigenvectors=False, v0=np.ones(len(dense)))
    np.testing.assert_allclose(np.sort(found), np.linalg.eigvalsh(dense)[-2:])
    array = np.ones(len(dense), dtype=np.float32)
    np.testing.assert_allclose(operator @ array, dense @ array)


def test_a_model_that_cannot_be_batched_has_its_derivatives_one_by_one() -> None:
    plain = network().double()
    # a function that transformations of torch.func do not take
    odd = Inside(lambda m, x: m[2](TwiceTanh.apply(m[0](x)))).double()
    torch.testing.assert_close(rp.input_jacobian(odd, X.double()), rp.input_jacobian(plain, X.double()))
    ours, expected = (rp.second_derivatives(m, X[:2].double()) for m in (odd, plain))
    torch.testing.assert_close(ours, expected)
