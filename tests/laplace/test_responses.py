"""From outputs to responses: mixtures, links, parts of the variance, and curvature that is no precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm
from torch import Tensor, nn

import raphson as rp

from .laplace_cases import CASES, DTYPE


def posterior(likelihood: object, outputs: int, y: Tensor, structure: str = "dense") -> tuple[rp.Posterior, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, outputs)).to(DTYPE)
    g = torch.Generator().manual_seed(2)
    x = torch.randn(len(y), 2, generator=g, dtype=DTYPE)
    return rp.laplace(model, likelihood, (x, y), structure=structure), torch.randn(4, 2, generator=g, dtype=DTYPE)


REALS = torch.linspace(-1.0, 2.0, 12, dtype=DTYPE)
BITS = (torch.arange(12) % 3 == 0).to(DTYPE)


def test_a_mixture_of_logistic_probabilities_is_the_integral() -> None:
    post, x = posterior(rp.Bernoulli(), 1, BITS)
    pred = post.predict(x, samples=2000)
    for f, v, p, sd in zip(
        pred.output_mean[:, 0],
        pred.output_covariance[:, 0, 0],
        pred.mean[:, 0],
        pred.epistemic[:, 0].sqrt(),
        strict=True,
    ):
        expected = quad(lambda t, f=f, v=v: expit(t) * norm.pdf(t, f, v**0.5), -30, 30)[0]
        square = quad(lambda t, f=f, v=v: expit(t) ** 2 * norm.pdf(t, f, v**0.5), -30, 30)[0]
        assert float(p) == pytest.approx(expected, abs=2e-3)
        assert float(sd) == pytest.approx((square - expected**2) ** 0.5, abs=5e-3)
    torch.testing.assert_close(pred.variance, pred.mean * (1 - pred.mean))
    assert torch.allclose(pred.log_density(torch.ones(4, dtype=DTYPE)), pred.mean[:, 0].log())
    probit = post.predict(x, link="probit")
    torch.testing.assert_close(
        probit.mean, torch.sigmoid(pred.output_mean / (1 + math.pi / 8 * pred.output_covariance[:, 0]).sqrt())
    )
    assert float((probit.mean - pred.mean).abs().max()) < 0.02


def test_links_of_classes_agree_with_the_mixture() -> None:
    model, likelihood, data, x = CASES[0].make(60)
    post = rp.laplace(model, likelihood, data, structure="dense", prior_precision=3.0)
    with pytest.raises(rp.InputError, match=r"link='bridge' gives row 1 the probability 0.40 of class 1.*0.27"):
        post.predict(x, link="bridge")
    mixture, probit = (post.predict(x, link=link, samples=4000) for link in ("mixture", "probit"))
    y = torch.tensor([0, 1, 2, 0, 1])
    for pred in (mixture, probit):
        torch.testing.assert_close(pred.mean.sum(-1), torch.ones(5, dtype=DTYPE))
        torch.testing.assert_close(pred.log_density(y), pred.mean.log().gather(1, y[:, None])[:, 0])
    assert float((probit.mean - mixture.mean).abs().max()) < 0.05


def gaussian_outputs(k: int, variance: float, seed: int, common: float = 0.0) -> tuple[Tensor, Tensor]:
    """Outputs ``(1, k)`` and a random covariance ``(1, k, k)`` of this mean variance, and one in common beside it."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(k, k + 2, generator=g, dtype=DTYPE) * torch.rand(k, 1, generator=g, dtype=DTYPE).mul(2).sub(1).exp()
    s = a @ a.mT
    return 2 * torch.randn(1, k, generator=g, dtype=DTYPE), (variance * s / s.diagonal().mean() + common)[None]


def integral(f: Tensor, s: Tensor) -> Tensor:
    g = torch.Generator().manual_seed(1)
    points = torch.randn(100_000, f.shape[-1], generator=g, dtype=DTYPE)
    root = torch.linalg.cholesky(s[0])
    return torch.softmax(f + torch.cat([points, -points]) @ root.mT, -1).mean(0, keepdim=True)


@pytest.mark.parametrize("is_root", [False, True])
@pytest.mark.parametrize("common", [0.0, 10.0])
@pytest.mark.parametrize("k", [2, 3, 10])
def test_probit_of_classes_is_of_their_differences(k: int, common: float, is_root: bool) -> None:
    """What all outputs have in common changes no probability: by the variance of each alone it was 0.1 to 0.3."""
    from raphson.laplace._predictive import from_outputs

    for seed in range(10):
        f, s = gaussian_outputs(k, 0.3, seed, common)
        spread = torch.linalg.cholesky(s) if is_root else s
        found = from_outputs(rp.Categorical(), f, spread, "probit", 100, None, is_root=is_root).mean
        assert float((found - integral(f, s)).abs().max()) < (0.01 if k == 2 else 0.07)


