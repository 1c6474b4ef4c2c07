"""Output Hessians averaged over a sample, and their inertia."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from torch.func import grad, hessian, vmap

import raphson.likelihoods._average as average_module
from raphson._errors import InputError
from raphson.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    MultivariateGaussian,
    ScaledLikelihood,
    average_hessian,
    definiteness_at,
)
from raphson.linalg import Dense, Diagonal, EqualBlocks

from .gaussian_cases import DTYPE, HETEROSCEDASTIC, NAMES, multivariate_row, row_of


def sample_of(likelihood, leading, c, m, seed=0):
    g = torch.Generator().manual_seed(seed)
    f = torch.randn(*leading, c, dtype=DTYPE, generator=g)
    y = torch.randint(c, leading, generator=g) if m == 0 else torch.rand(*leading, m, dtype=DTYPE, generator=g)
    return likelihood, f, y


AVERAGED = [
    (*sample_of(HeteroscedasticGaussian(), (7, 3), 4, 2), EqualBlocks, (2, 2, 2)),
    (*sample_of(Gaussian(0.5), (7, 3), 2, 2), Diagonal, (2,)),
    (*sample_of(Bernoulli(), (21,), 3, 3), Diagonal, (3,)),
    (*sample_of(MultivariateGaussian(2), (21,), 5, 2), Dense, (5, 5)),
    (*sample_of(Categorical(), (7, 3), 4, 0), Dense, (4, 4)),
    (*sample_of(Categorical(torch.tensor([0.5, 1.0, 3.0]), ignore_index=1), (21,), 3, 0), Dense, (3, 3)),
    (*sample_of(ScaledLikelihood(HeteroscedasticGaussian(), 3.0), (21,), 4, 2), EqualBlocks, (2, 2, 2)),
]


@pytest.mark.parametrize(("lik", "f", "y", "structure", "size"), AVERAGED)
@pytest.mark.parametrize("weighted", [False, True])
def test_average_is_that_of_the_loss(lik, f, y, structure, size, weighted, monkeypatch):
    # few rows a chunk, the last not full
    monkeypatch.setattr(average_module, "_CHUNK_ELEMENTS", 5 * f.shape[-1] ** 2)
    leading = f.shape[:-1]
    w = torch.linspace(0, 2, len(f), dtype=DTYPE) if weighted else None
    each = torch.ones(leading, dtype=DTYPE) if w is None else w.reshape(-1, *[1] * (len(leading) - 1)).expand(leading)
    own = lik.weight(y)
    total = (each if own is None else each * own).sum()

    def loss(shift):
        return (each * lik.nll(f + shift, y)).sum() / total

    zero = torch.zeros(f.shape[-1], dtype=DTYPE)
    average = average_hessian(lik, f, y, weights=w)
    assert isinstance(average, structure)
    assert average.shape == (f.shape[-1], f.shape[-1])
    entries = {EqualBlocks: "blocks", Diagonal: "values", Dense: "matrix"}[structure]
    assert getattr(average, entries).shape == size
    assert average.labels == lik.output_names(f.shape[-1])
    torch.testing.assert_close(average.to_dense(), hessian(loss)(zero))
    expected = torch.einsum("n,nab->ab", each.reshape(-1), lik.fisher(f, y).to_dense().flatten(0, -3)) / total
    torch.testing.assert_close(average_hessian(lik, f, y, "expected", w).to_dense(), expected)
    torch.testing.assert_close(
        grad(loss)(zero), (each.unsqueeze(-1) * lik.gradient(f, y)).reshape(-1, f.shape[-1]).sum(0) / total
    )


def test_average_of_one_row_is_its_hessian():
    lik, f, y = HeteroscedasticGaussian("mean_variance"), torch.tensor([1.0, 2.0]), torch.tensor(3.0)
    torch.testing.assert_close(average_hessian(lik, f, y).to_dense(), lik.hessian(f, y).to_dense())


def test_average_refuses():
    lik, f, y = HeteroscedasticGaussian(), torch.zeros(3, 2), torch.zeros(3)
    with pytest.raises(InputError, match="'observed' or 'expected'"):
        average_hessian(lik, f, y, "empirical")
    with pytest.raises(InputError, match="row 1 is -2"):
        average_hessian(lik, f, y, weights=torch.tensor([1.0, -2.0, 0.0]))
    with pytest.raises(InputError, match="one weight per example"):
        average_hessian(lik, f, y, weights=torch.ones(2))
    with pytest.raises(InputError, match="no example of positive weight"):
        average_hessian(lik, f, y, weights=torch.zeros(3))
    with pytest.raises(InputError, match=r"f\.expand\(n, -1\)"):
        average_hessian(lik, f[:1], y)


@pytest.mark.parametrize("name", NAMES)
def test_inertia_of_a_sample_is_that_of_its_eigenvalues(name, monkeypatch):
    monkeypatch.setattr(average_module, "_CHUNK_ELEMENTS", 7 * 16)
    family = HETEROSCEDASTIC[NAMES.index(name)]
    f, y = family.draw((40,), 2, 6)
    y[::2] = family.likelihood.mean(f)[::2] + 0.3 * family.likelihood.variance(f)[::2].sqrt()
    y[1] = family.likelihood.mean(f)[1]
    at = definiteness_at(family.likelihood, f, y)
    blocks = torch.stack([vmap(hessian(row_of(name)))(f[:, c : c + 2], y[:, c // 2 : c // 2 + 1]) for c in (0, 2)], 1)
    values = torch.linalg.eigvalsh(blocks)[..., 0]
    singular = values.abs() < 1e-12
    torch.testing.assert_close(at.singular, singular.double().mean(0))
    torch.testing.assert_close(at.positive, ((values > 0) & ~singular).double().mean(0))
    torch.testing.assert_close(at.indefinite, ((values < 0) & ~singular).double().mean(0))
    bad = (values < 0) | singular
    first = [int(bad[:, m].nonzero()[0]) if bool(bad[:, m].any()) else None for m in range(2)]
    assert list(at.first_offending_row) == first
    assert at.positive_definite == (name == "natural")
    assert definiteness_at(family.likelihood, f, y, "expected").positive_definite
    kinds = {"positive definite": at.positive, "singular": at.singular, "indefinite": at.indefinite}
    said = family.likelihood.definiteness.observed.split(" or ")
    assert all(bool((fraction > 0).all()) == (kind in said) for kind, fraction in kinds.items())
    assert f"row {first[0]}" in str(at) if first[0] is not None else "100.0%" in str(at)


def test_about_half_of_the_targets_are_convex_in_the_precision():
    lik, n = HeteroscedasticGaussian("mean_precision"), 20_000
    f = torch.tensor([3.0, 1e-10], dtype=DTYPE).expand(n, -1)
    at = definiteness_at(lik, f, lik.sample(f, torch.Generator().manual_seed(0)))
    p = scipy.stats.chi2(1).cdf(0.5)
    assert abs(float(at.positive[0]) - p) < 5 * (p * (1 - p) / n) ** 0.5


def test_inertia_is_decided_to_working_precision():
    lik, f = HeteroscedasticGaussian("mean_precision"), torch.tensor([[0.0, 1e12]] * 2, dtype=DTYPE)
    y = 0.5**0.5 * 1e-6 * torch.tensor([1 - 1e-12, 1 + 1e-12], dtype=DTYPE)
    at = definiteness_at(lik, f, y)
    assert (at.positive[0], at.indefinite[0], at.first_offending_row) == (0.5, 0.5, (1,))


def test_inertia_without_blocks_counts_all_outputs_as_one():
    lik, f, y = sample_of(MultivariateGaussian(), (9,), 5, 2)
    at = definiteness_at(lik, f, y)
    values = torch.linalg.eigvalsh(vmap(hessian(multivariate_row))(f, y))[..., 0]
    assert at.names == (lik.output_names(5),)
    torch.testing.assert_close(at.positive, (values > 0).double().mean(0, keepdim=True))
    assert definiteness_at(Gaussian(), f, f).positive_definite
    with pytest.raises(InputError, match="no example"):
        definiteness_at(lik, f[:0], y[:0])


def test_the_question_of_the_mean_and_scale_loss():
    # Hessian [[1/s^2, 2(x - mu)/s^3], [2(x - mu)/s^3, 3(x - mu)^2/s^4 - 1/s^2]]: per example, 2 x 2
    mu, s, x = 0.4, 1.7, -2.0
    lik, f, y = HeteroscedasticGaussian("mean_scale"), torch.tensor([[mu, s]], dtype=DTYPE), torch.tensor([x])
    d = x - mu
    gradient = torch.tensor([[-d / s**2, 1 / s - d**2 / s**3]], dtype=DTYPE)
    matrix = torch.tensor([[[s**-2, 2 * d / s**3], [2 * d / s**3, -(s**-2) + 3 * d**2 / s**4]]], dtype=DTYPE)
    torch.testing.assert_close(lik.gradient(f, y), gradient)
    torch.testing.assert_close(lik.hessian(f, y).to_dense(), matrix)
    # n examples of M responses with two outputs: n Hessians of 2M x 2M, and one average
    many = lik.hessian(f.repeat(5, 3), y.expand(5, 3))
    assert many.shape == (5, 6, 6) and many.blocks.shape == (5, 3, 2, 2)
    assert average_hessian(lik, f.repeat(5, 3), y.expand(5, 3)).shape == (6, 6)


def test_averages_hold_no_graph():
    f = torch.zeros(3, 2, requires_grad=True)
    assert not average_hessian(HeteroscedasticGaussian(), f, torch.ones(3)).to_dense().requires_grad
