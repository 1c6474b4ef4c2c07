"""Stochastic estimates against dense linear algebra: unbiased, ordered by accuracy, and within their stated errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.datasets import load_digits

import raphson as rp
from raphson._errors import IndefiniteError, InputError
from raphson.linalg import Matrix, cg
from raphson.linalg._leave_one_out import LeaveOneOut

N = 300


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotated(values: torch.Tensor) -> torch.Tensor:
    n = len(values)
    q = torch.linalg.qr(torch.randn(n, n, generator=seeded(1), dtype=torch.float64))[0]
    return (q * values) @ q.mT


INDEX = torch.arange(N, dtype=torch.float64)
SPECTRA = {
    "polynomial": 1 / (INDEX + 1) ** 2,
    "exponential": 0.9**INDEX,
    "flat": 3 - 2 * INDEX / N,
    "indefinite": torch.linspace(-1, 1.2, N, dtype=torch.float64) ** 3,
}


@pytest.fixture(scope="module")
def digits_ggn() -> torch.Tensor:
    x, y = load_digits(return_X_y=True)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10)).double()
    data = torch.tensor(x[:600]) / 16, torch.tensor(y[:600])
    return rp.ggn(rp.Objective(net, rp.Categorical(), data), "dense").to_dense()


def test_xtrace_beats_hutch_plus_plus_beats_hutchinson_at_30_products(digits_ggn):
    exact, op = float(digits_ggn.trace()), rp.Dense(digits_ggn)
    medians = {}
    for method in ("xtrace", "hutch++", "hutchinson"):
        found = [rp.trace(op, method, samples=30, generator=seeded(i)) for i in range(100)]
        assert all(estimate.products == 30 for estimate in found)
        medians[method] = np.median([abs(float(estimate) - exact) for estimate in found])
    assert 1.3 * medians["xtrace"] < medians["hutch++"]
    assert 2 * medians["hutch++"] < medians["hutchinson"]


def inside(estimate: rp.Estimate, exact: torch.Tensor) -> float:
    low, high = estimate.interval(0.95).unbind(-1)
    return float(((low <= exact) & (exact <= high)).double().mean())


DRAWS = 150
LOWEST = 0.95 - 3 * math.sqrt(0.95 * 0.05 / DRAWS)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", ["xtrace", "hutch++", "hutchinson"])
def test_intervals_of_the_trace_cover_at_their_level(name, method):
    matrix = rotated(SPECTRA[name])
    found = [rp.trace(rp.Dense(matrix), method, generator=seeded(i)) for i in range(DRAWS)]
    assert np.mean([inside(estimate, matrix.trace()) for estimate in found]) > LOWEST
    mean = np.mean([float(estimate) for estimate in found])
    spread = np.std([float(estimate) for estimate in found])
    assert abs(mean - float(matrix.trace())) < 4 * spread / math.sqrt(DRAWS)  # unbiased
    typical = np.median([float(estimate.standard_error) for estimate in found])
    assert 0.7 * spread < typical < 2 * spread  # and no wider than it has to be


@pytest.mark.nightly
@pytest.mark.parametrize("products", [6, 10, 16, 30])
def test_intervals_of_xtrace_cover_whatever_the_spectrum(products):
    """Fast and slow decay, one large eigenvalue, a rank that the vectors nearly reach, both signs."""
    i = torch.arange(120, dtype=torch.float64)
    spectra = {
        **{name: values[:120] for name, values in SPECTRA.items()},
        "harmonic": 1 / (i + 1),
        "fast": 0.7**i,
        "one large": torch.where(i < 1, 1.0, 0.01),
        "alternating": (-1) ** i * 0.9**i,
    }
    for name, values in spectra.items():
        op, exact = rp.Dense(rotated(values)), values.sum()
        covered = np.mean([inside(rp.trace(op, samples=products, generator=seeded(s)), exact) for s in range(400)])
        assert covered > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400), (name, covered)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", ["xdiag", "hutchinson"])
def test_intervals_of_the_diagonal_cover_at_their_level(name, method):
    matrix = rotated(SPECTRA[name])
    found = [rp.diagonal(rp.Dense(matrix), method, generator=seeded(i)) for i in range(30)]
    assert np.mean([inside(estimate, matrix.diagonal()) for estimate in found]) > 0.94
    mean = torch.stack([estimate.value for estimate in found]).mean(0)
    spread = torch.stack([estimate.value for estimate in found]).std(0) / 30**0.5
    assert float(((mean - matrix.diagonal()) / spread).square().mean()) < 1.5


@pytest.mark.parametrize("name", ["flat", "indefinite"])
def test_intervals_of_the_frobenius_norm_cover_at_their_level(name):
    matrix = rotated(SPECTRA[name])
    found = [rp.frobenius_norm(rp.Dense(matrix), generator=seeded(i)) for i in range(DRAWS)]
    assert np.mean([inside(estimate, matrix.norm()) for estimate in found]) > LOWEST


def test_downdating_is_what_factorizing_anew_without_each_vector_gives():
    matrix = torch.randn(40, 40, generator=seeded(0), dtype=torch.float64)  # not symmetric
    k = 6
    normal = LeaveOneOut.of(Matrix(matrix), k, seeded(2), "normal")
    signs = LeaveOneOut.of(Matrix(matrix), k, seeded(2), "signs")
    traces, diagonals = [], []
    for i in range(k):
        others = [j for j in range(k) if j != i]
        w = normal.vectors[:, i]
        q = torch.linalg.qr(matrix @ normal.vectors[:, others])[0]
        u = w - q @ (q.mT @ w)
        traces.append((q.mT @ matrix @ q).trace() + (40 - k + 1) * (u @ matrix @ u) / (u @ u))
        w = signs.vectors[:, i]
        q = torch.linalg.qr(matrix @ signs.vectors[:, others])[0]
        rest = matrix - q @ (q.mT @ matrix)
        diagonals.append((q @ (q.mT @ matrix)).diagonal() + w * (rest @ w))
    torch.testing.assert_close(normal.traces(), torch.stack(traces), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(signs.diagonals()[0], torch.stack(diagonals).mean(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_low_rank_is_exact(rank):
    factor = torch.randn(N, rank, generator=seeded(3), dtype=torch.float64)
    matrix = factor @ factor.mT
    op = rp.DiagonalPlusLowRank(torch.zeros(N, dtype=torch.float64), factor)
    scale = max(1.0, float(matrix.trace()))
    for method in ("xtrace", "hutch++"):
        found = rp.trace(op, method)
        assert abs(float(found) - float(matrix.trace())) < 1e-10 * scale
        assert float(found.standard_error) < 1e-10 * scale
    torch.testing.assert_close(rp.diagonal(op).value, matrix.diagonal(), rtol=0.0, atol=1e-10 * scale)
    assert abs(float(rp.frobenius_norm(op)) - float(matrix.norm())) < 1e-6 * scale


def test_as_many_products_as_parameters_give_the_exact_number():
    matrix = rotated(SPECTRA["indefinite"])[:20, :20]
    for found, expected in (
        (rp.trace(rp.Dense(matrix)), matrix.trace()),
        (rp.diagonal(rp.Dense(matrix)), matrix.diagonal()),
        (rp.frobenius_norm(rp.Dense(matrix)), matrix.norm()),
    ):
        torch.testing.assert_close(found.value, expected)
        assert found.df == 0 and not bool(found.standard_error.any())


def test_a_generator_or_none_gives_the_same_estimate_again():
    op = rp.Dense(rotated(SPECTRA["flat"]))
    state = torch.get_rng_state()
    for call in (rp.trace, rp.diagonal, rp.frobenius_norm, lambda op, **k: rp.logdet(op, samples=2, steps=20, **k)):
        assert torch.equal(call(op).value, call(op).value)
        assert torch.equal(call(op, generator=seeded(5)).value, call(op, generator=seeded(5)).value)
        assert not torch.equal(call(op, generator=seeded(5)).value, call(op, generator=seeded(6)).value)
    assert torch.equal(state, torch.get_rng_state())


def test_half_precision_and_products_only():
    op = rp.Diagonal(torch.linspace(1, 2, 400)).to(dtype=torch.bfloat16)
    assert abs(float(rp.trace(op)) - 600) < 6
    matrix = rotated(SPECTRA["flat"])
    implicit = rp.Implicit(lambda v: matrix @ v, N, torch.float64)
    assert torch.allclose(rp.trace(implicit).value, rp.trace(rp.Dense(matrix)).value)


@pytest.mark.parametrize("seed", range(5))
def test_log_determinant_of_a_dense_plus_low_rank_matrix_is_that_of_scipy(seed):
    v = torch.randn(8, 2, generator=seeded(seed), dtype=torch.float64)
    expected = np.linalg.slogdet(np.eye(8) + v.numpy() @ v.numpy().T)[1]
    assert expected == pytest.approx(np.log(scipy.linalg.eigvalsh(np.eye(8) + (v @ v.mT).numpy())).sum())
    structured = rp.DiagonalPlusLowRank(torch.ones(8, dtype=torch.float64), v)
    total = rp.Sum((rp.Dense(torch.eye(8, dtype=torch.float64)), rp.Dense(v @ v.mT)))
    for op in (structured, total, rp.Implicit(structured.mv, 8, torch.float64)):
        assert float(rp.logdet(op)) == pytest.approx(expected, rel=1e-12)
        assert float(op.slogdet().logabsdet) == pytest.approx(expected, rel=1e-12)


@pytest.mark.nightly
@pytest.mark.parametrize("condition", [2.0, 1e2, 1e6])
def test_intervals_of_the_log_determinant_cover_at_their_level(condition):
    values = torch.logspace(0, math.log10(condition), 2000, dtype=torch.float64)
    expected = values.log().sum()
    found = [rp.logdet(rp.Diagonal(values), generator=seeded(i)) for i in range(30)]
    assert all(estimate.df > 0 for estimate in found)
    assert np.mean([inside(estimate, expected) for estimate in found]) > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 30)


def semicircle(n: int) -> torch.Tensor:
    """Quantiles of Wigner's law on [-1, 1]."""
    t = torch.linspace(-1, 1, 200001, dtype=torch.float64)
    share = 0.5 + (t * (1 - t**2).clamp_min(0).sqrt() + t.asin()) / math.pi
    return torch.tensor(np.interp((np.arange(n) + 0.5) / n, share.numpy(), t.numpy()))