def test_probit_links_of_bernoulli_outputs() -> None:
    from raphson.laplace._predictive import from_outputs

    f, s = torch.tensor([[1.5]], dtype=DTYPE), torch.tensor([[[4.0]]], dtype=DTYPE)
    found = from_outputs(rp.Bernoulli(link="probit"), f, s, "probit", 100, None).mean
    assert float(found) == pytest.approx(norm.cdf(1.5 / 5**0.5), abs=1e-12)
    with pytest.raises(rp.InputError, match="the Bernoulli has cloglog: use link='mixture'"):
        from_outputs(rp.Bernoulli(link="cloglog"), f, s, "probit", 100, None)


@pytest.mark.parametrize("link", ["probit", "bridge"])
def test_what_a_link_gives_is_near_the_integral_or_refused(link: str) -> None:
    """Over variances of 0.1 to 100, where the bridge is off by up to 0.7 and probit by up to 0.4."""
    from raphson.laplace._predictive import from_outputs

    refused = 0
    for seed, (k, variance) in enumerate((k, v) for k in (2, 3, 5, 20) for v in (0.1, 1.0, 4.0, 10.0, 100.0)):
        f, s = gaussian_outputs(k, variance, seed)
        try:
            found = from_outputs(rp.Categorical(), f, s, link, 100, None).mean
        except rp.InputError as error:
            refused += 1
            assert "row 0 the probability" in str(error) and "Use link='mixture'" in str(error)
            continue
        assert float((found - integral(f, s)).abs().max()) < 0.14
    assert 0 < refused < 20


def test_two_classes_by_the_bridge_are_a_beta_distribution() -> None:
    # with K = 2 and half the difference of outputs d, of variance v, alpha = (1 + exp(+-2 d)) / (4 v)
    from raphson.laplace._links import log_dirichlet
    from raphson.laplace._predictive import from_outputs

    f = torch.tensor([[0.3, -0.9]], dtype=DTYPE)
    s = torch.tensor([[[0.5, 0.1], [0.1, 0.4]]], dtype=DTYPE)
    v = float(s[0, 0, 0] + s[0, 1, 1] - 2 * s[0, 0, 1]) / 4
    d = float(f[0, 0] - f[0, 1]) / 2
    expected = [(math.exp(2 * d) + 1) / (4 * v), (math.exp(-2 * d) + 1) / (4 * v)]
    assert log_dirichlet(f, s).exp()[0].tolist() == pytest.approx(expected)
    bridge = from_outputs(rp.Categorical(), f, s, "bridge", 100, None)
    assert bridge.mean[0].tolist() == pytest.approx([e / sum(expected) for e in expected])
    assert float(bridge.log_density(torch.tensor([1]))) == pytest.approx(math.log(expected[1] / sum(expected)))
    assert float((bridge.mean - integral(f, s)).abs().max()) < 0.05


