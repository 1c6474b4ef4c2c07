"""Gaussians in several parameters: against torch.func, SymPy, mpmath, SciPy and torch.distributions."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import sympy
import torch
from torch.func import hessian, jacrev, vmap

from raphson._errors import InputError
from raphson.likelihoods import (
    HeteroscedasticGaussian,
    MultivariateGaussian,
    average_hessian,
    definiteness_at,
)

from .family import check_family, check_sampling
from .gaussian_cases import DTYPE, HETEROSCEDASTIC, MULTIVARIATE, NAMES, TO_MOMENTS

MU, S, THETA, Y, R = sympy.symbols("mu s theta y r", real=True)
ETA = sympy.symbols("eta", real=True)


# (outputs, mean, scale) as expressions in the outputs, and the second output of a scale
SYMBOLIC = {
    "mean_scale": (MU, THETA, S),
    "mean_log_scale": (MU, sympy.exp(THETA), sympy.log(S)),
    "mean_variance": (MU, sympy.sqrt(THETA), S**2),
    "mean_log_variance": (MU, sympy.exp(THETA / 2), 2 * sympy.log(S)),
    "mean_precision": (MU, 1 / sympy.sqrt(THETA), S**-2),
    "mean_softplus_scale": (MU, sympy.log(1 + sympy.exp(THETA)), sympy.log(sympy.exp(S) - 1)),
    "natural": (-ETA / (2 * THETA), sympy.sqrt(-1 / (2 * THETA)), -1 / (2 * S**2)),
}


FAMILIES = [*HETEROSCEDASTIC, MULTIVARIATE]


@pytest.mark.parametrize("leading", [(3,), (2, 2), ()], ids=str)
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_contract(family, leading, m):
    check_family(family, leading, m)
    f, y = family.draw(leading, m, 4)
    if m == 1:
        torch.testing.assert_close(family.likelihood.nll(f, y[..., 0]), family.likelihood.nll(f, y))


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_sampling(family, m):
    check_sampling(family, m)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_closed_forms_are_differentiable_and_vectorizable(family):
    f, y = family.draw((4,), 2, 9)
    lik = family.likelihood
    expected = lik.hessian(f, y).to_dense()
    torch.testing.assert_close(vmap(jacrev(lik.gradient))(f, y), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(vmap(hessian(lik.nll))(f, y), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(vmap(lik.gradient)(f, y), lik.gradient(f, y))


def symbolic(name):
    """First output, second output, and the negative log-likelihood of one response."""
    mean, scale, _ = SYMBOLIC[name]
    first = ETA if name == "natural" else MU
    nll = sympy.log(scale) + (Y - mean) ** 2 / (2 * scale**2) + sympy.log(2 * sympy.pi) / 2
    return first, nll


def at_moments(name, expression):
    """An expression in outputs and target as one in mean, scale and standardized residual."""
    s = sympy.Symbol("s", positive=True)
    second = SYMBOLIC[name][2].subs(S, s)
    outputs = {THETA: second, Y: MU + R * s} | ({ETA: MU / s**2} if name == "natural" else {})
    return sympy.simplify(expression.subs(outputs, simultaneous=True)), s


@pytest.mark.parametrize("name", NAMES)
def test_definiteness_is_what_sympy_derives(name):
    first, nll = symbolic(name)
    matrix = sympy.hessian(nll, (first, THETA))
    entries = [at_moments(name, entry) for entry in (matrix[0, 0], matrix[0, 1], matrix[1, 1])]
    s = entries[0][1]
    a, b, c = (sympy.expand(entry) for entry, _ in entries)
    known = HeteroscedasticGaussian(name).definiteness
    claimed = {"s": s, "r": R}
    assert sympy.simplify(a * c - b**2 - sympy.sympify(known.determinant, claimed)) == 0
    # E r = 0 and E r^2 = 1 under the model
    ea, eb, ec = (entry.coeff(R, 0) + entry.coeff(R, 2) for entry in (a, b, c))
    assert max(sympy.degree(entry, R) for entry in (a, b, c)) <= 2
    assert sympy.simplify(ea * ec - eb**2 - sympy.sympify(known.expected_determinant, claimed)) == 0
    # the signs, on a grid of targets and scales
    where = sympy.sympify(known.positive_where, claimed)
    found = set()
    for rv in (0, 0.1, 0.7, 0.71, 1, -3, 50):
        for sv in (1e-3, 0.4, 1, 7, 300):
            point = {R: rv, s: sv, MU: 1.3}
            det, top, bottom = (float(e.subs(point)) for e in (sympy.sympify(known.determinant, claimed), a, c))
            found.add("indefinite" if det < 0 else "singular" if det == 0 else "positive definite")
            assert (det > 0 and top > 0) == bool(where.subs(point))
            assert det <= 0 or bottom > 0
            assert float(sympy.sympify(known.expected_determinant, claimed).subs(point)) > 0
    assert set(known.observed.split(" or ")) == found
    assert HeteroscedasticGaussian(name).concave == (found == {"positive definite"})


def mpmath_derivatives(name, f, y):
    """Value, gradient and Hessian of one response by SymPy's formulas at 1000 digits."""
    first, nll = symbolic(name)
    outputs = (first, THETA)
    wanted = [nll, *(sympy.diff(nll, a) for a in outputs), *(sympy.diff(nll, a, b) for a in outputs for b in outputs)]
    with mpmath.workdps(1000):
        point = [mpmath.mpf(v) for v in (*f, y)]
        values = [sympy.lambdify((*outputs, Y), e, "mpmath")(*point) for e in wanted]
        return float(values[0]), np.array(values[1:3], float), np.array(values[3:], float).reshape(2, 2)


