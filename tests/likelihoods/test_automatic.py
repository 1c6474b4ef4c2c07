"""Your own likelihood: a function or a family of torch.distributions agrees with the closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.distributions as td
from torch.func import jacrev, vmap

from raphson.likelihoods import (
    Beta,
    Gamma,
    HeteroscedasticGaussian,
    NegativeBinomial,
    Poisson,
    StudentT,
    as_likelihood,
)
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
