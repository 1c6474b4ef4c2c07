"""Layers so wide that a factor has no room: its diagonal is kept, and nothing of the size of the factor is made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import raphson as rp
from raphson.network.curvature.factors import _output_factor, _syrk

from .kfac_oracle import block_places, gauss_newton
from .largest_tensor import Largest


class Tied(nn.Module):
    def __init__(self, v: int) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(v, 3), nn.Linear(3, 3)

    def forward(self, i: Tensor) -> Tensor:
        return torch.tanh(self.mix(self.table(i).mean(1))) @ self.table.weight.mT


def objective(layer: str = "last") -> rp.Objective:
    torch.manual_seed(0)
    wide = {
        "last": nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 9)),
        "first": nn.Sequential(nn.Linear(9, 3), nn.Tanh(), nn.Linear(3, 4)),
        "convolution": nn.Sequential(nn.Conv1d(3, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6, 4)),
        "table": nn.Sequential(nn.Embedding(5, 8), nn.Tanh(), nn.Flatten(), nn.Linear(16, 4)),
    }
    shape, outputs = (
        {"last": (3,), "first": (9,), "convolution": (3, 3), "table": (2,)}[layer],
        9 if layer == "last" else 4,
    )
    x = torch.randint(5, (6, *shape)) if layer == "table" else torch.randn(6, *shape, dtype=torch.float64)
    return rp.Objective(wide[layer].double(), rp.Categorical(), (x, torch.randint(outputs, (6,))))


@pytest.mark.parametrize("bias", ["joint", "separate"])
@pytest.mark.parametrize("layer", ["last", "first", "convolution", "table"])
def test_a_large_factor_is_its_diagonal(layer: str, bias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    o = objective(layer)
    plain, exact = rp.kfac(o, bias=bias).to_dense(), gauss_newton(o)
    monkeypatch.setattr(_syrk, "MAX_DENSE_ELEMENTS", 50)
    for make in (rp.kfac, rp.ekfac):
        cut = make(o, bias=bias)
        assert any("(diagonal)" in row[2] for row in cut.report().rows)
        if make is rp.kfac:
            torch.testing.assert_close(cut.diagonal(), plain.diagonal())
            gone = cut.to_dense() == 0
            torch.testing.assert_close(cut.to_dense()[~gone], plain[~gone])
        for places, block in zip(block_places(cut), cut.blocks, strict=True):
            if make is rp.ekfac and bias == "joint":  # a bias of its own has the factor of kfac
                torch.testing.assert_close(block.trace(), exact.diagonal()[places].sum())
        b = torch.ones(o.n_parameters, dtype=torch.float64)
        shifted = cut.shift(0.1)
        torch.testing.assert_close(shifted @ shifted.solve(b), b)
    with pytest.raises(rp.TooLargeError, match="estimator='exact' or 'mc'"):
        monkeypatch.setattr("raphson.linalg._size.MAX_DENSE_ELEMENTS", 50)
        rp.kfac(objective("last"), "recursive")


@pytest.mark.parametrize("make", [rp.kfac, rp.ekfac])
@pytest.mark.parametrize("tied", [False, True])
def test_a_vocabulary_takes_no_array_of_its_square(make, tied: bool) -> None:
    v = 20_000
    module = Tied(v) if tied else nn.Sequential(nn.Embedding(v, 3), nn.Flatten(), nn.Linear(6, v))
    o = rp.Objective(module, rp.Categorical(), (torch.randint(v, (3, 2)), torch.randint(v, (3,))))
    with Largest() as largest:
        operator = make(o, "mc", generator=torch.Generator().manual_seed(0))
    assert largest.size < 50 * v
    assert any(f"{v} (diagonal)" in row[2] for row in operator.report().rows)
    assert bool(torch.isfinite(operator @ torch.ones(o.n_parameters)).all())


class Mixed(nn.Module):
    """Scores of words at every position, which depend on all positions of the row."""

    def __init__(self, v: int) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(v, 2), nn.Linear(2, v)

    def forward(self, i: Tensor) -> Tensor:
        return self.out(torch.tanh(self.table(i).cumsum(1)))


@pytest.mark.parametrize(
    "make",
    [
        rp.kfac,
        rp.ekfac,
        lambda o: rp.ggn(o, "diagonal"),
        lambda o: rp.fisher(o, structure="diagonal"),
    ],
    ids=["kfac", "ekfac", "ggn", "fisher"],
)
@pytest.mark.parametrize(("mixed", "t"), [(False, 200), (True, 16)])
def test_an_exact_output_factor_without_end_is_refused_before_it_begins(make, mixed: bool, t: int) -> None:
    v = 20_000
    module = Mixed(v) if mixed else nn.Sequential(nn.Embedding(v, 2), nn.Linear(2, v))
    o = rp.Objective(module, rp.Categorical(), (torch.randint(v, (1, t)), torch.randint(v, (1, t))))
    passes = "each of which needs backward passes of its own" if mixed else r"8.0e\+10 numbers in all"
    with Largest() as largest, pytest.raises(rp.TooLargeError, match=rf"20000 outputs .*{passes}.*'mc'"):
        make(o)
    assert largest.size <= 8 * v * t
    assert bool(torch.isfinite(rp.kfac(o, "mc").diagonal()).all())


class Attends(nn.Module):
    """Scores at every position, which depend on all positions of the row."""

    def __init__(self, c: int, shape: str = "same") -> None:
        super().__init__()
        self.inner, self.out, self.shape = nn.Linear(3, 4), nn.Linear(4, c), shape

    def forward(self, x: Tensor) -> Tensor:
        f = self.out(torch.tanh(self.inner(x)).cumsum(1))
        return {
            "same": lambda: f,
            "reshaped": lambda: f.view(x.shape[0], -1, f.shape[-1]).unsqueeze(1).squeeze(1).clone(),
            "flat": lambda: f.reshape(-1, f.shape[-1]).view(f.shape),
            "reversed": lambda: f.flip(1),
            "scaled": lambda: 0.5 * f,
            "transposed": lambda: self.out(torch.tanh(self.inner(x))).mT,  # as many positions as outputs
        }[self.shape]()


@pytest.mark.parametrize("bias", ["joint", "separate"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("shape", ["same", "reshaped", "flat", "reversed", "scaled", "transposed"])
def test_the_factor_of_the_output_layer_is_the_sum_of_output_hessians(
    shape: str, sharing: str, bias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(0)
    n, t, c = 5, 3, 3
    x = torch.randn(n, t, 3, generator=g, dtype=torch.float64)
    y = torch.randint(c, (n, t), generator=g)
    y[0, 1] = -100
    likelihood = rp.Categorical(torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64), label_smoothing=0.1)
    weight = torch.rand(n, generator=g, dtype=torch.float64)
    model = Attends(c, shape).double()
    o = rp.Objective(model, likelihood, [(x[:2], y[:2], weight[:2]), (x[2:], y[2:], weight[2:])])
    found = rp.kfac(o, "exact", sharing, bias=bias).to_dense()
    last = rp.Objective(model, likelihood, [(x[:2], y[:2], weight[:2]), (x[2:], y[2:], weight[2:])], params=["out"])
    alone, diagonal = rp.kfac(last, "exact", sharing, bias=bias).to_dense(), rp.ggn(last, "diagonal").diagonal()
    # the same from all vectors, as in every other layer
    monkeypatch.setattr("raphson.network.layers._recorder._at_output", lambda *_: None)
    torch.testing.assert_close(found, rp.kfac(o, "exact", sharing, bias=bias).to_dense(), rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(alone, rp.kfac(last, "exact", sharing, bias=bias).to_dense(), rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(diagonal, rp.ggn(last, "diagonal").diagonal(), rtol=1e-11, atol=1e-14)
    exact = gauss_newton(last)
    torch.testing.assert_close(diagonal, exact.diagonal(), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("shape", ["same", "reshaped", "flat", "reversed", "scaled", "transposed"])
def test_only_outputs_that_are_those_of_a_layer_take_no_vectors(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(0))
    o = rp.Objective(Attends(3, shape), rp.Categorical(), (x, torch.zeros(5, 3, dtype=torch.long)), params=["out"])
    monkeypatch.setattr(_output_factor, "_whole", lambda *_: pytest.fail("vectors"))
    for make in (rp.kfac, lambda o: rp.kfac(o, sharing="reduce")):
        if shape in {"same", "reshaped", "flat"}:
            make(o)
        else:
            with pytest.raises(pytest.fail.Exception, match="vectors"):
                make(o)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_layer_of_a_vocabulary_alone_takes_no_vectors(dtype: torch.dtype) -> None:
    v, n = 50_257, 40
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, v)).to(dtype)
    x, y = torch.randn(n, 3, generator=g).to(dtype), torch.randint(v, (n,), generator=g)
    with Largest() as largest:
        operator = rp.kfac(rp.Objective(model, rp.Categorical(), (x, y), params=["2"]))
    assert largest.size <= n * v
    p = torch.softmax(model(x).detach().double(), -1)
    expected = (p * (1 - p)).mean(0)
    factor = operator.blocks[0].factors[0].diagonal()
    torch.testing.assert_close(factor.double(), expected, rtol=1e-4 if dtype == torch.float32 else 3e-2, atol=0)
    last = rp.Objective(model, rp.Categorical(), (x, y), params=["2"])
    diagonal = rp.ggn(last, "diagonal").diagonal()[last.space.slices["2.bias"]]
    torch.testing.assert_close(diagonal, factor, rtol=1e-4 if dtype == torch.float32 else 3e-2, atol=0)
    o = rp.Objective(model, rp.Categorical(), (x, y))
    with Largest() as largest, pytest.raises(rp.TooLargeError, match="below the outputs.*'mc'.*'2.weight' alone"):
        rp.kfac(o)
    assert largest.size <= n * v


def test_many_classes_are_one_product() -> None:
    """Against the definition; N C^3 operations for 1,500 classes and rows would be 3e9 numbers through the layer."""
    c, n = 1500, 1500
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(2, c, bias=False).double()
    x, y = torch.randn(n, 2, generator=g, dtype=torch.float64), torch.randint(c, (n,), generator=g)
    with Largest() as largest:
        operator = rp.kfac(rp.Objective(model, rp.Categorical(), (x, y)))
    assert largest.size <= n * c
    p = torch.softmax(model(x).detach(), -1)
    expected = torch.diag(p.mean(0)) - p.mT @ p / n
    torch.testing.assert_close(operator.blocks[0].factors[0].to_dense(), expected, rtol=1e-10, atol=1e-15)
    recursive = rp.kfac(rp.Objective(model, rp.Categorical(), (x, y)), "recursive")
    torch.testing.assert_close(recursive.blocks[0].factors[0].to_dense(), expected, rtol=1e-10, atol=1e-15)


def test_dense_outer_products_count_against_an_exact_output_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    last = objective()
    module = nn.Sequential(*last.model.module, nn.LogSoftmax(-1))
    batch = next(last.batches())
    o = rp.Objective(module, rp.Categorical(), (batch.x, batch.y))
    monkeypatch.setattr(_output_factor, "_OUTER", 3)
    monkeypatch.setattr(_output_factor, "_MOST_WORK", 6 * 9**2)
    rp.ggn(o, "diagonal"), rp.kfac(last)  # the layer that makes the outputs has no outer products of vectors
    with pytest.raises(rp.TooLargeError, match=r"of 6 examples takes 9 vectors of 9 outputs 4.9e\+02 numbers"):
        rp.kfac(o)
    monkeypatch.setattr(_output_factor, "_MOST_WORK", 4 * 6 * 9**2)
    rp.kfac(o)
