"""Counts, positive responses and durations: their definitions, SciPy and statsmodels."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import statsmodels.api as sm
import torch

from raphson import _errors
from raphson.likelihoods import Gamma, InverseGaussian, NegativeBinomial, Poisson, Weibull
from raphson.linalg import Diagonal, EqualBlocks

from .conformance import DTYPE
from .family import Family, check_family, check_sampling, normal

# definitions of one row, term by term as in a textbook; f is the list of outputs per response


def _pairs_of(f, fixed):
    f = f.reshape(-1, 1 if fixed is not None else 2)
    second = f.new_tensor(math.log(fixed)).expand(len(f)) if fixed is not None else f[:, 1]
    return f[:, 0], second


def _poisson_row(f, y):
    return (f.exp() - y.to(f) * f + torch.lgamma(y.to(f) + 1)).sum()


def _negative_binomial_row(f, y, fixed=None):
    f, g = _pairs_of(f, fixed)
    mean, r = f.exp(), (-g).exp()
    y = y.to(mean).reshape(-1)
    ways = torch.lgamma(y + r) - torch.lgamma(r) - torch.lgamma(y + 1)
    return -(ways + r * torch.log(r / (r + mean)) + y * torch.log(mean / (r + mean))).sum()


def _gamma_row(f, y, fixed=None):
    f, g = _pairs_of(f, None if fixed is None else 1 / fixed)
    shape, rate, y = g.exp(), (g - f).exp(), y.reshape(-1)
    return -(shape * rate.log() - torch.lgamma(shape) + (shape - 1) * y.log() - rate * y).sum()


def _inverse_gaussian_row(f, y, fixed=None):
    f, g = _pairs_of(f, None if fixed is None else 1 / fixed)
    mean, shape, y = f.exp(), g.exp(), y.reshape(-1)
    exponent = shape * (y - mean) ** 2 / (2 * mean**2 * y)
    return (exponent - 0.5 * torch.log(shape / (2 * torch.pi * y**3))).sum()


def _weibull_row(f, y, fixed=None, censored=False):
    f, g = _pairs_of(f, fixed)
    scale, shape = f.exp(), g.exp()
    time, event = y.reshape(-1, 2).unbind(-1) if censored else (y.reshape(-1), 1.0)
    log_hazard = torch.log(shape / scale) + (shape - 1) * torch.log(time / scale)
    return ((time / scale) ** shape - event * log_hazard).sum()


def _counts(leading, m, g):
    y = torch.poisson(torch.full((*leading, m), 3.0), generator=g)
    return y.squeeze(-1) if m == 1 else y.long()


def _positive(leading, m, g):
    return torch.exp(0.6 * normal(leading, m, g))


def _censored(leading, m, g):
    time = _positive(leading, m, g)
    y = torch.stack((time, (torch.rand(time.shape, generator=g) < 0.6).to(DTYPE)), -1)
    return y.squeeze(-2) if m == 1 else y


def _family(name, likelihood, row, targets, k, fixed=None, **more):
    if fixed is not None:
        row = functools.partial(row, fixed=fixed)
    return Family(name, likelihood, row, lambda leading, m, g: 0.7 * normal(leading, k * m, g), targets, **more)


_weibull_censored = functools.partial(_weibull_row, censored=True)
FAMILIES = [
    _family("poisson", Poisson(), _poisson_row, _counts, 1),
    _family("nb2", NegativeBinomial(), _negative_binomial_row, _counts, 2),
    _family("nb2-fixed", NegativeBinomial(0.4), _negative_binomial_row, _counts, 1, 0.4),
    _family("gamma", Gamma(), _gamma_row, _positive, 2),
    _family("gamma-fixed", Gamma(0.3), _gamma_row, _positive, 1, 0.3),
    _family("inverse-gaussian", InverseGaussian(), _inverse_gaussian_row, _positive, 2),
    _family("inverse-gaussian-fixed", InverseGaussian(0.3), _inverse_gaussian_row, _positive, 1, 0.3),
    _family("weibull", Weibull(), _weibull_row, _positive, 2),
    _family("weibull-fixed", Weibull(1.7), _weibull_row, _positive, 1, 1.7),
    _family("exponential", Weibull(1.0), _weibull_row, _positive, 1, 1.0),
    _family(
        "weibull-censored", Weibull(censored=True), _weibull_censored, _censored, 2, is_model=False, has_moments=False
    ),
    _family(
        "exponential-censored",
        Weibull(1.0, censored=True),
        _weibull_censored,
        _censored,
        1,
        1.0,
        is_model=False,
        has_moments=False,
    ),
]


every_family = pytest.mark.parametrize("family", FAMILIES, ids=repr)


@every_family
@pytest.mark.parametrize("leading", [(3,), (2, 2), ()], ids=str)
@pytest.mark.parametrize("m", [1, 2])
def test_family(family, leading, m):
    check_family(family, leading, m)


@every_family
def test_sampling(family):
    # the score of a Weibull shape has tails so heavy that 4000 draws of one response leave its spread unknown
    check_sampling(family, m=2 if family.name == "weibull" else 1)


@every_family
def test_operators_are_as_small_as_they_can_be(family):
    f, y = family.draw((4,), 2, 0)
    lik = family.likelihood
    assert isinstance(lik.hessian(f, y), Diagonal if len(lik.parameters) == 1 else EqualBlocks)
    assert lik.concave == (len(lik.parameters) == 1 and "inverse" not in family.name)


@every_family
def test_outside_the_domain_the_value_is_infinite(family):
    f, y = family.draw((4,), 1, 0)
    f[0, 0], f[1, -1], f[2, 0] = torch.nan, torch.inf, -torch.inf
    value = family.likelihood.nll(f, y)
    assert torch.equal(torch.isposinf(value), torch.tensor([True, True, True, False]))
    with pytest.raises(_errors.InputError, match=f"'{family.likelihood.parameters[0]}' in row 0 is nan"):
        family.likelihood.check_outputs(f)


@every_family
def test_under_transforms_and_in_single_precision(family):
    lik = family.likelihood
    f, y = family.draw((5,), 2, 4)
    dense = lik.hessian(f, y).to_dense()
    # torch's own second derivative of lgamma is right to 5e-10 only
    torch.testing.assert_close(torch.func.vmap(torch.func.hessian(lik.nll))(f, y), dense, rtol=1e-7, atol=1e-7)
    for operator in (lik.hessian, lik.fisher):
        mapped = torch.func.vmap(lambda f, y, v, of=operator: of(f, y).mv(v))(f, y, f.cos())
        torch.testing.assert_close(mapped, operator(f, y).mv(f.cos()))
    single, double = lik.derivatives(f.float(), y), lik.derivatives(f.float().double(), y)
    assert single.hessian is not None and double.hessian is not None
    assert single.hessian.dtype == lik.fisher(f.float(), y).dtype == lik.sample(f.float()).dtype == torch.float32
    torch.testing.assert_close(single.nll.double(), double.nll, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(single.gradient.double(), double.gradient, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(single.hessian.to_dense().double(), double.hessian.to_dense(), rtol=2e-5, atol=5e-5)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.is_model], ids=repr)
def test_expected_equals_observed_on_average(family):
    """The Hessian summed over the mass function or integrated over the density is the Fisher information."""
    lik = family.likelihood
    f, _ = family.draw((), 1, 2)
    first = float(f[0])
    fixed = {"nb2-fixed": 0.4, "gamma-fixed": 1 / 0.3, "inverse-gaussian-fixed": 1 / 0.3, "weibull-fixed": 1.7}
    second = float(f[1].exp()) if len(f) == 2 else fixed.get(family.name, 1.0)
    mean = math.exp(first)
    if "poisson" in family.name or "nb2" in family.name:
        y = np.arange(3000.0)
        frozen = scipy.stats.poisson(mean)
        if "nb2" in family.name:
            frozen = scipy.stats.nbinom(1 / second, 1 / (1 + second * mean))
        weight = frozen.pmf(y)
    else:
        # tanh-sinh in log y
        x = np.linspace(-60, 8, 30_001)
        y = np.exp(x)
        if "gamma" in family.name:
            frozen = scipy.stats.gamma(second, scale=mean / second)
        if "inverse" in family.name:
            frozen = scipy.stats.invgauss(mean / second, scale=second)
        if "weibull" in family.name or "exponential" in family.name:
            frozen = scipy.stats.weibull_min(second, scale=mean)
        weight = frozen.pdf(y) * y * (x[1] - x[0])
    keep = weight > 1e-30
    y, weight = torch.from_numpy(y[keep]), torch.from_numpy(weight[keep])
    assert float(weight.sum()) == pytest.approx(1, abs=1e-10)
    rows = f.expand(len(y), -1)
    average = (weight[:, None, None] * lik.hessian(rows, y).to_dense()).sum(0)
    torch.testing.assert_close(lik.fisher(f).to_dense(), average, rtol=1e-9, atol=1e-9)
    assert float((weight * y).sum()) == pytest.approx(float(lik.mean(f)), rel=1e-9)
    deviation = (y - lik.mean(f)).square()
    assert float((weight * deviation).sum()) == pytest.approx(float(lik.variance(f)), rel=1e-8)


# censoring


def test_information_under_censoring_averages_to_fishers():
    """Exact integral over times censored at c: the expected Hessian and the predictable variation agree."""
    lik, f = Weibull(censored=True), torch.tensor([0.3, 0.5], dtype=DTYPE)
    for c in (0.4, 1.0, 2.5):
        x = np.linspace(-50, math.log(c), 40_001)
        time = np.exp(x)
        frozen = scipy.stats.weibull_min(math.exp(0.5), scale=math.exp(0.3))
        weight = frozen.pdf(time) * time * (x[1] - x[0])
        weight[-1] *= 0.5
        y = torch.from_numpy(np.stack([np.append(time, c), np.append(np.ones_like(time), 0.0)], -1))
        weight = torch.from_numpy(np.append(weight, frozen.sf(c)))
        assert float(weight.sum()) == pytest.approx(1, abs=1e-6)
        rows = f.expand(len(y), -1)
        observed = (weight[:, None, None] * lik.hessian(rows, y).to_dense()).sum(0)
        variation = (weight[:, None, None] * lik.fisher(rows, y).to_dense()).sum(0)
        torch.testing.assert_close(variation, observed, rtol=3e-6, atol=3e-6)
    torch.testing.assert_close(lik.fisher(f).to_dense(), Weibull().fisher(f).to_dense())


def test_a_censored_time_counts_its_log_survival():
    f = torch.tensor([[0.3, 0.5, -1.0, 1.0]], dtype=DTYPE)
    y = torch.tensor([[[2.0, 0.0], [0.3, 1.0]]], dtype=DTYPE)
    first = scipy.stats.weibull_min(math.exp(0.5), scale=math.exp(0.3))
    second = scipy.stats.weibull_min(math.exp(1.0), scale=math.exp(-1.0))
    expected = -first.logsf(2.0) - second.logpdf(0.3)
    assert Weibull(censored=True).nll(f, y).item() == pytest.approx(expected, rel=1e-13)


def test_shapes_of_censored_targets():
    both, one = Weibull(censored=True), Weibull(1.0, censored=True)
    pairs = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 1.0]])
    assert both.n_outputs(pairs) == 2
    assert one.n_outputs(pairs) == 1
    assert both.n_outputs(pairs[:, None].expand(3, 4, 2)) == 8
    assert Weibull().n_outputs(pairs) == 4
    f = torch.zeros(3, 1)
    torch.testing.assert_close(one.nll(f, pairs), one.nll(f, pairs[:, None]))
    one.check(pairs[:, None], 1)


# SciPy and statsmodels


def test_densities_are_scipys():
    f = torch.tensor([[0.3, -0.4], [2.0, 1.1], [-1.0, 0.0]], dtype=DTYPE)
    mean, second = f.exp().numpy().T
    y, counts = torch.tensor([0.2, 9.0, 0.4], dtype=DTYPE), torch.tensor([4, 0, 2])
    for lik, outputs, targets, expected in [
        (Poisson(), f[:, :1], counts, scipy.stats.poisson(mean).logpmf(counts)),
        (NegativeBinomial(), f, counts, scipy.stats.nbinom(1 / second, 1 / (1 + second * mean)).logpmf(counts)),
        (Gamma(), f, y, scipy.stats.gamma(second, scale=mean / second).logpdf(y)),
        (InverseGaussian(), f, y, scipy.stats.invgauss(mean / second, scale=second).logpdf(y)),
        (Weibull(), f, y, scipy.stats.weibull_min(second, scale=mean).logpdf(y)),
        (Weibull(1.0), f[:, :1], y, scipy.stats.expon(scale=mean).logpdf(y)),
    ]:
        np.testing.assert_allclose(lik.nll(outputs, targets).numpy(), -expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("lik", "family"),
    [
        (Poisson(), lambda: sm.families.Poisson()),
        (NegativeBinomial(0.7), lambda: sm.families.NegativeBinomial(alpha=0.7)),
        (Gamma(0.7), lambda: sm.families.Gamma(sm.families.links.Log())),
        (InverseGaussian(0.7), lambda: sm.families.InverseGaussian(sm.families.links.Log())),
    ],
    ids=["poisson", "nb2", "gamma", "inverse-gaussian"],
)
def test_glm_log_likelihood_and_information_are_statsmodels(lik, family):
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(50), rng.normal(size=(50, 2))])
    beta = np.array([0.5, 0.2, -0.3])
    y = rng.poisson(np.exp(x @ beta)).astype(float)
    if lik.support is Gamma.support:
        y = rng.gamma(2.0, np.exp(x @ beta) / 2)
    model = sm.GLM(y, x, family=family())
    scale = 1.0 if lik.support is Poisson.support else 0.7
    f = torch.from_numpy(x @ beta)[:, None]
    at = lik.derivatives(f, torch.from_numpy(y))
    assert -at.nll.sum().item() == pytest.approx(model.loglike(beta, scale=scale), rel=1e-12)
    np.testing.assert_allclose(-x.T @ at.gradient[:, 0].numpy(), model.score(beta, scale=scale), rtol=1e-10)
    assert at.hessian is not None
    for kind, weight in ((True, at.hessian.diagonal()), (False, lik.fisher(f).diagonal())):
        theirs = -model.hessian(beta, scale=scale, observed=kind)
        np.testing.assert_allclose(x.T @ (weight.numpy() * x), theirs, rtol=1e-9)


def test_negative_binomial_log_likelihood_is_statsmodels():
    rng = np.random.default_rng(1)
    x = np.column_stack([np.ones(60), rng.normal(size=60)])
    beta, alpha = np.array([1.0, 0.4]), 0.6
    y = rng.negative_binomial(1 / alpha, 1 / (1 + alpha * np.exp(x @ beta)))
    model = sm.NegativeBinomial(y, x)
    model._transparams = False  # parameters as estimated, alpha not in logarithm
    f = torch.from_numpy(np.column_stack([x @ beta, np.full(60, math.log(alpha))]))
    at = NegativeBinomial().derivatives(f, torch.from_numpy(y))
    params = np.append(beta, alpha)
    assert -at.nll.sum().item() == pytest.approx(model.loglike(params), rel=1e-12)
    theirs = model.score(params)
    np.testing.assert_allclose(-x.T @ at.gradient[:, 0].numpy(), theirs[:2], rtol=1e-9)
    assert -at.gradient[:, 1].sum().item() / alpha == pytest.approx(theirs[2], rel=1e-9)
    assert at.hessian is not None
    cross = -x.T @ at.hessian.to_dense()[:, 0, 1].numpy() / alpha
    np.testing.assert_allclose(cross, model.hessian(params)[:2, 2], rtol=1e-8)


def test_the_exponential_family_form_of_poisson():
    f, y = normal((20,), 3, torch.Generator().manual_seed(0)), torch.arange(60).reshape(20, 3) % 7
    lik = Poisson()
    t, partition, at = lik.statistic(y, 3), lik.log_partition(f), lik.derivatives(f, y)
    constant = torch.lgamma(y.double() + 1).sum(-1)
    torch.testing.assert_close(partition.nll - (t * f).sum(-1) + constant, at.nll)
    torch.testing.assert_close(partition.gradient - t, at.gradient)
    assert partition.hessian is not None and at.hessian is not None
    torch.testing.assert_close(partition.hessian.to_dense(), at.hessian.to_dense())
    assert lik.log_partition(f, hessian=False).hessian is None


# where a fit starts


@every_family
def test_start_is_near_the_fit_of_a_constant(family):
    """No average score in the first parameter, and a value within 2 % of the minimum in both."""
    lik = family.likelihood
    f, y = torch.full((4000, len(lik.parameters)), -0.5, dtype=DTYPE), None
    y = lik.sample(f, torch.Generator().manual_seed(0))
    if lik.support is Gamma.support and getattr(lik, "censored", False):
        y = torch.stack((y[..., 0].clamp(max=0.7), (y[..., 0] < 0.7).to(DTYPE)), -1)
    weights = torch.rand(4000, dtype=DTYPE, generator=torch.Generator().manual_seed(1))
    start = lik.start(y, f.shape[-1], weights)

    def value(outputs):
        return float((weights * lik.nll(outputs.expand_as(f), y)).sum() / weights.sum())

    best = scipy.optimize.minimize(lambda v: value(torch.from_numpy(v)), start.numpy(), method="Nelder-Mead").fun
    assert value(start) - best < 0.02
    at = lik.derivatives(start.expand_as(f), y)
    assert float((weights[:, None] * at.gradient).sum(0)[0]) == pytest.approx(0, abs=1e-8 * 4000)
    thrice = torch.cat([y, y[:2000], y[:2000]])
    repeated = torch.cat([torch.full((2000,), 3.0), torch.ones(2000)]).to(DTYPE)
    torch.testing.assert_close(
        lik.start(y, f.shape[-1], repeated), lik.start(thrice, f.shape[-1]), rtol=1e-3, atol=1e-3
    )


@every_family
def test_start_survives_constant_targets(family):
    lik = family.likelihood
    for value in (0.0, 1.0, 5.0):
        if value == 0 and lik.support is Gamma.support:
            continue
        y = torch.full((3, 2), value)
        if getattr(lik, "censored", False):
            y = torch.stack((y, torch.zeros_like(y)), -1)
        start = lik.start(y, 2 * len(lik.parameters))
        lik.check_outputs(start)
        assert bool(torch.isfinite(lik.nll(start.expand(3, -1), y)).all())


# what is refused


@pytest.mark.parametrize(
    ("lik", "y", "words"),
    [
        (Poisson(), [1.0, 2.5], r"row 1 is 2.5, .* a whole number, 0 or more"),
        (NegativeBinomial(1.0), [1.0, -1.0], r"row 1 is -1, .* a whole number"),
        (Gamma(1.0), [1.0, 0.0], r"row 1 is 0, .* a positive finite number"),
        (InverseGaussian(1.0), [math.inf], r"row 0 is inf"),
        (Weibull(1.0), [1.0, math.nan], r"row 1 is nan"),
        (Weibull(1.0, censored=True), [[1.0, 1.0], [0.0, 1.0]], r"row 1 is 0, .* positive"),
        (Weibull(1.0, censored=True), [[1.0, 1.0], [2.0, 2.0]], r"row 1 is 2, .*right-censored"),
        (
            Weibull(1.0, censored=True),
            [1.0, 2.0, 3.0],
            r"shape \(3,\), but Weibull\(censored=True\) needs times and events",
        ),
    ],
)
def test_check_names_the_first_bad_row(lik, y, words):
    with pytest.raises(_errors.InputError, match=words):
        lik.check(torch.tensor(y), 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gamma(0.0), "dispersion is 0.0, but it must be a positive finite number, or None"),
        (lambda: NegativeBinomial(-1.0), "dispersion is -1.0"),
        (lambda: InverseGaussian(math.nan), "dispersion is nan"),
        (lambda: Weibull(math.inf), "shape is inf"),
        (lambda: Weibull("1"), "shape is '1'"),
        (lambda: Gamma().nll(torch.zeros(2, 3), torch.ones(2, 1)), "3 outputs, but two are needed per response"),
        (lambda: Gamma().check(torch.ones(2), 3), "3 outputs, but 2 are needed per response"),
        (lambda: Gamma().check(torch.ones(2, 3), 4), r"4 outputs, 2 per response: give targets of shape \(N, 2\)"),
        (lambda: Weibull().check(torch.tensor([[3.0, 1.0], [2.0, 0.0]]), 4), r"use Weibull\(censored=True\)"),
        (lambda: Gamma().nll(torch.zeros(4, 4), torch.ones(4)), "one target per response"),
        (lambda: Weibull(censored=True).nll(torch.zeros(4, 2), torch.ones(4, 3)), "last axis of length 2"),
    ],
)
def test_what_cannot_be_used_is_refused(make, words):
    with pytest.raises(_errors.InputError, match=words):
        make()
