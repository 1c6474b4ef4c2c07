"""Hessian, Gauss-Newton and Fisher of networks against dense definitions by torch.func."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.network.curvature import _products

from .network_cases import BY_NAME, DTYPE, LOSSES, C, D, N, T, by_definition, draw, network

pytestmark = pytest.mark.usefixtures("either_way", "cached_or_not")
TOL = {"rtol": 1e-9, "atol": 1e-11}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, **TOL)


def objective(loss, model, data, reduction="mean", **options):
    likelihood = loss.build()
    if isinstance(likelihood, nn.Module):
        likelihood.reduction = reduction
        return rp.Objective(model, likelihood, data, **options)
    return rp.Objective(model, likelihood, data, reduction=reduction, **options)


def kinds(dense):
    """Every matrix with the call that gives it."""
    return {
        "hessian": (dense.hessian, lambda o, s, **k: rp.hessian(o, s, **k)),
        "ggn": (dense.ggn, lambda o, s, **k: rp.ggn(o, s, kind="observed", **k)),
        "expected": (dense.expected, lambda o, s, **k: rp.fisher(o, "expected", s, **k)),
        "empirical": (dense.empirical, lambda o, s, **k: rp.fisher(o, "empirical", s, **k)),
    }


@pytest.mark.parametrize(
    ("loss", "reduction"),
    [(loss, "mean") for loss in LOSSES]
    + [(BY_NAME[name], "sum") for name in ("class_weight", "pos_weight", "mse", "heteroscedastic")],
    ids=str,
)
def test_every_structure_equals_its_definition(loss, reduction):
    # torch's squared error with reduction="sum" does not average over outputs
    if loss.name == "mse" and reduction == "sum":
        loss = type(loss)("mse", nn.MSELoss, lambda f, y: ((f - y) ** 2).sum(), loss.targets)
    model = network(loss.outputs)
    x, y, weight = draw(loss)
    weighted = reduction == "mean"
    dense = by_definition(model, loss, x, y, weight if weighted else None, reduction, 0.3)
    o = objective(loss, model, (x, y, weight) if weighted else (x, y), reduction, l2=0.3)
    value, gradient = o.value_and_gradient()
    close(value, dense.value)
    close(o.value(), dense.value)
    close(gradient, dense.gradient)
    p = o.n_parameters
    v = torch.randn(p, 3, dtype=DTYPE, generator=torch.Generator().manual_seed(3))
    for expected, call in kinds(dense).values():
        op = call(o, "implicit")
        assert op.shape == (p, p) and op.labels[0] == "0.weight[0,0]"
        close(op.mv(v[:, 0]), expected @ v[:, 0])
        close(op.mm(v), expected @ v)
        close(call(o, "dense").to_dense(), expected)
        close(call(o, "diagonal").diagonal(), expected.diagonal())
        bounds = {"tensor": [12, 16, 16 + 4 * loss.outputs], "layer": [16]}
        for blocks, ends in bounds.items():
            masked = torch.zeros_like(expected)
            for start, end in zip([0, *ends], [*ends, p], strict=True):
                masked[start:end, start:end] = expected[start:end, start:end]
            close(call(o, "blocks", blocks=blocks).to_dense(), masked)
        close(
            call(o, "dense", params=["2.weight", "0.bias"]).to_dense(),
            expected[12 : p - loss.outputs, 12 : p - loss.outputs],
        )


@pytest.mark.parametrize("form", ["list", "loader", "unweighted_list", "tuple", "dict", "iterable"])
def test_every_form_of_data_gives_the_same(form):
    loss = BY_NAME["class_weight"]
    model = network()
    x, y, weight = draw(loss)
    if form in {"unweighted_list", "loader"}:
        weight = None
    dense = by_definition(model, loss, x, y, weight, "mean", 0.0)
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    if weight is not None:
        batches = [(*batch, w) for batch, w in zip(batches, (weight[:2], weight[2:]), strict=True)]
    if form == "loader":
        batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=2)
    if form == "iterable":

        class Again:
            def __iter__(self):
                yield (x[:2], y[:2], weight[:2])
                yield (x[2:], y[2:], weight[2:])

        batches = Again()
    if form in {"tuple", "dict"}:

        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = network()

            def forward(self, left, right):
                return self.inner(torch.cat([left, right], -1))

        model = Two()
        left, right = x[..., :1], x[..., 1:]
        batches = ((left, right) if form == "tuple" else {"right": right, "left": left}, y, weight)
    o = objective(loss, model, batches)
    v = torch.randn(o.n_parameters, 2, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    assert o.n_examples == N
    close(o.value(), dense.value)
    for expected, call in kinds(dense).values():
        op = call(o, "implicit")
        close(op @ v, expected @ v)
        close(op @ v, expected @ v)
        close(call(o, "dense").to_dense(), expected)
        close(call(o, "diagonal").diagonal(), expected.diagonal())


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_batches_linearized_anew_or_cached_give_the_same(cache_bytes, monkeypatch):
    loss = BY_NAME["class_weight"]
    x, y, weight = draw(loss)
    monkeypatch.setattr(_products, "CACHE_BYTES", cache_bytes)
    passes = 0

    class Counted:
        def __iter__(self):
            nonlocal passes
            passes += 1
            yield (x[:2], y[:2], weight[:2])
            yield (x[2:], y[2:], weight[2:])

    dense = by_definition(network(), loss, x, y, weight, "mean", 0.0)
    o = objective(loss, network(), Counted(), progress=True)
    for expected, op in ((dense.hessian, rp.hessian(o)), (dense.ggn, rp.ggn(o))):
        before = passes
        for _ in range(3):
            close(op.mv(expected[0]), expected @ expected[0])
        assert passes - before == (1 if cache_bytes else 3)


def test_a_weight_counts_as_rows():
    loss = BY_NAME["smoothed"]
    x, y, _ = draw(loss)
    times = torch.tensor([1, 3, 2, 1, 2])
    weighted = objective(loss, network(), (x, y, times.to(DTYPE)))
    repeated = objective(loss, network(), (x.repeat_interleave(times, 0), y.repeat_interleave(times, 0)))
    close(rp.hessian(weighted, "dense").to_dense(), rp.hessian(repeated, "dense").to_dense())


@pytest.mark.parametrize("name", ["class_weight", "ignore_index", "gaussian", "heteroscedastic"])
def test_the_sampled_fisher_converges_at_the_known_rate(name):
    loss = BY_NAME[name]
    model = network(loss.outputs)
    x, y, weight = draw(loss)
    expected = by_definition(model, loss, x, y, weight, "mean", 0.0).expected
    o = objective(loss, model, (x, y, weight))
    errors = []
    for samples in (64, 64 * 64):
        generator = torch.Generator().manual_seed(0)
        runs = [rp.fisher(o, "mc", "dense", samples=samples, generator=generator).to_dense() for _ in range(4)]
        errors.append(sum(float((run - expected).norm()) for run in runs) / 4 / float(expected.norm()))
    # an eighth, give or take the spread of four runs
    assert errors[1] < 0.03 and 4 < errors[0] / errors[1] < 16


def test_sampled_products_are_those_of_one_matrix_in_every_structure():
    loss = BY_NAME["categorical"]
    x, y, weight = draw(loss)
    o = objective(loss, network(), [(x[:2], y[:2], weight[:2]), (x[2:], y[2:], weight[2:])])
    make = lambda structure, **k: rp.fisher(  # noqa: E731
        o, "mc", structure, samples=2, generator=torch.Generator().manual_seed(5), **k
    )
    dense = make("dense").to_dense()
    close(make("implicit").to_dense(), dense)
    close(make("diagonal").diagonal(), dense.diagonal())
    close(make("blocks").blocks[1].to_dense(), dense[12:16, 12:16])
    assert torch.linalg.matrix_rank(dense) <= 2 * N * T
    other = rp.fisher(o, "mc", "dense", generator=torch.Generator().manual_seed(6)).to_dense()
    assert not torch.allclose(other, dense)


def test_gauss_newton_is_the_hessian_of_a_piecewise_linear_network_and_not_of_a_smooth_one():
    loss = BY_NAME["categorical"]
    x, y, _ = draw(loss)
    last = "2"
    relu = network()
    relu[1] = nn.ReLU()
    for model, equal in ((relu, True), (network(), False)):
        o = objective(loss, model, (x, y))
        for params, same in (([last], True), (["0"], equal)):
            a, b = rp.ggn(o, "dense", params=params).to_dense(), rp.hessian(o, "dense", params=params).to_dense()
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12) == same


def test_an_indefinite_likelihood_gets_the_expected_information_and_says_so():
    loss = BY_NAME["heteroscedastic"]
    x, y, _ = draw(loss)
    o = objective(loss, network(2), (x, y))
    with pytest.warns(rp.RaphsonWarning, match="not log-concave"):
        chosen = rp.ggn(o, "dense").to_dense()
    close(chosen, rp.fisher(o, structure="dense").to_dense())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observed = rp.ggn(o, "dense", kind="observed").to_dense()
    assert float(torch.linalg.eigvalsh(observed)[0]) < -1e-3 * float(observed.norm())
    assert float(torch.linalg.eigvalsh(chosen)[0]) > -1e-12


def test_a_function_with_its_parameters_is_a_model():
    loss = BY_NAME["categorical"]
    model = network()
    x, y, weight = draw(loss)
    params = dict(model.named_parameters())

    def f(p, x):
        return torch.tanh(x @ p["0.weight"].T + p["0.bias"]) @ p["2.weight"].T + p["2.bias"]

    a = rp.Objective(f, rp.Categorical(), (x, y, weight), params=params)
    b = rp.Objective(model, rp.Categorical(), (x, y, weight))
    close(rp.hessian(a, "dense").to_dense(), rp.hessian(b, "dense").to_dense())
    close(rp.ggn(a, "blocks", blocks="layer").to_dense(), rp.ggn(b, "blocks", blocks="layer").to_dense())


def test_solves_and_eigenvalues_come_with_the_operator():
    loss = BY_NAME["categorical"]
    x, y, _ = draw(loss)
    o = objective(loss, network(), (x, y), l2=0.1)
    op, dense = rp.ggn(o), rp.ggn(o, "dense").to_dense()
    b = torch.ones(o.n_parameters, dtype=DTYPE)
    torch.testing.assert_close(op.solve(b), torch.linalg.solve(dense, b), rtol=1e-7, atol=1e-9)
    close(op.slogdet().logabsdet, torch.linalg.slogdet(dense).logabsdet)
    close(
        rp.ggn(o, "blocks").shift(0.5).solve(b)[12:16],
        torch.linalg.solve(dense[12:16, 12:16] + 0.5 * torch.eye(4, dtype=DTYPE), b[:4]),
    )


def test_an_image_network_with_convolutions_and_frozen_normalization():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.BatchNorm2d(2), nn.GELU(), nn.Flatten(), nn.Linear(8, C)).to(
        DTYPE
    )
    model(torch.randn(8, 1, 6, 6, dtype=DTYPE))
    model.eval()
    loss = BY_NAME["categorical"]
    x, y = torch.randn(N, 1, 6, 6, dtype=DTYPE), torch.tensor([0, 2, 1, 1, 0])
    dense = by_definition(model, loss, x, y, None, "mean", 0.0)
    o = objective(loss, model, (x, y))
    for expected, call in kinds(dense).values():
        close(call(o, "implicit").to_dense(), expected)
        close(call(o, "dense").to_dense(), expected)


def test_parameters_that_are_not_used_or_not_trained():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(D, C)
            self.unused = nn.Linear(2, 2)
            self.frozen = nn.Linear(C, C).requires_grad_(False)

        def forward(self, x):
            return self.frozen(torch.tanh(self.used(x)))

    torch.manual_seed(0)
    model = Net().to(DTYPE)
    loss = BY_NAME["categorical"]
    x, y, _ = draw(loss)
    dense = by_definition(model, loss, x, y, None, "mean", 0.0)
    o = objective(loss, model, (x, y))
    assert o.space.names == ("used.weight", "used.bias", "unused.weight", "unused.bias")
    for expected, call in kinds(dense).values():
        for structure in ("implicit", "dense"):
            close(call(o, structure).to_dense(), expected[:18, :18])
    o = objective(loss, model, (x, y), params=["frozen", "used.bias"])
    assert o.n_parameters == 15
    close(rp.hessian(o, "dense").to_dense()[3:, 3:], dense.hessian[18:, 18:])
    close(rp.ggn(o).to_dense()[3:, 3:], dense.ggn[18:, 18:])
    assert not any(p.requires_grad for p in model.frozen.parameters())
