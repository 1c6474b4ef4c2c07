"""Links of the families: both tails against mpmath far out, fits against statsmodels, names that do not exist."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
import statsmodels.api as sm
import torch

import raphson as rp
from raphson.likelihoods import (
    Bernoulli,
    Binomial,
    Gamma,
    Gaussian,
    HeteroscedasticGaussian,
    InverseGaussian,
    Likelihood,
    Linked,
    NegativeBinomial,
    Poisson,
)
from raphson.likelihoods._special._binary_links import BINARY_LINKS

from .conformance import DTYPE

DIGITS = 1600
# both tails as functions, so that neither is one less the other
TAILS = {
    "logit": (lambda x: 1 / (1 + mp.exp(-x)), lambda x: 1 / (1 + mp.exp(x))),
    "probit": (lambda x: mp.erfc(-x / mp.sqrt(2)) / 2, lambda x: mp.erfc(x / mp.sqrt(2)) / 2),
    "cloglog": (lambda x: -mp.expm1(-mp.exp(x)), lambda x: mp.exp(-mp.exp(x))),
    "loglog": (lambda x: mp.exp(-mp.exp(-x)), lambda x: -mp.expm1(-mp.exp(-x))),
    "cauchit": (lambda x: mp.atan2(1, -x) / mp.pi, lambda x: mp.atan2(1, x) / mp.pi),
    "log": (mp.exp, lambda x: -mp.expm1(x)),
    "identity": (lambda x: x, lambda x: 1 - x),
}
POINTS = {
    "log": [-1e4, -700.0, -30.0, -1.0, -1e-3, -1e-12],
    "identity": [1e-12, 1e-3, 0.3, 0.999],
    "cloglog": [-1e4, -700.0, -30.0, -1.0, 0.0, 1.0, 5.0, 6.5, 30.0],
    "loglog": [1e4, 700.0, 30.0, 1.0, 0.0, -1.0, -5.0, -6.5, -30.0],
}
EVERYWHERE = [-1e4, -700.0, -40.0, -30.0, -8.0, -1.0, -0.3, 0.0, 0.3, 1.0, 8.0, 30.0, 40.0, 700.0, 1e4]


def exact(link: str, x: float, y: int) -> tuple[float, float, float]:
    """The value and its two derivatives; the derivatives of the tail by those of its density."""
    with mp.workdps(DIGITS):
        tail = TAILS[link][1 - y]
        # a step that is small against what the tail changes by, and far above the digits
        h = mp.mpf(10) ** -400
        low, at, high = (mp.log(tail(mp.mpf(x) + i * h)) for i in (-1, 0, 1))
        return float(-at), float(-(high - low) / (2 * h)), float(-(high - 2 * at + low) / h**2)


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("link", BINARY_LINKS)
def test_tails_keep_their_digits_wherever_the_output_is(link, y):
    for x in POINTS.get(link, EVERYWHERE):
        if link in ("probit", "logit") and abs(x) > 700:
            continue  # beyond the digits of the oracle; test_far_out has the limits
        f, target = torch.tensor([[x]], dtype=DTYPE), torch.tensor([[float(y)]], dtype=DTYPE)
        value, gradient, curvature = exact(link, x, y)
        at = Bernoulli(link=link).derivatives(f, target)
        assert at.nll.item() == pytest.approx(value, rel=1e-12, abs=1e-300), (x, "value")
        assert at.gradient.item() == pytest.approx(gradient, rel=1e-11, abs=1e-300), (x, "gradient")
        # where the curvature is a small difference of two terms, it has the digits of these
        size = max(abs(curvature), gradient**2)
        assert at.hessian.to_dense().item() == pytest.approx(curvature, rel=1e-9, abs=1e-11 * size), (x, "Hessian")


@pytest.mark.parametrize("link", BINARY_LINKS)
def test_binomial_counts_are_so_many_labels(link):
    f = torch.tensor([[BINARY_LINKS[link].quantile(torch.tensor(0.3, dtype=DTYPE))]], dtype=DTYPE)
    one, zero = (Bernoulli(link=link).derivatives(f, torch.tensor([[y]], dtype=DTYPE)) for y in (1.0, 0.0))
    many = Binomial(link=link).derivatives(f, torch.tensor([[3.0, 4.0]], dtype=DTYPE))
    torch.testing.assert_close(many.gradient, 3 * one.gradient + 4 * zero.gradient)
    torch.testing.assert_close(
        many.hessian.to_dense(), 3 * one.hessian.to_dense() + 4 * zero.hessian.to_dense(), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(Bernoulli(link=link).mean(f), torch.tensor([[0.3]], dtype=DTYPE))


RNG = np.random.default_rng(8)
X = RNG.uniform(0.0, 1.0, size=(300, 2))
MEAN = 1.0 + X @ [1.5, 0.5]
P = 1 / (1 + np.exp(-(X @ [1.5, -1.0])))
links = sm.families.links


@pytest.mark.parametrize(
    ("family", "likelihood", "y"),
    [
        (sm.families.Binomial(links.Probit()), lambda s: Bernoulli(link="probit"), RNG.random(300) < P),
        (sm.families.Binomial(links.CLogLog()), lambda s: Bernoulli(link="cloglog"), RNG.random(300) < P),
        (sm.families.Binomial(links.LogLog()), lambda s: Bernoulli(link="loglog"), RNG.random(300) < P),
        (sm.families.Binomial(links.Cauchy()), lambda s: Bernoulli(link="cauchit"), RNG.random(300) < P),
        (sm.families.Binomial(links.Log()), lambda s: Bernoulli(link="log"), RNG.random(300) < P / 2),
        (sm.families.Binomial(links.Identity()), lambda s: Bernoulli(link="identity"), RNG.random(300) < 0.2 + P / 3),
        (sm.families.Poisson(links.Identity()), lambda s: Poisson(link="identity"), RNG.poisson(MEAN)),
        (sm.families.Poisson(links.Sqrt()), lambda s: Poisson(link="sqrt"), RNG.poisson(MEAN)),
        (sm.families.Gamma(links.InversePower()), lambda s: Gamma(s, "inverse"), RNG.gamma(4, MEAN / 4)),
        (sm.families.Gamma(links.Identity()), lambda s: Gamma(s, "identity"), RNG.gamma(4, MEAN / 4)),
        (
            sm.families.InverseGaussian(links.InverseSquared()),
            lambda s: InverseGaussian(s, "inverse_squared"),
            RNG.wald(MEAN, 9.0),
        ),
        (
            sm.families.NegativeBinomial(links.Identity(), alpha=0.5),
            lambda s: NegativeBinomial(0.5, "identity"),
            RNG.poisson(MEAN * RNG.gamma(2, 0.5, 300)),
        ),
        (sm.families.Gaussian(links.Log()), lambda s: Gaussian(s**0.5, link="log"), MEAN + RNG.normal(size=300) / 5),
    ],
    ids=lambda value: type(value.link).__name__ if isinstance(value, sm.families.Family) else "",
)
def test_same_as_statsmodels_glm(family, likelihood, y):
    peer = sm.GLM(y.astype(float), sm.add_constant(X), family=family).fit(tol=1e-13, maxiter=300)
    model = rp.VectorGLM(likelihood(peer.scale)).fit(X, y.astype(float))
    assert model.solution_.converged
    np.testing.assert_allclose(np.r_[model.intercept_, model.coef_[0]], peer.params, rtol=2e-5, atol=1e-6)
    errors = model.standard_errors("expected").to_numpy(dtype=float)
    np.testing.assert_allclose(errors, peer.bse, rtol=2e-4)
    if not isinstance(family, sm.families.Gaussian | sm.families.InverseGaussian | sm.families.Gamma):
        assert model.loglik_ == pytest.approx(peer.llf, abs=1e-6)


def test_a_link_and_a_learned_second_parameter():
    y = MEAN + RNG.normal(size=300) / 5
    model = rp.VectorGLM(HeteroscedasticGaussian(link="log")).fit(X, y)
    peer = sm.GLM(y, sm.add_constant(X), family=sm.families.Gaussian(links.Log())).fit(tol=1e-13)
    np.testing.assert_allclose(np.r_[model.intercept_[0], model.coef_[0]], peer.params, rtol=1e-5)
    assert model.output_names_ == ["log_mean", "log_scale"]


def test_a_linked_logit_is_another_model_than_probit():
    f = torch.tensor([[0.7]], dtype=DTYPE)
    assert Bernoulli(link="probit").mean(f).item() == pytest.approx(0.758036347776927, rel=1e-14)
    assert Linked(Bernoulli(), "normal_cdf").mean(f).item() == pytest.approx(0.68093, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bernoulli(link="probits"), "no link 'probits' for a probability; choose one of logit, probit"),
        (lambda: Binomial(link="sqrt"), "no link 'sqrt' for a probability"),
        (lambda: Gamma(link="sqrt"), "Gamma has no link 'sqrt'; choose one of log, inverse, identity"),
        (lambda: Poisson(link="logit"), "Poisson has no link 'logit'"),
        (lambda: Bernoulli(torch.tensor(2.0), link="probit"), "pos_weight goes with the logit link"),
        (lambda: HeteroscedasticGaussian("natural", "log"), "natural parameters are not made of"),
    ],
)
def test_links_that_do_not_exist(make, message):
    with pytest.raises(rp.InputError, match=message):
        make()


def test_only_canonical_links_are_compiled():
    for likelihood in (Bernoulli(link="probit"), Binomial(7, "cloglog"), Poisson("sqrt")):
        assert isinstance(likelihood, Likelihood) and likelihood.partition is None
        assert likelihood.statistic(torch.tensor([[1.0]]), 1) is None
    assert Bernoulli().partition == Binomial(7).partition == "logistic" and Poisson().partition == "exponential"
