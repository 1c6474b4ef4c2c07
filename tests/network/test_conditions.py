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

from .condition_cases import ALL, CASES, DIAGONAL, GGN, HESSIAN, KFAC, LOSS, MATRICES, NORMS, Case
from .condition_models import C, N, TwiceTanh, body, reals
from .condition_networks import ROWS, WIDTH, Inside, X, Y, in_inference_mode, made, network, ones
from .network_cases import DTYPE, Dense, by_definition


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


def autocast(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return module(x)


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