DENSITIES = {
    "semicircle": semicircle(3000),
    "two clusters and an outlier": torch.cat([
        torch.zeros(2000),
        torch.full((999,), 1.0),
        torch.tensor([5.0]),
    ]).double(),
    "geometric": 0.99 ** torch.arange(3000, dtype=torch.float64),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("width", [None, 0.1])
def test_the_spectral_density_is_within_its_stated_error(name, width):
    values = DENSITIES[name]
    outside = 0
    for seed in range(10):
        found = rp.spectral_density(rp.Diagonal(values), steps=60, width=width, generator=seeded(seed))
        assert found.products <= 600
        kernel = torch.distributions.Normal(0.0, found.width)
        exact = kernel.log_prob(found.grid[:, None] - values).exp().mean(1)
        outside += not bool(((found.density - exact).abs() <= found.error).all())
        assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1.0, abs=1e-4)
        assert float(found.error.max()) < 0.5 * float(exact.max())  # and it says something
    assert outside <= 1


def test_a_kernel_too_fine_for_the_steps_has_a_large_stated_error():
    values = DENSITIES["semicircle"]
    found = rp.spectral_density(rp.Diagonal(values), samples=4, steps=10, width=0.01)
    kernel = torch.distributions.Normal(0.0, 0.01)
    exact = kernel.log_prob(found.grid[:, None] - values).exp().mean(1)
    assert float((found.density - exact).abs().max()) > 0.5  # ten nodes stick out
    assert bool(((found.density - exact).abs() <= found.error).all())