def test_mean_and_scale_by_quadrature_and_samples() -> None:
    post, x = posterior(rp.HeteroscedasticGaussian(), 2, REALS)
    pred = post.predict(x, samples=4000)
    f, cov = pred.output_mean, pred.output_covariance
    # E exp(2 s) for a normal s; the mean is that of the first output
    aleatoric = (2 * f[:, 1] + 2 * cov[:, 1, 1]).exp()
    torch.testing.assert_close(pred.mean[:, 0], f[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(pred.epistemic[:, 0], cov[:, 0, 0], rtol=0.02, atol=0)
    torch.testing.assert_close(pred.aleatoric[:, 0], aleatoric, rtol=0.05, atol=0)
    y = torch.zeros(4, dtype=DTYPE)
    draws = pred.sample(200_000, torch.Generator().manual_seed(0))
    assert draws.shape == (200_000, 4, 1)
    near = (draws[..., 0].abs() < 0.05).double().mean(0) / 0.1
    np.testing.assert_allclose(pred.log_density(y).exp(), near, rtol=0.1)
    low, high = pred.interval(0.8)
    inside = ((draws > low) & (draws < high)).double().mean(0)
    np.testing.assert_allclose(inside, 0.8, atol=0.02)


def test_sampled_parameters_agree_with_linearized_outputs_of_a_linear_model() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 3, generator=g, dtype=DTYPE), torch.randn(30, 2, generator=g, dtype=DTYPE)
    model = nn.Linear(3, 2).to(DTYPE)
    post = rp.laplace(model, rp.Gaussian(0.5), (x, y), structure="kfac")
    glm, sampled = post.predict(x[:4]), post.predict(x[:4], method="sample", samples=20_000)
    torch.testing.assert_close(sampled.output_mean, glm.output_mean, rtol=0, atol=0.01)
    torch.testing.assert_close(sampled.output_covariance, glm.output_covariance, rtol=0, atol=0.002)
    torch.testing.assert_close(sampled.log_density(y[:4]), glm.log_density(y[:4]), rtol=0.01, atol=0)
    one = post.predict(x[:4], method="sample", samples=3, generator=torch.Generator().manual_seed(3))
    two = post.predict(x[:4], method="sample", samples=3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(one.mean, two.mean)


LIKELIHOODS = [
    (rp.Poisson(), 1, torch.arange(12.0, dtype=DTYPE)),
    (rp.NegativeBinomial(), 2, torch.arange(12.0, dtype=DTYPE)),
    (rp.Gamma(), 2, REALS.exp()),
    (rp.StudentT(4.0), 2, REALS),
    (rp.Ordinal(3), 2, torch.arange(12) % 3),
    (rp.HeteroscedasticGaussian("mean_softplus_scale"), 2, REALS),
    (nn.CrossEntropyLoss(), 3, torch.arange(12) % 3),
    (nn.MSELoss(), 1, REALS[:, None]),
    (nn.BCEWithLogitsLoss(), 1, BITS[:, None]),
]


@pytest.mark.parametrize("structure", ["dense", "kfac", "diagonal"])
@pytest.mark.parametrize(("likelihood", "outputs", "y"), LIKELIHOODS, ids=lambda v: type(v).__name__)
def test_any_likelihood(likelihood: object, outputs: int, y: Tensor, structure: str) -> None:
    post, x = posterior(likelihood, outputs, y, structure)
    pred = post.tune_prior().predict(x)
    assert bool(torch.isfinite(pred.mean).all()) and bool((pred.epistemic >= 0).all())
    density = pred.log_density(y[:4])
    assert density.shape == (4,) and bool(torch.isfinite(density).all())
    low, high = pred.interval(0.9)
    assert low.shape == high.shape == pred.mean.shape and bool((low <= high).all())


@pytest.mark.parametrize("parametrization", ["mean_scale", "mean_log_scale", "mean_variance"])
def test_the_indefinite_hessian_of_mean_and_scale_is_refused(parametrization: str) -> None:
    model = nn.Sequential(nn.Linear(1, 2)).to(DTYPE)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([0.0, 0.7]))
    x, y = torch.linspace(-1, 1, 20, dtype=DTYPE)[:, None], 3 + 0.1 * torch.linspace(-1, 1, 20, dtype=DTYPE)
    likelihood = rp.HeteroscedasticGaussian(parametrization)
    for kind in ("observed", "hessian"):
        with pytest.raises(rp.IndefiniteError, match=r"not positive definite.*natural parameters") as error:
            rp.laplace(model, likelihood, (x, y), structure="dense", kind=kind, prior_precision=1e-3)
        assert likelihood.definiteness.sentence in str(error.value)
    assert rp.laplace(model, likelihood, (x, y), structure="dense").predict(x).mean.shape == (20, 1)
    natural = rp.HeteroscedasticGaussian("natural")
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.0, -0.7]))
    same = [rp.laplace(model, natural, (x, y), structure="dense", kind=kind) for kind in ("expected", "observed")]
    torch.testing.assert_close(same[0].precision.to_dense(), same[1].precision.to_dense())


def test_clear_errors() -> None:
    model, likelihood, data, x = CASES[0].make()
    for options, words in (
        ({"structure": "full"}, "dense, diagonal, kfac"),
        ({"subset": "first_layer"}, "last_layer"),
        ({"subset": ["0.wieght"]}, "Did you mean '0.weight'"),
        ({"prior_precision": -1.0}, "positive finite number"),
        ({"prior_precision": {"0": 1.0}}, "no value for the parameter '2.weight'"),
        ({"prior_precision": {"0": 1.0, "2": 1.0, "4": 1.0, "6": 1.0}}, "names '6'"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"kind": "observed"}, "leave kind='observed' out"),
        ({"subset": "random", "structure": "kfac", "size": 3}, "structure='dense'"),
        ({"subset": "random", "structure": "dense"}, "from 1 to"),
    ):
        with pytest.raises(rp.InputError, match=words):
            rp.laplace(model, likelihood, data, **options)
    post = rp.laplace(model, likelihood, data)
    for options, words in (
        ({"method": "linear"}, "'glm' or 'sample'"),
        ({"link": "identity"}, "mixture, probit, bridge"),
        ({"samples": 0}, "samples is 0"),
    ):
        with pytest.raises(rp.InputError, match=words):
            post.predict(x, **options)
    with pytest.raises(rp.InputError, match="use link='mixture'"):
        posterior(rp.Gaussian(), 1, REALS)[0].predict(torch.zeros(1, 2, dtype=DTYPE), link="bridge")
    with pytest.raises(rp.InputError, match="level is 95"):
        post.predict(x).interval(95)
    with pytest.raises(rp.InputError, match="per is 'unit'"):
        post.tune_prior(per="unit")
    with pytest.raises(rp.InputError, match="scale of a Gaussian"):
        post.tune_prior(scale=True)