POSITIVE_SECOND = [((0.5, 1.0), 1000.25), ((-3e5, 1e-6), -3e5), ((2.0, 1e8), 1e3), ((0.0, 1e-8), 1e-3)]
LOG_SECOND = [((0.5, 0.0), 1000.25), ((1e6, -30.0), 1e6), ((0.0, 40.0), 1e3), ((0.0, -300.0), 1e-3)]
SOFTPLUS = [
    *[((0.5, 0.54), 1000.25), ((0.0, -30.0), 1e-13), ((0.0, -3.0), 0.05), ((0.0, -10.0), 1e-5)],
    *[((0.0, -0.45), 0.3), ((0.0, -0.4), 0.3), ((0.0, 25.0), 3.0), ((0.0, 900.0), 1e6), ((1.0, -500.0), 1.0)],
]


NATURAL = [((0.5, -0.5), 1000.25), ((1e6, -0.5), 1e6 + 1), ((1e-4, -1e-8), 1e6), ((1e3, -1e8), 0.0)]
TAILS = [
    *((name, *at) for name in ("mean_scale", "mean_variance", "mean_precision") for at in POSITIVE_SECOND),
    *((name, *at) for name in ("mean_log_scale", "mean_log_variance") for at in LOG_SECOND),
    *(("mean_softplus_scale", *at) for at in SOFTPLUS),
    *(("natural", *at) for at in NATURAL),
]


