"""Links: every map against its plain definition, and the chain rule on likelihoods of every structure."""

from __future__ import annotations

import copy
import pickle

import mpmath
import pytest
import torch
from torch.func import grad, hessian, vmap

import raphson as rp
from raphson import _errors
from raphson.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Link,
    Linked,
    MultivariateGaussian,
    Poisson,
    ScaledLikelihood,
)
from raphson.likelihoods._links import LINKS
from raphson.linalg import Dense, Diagonal, DiagonalPlusLowRank, EqualBlocks, EqualBlocksMatrix, Scaled

from .family import DTYPE, Family, check_family, check_sampling, normal

# each map in the plainest terms, and where to try it
PLAIN = {
    "identity": (lambda f: f + 0, (-3.0, 3.0)),
    "log": (torch.log, (0.1, 5.0)),
    "softplus": (lambda f: torch.log(1 + torch.exp(f)), (-3.0, 3.0)),
    "exp": (torch.exp, (-3.0, 3.0)),
    "sigmoid": (lambda f: 1 / (1 + torch.exp(-f)), (-3.0, 3.0)),
    "logit": (lambda f: torch.log(f / (1 - f)), (0.05, 0.95)),
    "square": (lambda f: f * f, (0.2, 3.0)),
    "inverse": (lambda f: 1 / f, (0.2, 3.0)),
    "normal_cdf": (lambda f: 0.5 * (1 + torch.erf(f / 2**0.5)), (-2.0, 2.0)),
    "cloglog_inverse": (lambda f: 1 - torch.exp(-torch.exp(f)), (-2.0, 1.0)),
}
# those whose value is positive, so that it can be a scale; the log needs an output above one
POSITIVE = [name for name in PLAIN if name not in {"identity", "log", "logit"}]


def spread(low: float, high: float, shape: tuple[int, ...], g: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, dtype=DTYPE, generator=g)


def test_every_link_has_a_plain_definition():
    assert set(LINKS) == set(PLAIN)


