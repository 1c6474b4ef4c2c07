"""Proportions, robust, ordered and grouped responses: derivatives, tails at 60 digits, SciPy and statsmodels."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
import scipy.stats
import torch
from statsmodels.othermod.betareg import BetaModel
from torch.func import grad, hessian, jacrev, vmap

from raphson import _errors
from raphson.likelihoods import Bernoulli, Beta, Binomial, Categorical, Gaussian, Multinomial, Ordinal, StudentT

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


# tails: 70 digits ---------------------------------------------------------------------------------------------


def _exact(definition, f):
    """Value, gradient and Hessian of a definition in mpmath."""
    with mp.workdps(70):
        point = tuple(mp.mpf(v) for v in f)
        n = len(point)
        unit = np.eye(n, dtype=int)
        value = definition(*point)
        gradient = [float(mp.diff(definition, point, tuple(unit[i]))) for i in range(n)]
        curvature = [[float(mp.diff(definition, point, tuple(unit[i] + unit[j]))) for j in range(n)] for i in range(n)]
        return float(value), torch.tensor(gradient, dtype=DTYPE), torch.tensor(curvature, dtype=DTYPE)


def _check_tail(lik, definition, f, y, rtol=1e-9, floor=0.0):
    value, gradient, curvature = _exact(definition, f)
    at = lik.derivatives(torch.tensor([f], dtype=DTYPE), torch.as_tensor(y).unsqueeze(0))
    assert at.nll.item() == pytest.approx(value, rel=rtol, abs=1e-300)
    scale = float(gradient.abs().max())
    torch.testing.assert_close(at.gradient[0], gradient, rtol=rtol, atol=1e-12 * max(scale, floor))
    scale = float(curvature.abs().max())
    torch.testing.assert_close(at.hessian.to_dense()[0], curvature, rtol=rtol, atol=1e-11 * max(scale, floor))


def _beta_exact(y):
    def definition(logit, log_precision):
        precision = mp.exp(log_precision)
        a, b = precision / (1 + mp.exp(-logit)), precision / (1 + mp.exp(logit))
        log_norm = mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(precision)
        return log_norm - (a - 1) * mp.log(mp.mpf(y)) - (b - 1) * mp.log1p(-mp.mpf(y))

    return definition


@pytest.mark.parametrize(
    ("f", "y"),
    [
        ([0.3, math.log(1e8)], 0.5744),
        ([0.3, math.log(1e8)], 0.57445),
        ([-2.0, math.log(1e12)], 0.1192029),
        ([40.0, 3.0], 0.999),
        ([-40.0, 0.0], 1e-16),
        ([-700.0, 1.0], 0.5),
        ([800.0, 1.0], 1 - 1e-16),
        ([0.0, -30.0], 1e-300),
        ([1.0, 2.0], 5e-324),
    ],
)
def test_beta_in_the_tails(f, y):
    # far out the score is flat: its derivative is a difference of terms of size 1
    _check_tail(Beta(), _beta_exact(y), f, torch.tensor([y], dtype=DTYPE), floor=1.0)


@pytest.mark.parametrize("log_precision", [-40.0, 0.0, math.log(1e8), math.log(1e14)])
@pytest.mark.parametrize("logit", [-30.0, -1.0, 0.0, 700.0])
def test_the_information_of_beta_is_that_of_its_trigamma_form(logit, log_precision):
    with mp.workdps(60):
        precision = mp.exp(mp.mpf(log_precision))
        a, b = precision / (1 + mp.exp(-mp.mpf(logit))), precision / (1 + mp.exp(mp.mpf(logit)))
        # in the shapes the information is diag(psi'(a), psi'(b)) - psi'(a + b)
        slope = a * b / precision
        t_a, t_b, t_sum = mp.psi(1, a), mp.psi(1, b), mp.psi(1, precision)
        cross = slope * (a * t_a - b * t_b)
        expected = [[slope**2 * (t_a + t_b), cross], [cross, a**2 * t_a + b**2 * t_b - precision**2 * t_sum]]
        expected = torch.tensor([[float(v) for v in row] for row in expected], dtype=DTYPE)
    fisher = Beta().fisher(torch.tensor([logit, log_precision], dtype=DTYPE)).to_dense()
    torch.testing.assert_close(fisher, expected, rtol=1e-9, atol=1e-13)


def _t_exact(y, df=None):
    def definition(location, log_scale, log_df=None):
        nu = mp.mpf(df) if df else mp.exp(log_df)
        r = (mp.mpf(y) - location) / mp.exp(log_scale)
        constant = mp.loggamma(nu / 2) - mp.loggamma((nu + 1) / 2) + mp.log(nu * mp.pi) / 2
        return constant + log_scale + (nu + 1) / 2 * mp.log1p(r * r / nu)

    return definition


@pytest.mark.parametrize("df", [0.01, 0.7, 4.0, 31.9, 32.1, 1e3, 1e8])
@pytest.mark.parametrize("r", [0.0, 0.5, 3.0, 1e3, 1e8])
def test_student_t_in_the_tails(r, df):
    y = torch.tensor([0.25 + 2 * r], dtype=DTYPE)
    f = [0.25, math.log(2.0)]
    _check_tail(StudentT(df), _t_exact(y.item(), df), f, y)
    _check_tail(StudentT(), _t_exact(y.item()), [*f, math.log(df)], y)


@pytest.mark.parametrize("df", [1e-3, 1.0, 31.9, 32.1, 500.0, 1e8])
def test_the_information_on_degrees_of_freedom(df):
    with mp.workdps(60):
        nu = mp.mpf(float(torch.tensor(math.log(df), dtype=DTYPE).exp()))
        own = nu**2 / 4 * (mp.psi(1, nu / 2) - mp.psi(1, (nu + 1) / 2))
        own -= nu * (nu + 5) / (2 * (nu + 1) * (nu + 3))
        cross = -2 * nu / ((nu + 1) * (nu + 3))
    dense = StudentT().fisher(torch.tensor([0.0, 0.0, math.log(df)], dtype=DTYPE)).to_dense()
    assert dense[2, 2].item() == pytest.approx(float(own), rel=1e-9)
    assert dense[1, 2].item() == pytest.approx(float(cross), rel=1e-12)
    assert bool((torch.linalg.eigvalsh(dense) > 0).all())


def test_many_degrees_of_freedom_are_the_normal_distribution():
    y = torch.linspace(-3, 3, 7, dtype=DTYPE)
    for log_df in (40.0, 800.0, 1e6):
        f = torch.tensor([0.5, 0.1, log_df], dtype=DTYPE).expand(7, 3)
        at = StudentT().derivatives(f, y)
        expected = -scipy.stats.norm(0.5, math.exp(0.1)).logpdf(y.numpy())
        np.testing.assert_allclose(at.nll.numpy(), expected, rtol=1e-12)
        assert bool(torch.isfinite(at.gradient).all() & torch.isfinite(at.hessian.to_dense()).all())


@pytest.mark.parametrize("logit", [-800.0, -40.0, 0.0, 12.0, 800.0])
@pytest.mark.parametrize(
    ("successes", "failures"), [(0, 0), (0, 1_000_000), (1_000_000, 0), (370_000, 630_000), (5, 70)]
)
def test_binomial_in_the_tails(logit, successes, failures):
    def definition(f):
        value = successes * mp.log1p(mp.exp(-f)) + failures * mp.log1p(mp.exp(f))
        return value - mp.log(mp.binomial(successes + failures, successes))

    _check_tail(Binomial(), definition, [logit], torch.tensor([successes, failures]))
    if successes + failures:
        _check_tail(Binomial(successes + failures), definition, [logit], torch.tensor([successes]))


def test_the_binomial_near_its_maximum_keeps_nine_digits():
    for n in (10, 63, 64, 65, 10_000, 1_000_000):
        s = int(0.37 * n)
        f = math.log(s / (n - s))
        value = Binomial(n).nll(torch.tensor([[f]], dtype=DTYPE), torch.tensor([s])).item()
        with mp.workdps(50):
            p = 1 / (1 + mp.exp(-mp.mpf(f)))
            exact = -mp.log(mp.binomial(n, s)) - s * mp.log(p) - (n - s) * mp.log(1 - p)
        assert value == pytest.approx(float(exact), rel=1e-10)


def test_multinomial_counts_of_a_million():
    counts = [1_000_000, 0, 2_500_000, 17]
    f = [0.1, -800.0, 1.0, -10.0]

    def definition(*f):
        log_total = mp.log(mp.fsum(mp.exp(v) for v in f))
        value = mp.fsum(mp.loggamma(c + 1) for c in counts) - mp.loggamma(sum(counts) + 1)
        return value + mp.fsum(c * (log_total - v) for c, v in zip(counts, f, strict=True))

    _check_tail(Multinomial(), definition, f, torch.tensor(counts))


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


# starts ----------------------------------------------------------------------------------------------------------

_G = torch.Generator().manual_seed(2)
_SATURATED = [
    (Gaussian(2.0), torch.randn(30, 2, generator=_G), 2),
    (Bernoulli(), torch.rand(30, 2, generator=_G), 2),
    (Bernoulli(pos_weight=torch.tensor([3.0, 0.5])), torch.randint(2, (30, 2), generator=_G), 2),
    (Categorical(), torch.randint(3, (30,), generator=_G), 3),
    (
        Categorical(torch.tensor([1.0, 2.0, 0.5]), ignore_index=1),
        torch.tensor([0, 2, 0, 2, 2, 0] * 5).masked_fill(torch.arange(30) % 7 == 0, 1),
        3,
    ),
    (Categorical(label_smoothing=0.3), torch.randint(3, (30,), generator=_G), 3),
    (Categorical(), torch.softmax(torch.randn(30, 4, generator=_G), -1), 4),
    (Multinomial(), torch.randint(9, (30, 4), generator=_G), 4),
]


@pytest.mark.parametrize("weights", [None, torch.linspace(0.1, 2.0, 30, dtype=DTYPE)], ids=["plain", "weighted"])
@pytest.mark.parametrize(("lik", "y", "c"), _SATURATED, ids=lambda v: type(v).__name__)
def test_a_start_in_closed_form_is_the_optimum(lik, y, c, weights):
    start = lik.start(y, c, weights)
    g = lik.gradient(start.expand(30, c), y)
    total = g.sum(0) if weights is None else weights @ g
    if isinstance(lik, Categorical) and lik.ignore_index == 1:
        total = total[[0, 2]]  # the ignored class has no rows: kept off minus infinity
    assert float(total.abs().max()) < (2.0 if isinstance(lik, Categorical) and lik.ignore_index == 1 else 1e-5)


@pytest.mark.parametrize("weights", [None, torch.linspace(0.1, 2.0, 400, dtype=DTYPE)], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    ("lik", "f"),
    [
        (Beta(), [0.4, 2.0, -1.0, 3.0]),
        (StudentT(5.0), [3.0, 0.5, -2.0, 1.0]),
        (StudentT(), [3.0, 0.5, 1.6]),
        (Ordinal(4, "probit"), [-1.0, 0.2, 0.9]),
        (Ordinal(4, "cloglog"), [-2.0, -0.2, 0.9]),
        (Binomial(9), [0.3]),
        (Binomial(), [0.3]),
    ],
)
def test_a_start_is_near_the_parameters_of_its_targets(lik, f, weights):
    f = torch.tensor(f, dtype=DTYPE)
    y = lik.sample(f.expand(400, -1), torch.Generator().manual_seed(4))
    start = lik.start(y, len(f), weights)
    # degrees of freedom apart, on which 400 targets say little
    close = (start - f).abs()[torch.tensor([name != "log_df" for name in lik.output_names(len(f))])]
    assert bool((close < 0.3).all())
    lik.check_outputs(start)


@pytest.mark.parametrize(
    ("lik", "y", "c"),
    [
        (Beta(), torch.full((5, 2), 0.3), 4),
        (Beta(), torch.full((5,), 1e-12), 2),
        (StudentT(), torch.full((5,), 7.0), 3),
        (StudentT(3.0), torch.tensor([0.0, 0.0, 0.0, 9.0]), 2),
        (Ordinal(5), torch.full((6,), 3), 4),
        (Ordinal(3, "cloglog"), torch.tensor([2]), 2),
        (Binomial(), torch.tensor([[0, 9], [0, 3]]), 1),
        (Binomial(4), torch.tensor([4, 4]), 1),
        (Multinomial(), torch.tensor([[0, 0, 0], [5, 0, 0]]), 3),
        (Multinomial(), torch.zeros(2, 3), 3),
        (Categorical(), torch.tensor([-100, -100]), 3),
        (Categorical(), torch.tensor([1, 1]), 3),
        (Bernoulli(), torch.ones(4), 1),
        (Gaussian(), torch.ones(4), 1),
    ],
)
def test_a_start_is_in_the_domain_for_constant_targets(lik, y, c):
    start = lik.start(y, c)
    assert start.shape == (c,) and start.dtype == DTYPE
    lik.check_outputs(start)
    assert bool(torch.isfinite(lik.nll(start.expand(len(y), c), y)).all())


# what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lik", "y", "c", "words"),
    [
        (Beta(), [0.2, 0.0], 2, r"row 1.* is 0, .* strictly between 0 and 1 .*move all n targets inward"),
        (Beta(), [[0.2, 0.3], [0.4, 1.5]], 4, r"row 1, position 1 is 1.5, .* strictly between 0 and 1\. "),
        (Beta(), [0.2], 3, r"3 outputs, but 2 are needed per response"),
        (StudentT(), [1.0, math.nan], 3, r"row 1.* is nan, .* finite"),
        (StudentT(), [1.0], 2, r"2 outputs, but 3 are needed per response"),
        (Ordinal(3), [0, 2, 3], 2, r"row 2 is 3, .* an integer from 0 to 2"),
        (Ordinal(3), [0, 0.5], 2, r"row 1 is 0.5, .* an integer from 0 to 2"),
        (Ordinal(3), [0, 1], 3, r"3 outputs, but Ordinal\(3\) needs 2"),
        (Binomial(), [[2, 1], [3, -1]], 1, r"row 1, position 1 is -1, .* failures in 1"),
        (Binomial(), [3, 4], 2, r"successes and failures: give those, or Binomial\(trials=n\)"),
        (Binomial(), [3, 4, 5], 1, r"shape \(3,\) for 1 outputs"),
        (Binomial(4), [4, 5], 1, r"row 1.* is 5, .* from 0 to 4"),
        (Multinomial(), [[1, 2], [0.5, 1]], 2, r"row 1.* is 0.5, .* a whole number, 0 or more"),
        (Multinomial(), [1, 0], 3, r"use Categorical for one label"),
    ],
)
def test_check_names_the_first_bad_row(lik, y, c, words):
    with pytest.raises(_errors.InputError, match=words):
        lik.check(torch.tensor(y), c)


@pytest.mark.parametrize(
    ("lik", "f", "y"),
    [
        (Ordinal(3), [0.0, 1.0], 3),
        (Ordinal(3), [0.0, math.nan], 1),
        (Binomial(4), [0.3], [5]),
        (Binomial(), [0.3], [2, 0.5]),
        (Multinomial(), [0.3, 0.1], [-1, 3]),
        (Beta(), [math.nan, 0.0], [0.5]),
        (Beta(), [0.0, math.inf], [0.5]),
        (StudentT(), [math.inf, 0.0, 1.0], [0.5]),
    ],
)
def test_the_impossible_has_infinite_loss(lik, f, y):
    assert lik.nll(torch.tensor([f], dtype=DTYPE), torch.tensor([y])).item() == math.inf


@pytest.mark.parametrize(
    "make",
    [
        lambda: StudentT(0.0),
        lambda: StudentT(math.nan),
        lambda: Ordinal(1),
        lambda: Ordinal(3, "cauchit"),
        lambda: Binomial(0),
        lambda: Binomial(2.5),
        lambda: Binomial().nll(torch.zeros(3, 1), torch.zeros(3)),
        lambda: Multinomial().nll(torch.zeros(3, 2), torch.zeros(3)),
        lambda: Ordinal(3).nll(torch.zeros(3, 2), torch.zeros(2)),
        lambda: Ordinal(3).nll(torch.zeros(3, 3), torch.zeros(3)),
        lambda: Beta().nll(torch.zeros(3, 4), torch.zeros(3)),
        lambda: StudentT().nll(torch.zeros(3, 4), torch.zeros(3)),
    ],
)
def test_what_cannot_be_used_is_refused(make):
    with pytest.raises(_errors.InputError):
        make()


def test_names_of_outputs():
    assert Ordinal(4).output_names(3) == ("0|1", "1|2", "2|3")
    assert Beta().output_names(2) == ("logit_mean", "log_precision")
    assert StudentT().output_names(6)[3:] == ("location[1]", "log_scale[1]", "log_df[1]")
    assert Ordinal(4).n_outputs(torch.tensor([0, 1])) == 3