@pytest.mark.parametrize(("name", "f", "y"), TAILS)
def test_tails_keep_relative_accuracy(name, f, y):
    value, gradient, curvature = mpmath_derivatives(name, f, y)
    at = HeteroscedasticGaussian(name).derivatives(torch.tensor(f, dtype=DTYPE), torch.tensor(y, dtype=DTYPE))
    np.testing.assert_allclose(at.nll.item(), value, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(at.gradient.numpy(), gradient, rtol=1e-12)
    assert at.hessian is not None
    np.testing.assert_allclose(at.hessian.to_dense().numpy(), curvature, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_nll_is_scipys(name):
    f, y = HETEROSCEDASTIC[NAMES.index(name)].draw((5,), 2, 2)
    mean, scale = (x.numpy() for x in TO_MOMENTS[name](f[:, 0::2], f[:, 1::2]))
    lik = HeteroscedasticGaussian(name)
    expected = -scipy.stats.norm(mean, scale).logpdf(y.numpy()).sum(-1)
    np.testing.assert_allclose(lik.nll(f, y).numpy(), expected, rtol=1e-13)
    np.testing.assert_allclose(lik.mean(f).numpy(), mean, rtol=1e-14)
    np.testing.assert_allclose(lik.variance(f).numpy(), scale**2, rtol=1e-13)


@pytest.mark.parametrize("name", ["mean_scale", "mean_variance", "mean_precision", "natural"])
def test_outside_the_domain(name):
    lik = HeteroscedasticGaussian(name)
    inside = -1.0 if name == "natural" else 1.0
    f = torch.tensor(
        [[0.0, inside], [1.0, -inside], [1.0, 0.0], [1.0, math.nan], [1.0, math.inf * inside]], dtype=DTYPE
    )
    for y in (1.0, 0.3):
        nll = lik.nll(f, torch.full((5,), y, dtype=DTYPE))
        assert torch.isfinite(nll[0]) and bool((nll[1:] == math.inf).all())
    with pytest.raises(
        InputError, match=rf"'{lik.parameters[1]}' in row 1 is .*, but it must be a .*itive|ative finite"
    ):
        lik.check_outputs(f)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_no_output_gives_nan(family):
    extreme = torch.tensor([-math.inf, -1e308, -800.0, -1e-320, 0.0, 1e-320, 800.0, 1e308, math.inf, math.nan])
    pairs = torch.cartesian_prod(extreme.double(), extreme.double())
    f = pairs if family is not MULTIVARIATE else torch.cat([pairs, pairs.flip(-1), pairs[:, :1]], -1)
    for y in (0.0, 1.0, -1e200):
        m = 1 if family is not MULTIVARIATE else 2
        nll = family.likelihood.nll(f, torch.full((len(f), m), y, dtype=DTYPE))
        assert not bool(nll.isnan().any()) and not bool((nll == -math.inf).any())
        assert bool((nll[~torch.isfinite(f).all(-1)] == math.inf).all())


@pytest.mark.parametrize("name", NAMES)
def test_start_is_the_optimum_of_all_targets_alike(name):
    lik = HeteroscedasticGaussian(name)
    y = torch.tensor([[1.0, -300.0], [2.0, 500.0], [6.0, 77.0]], dtype=DTYPE)
    w = torch.tensor([1.0, 3.0, 0.5], dtype=DTYPE)
    start = lik.start(y, 4, w)
    slope = w @ lik.gradient(start.expand(3, -1), y)
    size = w @ lik.gradient(start.expand(3, -1), y).abs()
    assert bool((slope.abs() <= 1e-12 * size).all())
    for constant in (torch.zeros(3, 1), torch.full((3, 1), 0.1), torch.full((1,), 7.0)):
        f = lik.start(constant, 2)
        lik.check_outputs(f)
        assert torch.isfinite(lik.nll(f.expand(len(constant), -1), constant.double())).all()


def test_natural_is_an_exponential_family():
    lik = HeteroscedasticGaussian("natural")
    f, y = HETEROSCEDASTIC[-1].draw((6,), 2, 3)
    t = lik.statistic(y, 4)
    assert t is not None
    torch.testing.assert_close(t[:, [0, 2]], y)
    torch.testing.assert_close(t[:, [1, 3]], y.square())
    at = lik.log_partition(f)
    torch.testing.assert_close(at.nll - (t * f).sum(-1), lik.nll(f, y))
    torch.testing.assert_close(at.gradient - t, lik.gradient(f, y))
    assert at.hessian is not None
    torch.testing.assert_close(at.hessian.to_dense(), lik.hessian(f, y).to_dense())
    assert lik.log_partition(f, hessian=False).hessian is None
    assert lik.statistic(y + 1e4, 4) is None
    assert HeteroscedasticGaussian().statistic(y, 4) is None
    with pytest.raises(NotImplementedError, match="mean_log_scale"):
        HeteroscedasticGaussian().log_partition(f)


@pytest.mark.parametrize("name", NAMES)
def test_information_of_a_group_is_the_published_one(name):
    # saturated: at the group's mean and standard deviation, the information about (mu, s) is diag(n/s^2, 2n/s^2)
    y = torch.tensor([1.0, 2.0, 6.0, -3.0, 0.5], dtype=DTYPE)
    n, s = len(y), y.std(correction=0)
    lik = HeteroscedasticGaussian(name)
    f = lik.start(y, 2)
    target = y.unsqueeze(-1)

    def average(f):
        return lik.nll(f.expand(n, -1), target).mean()

    observed = average_hessian(lik, f.expand(n, -1), y)
    torch.testing.assert_close(observed.to_dense(), hessian(average)(f))
    # the mean residual is 0 and the mean square 1, so at the optimum observed and expected agree
    torch.testing.assert_close(average_hessian(lik, f.expand(n, -1), y, "expected").to_dense(), observed.to_dense())
    outputs = jacrev(lambda moments: outputs_at(name, moments))(torch.stack([y.mean(), s]))
    information = n * outputs.mT @ observed.to_dense() @ outputs
    expected = torch.diag(torch.stack([n / s**2, 2 * n / s**2]))
    torch.testing.assert_close(information, expected, rtol=1e-12, atol=1e-12)


def outputs_at(name, moments):
    mean, s = moments
    second = {
        "mean_scale": s,
        "mean_log_scale": s.log(),
        "mean_variance": s**2,
        "mean_log_variance": 2 * s.log(),
        "mean_precision": s**-2,
        "mean_softplus_scale": torch.log(torch.exp(s) - 1),
        "natural": -0.5 / s**2,
    }[name]
    return torch.stack([mean / s**2 if name == "natural" else mean, second])


def test_names_and_numbers_of_outputs():
    two = HeteroscedasticGaussian()
    assert two.output_names(2) == ("mean", "log_scale")
    assert two.output_names(4) == ("mean[0]", "log_scale[0]", "mean[1]", "log_scale[1]")
    lik = MultivariateGaussian(2)
    assert lik.parameters == lik.output_names(5) == ("mean[0]", "mean[1]", "log_diag[0]", "log_diag[1]", "lower[1,0]")
    assert MultivariateGaussian().n_outputs(torch.zeros(4, 3)) == 9
    assert MultivariateGaussian().output_names(9)[-3:] == ("lower[1,0]", "lower[2,0]", "lower[2,1]")
    assert [MultivariateGaussian().n_outputs(torch.zeros(2, m)) for m in (1, 2, 3, 4)] == [2, 5, 9, 14]


def test_outputs_without_a_hessian_are_refused():
    lik, y = HeteroscedasticGaussian("mean_scale"), torch.zeros(3)
    outside = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, math.nan]])
    for call in (average_hessian, definiteness_at):
        with pytest.raises(InputError, match="'scale' in row 2 is nan"):
            call(lik, outside, y)
    tiny = torch.tensor([[0.0, 1.0], [0.0, 1e-30], [0.0, 1.0]])
    with pytest.raises(InputError, match="observed output Hessian in row 1 is not finite"):
        definiteness_at(lik, tiny, y)