@pytest.mark.parametrize("name", PLAIN)
def test_a_link_and_its_derivatives(name):
    plain, (low, high) = PLAIN[name]
    link, f = LINKS[name], torch.linspace(low, high, 9, dtype=DTYPE)
    at = link.at(f)
    torch.testing.assert_close(at.value, plain(f), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(at.first, vmap(grad(plain))(f), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(at.second, vmap(grad(grad(plain)))(f), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(link.function(f), at.value, rtol=0, atol=0)
    torch.testing.assert_close(link.inverse(at.value), f, rtol=1e-12, atol=1e-13)
    assert bool(link.domain.contains(f).all())
    assert bool(link.domain.contains(torch.tensor(link.neutral)))
    assert at.value.dtype == DTYPE
    assert link.at(f.float()).second.dtype == torch.float32
    automatic = Link(name, plain, link.inverse, link.inverse_name).at(f)
    torch.testing.assert_close(automatic.first, at.first, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(automatic.second, at.second, rtol=1e-10, atol=1e-11)
    assert pickle.loads(pickle.dumps(link)).name == copy.copy(link).name == name


@pytest.mark.parametrize("f", [-700.0, -40.0, -1e-9, 0.0, 19.9, 20.1, 40.0, 800.0])
def test_softplus_and_its_derivatives_keep_their_digits(f):
    with mpmath.workdps(400):
        e = mpmath.exp(mpmath.mpf(f))
        expected = [float(x) for x in (mpmath.log1p(e), e / (1 + e), e / (1 + e) ** 2)]
    at = LINKS["softplus"].at(torch.tensor(f, dtype=DTYPE))
    for actual, value in zip(at, expected, strict=True):
        assert actual.item() == pytest.approx(value, rel=1e-13, abs=1e-320)


@pytest.mark.parametrize("f", [-700.0, -30.0, -1.0, 3.0, 6.0, 800.0])
def test_the_complementary_log_log_map_keeps_its_digits(f):
    with mpmath.workdps(400):
        e = mpmath.exp(mpmath.mpf(f))
        first = e * mpmath.exp(-e)
        expected = [float(x) for x in (-mpmath.expm1(-e), first, first * (1 - e))]
    at = LINKS["cloglog_inverse"].at(torch.tensor(f, dtype=DTYPE))
    for actual, value in zip(at, expected, strict=True):
        assert actual.item() == pytest.approx(value, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("theta", [1e-300, 1e-9, 0.5, 19.0, 50.0, 1e8])
def test_the_inverse_of_softplus_keeps_its_digits(theta):
    with mpmath.workdps(400):
        expected = float(mpmath.log(mpmath.expm1(mpmath.mpf(theta))))
    assert LINKS["softplus"].inverse(torch.tensor(theta, dtype=DTYPE)).item() == pytest.approx(expected, rel=1e-13)


def _mean(name: str) -> Family:
    """The Gaussian whose mean is a map of the output."""
    plain, (low, high) = PLAIN[name]
    return Family(
        f"gaussian_{name}",
        Linked(Gaussian(0.7), name),
        lambda f, y: -torch.distributions.Normal(plain(f), torch.tensor(0.7, dtype=DTYPE)).log_prob(y).sum(),
        lambda leading, m, g: spread(low, high, (*leading, m), g),
        normal,
    )


def _scale(name: str) -> Family:
    """The Gaussian whose mean is the output and whose scale is a map of another."""
    plain, (low, high) = PLAIN[name]

    def row(f, y):
        mean, scale = f.reshape(-1, 2).unbind(-1)
        return -torch.distributions.Normal(mean, plain(scale), validate_args=False).log_prob(y).sum()

    def outputs(leading, m, g):
        f = torch.stack([normal(leading, m, g), spread(low, high, (*leading, m), g)], -1)
        return f.flatten(-2)

    lik = Linked(HeteroscedasticGaussian("mean_scale"), ("identity", name))
    return Family(f"scale_{name}", lik, row, outputs, normal)


def _labels(leading, m, g):
    return torch.randint(2, (*leading, m), generator=g).to(DTYPE)


def _bernoulli(name: str, links: tuple[str, ...], probability, low: float, high: float) -> Family:
    lik = Bernoulli()
    for link in links:
        lik = Linked(lik, link)

    def row(f, y):
        p = probability(f)
        return -(y * p.log() + (1 - y) * (1 - p).log()).sum()

    return Family(name, lik, row, lambda leading, m, g: spread(low, high, (*leading, m), g), _labels)


FAMILIES = [
    *(_mean(name) for name in PLAIN),
    *(_scale(name) for name in POSITIVE),
    _bernoulli("probability", ("logit",), lambda f: f, 0.1, 0.9),
    _bernoulli("probit", ("logit", "normal_cdf"), PLAIN["normal_cdf"][0], -2, 2),
    _bernoulli("cloglog", ("logit", "cloglog_inverse"), PLAIN["cloglog_inverse"][0], -2, 1),
    Family(
        "poisson_softplus",
        Linked(Linked(Poisson(), "log"), "softplus"),
        lambda f, y: -torch.distributions.Poisson(PLAIN["softplus"][0](f), validate_args=False).log_prob(y).sum(),
        normal,
        lambda leading, m, g: torch.randint(5, (*leading, m), generator=g).to(DTYPE),
    ),
]


@pytest.mark.parametrize(("leading", "m"), [((3,), 2), ((2, 2), 1), ((), 2)])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_the_chain_rule(family, leading, m):
    check_family(family, leading, m)


SAMPLED = {
    "gaussian_exp",
    "gaussian_sigmoid",
    "scale_exp",
    "scale_square",
    "scale_softplus",
    "probit",
    "poisson_softplus",
}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in SAMPLED], ids=repr)
def test_the_information_is_that_of_sampled_targets(family):
    check_sampling(family)


@pytest.mark.parametrize(
    ("base", "link", "other"),
    [
        ("mean_scale", "exp", "mean_log_scale"),
        ("mean_scale", "softplus", "mean_softplus_scale"),
        ("mean_variance", "exp", "mean_log_variance"),
        ("mean_log_scale", "log", "mean_scale"),
    ],
)
def test_a_linked_gaussian_is_the_parametrization(base, link, other):
    linked, direct = Linked(HeteroscedasticGaussian(base), ("identity", link)), HeteroscedasticGaussian(other)
    g = torch.Generator().manual_seed(2)
    f, y = normal((7,), 4, g), normal((7,), 2, g)
    f = torch.cat([f[:, :1], f[:, 1:2].abs() + 0.1, f[:, 2:3], f[:, 3:].abs() + 0.1], -1)
    for kind in ("observed", "expected"):
        one, two = linked.derivatives(f, y, kind), direct.derivatives(f, y, kind)
        torch.testing.assert_close(one.nll, two.nll, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.gradient, two.gradient, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(one.hessian.to_dense(), two.hessian.to_dense(), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(linked.mean(f), direct.mean(f))
    torch.testing.assert_close(linked.variance(f), direct.variance(f))
    if "softplus" not in other:
        assert linked.parameters == direct.parameters
        assert linked.output_names(4) == direct.output_names(4)


@pytest.mark.parametrize(
    ("base", "c", "hessian_kind", "factor_kind"),
    [
        (Gaussian(), 3, Diagonal, Diagonal),
        (HeteroscedasticGaussian(), 4, EqualBlocks, None),
        (Categorical(), 3, DiagonalPlusLowRank, None),
        (ScaledLikelihood(HeteroscedasticGaussian(), 2.0), 4, Scaled, None),
        (MultivariateGaussian(2), 5, Dense, None),
    ],
    ids=lambda x: type(x).__name__,
)
def test_structure_is_kept_and_right(base, c, hessian_kind, factor_kind):
    g = torch.Generator().manual_seed(3)
    f = spread(-1.0, 1.0, (4, c), g)
    y = torch.tensor([0, 2, 1, 1]) if c == 3 and not isinstance(base, Gaussian) else None
    y = normal((4,), c if isinstance(base, Gaussian) else 2, g) if y is None else y
    lik = Linked(base, "sigmoid")
    one = lambda f, y: base.nll(torch.sigmoid(f), y)  # noqa: E731
    at = lik.derivatives(f, y)
    torch.testing.assert_close(at.hessian.to_dense(), vmap(hessian(one))(f, y), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(at.gradient, vmap(grad(one))(f, y), rtol=1e-11, atol=1e-12)
    assert isinstance(at.hessian, hessian_kind)
    s, root = torch.sigmoid(f) * torch.sigmoid(-f), lik.fisher_factor(f).to_dense()
    expected = s[..., None] * base.fisher(torch.sigmoid(f)).to_dense() * s[..., None, :]
    torch.testing.assert_close(lik.fisher(f).to_dense(), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(root @ root.mT, expected, rtol=1e-10, atol=1e-11)
    if factor_kind is not None:
        assert isinstance(lik.fisher_factor(f), factor_kind)


def test_factors_of_blocks_stay_blocks():
    lik = Linked(HeteroscedasticGaussian("natural"), ("identity", Link("minus", torch.neg, torch.neg, "minus")))
    factor = lik.fisher_factor(torch.tensor([[0.3, 0.4, 0.1, 1.0]], dtype=DTYPE))
    assert isinstance(factor, EqualBlocksMatrix)
    assert lik.parameters[1].startswith("minus_")


def test_an_affine_map_alone_keeps_convexity():
    assert Linked(Bernoulli(), "identity").concave
    assert Linked(Bernoulli(), "identity").hessian_bound == 0.25
    assert not Linked(Gaussian(), "exp").concave
    assert Linked(Gaussian(), "exp").hessian_bound is None
    # and rightly so: 2 * 2 + (2 - 9) * 2 < 0
    observed = Linked(Gaussian(), "exp").hessian(torch.tensor([[2.0]]).log(), torch.tensor([[9.0]]))
    assert observed.to_dense().item() == pytest.approx(-10.0)
    assert not Linked(HeteroscedasticGaussian(), "identity").concave


@pytest.mark.parametrize(
    ("lik", "f"),
    [
        (Linked(HeteroscedasticGaussian("mean_scale"), ("identity", "exp")), [0.0, 800.0]),
        (Linked(HeteroscedasticGaussian("mean_scale"), ("identity", "exp")), [0.0, -800.0]),
        (Linked(HeteroscedasticGaussian("mean_scale"), ("identity", "square")), [0.0, 0.0]),
        (Linked(Gaussian(), "exp"), [800.0]),
        (Linked(Gaussian(), "log"), [-1.0]),
        (Linked(Gaussian(), "log"), [0.0]),
        (Linked(Gaussian(), "inverse"), [0.0]),
        (Linked(Bernoulli(), "logit"), [1.5]),
        (Linked(Gaussian(), "identity"), [torch.inf]),
    ],
)
def test_outside_the_domain_the_value_is_infinite_and_the_check_loud(lik, f):
    outputs, y = torch.tensor([f], dtype=DTYPE), torch.tensor([[0.5]], dtype=DTYPE)
    assert lik.nll(outputs, y).item() == torch.inf
    assert lik.derivatives(outputs, y).nll.item() == torch.inf
    with pytest.raises(_errors.InputError, match=rf"'{lik.parameters[-1]}' in row 0 is .* but it must be"):
        lik.check_outputs(outputs)


def test_the_domain_is_said_in_words():
    lik = Linked(HeteroscedasticGaussian("mean_scale"), ("identity", "exp"))
    f = torch.tensor([[0.0, 0.0], [0.0, 1e4]], dtype=DTYPE)
    with pytest.raises(
        _errors.InputError, match="'log_scale' in row 1 is 10000, .* a finite number whose exp is a pos"
    ):
        lik.check_outputs(f)


def test_a_start_is_the_inverse_of_the_bases():
    y = torch.tensor([1.0, 2.0, 6.0], dtype=DTYPE)
    base = HeteroscedasticGaussian("mean_scale")
    mean, scale = base.start(y, 2)
    torch.testing.assert_close(Linked(base, "exp").start(y, 2), torch.stack([mean.log(), scale.log()]))
    below = Linked(base, ("exp", "square")).start(-y, 2)
    torch.testing.assert_close(below, torch.stack([torch.zeros_like(scale), scale.sqrt()]))


def test_targets_and_weights_are_the_bases():
    base = Categorical(torch.tensor([1.0, 3.0, 5.0]), ignore_index=0)
    lik, y = Linked(base, "softplus"), torch.tensor([0, 1, 2])
    torch.testing.assert_close(lik.weight(y), base.weight(y))
    assert lik.n_outputs(y) == 3
    assert lik.statistic(y, 3) is None
    f = torch.randn(3, 3, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lik.mean(f), base.mean(torch.nn.functional.softplus(f)))
    with pytest.raises(_errors.InputError, match="row 1 is 7"):
        lik.check(torch.tensor([0, 7]), 3)
    assert Linked(Bernoulli(), "exp").support is Bernoulli.support


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linked(Gaussian(), "expo"), "no link 'expo'.*known are identity, log"),
        (lambda: Linked(Bernoulli(), "probit"), "'probit' is the inverse of 'normal_cdf': did you mean 'normal_cdf'"),
        (lambda: Linked(Gaussian(), ("exp", "exp")), "Gaussian has the parameters mean, but 2 links"),
        (lambda: Linked(HeteroscedasticGaussian(), ("exp",) * 3), "mean, log_scale, but 3 links"),
        (lambda: Linked(HeteroscedasticGaussian(), ()), "but 0 links"),
        (
            lambda: Linked(HeteroscedasticGaussian(), ("identity", "exp")).nll(torch.zeros(2, 3), torch.zeros(2, 1)),
            "3 columns, but each response has 2 parameters",
        ),
    ],
)
def test_what_cannot_be_linked_is_refused(make, words):
    with pytest.raises(_errors.InputError, match=words):
        make()


def test_weights_may_be_numbers_and_lists() -> None:
    f, y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3
    found = rp.Categorical(class_weight=[1.0, 2.0, 3.0]).nll(f, y)
    torch.testing.assert_close(found, rp.Categorical(class_weight=torch.tensor([1.0, 2.0, 3.0])).nll(f, y))
    bits = (f > 0).float()
    found = rp.Bernoulli(pos_weight=3.0).nll(f, bits)
    torch.testing.assert_close(found, rp.Bernoulli(pos_weight=torch.tensor(3.0)).nll(f, bits))
    for make in (lambda: rp.Categorical(class_weight="balanced"), lambda: rp.Bernoulli(pos_weight={0: 1.0})):
        with pytest.raises(rp.InputError, match="must be a number, a list of numbers or a tensor"):
            make()
