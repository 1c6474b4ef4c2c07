"""A model on a device stays there: no tensor is made on the processor, no batch is waited for, values are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import raphson as rp
from raphson import linalg
from raphson.likelihoods import Likelihood, catalogue
from raphson.linalg import widest_float

from .another_device import HOST, Elsewhere, Watch, back, elsewhere, watched

Use = Callable[[rp.Objective], Tensor]


def ones(o: rp.Objective, *k: int) -> Tensor:
    return torch.ones(o.n_parameters, *k, dtype=o.dtype, device=o.device)


def feed_forward() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def graph() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.PReLU(), nn.Linear(4, 3))


def images() -> nn.Module:
    parts = nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2, padding=1), nn.BatchNorm1d(2), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*parts, nn.Linear(8, 3)).eval()


USES: dict[str, Use] = {
    "value": lambda o: o.value(),
    "gradient": lambda o: o.gradient(),
    "ggn": lambda o: rp.ggn(o) @ ones(o),
    "ggn, cached": lambda o: rp.ggn(o) @ ones(o, 8),
    "ggn, dense": lambda o: rp.ggn(o, "dense").to_dense(),
    "ggn, diagonal": lambda o: rp.ggn(o, "diagonal").diagonal(),
    "ggn, blocks": lambda o: rp.ggn(o, "blocks") @ ones(o),
    "hessian": lambda o: rp.hessian(o) @ ones(o),
    "hessian, 8": lambda o: rp.hessian(o) @ ones(o, 8),
    "hessian, dense": lambda o: rp.hessian(o, "dense").to_dense(),
    "hessian, diagonal": lambda o: rp.hessian(o, "diagonal").diagonal(),
    "fisher": lambda o: rp.fisher(o) @ ones(o),
    "fisher, mc": lambda o: rp.fisher(o, "mc") @ ones(o),
    "fisher, mc, diagonal": lambda o: rp.fisher(o, "mc", "diagonal").diagonal(),
    "fisher, empirical": lambda o: rp.fisher(o, "empirical") @ ones(o),
    "kfac": lambda o: rp.kfac(o) @ ones(o),
    "kfac, mc": lambda o: rp.kfac(o, "mc", samples=3) @ ones(o),
    "kfac, empirical": lambda o: rp.kfac(o, "empirical") @ ones(o),
    "kfac, reduce": lambda o: rp.kfac(o, sharing="reduce", bias="separate") @ ones(o),
    "kfac, solve": lambda o: rp.kfac(o).solve(ones(o)),
    "kfac, logdet": lambda o: rp.kfac(o).slogdet().logabsdet,
    "kfac, root": lambda o: rp.kfac(o).power_mv(ones(o), 0.5),
    "ekfac": lambda o: rp.ekfac(o) @ ones(o),
    "ekfac, mc": lambda o: rp.ekfac(o, "mc").solve(ones(o)),
    "example gradients": rp.example_gradients,
    "norms": rp.example_gradient_norms,
}

PER_BATCH = {"_cached_jacobian:_agrees"}
"""Looks at each batch: a cached Jacobian is compared with a backward pass once, when it is made."""


def objective(build: Callable[[], nn.Module], size: int, move: Callable[[Any], Any]) -> rp.Objective:
    """An objective of eight rows in batches of some size, with weights."""
    torch.manual_seed(0)
    model, x, y, w = build(), torch.randn(8, 3), torch.arange(8) % 3, 0.5 + torch.rand(8)
    batches = [move((x[i : i + size], y[i : i + size], w[i : i + size])) for i in range(0, 8, size)]
    return rp.Objective(move(model), rp.Categorical(), batches, l2=0.1)


def looks(watch: Watch) -> int:
    return sum(n for where, n in watch.looks.items() if not any(allowed in where for allowed in PER_BATCH))


def check_stays(watch: Watch) -> None:
    assert not watch.made, "tensors are made on the processor"
    assert not watch.copies, "tensors are copied"


@pytest.mark.parametrize("build", [feed_forward, graph, images])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_curvature_of_a_network(use: Use, build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for size in (4, 2):
        expected = use(objective(build, size, lambda x: x))
        with watched(monkeypatch, float64=False) as watch:
            o = objective(build, size, elsewhere)
            watch.forget()
            found = use(o)
        check_stays(watch)
        seen.append(looks(watch))
        torch.testing.assert_close(back(found), expected, rtol=1e-3, atol=1e-5)
    assert seen[0] == seen[1], "looks at every batch"


def test_recursion_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    test_curvature_of_a_network(lambda o: rp.kfac(o, "recursive") @ ones(o), feed_forward, monkeypatch)


def operator(move: Callable[[Any], Any]) -> linalg.Implicit:
    """A positive definite operator of which products are known."""
    g = torch.Generator().manual_seed(1)
    root = torch.randn(200, 40, generator=g)
    matrix = move(root @ root.mT / 40 + torch.diag(torch.linspace(1.0, 2.0, 200)))
    return linalg.Implicit(lambda v: matrix @ v, 200, matrix.dtype, matrix.device, matmat=lambda v: matrix @ v)


def one(op: linalg.Implicit, *k: int) -> Tensor:
    return torch.ones(200, *k, dtype=op.dtype, device=op.device)


PRODUCTS: dict[str, tuple[Callable[[linalg.Implicit], Any], float]] = {
    "cg": (lambda op: linalg.cg(op, one(op)).x, 3),
    "cg, preconditioned": (lambda op: linalg.cg(op, one(op), preconditioner=lambda r: 0.5 * r).x, 4),
    "cg, columns": (lambda op: linalg.cg(op, one(op, 3)).x, 3),
    "lanczos": (lambda op: linalg.lanczos(op, one(op), 10).alpha, 1),
    "extreme": (lambda op: linalg.extreme_eigenvalues(op, steps=30).largest, 1.2),
    "xtrace": (lambda op: linalg.trace(op).value, 0),
    "hutch++": (lambda op: linalg.trace(op, "hutch++").value, 0),
    "hutchinson": (lambda op: linalg.trace(op, "hutchinson").value, 0),
    "diagonal": (lambda op: linalg.diagonal(op).value, 0),
    "frobenius": (lambda op: linalg.frobenius_norm(op).value, 0),
    "nystrom": (lambda op: linalg.nystrom(op, 20).operator() @ one(op), 0.2),
    "logdet": (lambda op: float(linalg.logdet(op, samples=4, steps=20).value), 1.2),
    "density": (lambda op: linalg.spectral_density(op, samples=4, steps=20).density.sum(), 1.2),
}
"""Methods that use products only, each with the number of looks for each product that it may take."""

ON_THE_PROCESSOR = {"logdet", "density"}
"""What decomposes the few numbers of Krylov spaces in float64 on the processor, after the last product of each."""


@pytest.mark.parametrize("name", PRODUCTS)
def test_methods_that_use_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use, allowed = PRODUCTS[name]
    expected = use(operator(lambda x: x))
    products = 0

    def counted(v: Tensor) -> Tensor:
        nonlocal products
        products += v.shape[1] if v.ndim > 1 and not name.startswith("cg") else 1
        return op @ v

    with watched(monkeypatch, float64=False) as watch:
        op = operator(elsewhere)
        watch.forget()
        found = use(linalg.Implicit(counted, 200, op.dtype, op.device, matmat=counted))
    if name not in ON_THE_PROCESSOR:
        check_stays(watch)
    assert looks(watch) <= allowed * products + 1
    on_device = isinstance(expected, Tensor) and name not in ON_THE_PROCESSOR
    torch.testing.assert_close(back(found) if on_device else found, expected, rtol=1e-3, atol=1e-3)


REFUSES = {"_multivariate_gaussian:_inverse"}
"""Looks that a loss takes: an inverse that overflows is refused."""

MEMBERS = [member for kind in catalogue().values() for member in kind.examples()]

LOSSES: dict[str, Callable[[Likelihood, Tensor, Tensor], Any]] = {
    "nll": lambda lik, f, y: lik.nll(f, y),
    "gradient": lambda lik, f, y: lik.gradient(f, y),
    "hessian": lambda lik, f, y: lik.hessian(f, y).to_dense(),
    "hessian product": lambda lik, f, y: lik.hessian(f, y).mv(f),
    "fisher": lambda lik, f, y: lik.fisher(f, y).to_dense(),
    "observed": lambda lik, f, y: lik.derivatives(f, y, "observed").gradient,
    "expected": lambda lik, f, y: lik.derivatives(f, y, "expected").gradient,
    "sample": lambda lik, f, y: lik.sample(f, torch.Generator(f.device).manual_seed(0)),
    "mean": lambda lik, f, y: lik.mean(f),
    "variance": lambda lik, f, y: lik.variance(f),
    "weight": lambda lik, f, y: lik.weight(y),
}


def example(likelihood: Likelihood, n: int = 4) -> tuple[Likelihood, Tensor, Tensor]:
    """The member that its definition is for, with outputs and targets in single precision."""
    definition = likelihood.definition()
    outputs, target = definition.example
    f = torch.tensor(outputs) + 0.1 * torch.arange(n).unsqueeze(-1) / n
    y = torch.tensor(target, dtype=torch.long if isinstance(target, int) else torch.float32)
    return definition.likelihood, f, y.expand(n, *y.shape).contiguous()


def there(likelihood: Likelihood) -> Likelihood:
    """The likelihood with the tensors that it was given on the device."""
    given = {f.name: getattr(likelihood, f.name) for f in fields(likelihood)}  # type: ignore[arg-type]
    return replace(likelihood, **{k: elsewhere(v.float()) for k, v in given.items() if isinstance(v, Tensor)})  # type: ignore[type-var]


@pytest.mark.parametrize("likelihood", MEMBERS, ids=repr)
def test_losses_and_samples(likelihood: Likelihood, monkeypatch: pytest.MonkeyPatch) -> None:
    lik, f, y = example(likelihood)
    moved, far = there(lik), elsewhere((f, y))
    for float64 in (True, False):
        for name, use in LOSSES.items():
            expected = use(lik, f, y)
            with watched(monkeypatch, float64) as watch:
                use(moved, *far)  # constants are made once
                watch.forget()
                found = use(moved, *far)
            if expected is not None:
                torch.testing.assert_close(back(found).to(expected), expected, rtol=1e-3, atol=1e-4)
            if float64:
                check_stays(watch)
                assert all(any(place in where for place in REFUSES) for where in watch.looks), name


@pytest.mark.parametrize("likelihood", MEMBERS, ids=repr)
def test_targets_are_checked_in_one_look(likelihood: Likelihood, monkeypatch: pytest.MonkeyPatch) -> None:
    lik, f, y = example(likelihood)
    lik, y = there(lik), elsewhere(y)
    with watched(monkeypatch, float64=False) as watch:
        lik.check(y, f.shape[-1])
        assert sum(watch.looks.values()) <= 2
        assert lik.start(y, f.shape[-1]).dtype is torch.float64


def test_what_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    x = elsewhere(torch.ones(2, 2))
    with watched(monkeypatch, float64=False) as watch:
        for wrong in (
            lambda: x @ torch.eye(2),
            lambda: torch.randn(2, device=x.device, generator=torch.Generator()),
            lambda: x.double(),
        ):
            with pytest.raises(AssertionError):
                wrong()
        assert not watch.looks and bool(watch.made)
        assert isinstance(x.sum(), Elsewhere) and float(x.sum()) == 4.0
        assert bool((x[x > 0] == 1).all()) and x.cpu().device == HOST
    assert sum(watch.looks.values()) == 4 and not watch.copies


def test_the_type_of_sums_is_one_that_the_device_has() -> None:
    assert widest_float(HOST) is torch.float64
    assert widest_float(torch.device("mps")) is torch.float32