def test_targets_of_any_element_type():
    f = torch.tensor([[0.5, 0.2], [1.0, -0.3]])
    for lik in (HeteroscedasticGaussian(), MultivariateGaussian()):
        whole = lik.derivatives(f, torch.tensor([3, -1]))
        real = lik.derivatives(f, torch.tensor([3.0, -1.0], dtype=DTYPE))
        assert torch.equal(whole.nll, real.nll) and torch.equal(whole.gradient, real.gradient)
        assert whole.gradient.dtype == torch.float32


def test_refusals():
    with pytest.raises(InputError, match="'log_sigma', but it must be one of mean_scale"):
        HeteroscedasticGaussian("log_sigma")
    with pytest.raises(InputError, match="row 1, position 1 is nan"):
        HeteroscedasticGaussian().check(torch.tensor([[0.0, 1.0], [0.0, math.nan]]), 4)
    for call in (lambda lik: lik.check(torch.zeros(2, 1), 3), lambda lik: lik.nll(torch.zeros(2, 3), torch.zeros(2))):
        with pytest.raises(InputError, match="3 outputs, but a Gaussian with mean and scale needs two per response"):
            call(HeteroscedasticGaussian())
    with pytest.raises(InputError, match="shape"):
        HeteroscedasticGaussian().nll(torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(InputError, match="row 0, position 1 is inf"):
        MultivariateGaussian().check(torch.tensor([[0.0, math.inf]]), 5)
    with pytest.raises(InputError, match=r"4 outputs, .* of M responses needs"):
        MultivariateGaussian().nll(torch.zeros(1, 4), torch.zeros(1, 2))
    with pytest.raises(InputError, match=r"9 outputs, .* of M = 2 responses needs M \+ M \(M \+ 1\) / 2 = 5"):
        MultivariateGaussian(2).check(torch.zeros(1, 3), 9)
    with pytest.raises(InputError, match="n_responses is 0"):
        MultivariateGaussian(0)
    with pytest.raises(InputError, match=r"'log_diag\[1\]' in row 1 is nan"):
        f = torch.zeros(2, 5)
        f[1, 3] = math.nan
        MultivariateGaussian().check_outputs(f)
