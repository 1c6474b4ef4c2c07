"""Kronecker factors against their definitions in dense float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import raphson as rp
from raphson._errors import InputError

from .kfac_oracle import Mean, Net, assembled, factors, gauss_newton, relative, within_blocks

pytestmark = pytest.mark.usefixtures("either_way")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(sizes: tuple[int, ...], activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1]).double().eval()


def definition(module: nn.Module, mean: bool, activation=torch.tanh) -> Net:
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return Net([(m.weight.detach(), m.bias.detach()) for m in layers], activation, mean)


def labels(*shape: int, classes: int = 3) -> Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(5))


def ignored(y: Tensor) -> Tensor:
    return y.flatten().index_fill(0, torch.tensor([1, 3]), -100).view(y.shape)


LIKELIHOODS = {
    "categorical": lambda *s: (rp.Categorical(), labels(*s)),
    "class weights": lambda *s: (rp.Categorical(class_weight=torch.tensor([0.5, 2.0, 1.0])), labels(*s)),
    "ignored": lambda *s: (rp.Categorical(), ignored(labels(*s))),
    "smoothed": lambda *s: (rp.Categorical(label_smoothing=0.2), labels(*s)),
    "gaussian": lambda *s: (rp.Gaussian(scale=torch.tensor([1.0, 2.0, 0.5])), randn(*s, 3)),
    "bernoulli": lambda *s: (rp.Bernoulli(pos_weight=torch.tensor([3.0, 1.0, 0.5])), labels(*s, 3, classes=2).double()),
    "mean_scale": lambda *s: (rp.HeteroscedasticGaussian(), randn(*s, 2)[..., :1]),
    "torch cross entropy": lambda *s: (nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0])), labels(*s)),
}
SHAPES = {"vectors": ((5,), False), "positions": ((4, 2), False), "mean": ((4, 3), True)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_exact_and_empirical_equal_the_definition(name: str, sharing: str, shape: str) -> None:
    lead, mean = SHAPES[shape]
    likelihood, y = LIKELIHOODS[name](*(lead[:1] if mean else lead))
    outputs = 2 if name == "mean_scale" else 3
    inner = network((4, 5, outputs))
    module = Mean(inner) if mean else inner
    x, weight = randn(*lead, 4), torch.rand(lead[0], dtype=torch.float64) + 0.1
    net = definition(inner, mean)
    for estimator, reduction, data in (("exact", "mean", (x, y, weight)), ("empirical", "sum", (x, y))):
        reduction = likelihood.reduction if isinstance(likelihood, nn.Module) else reduction
        objective = rp.Objective(module, likelihood, data, reduction=reduction)
        pairs = factors(net, objective, sharing, estimator)
        for bias in ("joint", "separate"):
            found = rp.kfac(objective, estimator, sharing, bias=bias).to_dense()
            torch.testing.assert_close(found, assembled(pairs, bias), rtol=1e-9, atol=1e-12)


def test_batches_and_weights_mean_rows() -> None:
    module, x, y = network((4, 5, 3)), randn(6, 4), labels(6)
    whole = rp.kfac(rp.Objective(module, rp.Categorical(), (x, y))).to_dense()
    parts = [(x[:1], y[:1]), (x[1:4], y[1:4]), (x[4:], y[4:])]
    torch.testing.assert_close(rp.kfac(rp.Objective(module, rp.Categorical(), parts)).to_dense(), whole)
    times = torch.tensor([1, 3, 1, 2, 1, 1])
    rows = torch.repeat_interleave(torch.arange(6), times)
    for estimator in ("exact", "empirical", "recursive"):
        weighted = rp.Objective(module, rp.Categorical(), (x, y, times.double()))
        repeated = rp.Objective(module, rp.Categorical(), (x[rows], y[rows]))
        torch.testing.assert_close(rp.kfac(weighted, estimator).to_dense(), rp.kfac(repeated, estimator).to_dense())


@pytest.mark.parametrize("estimator", ["exact", "recursive"])
@pytest.mark.parametrize("likelihood", ["categorical", "class weights", "gaussian", "bernoulli"])
def test_one_example_is_exact(likelihood: str, estimator: str) -> None:
    """With one example the Kronecker product is the block itself (Martens and Grosse 2015)."""
    lik, y = LIKELIHOODS[likelihood](1)
    objective = rp.Objective(network((4, 6, 5, 3)), lik, (randn(1, 4), y), reduction="sum")
    operator = rp.kfac(objective, estimator)
    expected = within_blocks(operator, gauss_newton(objective))
    torch.testing.assert_close(operator.to_dense(), expected, rtol=1e-9, atol=1e-12)
    wrong = rp.kfac(objective, "empirical").to_dense()
    assert relative(wrong, expected) > 0.1


@pytest.mark.parametrize("positions", [None, 1, 5])
def test_expand_is_exact_for_deep_linear_networks(positions: int | None) -> None:
    module = network((4, 5, 3), nn.Identity)
    lead = (6,) if positions is None else (6, positions)
    weight = torch.rand(6, dtype=torch.float64)
    objective = rp.Objective(module, rp.Gaussian(), (randn(*lead, 4), randn(*lead, 3, seed=1), weight))
    operator = rp.kfac(objective)
    expected = within_blocks(operator, gauss_newton(objective))
    torch.testing.assert_close(operator.to_dense(), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rp.kfac(objective, "recursive").to_dense(), expected, rtol=1e-9, atol=1e-12)
    if positions == 5:
        assert relative(rp.kfac(objective, sharing="reduce").to_dense(), expected) > 0.1


@pytest.mark.parametrize("how", ["mean", "sum"])
def test_reduce_is_exact_where_positions_are_averaged(how: str) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network((4, 5, 3), nn.Identity)

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self.inner(x), how)(1)

    objective = rp.Objective(Pooled(), rp.Gaussian(), (randn(6, 5, 4), randn(6, 3, seed=1), torch.rand(6).double()))
    operator = rp.kfac(objective, sharing="reduce")
    expected = within_blocks(operator, gauss_newton(objective))
    torch.testing.assert_close(operator.to_dense(), expected, rtol=1e-9, atol=1e-12)
    assert relative(rp.kfac(objective).to_dense(), expected) > 0.1


@pytest.mark.parametrize("name", ["categorical", "class weights", "ignored", "bernoulli", "gaussian"])
def test_sampled_factors_converge_at_the_known_rate(name: str) -> None:
    likelihood, y = LIKELIHOODS[name](5)
    objective = rp.Objective(network((4, 5, 3)), likelihood, (randn(5, 4), y, torch.rand(5).double()))
    exact = rp.kfac(objective).to_dense()
    generator = torch.Generator().manual_seed(0)

    def error(samples: int, times: int) -> float:
        runs = [rp.kfac(objective, "mc", samples=samples, generator=generator).to_dense() for _ in range(times)]
        return sum(float((run - exact).square().sum()) for run in runs) / times

    few, batched_vjp = error(4, 120), error(64, 120)
    # the squared error falls as 1 / samples: by 16, known here to about a quarter
    assert 8 < few / batched_vjp < 32


def test_samples_come_from_the_generator_alone() -> None:
    objective = rp.Objective(network((4, 5, 3)), rp.Categorical(), (randn(5, 4), labels(5)))
    state = torch.get_rng_state()
    first, again = (rp.kfac(objective, "mc", generator=torch.Generator().manual_seed(3)).to_dense() for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())


def test_recursive_follows_the_recursion() -> None:
    """Botev, Ritter and Barber (2017), eq. 20, written out; weights count in the averages."""
    module = network((4, 6, 5, 3), nn.Softplus)
    x, y, w = randn(7, 4), labels(7), torch.rand(7, dtype=torch.float64)
    objective = rp.Objective(module, rp.Categorical(), (x, y, w))
    linears = [m for m in module if isinstance(m, nn.Linear)]
    inputs, derivatives, h = [], [], x
    for i, m in enumerate(linears):
        inputs.append(torch.cat([h, torch.ones(7, 1)], 1).detach())
        z = (h @ m.weight.T + m.bias).detach()
        derivatives.append(torch.sigmoid(z))
        h = nn.functional.softplus(z) if i < 2 else z
    p = h.softmax(-1)
    top = sum(w[n] * (torch.diag(p[n]) - torch.outer(p[n], p[n])) for n in range(7)) / w.sum()
    pairs = []
    for i in (2, 1, 0):
        pairs.insert(0, (torch.einsum("n,ni,nj->ij", w / w.sum(), inputs[i], inputs[i]), top))
        if i:
            weight = linears[i].weight.detach()
            top = (weight.T @ top @ weight) * torch.einsum(
                "n,ni,nj->ij", w / w.sum(), derivatives[i - 1], derivatives[i - 1]
            )
    found = rp.kfac(objective, "recursive").to_dense()
    torch.testing.assert_close(found, assembled(pairs, "joint"), rtol=1e-9, atol=1e-12)


def test_recursive_refuses_what_it_does_not_know() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double()
    objective = rp.Objective(module, rp.Categorical(), (randn(5, 4), labels(5)))
    with pytest.raises(InputError, match="module '1' is a LayerNorm. Use estimator='exact'"):
        rp.kfac(objective, "recursive")
    with pytest.raises(InputError, match="sharing is 'both'"):
        rp.kfac(objective, sharing="both")
    with pytest.raises(InputError, match="estimator is 'kflr'"):
        rp.kfac(objective, "kflr")
    with pytest.raises(InputError, match="samples is 0"):
        rp.kfac(objective, "mc", samples=0)


def test_recursive_with_some_of_the_parameters() -> None:
    module = network((4, 5, 3))
    whole = rp.kfac(rp.Objective(module, rp.Categorical(), (randn(5, 4), labels(5))), "recursive", bias="separate")
    part = rp.Objective(module, rp.Categorical(), (randn(5, 4), labels(5)), params=["0.bias", "2.weight"])
    keep = torch.cat([torch.arange(20, 25), torch.arange(25, 40)])
    for bias in ("joint", "separate"):
        torch.testing.assert_close(rp.kfac(part, "recursive", bias=bias).to_dense(), whole.to_dense()[keep][:, keep])


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_eigenvalue_correction_is_never_worse(estimator: str) -> None:
    for sharing, shape in itertools.product(("expand", "reduce"), SHAPES):
        lead, mean = SHAPES[shape]
        inner = network((4, 5, 3))
        y = labels(*(lead[:1] if mean else lead))
        objective = rp.Objective(Mean(inner) if mean else inner, rp.Categorical(), (randn(*lead, 4), y))
        plain, corrected = (f(objective, estimator, sharing) for f in (rp.kfac, rp.ekfac))
        exact = gauss_newton(objective, estimator)
        for rows in block_rows(plain):
            truth = exact[rows[:, None], rows]
            distance = [(op.to_dense()[rows[:, None], rows] - truth).norm() for op in (corrected, plain)]
            assert distance[0] <= distance[1] * (1 + 1e-9)
        # the eigenvalues are the second moments: the trace is the exact one
        torch.testing.assert_close(corrected.trace(), exact.diagonal().sum())


def block_rows(operator):
    from .kfac_oracle import block_places

    return block_places(operator)


def test_penalty_shifts_the_blocks() -> None:
    data = (randn(5, 4), labels(5))
    plain, penalized = (rp.kfac(rp.Objective(network((4, 5, 3)), rp.Categorical(), data, l2=c)) for c in (0.0, 0.3))
    expected = plain.to_dense() + 0.3 * torch.eye(43, dtype=torch.float64)
    torch.testing.assert_close(penalized.to_dense(), expected)
    v = randn(43)
    torch.testing.assert_close(penalized.solve(v), torch.linalg.solve(expected, v))
    torch.testing.assert_close(penalized.slogdet().logabsdet, torch.linalg.slogdet(expected).logabsdet)
    root = penalized.factor().to_dense()
    torch.testing.assert_close(root @ root.T, expected)
    torch.testing.assert_close(penalized.power_mv(penalized.power_mv(v, 0.5), 0.5), expected @ v)
    again = rp.linalg.from_state_dict(type(penalized.operator).__name__, penalized.state_dict())
    assert torch.equal(again.to_dense(), penalized.to_dense())
    assert penalized.labels is not None
    assert penalized.labels[20] == "0.bias[0]"


def test_recursive_sees_a_module_that_is_used_twice() -> None:
    act, linears = nn.Tanh(), [nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)]
    shared = nn.Sequential(linears[0], act, linears[1], act, linears[2]).double()
    apart = nn.Sequential(linears[0], nn.Tanh(), linears[1], nn.Tanh(), linears[2])
    data = (randn(5, 4), labels(5, classes=2))
    found, expected = (rp.kfac(rp.Objective(m, rp.Categorical(), data), "recursive") for m in (shared, apart))
    torch.testing.assert_close(found.to_dense(), expected.to_dense(), rtol=0, atol=0)
    twice = nn.Sequential(linears[1], act, linears[1])
    with pytest.raises(InputError, match="parameters of its own, but two layers share a weight"):
        rp.kfac(rp.Objective(twice, rp.Categorical(), (randn(5, 3), labels(5))), "recursive")


def test_directions_without_curvature_are_zeros_of_ekfac_and_not_what_rounding_makes_of_them() -> None:
    """Softmax gradients sum to zero: the solve was 10^16 times too large and no error."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 3
    operator = rp.ekfac(rp.Objective(model, rp.Categorical(), (x, y)))
    v = torch.ones(43, dtype=torch.float64)
    for p in (-1, -0.5, -2):
        with pytest.raises(rp.IndefiniteError, match="singular"):
            operator.power_mv(v, p)
    with pytest.raises(rp.IndefiniteError, match="singular"):
        operator.shift(0).solve(v)
    assert float(operator.slogdet()[0]) == 0.0
    dense = operator.to_dense() + 0.1 * torch.eye(43, dtype=torch.float64)
    torch.testing.assert_close(operator.shift(0.1).solve(v), torch.linalg.solve(dense, v))
