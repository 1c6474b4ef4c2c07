"""Proportions, robust, ordered and grouped responses: derivatives, SciPy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from statsmodels.othermod.betareg import BetaModel
from torch.func import grad, hessian, jacrev, vmap

from raphson.likelihoods import Beta, Binomial, Multinomial, Ordinal, StudentT

from .conformance import DTYPE, _by_row
from .family import Family, check_family, check_sampling, normal


def _beta_row(f, y):
    mean, precision = torch.sigmoid(f[0::2]), f[1::2].exp()
    a, b = mean * precision, (1 - mean) * precision
    log_norm = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(precision)
    return (log_norm - (a - 1) * torch.log(y) - (b - 1) * torch.log(1 - y)).sum()


def _t_row(df):
    def row(f, y):
        k = 2 if df else 3
        location, scale = f[0::k], f[1::k].exp()
        nu = torch.full_like(location, df) if df else f[2::k].exp()
        constant = torch.lgamma(nu / 2) - torch.lgamma((nu + 1) / 2) + 0.5 * torch.log(nu * math.pi)
        return (constant + torch.log(scale) + (nu + 1) / 2 * torch.log(1 + ((y - location) / scale) ** 2 / nu)).sum()

    return row


_CDF = {
    "logit": lambda x: 1 / (1 + torch.exp(-x)),
    "probit": lambda x: 0.5 * torch.erfc(-x / math.sqrt(2)),
    "cloglog": lambda x: 1 - torch.exp(-torch.exp(x)),
}


def _ordinal_row(link):
    def row(f, y):
        cumulative = torch.cat([f.new_zeros(1), _CDF[link](f), f.new_ones(1)])
        return -(torch.log(cumulative.diff()) * (torch.arange(len(f) + 1) == y)).sum()

    return row


def _binomial_row(f, y):
    successes, failures = y.to(DTYPE)[0::2], y.to(DTYPE)[1::2]
    p = 1 / (1 + torch.exp(-f))
    ways = torch.lgamma(successes + failures + 1) - torch.lgamma(successes + 1) - torch.lgamma(failures + 1)
    return -(ways + successes * torch.log(p) + failures * torch.log(1 - p)).sum()


def _fixed_binomial_row(trials):
    return lambda f, y: _binomial_row(f, torch.stack([y, trials - y], -1).reshape(-1))


def _multinomial_row(f, y):
    p, y = torch.exp(f) / torch.exp(f).sum(), y.to(DTYPE)
    return torch.lgamma(y + 1).sum() - torch.lgamma(y.sum() + 1) - (y * torch.log(p)).sum()


def _interleaved(*centers, spread=0.5):
    def outputs(leading, m, g):
        return (torch.tensor(centers, dtype=DTYPE) + spread * normal((*leading, m), len(centers), g)).flatten(-2)

    return outputs


def _increasing(n_levels):
    return lambda leading, m, g: 0.5 * (0.7 * normal(leading, n_levels - 1, g)).exp().cumsum(-1) - 0.2 * n_levels


def _levels(n_levels):
    return lambda leading, m, g: torch.randint(n_levels, leading, generator=g)


def _proportions(leading, m, g):
    return torch.rand(*leading, m, dtype=DTYPE, generator=g).clamp(0.01, 0.99)


def _responses(leading, m, g):
    return 2 * normal(leading, m, g)


def _single_trials(leading, m, g):
    return torch.nn.functional.one_hot(torch.randint(2, leading, generator=g), 2)


def _single_draws(leading, m, g):
    return torch.nn.functional.one_hot(torch.randint(3, leading, generator=g), 3)


_LEVELS_LINKS = [(4, "logit"), (4, "probit"), (4, "cloglog"), (2, "logit"), (2, "cloglog")]
FAMILIES = [
    Family("beta", Beta(), _beta_row, _interleaved(0.3, 1.5), _proportions),
    Family("student_t", StudentT(), _t_row(None), _interleaved(0.2, -0.3, math.log(12), spread=0.2), _responses),
    Family("student_t_df_9", StudentT(9.0), _t_row(9.0), _interleaved(0.2, -0.3), _responses),
    Family("cauchy", StudentT(1.0), _t_row(1.0), _interleaved(0.2, -0.3), _responses, has_moments=False),
    *(
        Family(
            f"ordinal_{j}_{link}",
            Ordinal(j, link),
            _ordinal_row(link),
            _increasing(j),
            _levels(j),
            has_moments=False,
            responses=(1,),
        )
        for j, link in _LEVELS_LINKS
    ),
    Family("binomial", Binomial(), _binomial_row, normal, _single_trials, has_moments=False, responses=(1,)),
    Family(
        "binomial_7",
        Binomial(7),
        _fixed_binomial_row(7),
        normal,
        lambda leading, m, g: torch.randint(8, (*leading, m), generator=g),
        has_moments=False,
    ),
    Family(
        "multinomial",
        Multinomial(),
        _multinomial_row,
        lambda leading, m, g: normal(leading, 3, g),
        _single_draws,
        responses=(1,),
    ),
]


every_family = pytest.mark.parametrize("family", FAMILIES, ids=repr)


@every_family
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("leading", [(3,), (2, 2), ()], ids=str)
def test_derivatives(family, leading, m):
    if m in family.responses:
        check_family(family, leading, m)


@every_family
def test_sampling(family):
    check_sampling(family)


@every_family
def test_closed_forms_can_be_differentiated_and_mapped(family):
    f, y = family.draw((4,), family.responses[-1], seed=8)
    lik = family.likelihood
    torch.testing.assert_close(_by_row(hessian(lik.nll), f, y), lik.hessian(f, y).to_dense(), rtol=1e-8, atol=1e-8)
    mapped = vmap(lambda f, y: lik.derivatives(f, y).gradient)(f, y)
    torch.testing.assert_close(mapped, lik.gradient(f, y))
    torch.testing.assert_close(_by_row(jacrev(lik.gradient), f, y), lik.hessian(f, y).to_dense(), rtol=1e-8, atol=1e-8)


@every_family
def test_single_precision_is_close(family):
    f, y = family.draw((50,), family.responses[-1], seed=9)
    exact, single = family.likelihood.derivatives(f, y), family.likelihood.derivatives(f.float(), y)
    torch.testing.assert_close(single.nll.double(), exact.nll, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(single.gradient.double(), exact.gradient, rtol=1e-4, atol=1e-4)
    assert single.hessian.dtype == family.likelihood.fisher_factor(f.float()).dtype == torch.float32
    torch.testing.assert_close(single.hessian.to_dense().double(), exact.hessian.to_dense(), rtol=1e-3, atol=1e-3)


@every_family
def test_no_rows(family):
    f, y = family.draw((0,), 1, seed=0)
    at = family.likelihood.derivatives(f, y)
    assert at.nll.shape == (0,) and at.gradient.shape == f.shape and at.hessian.shape == (*f.shape, f.shape[-1])


# SciPy and statsmodels -----------------------------------------------------------------------------------------


def test_densities_are_scipys():
    g = torch.Generator().manual_seed(0)
    f, y = FAMILIES[0].draw((20,), 1, 0)
    mean, precision = torch.sigmoid(f[:, 0]).numpy(), f[:, 1].exp().numpy()
    model = scipy.stats.beta(mean * precision, (1 - mean) * precision)
    np.testing.assert_allclose(Beta().nll(f, y), -model.logpdf(y[:, 0].numpy()), rtol=1e-11)
    np.testing.assert_allclose(Beta().variance(f)[:, 0], model.var(), rtol=1e-12)

    f, y = FAMILIES[1].draw((20,), 1, 0)
    model = scipy.stats.t(f[:, 2].exp().numpy(), f[:, 0].numpy(), f[:, 1].exp().numpy())
    np.testing.assert_allclose(StudentT().nll(f, y), -model.logpdf(y[:, 0].numpy()), rtol=1e-11)

    f = torch.randn(20, 4, dtype=DTYPE, generator=g)
    y = torch.randint(9, (20, 4), generator=g)
    p = torch.softmax(f, -1).numpy()
    expected = [-scipy.stats.multinomial(c.sum(), q).logpmf(c) for c, q in zip(y.numpy(), p, strict=True)]
    np.testing.assert_allclose(Multinomial().nll(f, y), expected, rtol=1e-11)
    pair = y[:, :2]
    q = scipy.special.expit(f[:, 0].numpy())
    expected = -scipy.stats.binom(pair.sum(1).numpy(), q).logpmf(pair[:, 0].numpy())
    np.testing.assert_allclose(Binomial().nll(f[:, :1], pair), expected, rtol=1e-11)


@pytest.mark.parametrize("df", [0.5, 1.0, 1.7, 2.0, 2.5, 30.0])
def test_moments_of_student_t_exist_as_in_scipy(df):
    f = torch.tensor([1.5, 0.3], dtype=DTYPE)
    model = scipy.stats.t(df, 1.5, math.exp(0.3))
    for lik, at in ((StudentT(df), f), (StudentT(), torch.cat([f, torch.tensor([df], dtype=DTYPE).log()]))):
        if lik.df is None and df in {1.0, 2.0}:
            continue  # the exponential of a logarithm is not exactly there
        np.testing.assert_allclose(lik.mean(at).numpy(), [model.mean()], rtol=1e-12)
        np.testing.assert_allclose(lik.variance(at).numpy(), [model.var()], rtol=1e-12)


def test_beta_is_statsmodels_at_given_parameters():
    rng = np.random.default_rng(4)
    x, z, y = rng.normal(size=(40, 2)), rng.normal(size=(40, 2)), rng.uniform(0.05, 0.95, 40)
    params = np.array([0.3, -0.4, 0.2, 0.5])
    model = BetaModel(y, x, exog_precision=z)
    f = torch.tensor(np.c_[x @ params[:2], z @ params[2:]], dtype=DTYPE)
    np.testing.assert_allclose(Beta().nll(f, torch.tensor(y)).sum(), -model.loglike(params), rtol=1e-12)
    score = Beta().gradient(f, torch.tensor(y)).numpy()
    np.testing.assert_allclose(-np.r_[x.T @ score[:, 0], z.T @ score[:, 1]], model.score(params), rtol=1e-10)


# targets with totals of their own --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lik", "row", "width"), [(Binomial(), _binomial_row, 1), (Multinomial(), _multinomial_row, 4)], ids=["two", "many"]
)
def test_each_row_counts_by_its_total(lik, row, width):
    g = torch.Generator().manual_seed(1)
    f = torch.randn(6, width, dtype=DTYPE, generator=g)
    y = torch.randint(12, (6, max(width, 2)), generator=g)
    y[0] = 0
    lik.check(y, width)
    at = lik.derivatives(f, y)
    curvature = _by_row(hessian(row), f, y)
    torch.testing.assert_close(at.nll, _by_row(row, f, y), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(lik.nll(f, y), at.nll)
    torch.testing.assert_close(at.gradient, _by_row(grad(row), f, y), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(at.hessian.to_dense(), curvature, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(lik.fisher(f, y).to_dense(), curvature, rtol=1e-11, atol=1e-11)
    root = lik.fisher_factor(f, y).to_dense()
    torch.testing.assert_close(root @ root.mT, curvature, rtol=1e-11, atol=1e-11)
    # without targets, one trial each
    totals = y.sum(-1).double()[:, None, None]
    torch.testing.assert_close(totals * lik.fisher(f).to_dense(), curvature, rtol=1e-11, atol=1e-11)


def test_the_mean_of_counts_is_a_probability_and_the_variance_that_of_a_share():
    f = torch.tensor([[0.4], [-2.0]], dtype=DTYPE)
    rows = f.expand(40_000, 2, 1)
    for lik, trials in ((Binomial(), 1), (Binomial(12), 12)):
        drawn = lik.sample(rows, torch.Generator().manual_seed(0))[..., :1] / trials
        error = (lik.variance(f) / 40_000).sqrt()
        assert bool(((drawn.mean(0) - lik.mean(f)).abs() < 5 * error).all())
        torch.testing.assert_close(drawn.var(0), lik.variance(f), rtol=0.05, atol=0)


def test_the_exponential_family_form_of_a_fixed_number_of_trials():
    g = torch.Generator().manual_seed(0)
    f = 3 * torch.randn(5, 2, generator=g, dtype=DTYPE)
    y = torch.randint(8, (5, 2), generator=g)
    lik = Binomial(7)
    t, partition, at = lik.statistic(y, 2), lik.log_partition(f), lik.derivatives(f, y)
    ways = torch.tensor([math.log(math.comb(7, s)) for s in y.flatten().tolist()], dtype=DTYPE).reshape(5, 2).sum(-1)
    torch.testing.assert_close(partition.nll - (t * f).sum(-1) - ways, at.nll)
    torch.testing.assert_close(partition.gradient - t, at.gradient)
    torch.testing.assert_close(partition.hessian.to_dense(), at.hessian.to_dense())
    assert lik.log_partition(f, hessian=False).hessian is None
    assert lik.hessian_bound == 1.75 and Binomial().hessian_bound is None
    assert Binomial().statistic(torch.stack([y[:, 0], 7 - y[:, 0]], -1), 1) is None
    with pytest.raises(NotImplementedError):
        Binomial().log_partition(f[:, :1])
