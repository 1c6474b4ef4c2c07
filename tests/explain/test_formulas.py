"""The printed formulas against the numeric classes: SymPy is the third oracle beside autograd and definitions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import cache

import mpmath
import numpy as np
import pytest
import sympy
import torch
from scipy import integrate
from torch import Tensor

import raphson as rp
from raphson import likelihoods as lk
from raphson.explain._check import evaluate
from raphson.likelihoods._special._binary_links import BINARY_LINKS
from raphson.likelihoods.formulas import Definition

PARAMETRIZATIONS = (
    "mean_scale",
    "mean_log_scale",
    "mean_variance",
    "mean_log_variance",
    "mean_precision",
    "mean_softplus_scale",
    "natural",
)
WEIGHTS = torch.tensor([0.5, 2.0, 1.25], dtype=torch.float64)
MEMBERS: dict[str, Callable[[], lk.Likelihood]] = {
    "gaussian": lambda: lk.Gaussian(0.7),
    **{f"gaussian_{link}": (lambda link=link: lk.Gaussian(0.7, link=link)) for link in ("log", "inverse")},
    **{
        f"gaussian_scale_{link}": (lambda link=link: lk.HeteroscedasticGaussian(link=link))
        for link in ("log", "inverse")
    },
    **{f"bernoulli_{link}": (lambda link=link: lk.Bernoulli(link=link)) for link in BINARY_LINKS},
    **{f"binomial_{link}": (lambda link=link: lk.Binomial(5, link)) for link in BINARY_LINKS},
    **{f"poisson_{link}": (lambda link=link: lk.Poisson(link)) for link in ("identity", "sqrt")},
    **{
        f"{kind.__name__}_{link}_{phi}": (lambda kind=kind, link=link, phi=phi: kind(phi, link))
        for kind in (lk.Gamma, lk.InverseGaussian, lk.NegativeBinomial)
        for link in ("identity", "inverse", "inverse_squared", "sqrt")
        if link in kind.link_names
        for phi in (None, 0.6)
        if phi or kind is not lk.InverseGaussian
    },
    "squares": lambda: lk.Gaussian(0.5**0.5, normalized=False),
    **{name: (lambda name=name: lk.HeteroscedasticGaussian(name)) for name in PARAMETRIZATIONS},
    "multivariate": lambda: lk.MultivariateGaussian(2),
    "bernoulli": lk.Bernoulli,
    "bernoulli_weighted": lambda: lk.Bernoulli(torch.tensor([3.0]).double(), torch.tensor([0.5]).double()),
    "categorical": lk.Categorical,
    "categorical_smooth": lambda: lk.Categorical(label_smoothing=0.1),
    "categorical_weighted": lambda: lk.Categorical(WEIGHTS, label_smoothing=0.1),
    "poisson": lk.Poisson,
    "negative_binomial": lk.NegativeBinomial,
    "negative_binomial_known": lambda: lk.NegativeBinomial(0.7),
    "gamma": lk.Gamma,
    "gamma_known": lambda: lk.Gamma(0.3),
    "inverse_gaussian": lk.InverseGaussian,
    "inverse_gaussian_known": lambda: lk.InverseGaussian(0.3),
    "weibull": lk.Weibull,
    "weibull_known": lambda: lk.Weibull(1.5),
    "weibull_censored": lambda: lk.Weibull(censored=True),
    "exponential_censored": lambda: lk.Weibull(1.0, censored=True),
    "beta": lk.Beta,
    "student_t": lk.StudentT,
    "student_t_known": lambda: lk.StudentT(4.0),
    **{f"ordinal_{link}": (lambda link=link: lk.Ordinal(3, link)) for link in ("logit", "probit", "cloglog")},
    "binomial": lk.Binomial,
    "binomial_known": lambda: lk.Binomial(7),
    "multinomial": lk.Multinomial,
    "scaled": lambda: lk.ScaledLikelihood(lk.Poisson(), 2.0, 1.0),
    "scaled_mean": lambda: lk.ScaledLikelihood(lk.HeteroscedasticGaussian(), 2.0, mean_over_outputs=True),
}
# a family that is not among them, because it is new
MEMBERS |= {
    repr(member): (lambda member=member: member)
    for kind in lk.catalogue().values()
    if kind not in {type(make()) for make in MEMBERS.values()}
    for member in kind.examples()
}
LINKED: dict[str, Callable[[], lk.Likelihood]] = {
    f"linked_{link}": (lambda link=link: lk.Linked(lk.Gaussian(0.7), link))
    for link in ("identity", "log", "softplus", "exp", "sigmoid", "logit", "square", "inverse")
} | {
    "linked_probit": lambda: lk.Linked(lk.Linked(lk.Bernoulli(), "logit"), "normal_cdf"),
    "linked_cloglog": lambda: lk.Linked(lk.Linked(lk.Bernoulli(), "logit"), "cloglog_inverse"),
    "linked_pair": lambda: lk.Linked(lk.HeteroscedasticGaussian("mean_scale"), ("exp", "softplus")),
    "linked_weighted": lambda: lk.Linked(lk.Bernoulli(torch.tensor([3.0]).double()), "square"),
    "linked_gamma": lambda: lk.Linked(lk.Gamma(), ("log", "identity")),
}
ALL = MEMBERS | LINKED


@cache
def definition_of(name: str) -> Definition:
    return ALL[name]().definition()


def draw(definition: Definition, seed: int, spread: float = 0.6) -> tuple[Tensor, Tensor]:
    """Outputs of one row in the domain and a target in the support."""
    g = torch.Generator().manual_seed(seed)
    likelihood = definition.likelihood
    size = len(definition.outputs)
    f = spread * torch.randn(size, dtype=torch.float64, generator=g)
    if isinstance(likelihood, lk.Ordinal):
        f = f.sort().values
    for i in range(size):
        domain = likelihood.domains[i % len(likelihood.domains)]
        for candidate in (f[i], f[i].exp(), -f[i].exp(), torch.sigmoid(f[i])):
            if bool(domain.contains(candidate)):
                f[i] = candidate
                break
    likelihood.check_outputs(f)
    if isinstance(likelihood, lk.Multinomial):
        return f, torch.randint(0, 6, (3,), generator=g).double()
    if isinstance(likelihood, lk.Binomial) and likelihood.trials is None:
        return f, torch.randint(0, 6, (2,), generator=g).double()
    y = likelihood.sample(f, g)
    if isinstance(likelihood, lk.Weibull) and likelihood.censored:
        y = torch.stack([y.reshape(-1)[0], torch.tensor(float(seed % 2), dtype=torch.float64)])
    return f, y


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-9) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual.reshape(expected.shape), expected, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("name", ALL)
def test_formulas_are_what_the_class_computes(name: str) -> None:
    definition = definition_of(name)
    for seed in range(3):
        f, y = draw(definition, seed)
        lik = definition.likelihood
        nll, gradient, hessian, fisher = evaluate(definition, f, y)
        close(lik.nll(f, y), nll)
        close(lik.gradient(f, y), gradient)
        close(lik.hessian(f, y).to_dense(), hessian)
        information = lik.fisher(f, y if definition.given_target else None).to_dense()
        # the one that is a quadrature in the class, with that error by its docstring
        close(information, fisher, 1e-8 if name == "negative_binomial" else 1e-9)


@pytest.mark.parametrize("name", ALL)
def test_abbreviations_differentiate_to_what_the_whole_does(name: str) -> None:
    """Plain SymPy derivatives of the negative log-likelihood with nothing abbreviated."""
    definition = definition_of(name)
    whole = definition.plain(definition.nll)
    assert whole.free_symbols <= {*definition.outputs, *definition.targets, *definition.constants}
    outputs = definition.outputs
    if len(outputs) > 3:
        outputs = outputs[1:4]
    f, y = draw(definition, 7)
    index = [definition.outputs.index(x) for x in outputs]
    plain = [sympy.diff(whole, x) for x in outputs]
    plain += [sympy.diff(first, x) for first in plain for x in outputs]
    printed = [definition.gradient[i] for i in index] + [definition.hessian[i, j] for i in index for j in index]
    values = torch.tensor(definition.compiled([*plain, *printed])(f.tolist(), y))
    close(values[len(plain) :], values[: len(plain)], 1e-12)


CONTINUOUS = [*PARAMETRIZATIONS, "gamma", "inverse_gaussian", "weibull", "beta", "student_t", "linked_pair"]
RANGE = {"gamma": (0.0, np.inf), "inverse_gaussian": (0.0, np.inf), "weibull": (0.0, np.inf), "beta": (0.0, 1.0)}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_fisher_is_the_integral_of_the_observed_hessian(name: str) -> None:
    definition = definition_of(name)
    f, _ = draw(definition, 11, spread=0.3)
    (y,) = definition.targets
    at = dict(zip(definition.outputs, f.tolist(), strict=True)) | dict(definition.constants)
    mass = sympy.exp(-definition.plain(definition.nll).subs(at))
    low, high = RANGE.get(name, (-np.inf, np.inf))
    total = integrate.quad(sympy.lambdify(y, mass, "scipy"), low, high)[0]
    assert total == pytest.approx(1.0, abs=1e-7)
    size = len(definition.outputs)
    fisher = evaluate(definition, f, torch.tensor(0.5, dtype=torch.float64))[3]
    for i in range(size):
        for j in range(i + 1):
            entry = sympy.lambdify(y, mass * definition.plain(definition.hessian[i, j]).subs(at), "scipy")
            value = integrate.quad(entry, low, high, limit=200)[0]
            assert value == pytest.approx(float(fisher[i, j]), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", ["negative_binomial", "negative_binomial_known", "poisson", "binomial_known"])
def test_fisher_is_the_sum_over_counts(name: str) -> None:
    definition = definition_of(name)
    f, _ = draw(definition, 11)
    counts = torch.arange(8 if name == "binomial_known" else 400, dtype=torch.float64)
    rows = f.expand(len(counts), -1)
    mass = torch.exp(-definition.likelihood.nll(rows, counts))
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-12)
    total = (mass[:, None, None] * definition.likelihood.hessian(rows, counts).to_dense()).sum(0)
    close(evaluate(definition, f, counts[1])[3], total, 1e-11)


@pytest.mark.parametrize("name", [n for n in MEMBERS if not n.startswith("scaled")])
def test_convexity_is_as_stated(name: str) -> None:
    definition = definition_of(name)
    where = definition.convexity.where
    symbols = [*definition.outputs, *definition.targets, *definition.constants]
    stated = None if where is None else sympy.lambdify(symbols, definition.plain(where), "mpmath")
    kinds = set()
    for seed in range(60):
        f, y = draw(definition, seed, spread=1.0)
        values = torch.linalg.eigvalsh(definition.likelihood.hessian(f, y).to_dense())
        convex = bool(values[0] >= -1e-12 * values.abs().max())
        kinds.add(convex)
        if stated is not None:
            at = [*f.tolist(), *definition.read(y), *definition.constants.values()]
            assert bool(stated(*map(mpmath.mpf, at))) is convex, (f, y, values)
    if where is None:
        assert kinds == {True, False}, "the sentence says that it is convex at some places and not at others"
        assert definition.convexity.sentence.startswith(("Not convex everywhere", "Strictly convex in the log mean"))


def test_the_sentences_that_have_no_condition() -> None:
    counts = torch.arange(60, dtype=torch.float64)
    hessian = lk.NegativeBinomial().hessian(torch.zeros(60, 2, dtype=torch.float64), counts).to_dense()
    assert (torch.linalg.eigvalsh(hessian)[:, 0] > 0).nonzero().flatten().tolist() == [1, 2]
    extremes = torch.tensor([1e-6, 0.5], dtype=torch.float64)
    hessian = lk.Beta().hessian(torch.ones(2, 2, dtype=torch.float64), extremes).to_dense()
    assert hessian[0, 0, 0] < 0 < hessian[1, 0, 0]


def test_convex_likelihoods_are_those_that_say_so() -> None:
    for name in MEMBERS:
        definition = definition_of(name)
        assert bool(definition.convexity.where is sympy.true) == definition.likelihood.concave, name


def test_the_gaussian_determinants_are_the_published_ones() -> None:
    mu, y, sigma = sympy.symbols("mu y", real=True) + (sympy.Symbol("sigma", positive=True),)
    r = (y - mu) / sigma
    observed = definition_of("mean_scale").plain(definition_of("mean_scale").hessian.det())
    assert sympy.simplify(observed + (1 + r**2) / sigma**4) == 0
    fisher = definition_of("mean_scale").fisher
    assert fisher == sympy.diag(1 / sigma**2, 2 / sigma**2)
    log_variance = definition_of("mean_log_variance")
    s = sympy.Symbol("sigma", positive=True)
    expected = -(sympy.Symbol("r", real=True) ** 2) / (2 * s**2)
    assert sympy.simplify(log_variance.hessian.det() - expected) == 0
    natural = definition_of("natural")
    mean, v = sympy.Symbol("mu", real=True), sympy.Symbol("v", positive=True)
    covariance = sympy.Matrix([[v, 2 * mean * v], [2 * mean * v, 4 * mean**2 * v + 2 * v**2]])
    assert sympy.simplify(natural.hessian - covariance) == sympy.zeros(2, 2)


def test_ordinal_levels_beyond_three_follow_the_general_form() -> None:
    """The tridiagonal form in the note, for five levels."""
    f = torch.tensor([-1.2, -0.3, 0.4, 1.5], dtype=torch.float64)
    cdf = torch.sigmoid(f)
    p = torch.cat([cdf, cdf.new_ones(1)]) - torch.cat([cdf.new_zeros(1), cdf])
    density = cdf * (1 - cdf)
    bend = density * (1 - 2 * cdf)
    likelihood = lk.Ordinal(5)
    expected = torch.diag(density**2 * (1 / p[:-1] + 1 / p[1:]))
    for k in range(3):
        expected[k, k + 1] = expected[k + 1, k] = -density[k] * density[k + 1] / p[k + 1]
    close(likelihood.fisher(f).to_dense(), expected)
    for level in range(5):
        t = torch.nn.functional.one_hot(torch.tensor(level), 5).double()
        observed = torch.diag(density**2 * (t[:-1] / p[:-1] ** 2 + t[1:] / p[1:] ** 2))
        observed += torch.diag(bend * (t[1:] / p[1:] - t[:-1] / p[:-1]))
        for k in range(3):
            observed[k, k + 1] = observed[k + 1, k] = -density[k] * density[k + 1] * t[k + 1] / p[k + 1] ** 2
        close(likelihood.hessian(f, torch.tensor(level)).to_dense(), observed)


def test_the_predictable_variation_of_censored_durations_is_as_the_note_says() -> None:
    f = torch.tensor([0.4, 0.3], dtype=torch.float64)
    y = torch.tensor([2.0, 0.0], dtype=torch.float64)
    k = math.exp(0.3)
    z = k * (math.log(2.0) - 0.4)
    expected = math.exp(z) * torch.tensor([[k * k, -k * z], [-k * z, 1 + z * z]], dtype=torch.float64)
    close(lk.Weibull(censored=True).fisher(f, y).to_dense(), expected)


def test_every_likelihood_of_the_catalogue_has_a_formula() -> None:
    public = {
        kind
        for kind in vars(lk).values()
        if isinstance(kind, type) and issubclass(kind, lk.Likelihood) and not inspect.isabstract(kind)
    }
    from_code = {kind for kind in public if kind.__module__.endswith(("_automatic", "_distribution"))}
    assert public == set(lk.catalogue().values())
    defined = {kind for kind in public if kind.definition is not lk.Likelihood.definition}
    assert public - from_code == defined
    assert {type(definition_of(name).likelihood) for name in ALL} == defined


def test_a_likelihood_made_from_code_is_refused() -> None:
    own = rp.as_likelihood(lambda f, y: (f[0] - y) ** 2)
    with pytest.raises(rp.InputError, match="has no formula"):
        rp.explain(own)
