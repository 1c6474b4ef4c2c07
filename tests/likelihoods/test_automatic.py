"""Your own likelihood: a function or a family of torch.distributions agrees with the closed form."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.distributions as td
from torch.func import jacrev, vmap

from raphson import _errors
from raphson.likelihoods import (
    AutomaticLikelihood,
    Beta,
    Gamma,
    Gaussian,
    HeteroscedasticGaussian,
    Linked,
    NegativeBinomial,
    Poisson,
    StudentT,
    as_likelihood,
)
from raphson.likelihoods.composed import _automatic
from raphson.linalg import Diagonal, EqualBlocks

from .family import DTYPE, Family, check_family, check_sampling, normal


def _positive(leading, m, g):
    return torch.empty(*leading, m, dtype=DTYPE).exponential_(generator=g) + 0.05


def _fraction(leading, m, g):
    return 0.02 + 0.96 * torch.rand(*leading, m, dtype=DTYPE, generator=g)


def _count(leading, m, g):
    return torch.randint(9, (*leading, m), generator=g).to(DTYPE)


def _outputs(k, scale=0.5):
    return lambda leading, m, g: scale * normal(leading, m * k, g)


# torch's trigamma, which these two differentiate to, is right to 5e-10 relative (against SciPy), and terms cancel
TRIGAMMA = {"gamma", "beta"}

# The closed form, the family in its own parameters, and the closed form's outputs as logs, or whatever the
# links undo, of those parameters.
CLOSED = {
    "poisson": (Poisson(), td.Poisson, {"rate": "exp"}, lambda f: f, _count, 1),
    "gamma": (
        Gamma(),
        td.Gamma,
        {"concentration": "exp", "rate": "exp"},
        lambda f: torch.stack([f[1], f[1] - f[0]]),
        _positive,
        2,
    ),
    "negative_binomial": (
        NegativeBinomial(),
        td.NegativeBinomial,
        {"total_count": "exp", "logits": "identity"},
        lambda f: torch.stack([-f[1], f[0] + f[1]]),
        _count,
        2,
    ),
    "beta": (
        Beta(),
        td.Beta,
        {"concentration1": "exp", "concentration0": "exp"},
        lambda f: torch.stack([f[1] - torch.log1p(torch.exp(-f[0])), f[1] - torch.log1p(torch.exp(f[0]))]),
        _fraction,
        2,
    ),
    "student_t": (
        StudentT(),
        td.StudentT,
        {"loc": "identity", "scale": "exp", "df": "exp"},
        lambda f: f,
        normal,
        3,
    ),
    "gaussian": (
        HeteroscedasticGaussian(),
        td.Normal,
        {"loc": "identity", "scale": "exp"},
        lambda f: f,
        normal,
        2,
    ),
}


def _definition(name):
    """One response's negative log density by torch.distributions, in the closed form's outputs."""
    _, family, links, to_family, _, k = CLOSED[name]
    undo = {"exp": torch.exp, "identity": lambda t: t}

    def nll(f, y):
        theta = to_family(f)
        values = {p: undo[link](t) for (p, link), t in zip(links.items(), theta.unbind(-1), strict=True)}
        return -family(**values, validate_args=False).log_prob(y.to(f.dtype)).sum()

    return nll


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("name", CLOSED)
def test_a_function_agrees_with_the_closed_form(name, m):
    closed, *_, targets, k = CLOSED[name]
    lik = as_likelihood(_definition(name), parameters=closed.parameters)
    g = torch.Generator().manual_seed(7)
    f, y = _outputs(k)((5, 2), m, g), targets((5, 2), m, g)
    mine, theirs = lik.derivatives(f, y), closed.derivatives(f, y)
    torch.testing.assert_close(mine.nll, theirs.nll, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mine.gradient, theirs.gradient, rtol=1e-9, atol=1e-10)
    tolerance = 1e-8 if name in TRIGAMMA else 1e-9
    torch.testing.assert_close(mine.hessian.to_dense(), theirs.hessian.to_dense(), rtol=tolerance, atol=tolerance)
    assert isinstance(mine.hessian, Diagonal if k == 1 else EqualBlocks)
    assert lik.parameters == closed.parameters
    assert lik.output_names(m * k) == closed.output_names(m * k)
    assert lik.n_outputs(y.reshape(-1, m)) == m * k


@pytest.mark.parametrize("name", CLOSED)
def test_a_family_agrees_with_the_closed_form(name):
    closed, family, links, to_family, targets, k = CLOSED[name]
    lik = as_likelihood(family, links=links, draws=1024)
    g = torch.Generator().manual_seed(8)
    f, y = _outputs(k)((6,), 1, g), targets((6,), 1, g)
    theta, jacobian = vmap(to_family)(f), vmap(jacrev(to_family))(f)
    torch.testing.assert_close(lik.nll(theta, y), closed.nll(f, y), rtol=1e-10, atol=1e-10)
    gradient = (jacobian.mT @ lik.gradient(theta, y).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(gradient, closed.gradient(f, y), rtol=1e-9, atol=1e-10)
    # the Fisher information is a tensor: no second derivative of the map
    information = jacobian.mT @ lik.fisher(theta).to_dense() @ jacobian
    # sampled where torch has no divergence: 1024 draws, and a score of heavier tails than a Gaussian one
    sampled = name in {"negative_binomial", "student_t"}
    tolerance = 0.35 if sampled else 1e-8 if name in TRIGAMMA else 1e-9
    expected = closed.fisher(f).to_dense()
    scale = expected.diagonal(dim1=-2, dim2=-1).sqrt()
    relative = (information - expected) / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    assert float(relative.abs().max()) < tolerance
    # with more than two degrees of freedom
    theta, f = vmap(to_family)(f + 2), f + 2
    torch.testing.assert_close(lik.mean(theta), closed.mean(f), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(lik.variance(theta), closed.variance(f), rtol=1e-10, atol=1e-10)


def _row(log_density, k):
    def row(f, y):
        theta = f.reshape(-1, k)
        return -log_density(*theta.unbind(-1), y).sum()

    return row


def _normal_row(loc, log_scale, y):
    return -0.5 * ((y - loc) / log_scale.exp()) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)


def _logistic(t):
    return 1 / (1 + torch.exp(-t))


# families with their density written out, each with its default links where links are None
FAMILIES = [
    Family("normal", as_likelihood(td.Normal), _row(_normal_row, 2), _outputs(2), normal),
    Family(
        "log_normal",
        as_likelihood(td.LogNormal),
        _row(lambda a, s, y: _normal_row(a, s, y.log()) - y.log(), 2),
        _outputs(2, 0.2),
        _positive,
    ),
    Family(
        "exponential",
        as_likelihood(td.Exponential),
        _row(lambda f, y: f - y * f.exp(), 1),
        _outputs(1),
        _positive,
    ),
    Family(
        "bernoulli_probs",
        as_likelihood(td.Bernoulli, links={"probs": "sigmoid"}),
        _row(lambda f, y: y * torch.log(_logistic(f)) + (1 - y) * torch.log(_logistic(-f)), 1),
        _outputs(1),
        lambda leading, m, g: torch.randint(2, (*leading, m), generator=g).to(DTYPE),
    ),
    Family(
        "binomial",
        as_likelihood(td.Binomial, links={"logits": "identity"}, fixed={"total_count": 9}),
        _row(
            lambda f, y: (
                torch.lgamma(torch.tensor(10.0, dtype=DTYPE))
                - torch.lgamma(y + 1)
                - torch.lgamma(10 - y)
                + y * torch.log(_logistic(f))
                + (9 - y) * torch.log(_logistic(-f))
            ),
            1,
        ),
        _outputs(1),
        _count,
    ),
    Family(
        "gumbel",
        as_likelihood(td.Gumbel, links={"loc": "identity", "scale": "softplus"}),
        _row(
            lambda a, s, y: (
                -torch.log1p(s.exp()).log()
                - (y - a) / torch.log1p(s.exp())
                - torch.exp(-(y - a) / torch.log1p(s.exp()))
            ),
            2,
        ),
        _outputs(2),
        normal,
    ),
    Family(
        "cauchy",
        as_likelihood(td.Cauchy),
        _row(lambda a, s, y: -math.log(math.pi) - s - torch.log1p(((y - a) / s.exp()) ** 2), 2),
        _outputs(2),
        normal,
        has_moments=False,
    ),
    Family(
        "weibull",
        as_likelihood(td.Weibull),
        _row(lambda s, k, y: k + (k.exp() - 1) * (y.log() - s) - s - (y / s.exp()) ** k.exp(), 2),
        _outputs(2, 0.2),
        _positive,
        # its information is sampled, not exact
        is_model=False,
    ),
    Family(
        "student_t_fixed",
        as_likelihood(td.StudentT, links={"loc": "identity", "scale": "exp"}, fixed={"df": 5.0}),
        _row(
            lambda a, s, y: (
                (math.lgamma(3) - math.lgamma(2.5) - 0.5 * math.log(5 * math.pi) - s)
                - 3 * torch.log1p(((y - a) / s.exp()) ** 2 / 5)
            ),
            2,
        ),
        _outputs(2),
        normal,
        is_model=False,
    ),
    Family(
        "own_gaussian",
        as_likelihood(
            lambda f, y: 0.5 * ((y - f[0]) / f[1].exp()) ** 2 + f[1] + 0.5 * math.log(2 * math.pi),
            parameters=("location", "log_scale"),
            sample=lambda f, generator: (
                torch.randn(len(f), dtype=f.dtype, generator=generator) * f[:, 1].exp() + f[:, 0]
            ),
            mean=lambda f: f[0],
            variance=lambda f: (2 * f[1]).exp(),
            fisher=lambda f: torch.diag(torch.stack([(-2 * f[1]).exp(), torch.full_like(f[1], 2.0)])),
        ),
        _row(_normal_row, 2),
        _outputs(2),
        normal,
    ),
    Family(
        "own_linked",
        as_likelihood(
            lambda f, y: 0.5 * (y - f[0]) ** 2 / f[1] + 0.5 * f[1].log() + 0.5 * math.log(2 * math.pi),
            parameters=("mean", "variance"),
            domains=("real", "positive"),
            sample=lambda f, generator: (
                torch.randn(len(f), dtype=f.dtype, generator=generator) * f[:, 1].sqrt() + f[:, 0]
            ),
            mean=lambda f: f[0],
            variance=lambda f: f[1],
            fisher=lambda f: torch.diag(torch.stack([1 / f[1], 0.5 / f[1] ** 2])),
            links=("identity", "exp"),
        ),
        _row(lambda a, v, y: _normal_row(a, 0.5 * v, y), 2),
        _outputs(2),
        normal,
    ),
]


@pytest.mark.parametrize(("leading", "m"), [((3,), 2), ((2, 2), 1), ((), 2)])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_a_family_is_its_density(family, leading, m):
    check_family(family, leading, m)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_the_information_is_that_of_sampled_targets(family):
    check_sampling(family)


@pytest.mark.parametrize(
    ("family", "f", "information"),
    [
        # Laplace: the expected Hessian in the location is zero almost everywhere, its information is not
        (td.Laplace, [0.3, math.log(2.0)], [[0.25, 0.0], [0.0, 1.0]]),
        # Weibull with shape 1 in logs: Euler's constant c, [[1, c - 1], [c - 1, pi^2/6 + (1 - c)^2]]
        (
            td.Weibull,
            [0.5, 0.0],
            [[1.0, np.euler_gamma - 1], [np.euler_gamma - 1, math.pi**2 / 6 + (1 - np.euler_gamma) ** 2]],
        ),
        # StudentT with 5 degrees of freedom (Lange, Little and Taylor 1989): (df + 1)/(df + 3) / s^2, 2 df/(df + 3)
        (td.StudentT, [0.0, math.log(2.0)], [[0.75 / 4, 0.0], [0.0, 1.25]]),
    ],
)
def test_a_sampled_information_converges_at_the_known_rate(family, f, information):
    fixed = {"df": 5.0} if family is td.StudentT else None
    links = {"loc": "identity", "scale": "exp"} if fixed else None
    # 200 rows are 200 independent samples of the same matrix
    rows, errors = torch.tensor(f, dtype=DTYPE).expand(200, -1), []
    for draws in (64, 1024):
        estimates = as_likelihood(family, links=links, fixed=fixed, draws=draws).fisher(rows).to_dense()
        error = estimates.std(0)
        bias = (estimates.mean(0) - torch.tensor(information, dtype=DTYPE)).abs()
        # the squared score of a Laplace location is constant
        assert bool((bias < 5 * error / 200**0.5 + 1e-12).all())
        errors.append(float(error.max()))
    assert 0.18 < errors[1] / errors[0] < 0.34


def test_the_stated_error_of_a_gaussian_score():
    """8.8 percent for 256 draws, sqrt(2 / 256)."""
    lik = as_likelihood(
        lambda f, y: 0.5 * ((y - f) ** 2).sum(),
        sample=lambda f, generator: f + torch.randn(f.shape, dtype=f.dtype, generator=generator),
    )
    estimates = lik.fisher(torch.zeros(2000, 1, dtype=DTYPE)).to_dense().flatten()
    assert float(estimates.std()) == pytest.approx((2 / 256) ** 0.5, rel=0.1)
    assert float(estimates.mean()) == pytest.approx(1.0, abs=5 * 0.088 / 2000**0.5)


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
