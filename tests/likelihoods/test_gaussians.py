"""Gaussians in several parameters: against torch.func, SymPy, mpmath, SciPy and torch.distributions."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import sympy
import torch
from torch.func import grad, hessian, jacrev, vmap

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

from .family import Family, check_family, check_sampling, normal

DTYPE = torch.float64

# outputs of one response to mean and scale, in the plainest terms
TO_MOMENTS = {
    "mean_scale": lambda a, b: (a, b),
    "mean_log_scale": lambda a, b: (a, torch.exp(b)),
    "mean_variance": lambda a, b: (a, torch.sqrt(b)),
    "mean_log_variance": lambda a, b: (a, torch.sqrt(torch.exp(b))),
    "mean_precision": lambda a, b: (a, 1 / torch.sqrt(b)),
    "mean_softplus_scale": lambda a, b: (a, torch.log(1 + torch.exp(b))),
    "natural": lambda a, b: (-a / (2 * b), torch.sqrt(-1 / (2 * b))),
}
NAMES = list(TO_MOMENTS)

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


def row_of(name):
    def row(f, y):
        mean, scale = TO_MOMENTS[name](f[0::2], f[1::2])
        return -torch.distributions.Normal(mean, scale, validate_args=False).log_prob(y).sum()

    return row


def outputs_of(name):
    def draw(leading, m, g):
        first, second = normal(leading, m, g), normal(leading, m, g)
        if name in {"mean_scale", "mean_variance", "mean_precision"}:
            second = torch.exp(0.5 * second)
        elif name == "natural":
            second = -torch.exp(0.5 * second)
        return torch.stack([first, second], -1).flatten(-2)

    return draw


HETEROSCEDASTIC = [
    Family(name, HeteroscedasticGaussian(name), row_of(name), outputs_of(name), lambda le, m, g: 2 * normal(le, m, g))
    for name in NAMES
]


def factor_of(f, m):
    """L of the precision, entry by entry."""
    rows = []
    rest = iter(f[2 * m :])
    for i in range(m):
        below = [next(rest) for _ in range(i)]
        rows.append(torch.stack([*below, torch.exp(f[m + i]), *[torch.zeros_like(f[0])] * (m - i - 1)]))
    return torch.stack(rows)


def determinant(a):
    """By cofactors: torch.logdet has wrong second derivatives under vmap."""
    if len(a) == 1:
        return a[0, 0]
    minors = (torch.cat([a[1:, :j], a[1:, j + 1 :]], 1) for j in range(len(a)))
    return sum((-1) ** j * a[0, j] * determinant(minor) for j, minor in enumerate(minors))


def multivariate_row(f, y):
    m = y.shape[-1]
    lower = factor_of(f, m)
    precision = lower @ lower.mT
    d = y - f[:m]
    return 0.5 * (d @ precision @ d - torch.log(determinant(precision)) + m * math.log(2 * math.pi))


MULTIVARIATE = Family(
    "multivariate",
    MultivariateGaussian(),
    multivariate_row,
    lambda leading, m, g: 0.7 * normal(leading, m + m * (m + 1) // 2, g),
    lambda leading, m, g: 2 * normal(leading, m, g),
)

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


def test_multivariate_of_three_and_four():
    check_family(MULTIVARIATE, (3,), 3)
    check_family(MULTIVARIATE, (2,), 4)
    check_sampling(MULTIVARIATE, 3)


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


def test_multivariate_start_is_the_optimum_of_all_targets_alike():
    g = torch.Generator().manual_seed(2)
    y = torch.randn(8, 3, dtype=DTYPE, generator=g) @ torch.randn(3, 3, dtype=DTYPE, generator=g) + 5
    w = torch.rand(8, dtype=DTYPE, generator=g)
    lik = MultivariateGaussian()
    start = lik.start(y, 9, w)
    torch.testing.assert_close(w @ lik.gradient(start.expand(8, -1), y), torch.zeros(9, dtype=DTYPE))
    for degenerate in (torch.ones(4, 3), y[:2], torch.cat([y[:, :1]] * 3, -1)):
        f = lik.start(degenerate, 9)
        assert torch.isfinite(lik.nll(f.expand(len(degenerate), -1), degenerate.double())).all()


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


def test_multivariate_is_scipys_and_torchs():
    f, y = MULTIVARIATE.draw((6,), 3, 8)
    lik = MultivariateGaussian(3)
    precision = torch.stack([factor_of(row, 3) @ factor_of(row, 3).mT for row in f])
    covariance = torch.linalg.inv(precision)
    expected = [
        -scipy.stats.multivariate_normal(m.numpy(), v.numpy()).logpdf(t.numpy())
        for m, v, t in zip(f[:, :3], covariance, y, strict=True)
    ]
    np.testing.assert_allclose(lik.nll(f, y).numpy(), expected, rtol=1e-10)
    torchs = torch.distributions.MultivariateNormal(f[:, :3], precision_matrix=precision)
    torch.testing.assert_close(lik.nll(f, y), -torchs.log_prob(y))
    torch.testing.assert_close(lik.mean(f), f[:, :3])
    torch.testing.assert_close(lik.covariance(f), covariance)
    torch.testing.assert_close(lik.variance(f), torchs.variance)
    # the Fisher information is the curvature of the Kullback-Leibler divergence

    def divergence(g, f):
        p, q = (torch.distributions.MultivariateNormal(
            v[:3], precision_matrix=factor_of(v, 3) @ factor_of(v, 3).mT, validate_args=False) for v in (f, g)
        )  # fmt: skip
        return torch.distributions.kl_divergence(p, q)

    curved = torch.stack([hessian(divergence)(row, row) for row in f])
    torch.testing.assert_close(lik.fisher(f).to_dense(), curved, rtol=1e-9, atol=1e-9)


def test_multivariate_factor_is_triangular_up_to_order():
    f, _ = MULTIVARIATE.draw((2,), 3, 8)
    root = MultivariateGaussian().fisher_factor(f).to_dense()
    _, by_blocks = torch.linalg.slogdet(root)
    torch.testing.assert_close(2 * by_blocks, torch.linalg.slogdet(MultivariateGaussian().fisher(f).to_dense())[1])
    assert root.shape == (2, 9, 9)


def test_multivariate_tail_keeps_relative_accuracy():
    f = torch.tensor([1.0, -2.0, 7.0, -9.0, 30.0], dtype=DTYPE)
    y = torch.tensor([1e3, -1e5], dtype=DTYPE)
    a, b, c, d, e = (mpmath.mpf(v.item()) for v in f)
    with mpmath.workdps(60):

        def nll(a, b, c, d, e):
            u, v = 1000 - a, -100000 - b
            return ((mpmath.exp(c) * u + e * v) ** 2 + (mpmath.exp(d) * v) ** 2) / 2 - c - d + mpmath.log(2 * mpmath.pi)

        value = float(nll(a, b, c, d, e))
        order = [tuple(int(i == k) for i in range(5)) for k in range(5)]
        slopes = [float(mpmath.diff(nll, (a, b, c, d, e), n)) for n in order]
    assert MultivariateGaussian().nll(f, y).item() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(MultivariateGaussian().gradient(f, y).numpy(), slopes, rtol=1e-12)


def test_multivariate_of_one_is_the_heteroscedastic_one():
    f, y = MULTIVARIATE.draw((5,), 1, 1)
    one, two = MultivariateGaussian(1), HeteroscedasticGaussian("mean_log_scale")
    flip = torch.tensor([1.0, -1.0], dtype=DTYPE)
    torch.testing.assert_close(one.nll(f, y), two.nll(f * flip, y))
    torch.testing.assert_close(one.gradient(f, y), two.gradient(f * flip, y) * flip)
    torch.testing.assert_close(one.fisher(f).to_dense(), two.fisher(f * flip).to_dense())


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


def test_averages_hold_no_graph():
    f = torch.zeros(3, 2, requires_grad=True)
    assert not average_hessian(HeteroscedasticGaussian(), f, torch.ones(3)).to_dense().requires_grad


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