def test_few_parameters_have_their_density_computed():
    values = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    found = rp.spectral_density(rp.Dense(torch.diag(values)), width=0.5)
    exact = torch.distributions.Normal(0.0, 0.5).log_prob(found.grid[:, None] - values).exp().mean(1)
    torch.testing.assert_close(found.density, exact)


def test_nystrom_is_below_the_matrix_and_close_to_the_best_of_its_rank():
    matrix = rotated(SPECTRA["polynomial"])
    found = rp.nystrom(rp.Dense(matrix), 20)
    gap = matrix - found.operator().to_dense()
    assert float(torch.linalg.eigvalsh(gap)[0]) > -1e-12
    best = SPECTRA["polynomial"][20:].sum()
    assert float(gap.trace()) < 3 * float(best)
    assert bool((found.eigenvalues[:5] / SPECTRA["polynomial"][:5] > 0.75).all())


@pytest.mark.parametrize("shift", [1e-2, 1e-4])
def test_the_nystrom_preconditioner_has_a_condition_below_28(shift):
    values = SPECTRA["exponential"]
    matrix, dimension = rotated(values), float((values / (values + shift)).sum())
    rank = 2 * math.ceil(1.5 * dimension) + 1
    conditions = []
    for seed in range(5):
        made = rp.nystrom(rp.Dense(matrix), min(rank, N), generator=seeded(seed)).preconditioner(shift)
        shifted = matrix + shift * torch.eye(N, dtype=torch.float64)
        eigenvalues = torch.linalg.eigvals(made.to_dense() @ shifted).real
        conditions.append(float(eigenvalues.max() / eigenvalues.min()))
        b = torch.ones(N, dtype=torch.float64)
        plain, better = (cg(rp.Dense(shifted), b, preconditioner=m, tol=1e-8) for m in (None, made))
        assert 2 * better.iterations < plain.iterations
    assert np.mean(conditions) < 28