def test_limits_of_rare_counts_are_counts():
    model = torch.nn.Linear(1, 1).double()
    torch.nn.init.constant_(model.bias, -6.0)
    x = torch.zeros(20, 1, dtype=torch.float64)
    post = rp.laplace(model, rp.Poisson(), (x, torch.zeros(20, 1, dtype=torch.float64)), prior_precision=100.0)
    low, high = post.predict(x[:2]).interval(0.9)
    assert (low == 0).all() and (high == 0).all()


def test_wrong_arguments_get_a_sentence(tmp_path):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, generator=g), torch.randn(8, 2, generator=g)
    model = torch.nn.Linear(3, 2)
    post = rp.laplace(model, rp.Gaussian(), (x, y))
    found = post.predict(x)
    missing = x.index_fill(0, torch.tensor([4]), torch.nan)

    def made(**options: object) -> object:
        return rp.laplace(model, rp.Gaussian(), (x, y), **options)  # type: ignore[arg-type]

    for call, words in (
        (lambda: made(prior_precision="big"), "all parameters is 'big'"),
        (lambda: made(prior_precision={"weight": 1.0, "bias": None}), "precision of bias is None"),
        (lambda: made(prior_precision={"head": 1.0}), "names 'head'"),
        (lambda: made(prior_precision=[1.0, 2.0]), "give one number"),
        (lambda: made(subset=[]), "subset is"),
        (lambda: made(subset=3), "subset is 3"),
        (lambda: made(temperature="hot"), "temperature is 'hot'"),
        (lambda: made(structure="low_rank", rank=0), "rank is 0"),
        (lambda: post.predict(x[:, :2]), "inputs of shape"),
        (lambda: post.predict(x.double()), "convert one of them"),
        (lambda: post.predict(x[:0]), "no rows"),
        (lambda: post.predict(missing), "row 4"),
        (lambda: post.predict(x, samples=2.5), "samples is 2.5"),
        (lambda: found.log_density(y[:7]), "8 inputs"),
        (lambda: found.log_density(y.index_fill(0, torch.tensor([5]), torch.nan)), "row 5.* is nan"),
        (lambda: post.save(tmp_path / "none" / "file"), "cannot be written"),
    ):
        with pytest.raises(rp.InputError, match=words):
            call()


WEIGHTED: dict[str, tuple[object, int]] = {
    "class weights": (rp.Categorical(torch.tensor([1.0, 5.0, 2.0])), 3),
    "smoothing": (rp.Categorical(label_smoothing=0.2), 3),
    "cross-entropy": (nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 2.0]), reduction="sum"), 3),
    "weight of positives": (rp.Bernoulli(torch.tensor(3.0)), 1),
    "weight of labels": (nn.BCEWithLogitsLoss(torch.tensor([0.5])), 1),
}


@pytest.mark.parametrize("link", ["mixture", "probit"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_densities_of_classes_add_up_to_one_whatever_weights_the_loss_has(name: str, link: str) -> None:
    """Weights say how much a row counts in the fit, not what responses are: they added up to 0.5."""
    likelihood, outputs = WEIGHTED[name]
    y = torch.arange(12) % 3 if outputs == 3 else BITS[:, None]
    post, x = posterior(likelihood, outputs, y)
    pred = post.predict(x, link=link)
    labels = [torch.full((4,), k) for k in range(3)] if outputs == 3 else [torch.full((4, 1), k) for k in (0.0, 1.0)]
    total = sum(pred.log_density(label.to(y.dtype)).exp() for label in labels)
    torch.testing.assert_close(total, torch.ones(4, dtype=DTYPE))


LOSSES = [rp.Gaussian(0.5, normalized=False), nn.MSELoss(), rp.Linked(rp.Gaussian(normalized=False), "identity")]


@pytest.mark.parametrize("loss", LOSSES)
def test_densities_of_losses_are_normalized(loss: object) -> None:
    post, x = posterior(loss, 1, REALS[:, None])
    pred = post.predict(x[:1])
    grid = torch.linspace(-30, 30, 6001, dtype=DTYPE)
    total = sum(float(pred.log_density(v.view(1, 1)).exp()) for v in grid) * 0.01
    assert total == pytest.approx(1.0, rel=1e-4)
