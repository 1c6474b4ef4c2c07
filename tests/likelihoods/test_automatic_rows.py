"""Rows, sampling, starts and refusals of likelihoods by automatic differentiation."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.distributions as td

from raphson import _errors
from raphson.likelihoods import (
    AutomaticLikelihood,
    Gaussian,
    Linked,
    as_likelihood,
)
from raphson.likelihoods.composed import _automatic

from .family import DTYPE, normal

SCIPY = [
    (td.Gamma, [0.5, -0.2], lambda y: scipy.stats.gamma(math.exp(0.5), scale=math.exp(0.2)).logpdf(y), 1e-8, 1e3),
    (td.Normal, [0.5, -0.2], lambda y: scipy.stats.norm(0.5, math.exp(-0.2)).logpdf(y), -1e3, 1e3),
    (td.Poisson, [3.0], lambda y: scipy.stats.poisson(math.exp(3.0)).logpmf(y), 0.0, 1e6),
    (td.Cauchy, [0.5, 0.3], lambda y: scipy.stats.cauchy(0.5, math.exp(0.3)).logpdf(y), -1e8, 1e8),
    (td.Geometric, [0.4], lambda y: scipy.stats.geom(1 / (1 + math.exp(-0.4)), loc=-1).logpmf(y), 0.0, 50.0),
    (td.Kumaraswamy, [0.1, 0.4], None, 0.01, 0.99),
]


@pytest.mark.parametrize(("family", "f", "logpdf", "low", "high"), SCIPY, ids=lambda x: getattr(x, "__name__", ""))
def test_tails_are_scipys(family, f, logpdf, low, high):
    y = np.array([low, 0.5 * (low + high), high])
    a, b = np.exp(f) if logpdf is None else (0.0, 0.0)
    expected = np.log(a * b * y ** (a - 1) * (1 - y**a) ** (b - 1)) if logpdf is None else logpdf(y)
    rows = torch.tensor(f, dtype=DTYPE).expand(3, -1)
    actual = as_likelihood(family).nll(rows, torch.tensor(y))
    np.testing.assert_allclose(actual.numpy(), -expected, rtol=1e-9)


def test_a_row_of_any_size_is_one_block():
    """Without names the function sees the row: three logits and a label, with every entry of the Hessian."""
    lik = as_likelihood(lambda f, y: torch.logsumexp(f, 0) - (f * torch.nn.functional.one_hot(y, 3)).sum())
    f, y = normal((4,), 3, torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1])
    p = torch.softmax(f, -1)
    torch.testing.assert_close(lik.gradient(f, y), p - torch.eye(3, dtype=DTYPE)[y])
    expected = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    torch.testing.assert_close(lik.hessian(f, y).to_dense(), expected)
    lik.check(y, 3)
    assert lik.output_names(3) == ("output[0]", "output[1]", "output[2]")
    with pytest.raises(_errors.InputError, match="does not say how many outputs .* parameters="):
        lik.n_outputs(y)


def test_a_row_keeps_the_shape_of_its_target():
    seen = []

    def nll(f, y):
        seen.append((tuple(f.shape), tuple(y.shape)))
        return ((f - y.sum()) ** 2).sum()

    as_likelihood(nll).nll(torch.zeros(4, 3), torch.zeros(4, 2, 5))
    as_likelihood(nll, parameters=("a", "b")).nll(torch.zeros(4, 2), torch.zeros(4, 1))
    as_likelihood(nll, parameters=("a", "b")).nll(torch.zeros(4, 4), torch.zeros(4, 2))
    assert seen == [((3,), (2, 5)), ((2,), ()), ((2,), ())]


def test_no_python_loop_over_examples(monkeypatch):
    calls = []

    def nll(f, y):
        calls.append(1)
        return f[1].exp() * (y - f[0]) ** 2

    lik, counts = as_likelihood(nll, parameters=("a", "b")), []
    g = torch.Generator().manual_seed(0)
    f, y = normal((50,), 2, g), normal((50,), 1, g)
    for n in (2, 50):
        calls.clear()
        lik.derivatives(f[:n], y[:n])
        counts.append(len(calls))
    assert counts[0] == counts[1] < 10
    whole = lik.derivatives(f, y)
    monkeypatch.setattr(_automatic, "_CHUNK", 8)
    calls.clear()
    pieces = lik.derivatives(f, y)
    # thirteen chunks of four rows of two outputs
    assert len(calls) == 13 * counts[0]
    torch.testing.assert_close(pieces.gradient, whole.gradient, rtol=1e-14, atol=0)
    torch.testing.assert_close(pieces.hessian.to_dense(), whole.hessian.to_dense(), rtol=1e-14, atol=0)


def test_a_linear_value_has_no_hessian():
    lik = as_likelihood(lambda f, y: -(f * y).sum(), parameters=("natural",))
    f, y = torch.ones(3, 2), torch.ones(3, 2)
    assert torch.equal(lik.hessian(f, y).to_dense(), torch.zeros(3, 2, 2))


@pytest.mark.parametrize("seed", [0, 1])
def test_sampling_leaves_the_global_generator_alone(seed):
    lik, f = as_likelihood(td.Gamma), torch.zeros(5, 2)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one = lik.sample(f, torch.Generator().manual_seed(seed))
    lik.fisher(f)
    assert torch.equal(torch.rand(4), expected)
    again = torch.Generator().manual_seed(seed)
    assert torch.equal(lik.sample(f, again), one)
    assert not torch.equal(lik.sample(f, again), one)


@pytest.mark.parametrize(
    ("family", "f", "kwargs"),
    [
        (td.Gamma, [1.0, -2.0], {}),
        (td.Normal, [1e6, 3.0], {}),
        (td.Poisson, [6.0], {}),
        (td.NegativeBinomial, [1.0, 0.5], {"links": {"total_count": "exp", "logits": "identity"}}),
        (td.Beta, [1.0, -0.5], {}),
    ],
)
def test_a_start_fits_all_targets_alike(family, f, kwargs):
    lik = as_likelihood(family, **kwargs)
    rows = torch.tensor(f, dtype=DTYPE).expand(500, -1)
    y = lik.sample(rows, torch.Generator().manual_seed(0))
    start = lik.start(y, len(f))
    gradient = lik.gradient(start.expand(500, -1), y).mean(0)
    decrement = gradient @ lik.fisher(start.unsqueeze(0)).solve(gradient.unsqueeze(0))[0]
    assert float(decrement) < 1e-6
    constant = torch.full((4,), 2.0 if family is not td.Beta else 0.5)
    assert bool(torch.isfinite(lik.start(constant, len(f))).all())


def test_a_start_counts_weights():
    lik = as_likelihood(td.Poisson)
    y, w = torch.tensor([1.0, 5.0]), torch.tensor([3.0, 1.0])
    assert lik.start(y, 1, w).item() == pytest.approx(math.log(2.0), abs=1e-4)
    assert lik.start(y, 1).item() == pytest.approx(math.log(3.0), abs=1e-4)


def test_default_links_follow_the_constraints():
    assert as_likelihood(td.Gamma).parameters == ("log_concentration", "log_rate")
    assert as_likelihood(td.Bernoulli).parameters == ("logits",)
    assert as_likelihood(td.Geometric, links={"probs": "sigmoid"}).parameters == ("logit_probs",)
    assert as_likelihood(td.StudentT, fixed={"df": 4.0}).parameters == ("loc", "log_scale")
    assert isinstance(as_likelihood(td.Bernoulli), AutomaticLikelihood)
    assert isinstance(as_likelihood(td.Gamma), Linked)


def test_outside_its_domain_a_family_is_infinite():
    lik = as_likelihood(td.StudentT, links={"df": "identity", "loc": "identity", "scale": "identity"})
    f = torch.tensor([[3.0, 0.0, 1.0], [-1.0, 0.0, 1.0], [3.0, 0.0, 0.0]], dtype=DTYPE)
    y = torch.zeros(3, dtype=DTYPE)
    assert torch.isinf(lik.nll(f, y)).tolist() == [False, True, True]
    assert not bool(torch.isnan(lik.gradient(f, y)).any())
    with pytest.raises(_errors.InputError, match="'df' in row 1 is -1, but it must be a positive finite number"):
        lik.check_outputs(f)


def test_a_support_that_follows_the_parameters_is_kept():
    lik = as_likelihood(td.Binomial, links={"logits": "identity"}, fixed={"total_count": 3})
    f, y = torch.zeros(3, 1, dtype=DTYPE), torch.tensor([[3.0], [4.0], [1.5]], dtype=DTYPE)
    assert torch.isinf(lik.nll(f, y)).tolist() == [False, True, True]


def test_a_concave_function_says_so():
    lik = as_likelihood(lambda f, y: ((f - y) ** 2).sum(), concave=True)
    assert lik.concave
    assert not as_likelihood(lambda f, y: ((f - y) ** 2).sum()).concave
    assert copy.deepcopy(lik).concave


def _shape_of_batch(f, y):
    return f * y


def _one_at_a_time(f, y):
    return f.sum() if y.item() > 0 else f.sum() ** 2


def _batched(f, y):
    return (f[:, 0] - y) ** 2


def _random(f, y):
    return f.sum() * torch.rand(())


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda f, y: as_likelihood(_shape_of_batch).nll(f, y), r"'_shape_of_batch' returned the shape \(2,\)"),
        (lambda f, y: as_likelihood(_one_at_a_time).nll(f, y), r"'_one_at_a_time' failed .*without \.item\(\)"),
        (lambda f, y: as_likelihood(_batched).nll(f, y), r"'_batched' failed on one example, f of shape \(2,\)"),
        (lambda f, y: as_likelihood(_random).nll(f, y), "'_random' failed .* randomness"),
        (lambda f, y: as_likelihood(lambda f, y: 3.0).nll(f, y), "failed on one example"),
        (lambda f, y: as_likelihood(_batched, parameters=("a", "b", "c")).nll(f, y), "2 outputs, but .* 3 parameters"),
        (lambda f, y: as_likelihood(lambda f, y: f.sum()).nll(f, y[:3]), r"shape \(3,\).*one target per row"),
        (lambda f, y: as_likelihood(lambda f, y: f.sum()).fisher(f), "Fisher information: use the observed Hessian"),
        (lambda f, y: as_likelihood(lambda f, y: f.sum()).sample(f), "does not give its sample"),
        (lambda f, y: as_likelihood(lambda f, y: f.sum()).mean(f), "does not give its mean"),
        (lambda f, y: as_likelihood(lambda f, y: f.sum()).variance(f), "does not give its variance"),
        (lambda f, y: as_likelihood(lambda f, y: f.sum(), sample=lambda f, g: f[0]).fisher(f), "one target for each"),
        (lambda f, y: as_likelihood(_batched, support="count").check(y + 0.5, 2), "row 0 is 0.5, .* whole number"),
        (lambda f, y: as_likelihood(_batched, parameters=("a",)).check(y, 2), r"targets of shape \(N, 2\)"),
        (lambda f, y: as_likelihood(_batched, support="whole"), "no domain 'whole'; known are real, positive"),
        (lambda f, y: as_likelihood(_batched, domains=("real",)), "domains were given without parameters"),
        (lambda f, y: as_likelihood(_batched, parameters="a"), "sequence of one or more names"),
        (lambda f, y: as_likelihood(_batched, parameters=("a", "b"), domains=("real",)), "1 domains for 2 parameters"),
        (lambda f, y: as_likelihood(_batched, draws=0), "draws is 0"),
        (lambda f, y: as_likelihood(_batched, fixed={"a": 1.0}), "fixed holds parameters of a family"),
        (lambda f, y: as_likelihood(_batched, links={"a": "exp"}), "Links by name belong to a family"),
        (lambda f, y: as_likelihood(Gaussian(), sample=_random), "sample= belongs to a function nll"),
        (lambda f, y: as_likelihood(td.Gamma, mean=_random), "mean= belongs to a function nll.* Gamma is not one"),
        (lambda f, y: as_likelihood(td.Gamma, links="exp"), "given by parameter"),
        (lambda f, y: as_likelihood(td.Gamma, links={"shape": "exp"}), "no parameter 'shape'; its parameters are con"),
        (lambda f, y: as_likelihood(td.Gamma, links={"rate": "exp"}), "cannot be evaluated .*concentration"),
        (lambda f, y: as_likelihood(td.Gamma, links={"rate": "exp"}, fixed={"rate": 1.0}), "a link and a fixed"),
        (lambda f, y: as_likelihood(td.Gamma, links={}), "No parameter of .* is left to estimate"),
        (lambda f, y: as_likelihood(td.Poisson, links={"rate": "log"}), "use 'exp'"),
        (lambda f, y: as_likelihood(td.Bernoulli, links={"probs": "logit"}), "use 'sigmoid'"),
        (lambda f, y: as_likelihood(td.Poisson(torch.ones(()))), "Poisson is not a known loss"),
        (lambda f, y: as_likelihood(td.Categorical), "vectors .* use raphson's Categorical"),
        (lambda f, y: as_likelihood(td.MultivariateNormal), "use raphson's MultivariateGaussian"),
        (lambda f, y: as_likelihood(td.Dirichlet), "write its negative log-likelihood"),
        (lambda f, y: as_likelihood(td.Binomial), "'total_count' .* has no link by default"),
        pytest.param(
            lambda f, y: as_likelihood(td.GeneralizedPareto),
            "cannot be evaluated .*write its negative log-likelihood",
            marks=pytest.mark.skipif(not hasattr(td, "GeneralizedPareto"), reason="this PyTorch has no such family"),
        ),
        (lambda f, y: as_likelihood(td.Gamma).check(y - 1, 2), "row 0 is -1, but each target must be a non-negative"),
        (lambda f, y: as_likelihood(td.Poisson).check(y + 0.5, 1), "row 0 is 0.5, .* a whole number"),
        (lambda f, y: as_likelihood(td.Bernoulli).check(y + 3, 1), "row 0 is 3, .* 0 or 1"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(use, words):
    with pytest.raises(_errors.InputError, match=words):
        use(torch.zeros(4, 2), torch.zeros(4))