def test_what_cannot_be_estimated_is_refused_in_a_sentence():
    op = rp.Dense(rotated(SPECTRA["flat"]))
    with pytest.raises(InputError, match="choose 'xtrace', 'hutch\\+\\+' or 'hutchinson'"):
        rp.trace(op, "xtrcae")
    with pytest.raises(InputError, match="needs at least 4 products"):
        rp.trace(op, samples=3)
    with pytest.raises(InputError, match="one square operator"):
        rp.trace(rp.Dense(torch.eye(3).expand(2, 3, 3)))
    with pytest.raises(InputError, match="one square operator"):
        rp.diagonal(Matrix(torch.ones(3, 2)))
    with pytest.raises(IndefiniteError, match="Ritz value"):
        rp.logdet(rp.Dense(rotated(SPECTRA["indefinite"])), samples=2, steps=20)
    with pytest.raises(IndefiniteError, match="not positive"):
        rp.logdet(rp.Diagonal(torch.tensor([1.0, -1.0])))
    with pytest.raises(IndefiniteError, match="negative curvature"):
        rp.nystrom(rp.Dense(-rotated(SPECTRA["flat"])), 5)
    with pytest.raises(InputError, match="level"):
        rp.trace(op).interval(95)


def test_a_matrix_is_no_operator():
    with pytest.raises(InputError, match=r"Wrap a matrix as rp\.Dense"):
        rp.trace(torch.eye(3))
    with pytest.raises(InputError, match="this is a str"):
        rp.frobenius_norm("a")


@pytest.mark.parametrize("size", [0.0, 1e-200])
def test_the_density_of_a_zero_or_tiny_operator_is_one_peak(size):
    found = rp.spectral_density(rp.Dense(size * torch.eye(4, dtype=torch.float64)))
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1.0, rel=1e-3)
    assert float(found.grid[found.density.argmax()]) == pytest.approx(size, abs=1e-2 * (size or 1.0))


def test_an_operator_that_is_not_finite_has_no_spectrum():
    broken = torch.full((4, 4), torch.nan)
    for use in (rp.spectral_density, rp.Dense.eigh):
        with pytest.raises(rp.InputError, match="has no eigh, since .* nan or infinity"):
            use(rp.Dense(broken))
    with pytest.raises(rp.InputError, match="not finite"):
        rp.spectral_density(rp.Diagonal(torch.full((4,), torch.nan)))
