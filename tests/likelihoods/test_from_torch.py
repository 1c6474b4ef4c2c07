"""torch's losses: the same number, gradient and Hessian with every option they have."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.func import grad, hessian

from raphson import _errors
from raphson.likelihoods import Bernoulli, Categorical, Gaussian, TorchLoss, as_likelihood, from_torch

DTYPE = torch.float64


def _combine(given: TorchLoss, f, y):
    """The objective L of the convention, with its gradient and dense Hessian in all entries of ``f``."""
    lik = given.likelihood
    lik.check(y, f.shape[-1])
    at = lik.derivatives(f, y)
    denominator = 1.0
    if given.reduction == "mean":
        w = lik.weight(y)
        denominator = float(at.nll.numel() if w is None else w.sum())
    assert at.hessian is not None
    blocks = at.hessian.to_dense().reshape(-1, f.shape[-1], f.shape[-1])
    return at.nll.sum() / denominator, at.gradient / denominator, torch.block_diag(*blocks) / denominator


def _check(loss, f, y, torch_value):
    value, gradient, curvature = _combine(from_torch(loss), f, y)
    torch.testing.assert_close(value, torch_value(f), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, grad(torch_value)(f), rtol=1e-12, atol=1e-12)
    expected = hessian(torch_value)(f).reshape(f.numel(), f.numel())
    torch.testing.assert_close(curvature, expected, rtol=1e-11, atol=1e-12)


def _draw(shape, seed=0):
    return 2 * torch.randn(shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


_CLASSES = torch.tensor([0.5, 2.0, 1.25], dtype=DTYPE)


@pytest.mark.parametrize(
    ("weight", "ignore_index", "smoothing", "reduction", "leading"),
    list(itertools.product([None, _CLASSES], [-100, 1], [0.0, 0.3], ["mean", "sum"], [(5,), (3, 2), (2, 2, 2)])),
)
def test_cross_entropy_of_labels(weight, ignore_index, smoothing, reduction, leading):
    loss = nn.CrossEntropyLoss(weight=weight, ignore_index=ignore_index, label_smoothing=smoothing, reduction=reduction)
    f = _draw((*leading, 3))
    y = torch.randint(3, leading, generator=torch.Generator().manual_seed(1))
    y.view(-1)[0] = ignore_index
    y.view(-1)[1] = 2
    _check(loss, f, y, lambda f: loss(f.movedim(-1, 1), y))


@pytest.mark.parametrize(
    ("weight", "smoothing", "reduction", "leading"),
    list(itertools.product([None, _CLASSES], [0.0, 0.3], ["mean", "sum"], [(5,), (3, 2)])),
)
def test_cross_entropy_of_probabilities(weight, smoothing, reduction, leading):
    loss = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing, reduction=reduction)
    f, y = _draw((*leading, 3)), torch.softmax(_draw((*leading, 3), 1), -1)
    _check(loss, f, y, lambda f: loss(f.movedim(-1, 1), y.movedim(-1, 1)))


@pytest.mark.parametrize(
    ("weight", "pos_weight", "reduction", "leading"),
    list(itertools.product([None, _CLASSES], [None, 1 / _CLASSES], ["mean", "sum"], [(5,), (3, 2)])),
)
def test_binary_cross_entropy(weight, pos_weight, reduction, leading):
    loss = nn.BCEWithLogitsLoss(weight=weight, pos_weight=pos_weight, reduction=reduction)
    f, y = _draw((*leading, 3)), torch.rand(*leading, 3, dtype=DTYPE)
    _check(loss, f, y, lambda f: loss(f, y))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("w", [torch.tensor(2.5), torch.tensor([2.5]), torch.tensor([[2.5]])])
def test_binary_cross_entropy_of_one_label(reduction, w):
    loss = nn.BCEWithLogitsLoss(weight=w.double(), pos_weight=2 * w.double(), reduction=reduction)
    f, y = _draw((6, 1)), torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.5], dtype=DTYPE)
    _check(loss, f, y, lambda f: loss(f, y.unsqueeze(-1)))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(5, 3), (3, 2, 2), (6, 1)])
def test_mean_squared_error(reduction, shape):
    loss = nn.MSELoss(reduction=reduction)
    f, y = _draw(shape), _draw(shape, 1)
    _check(loss, f, y, lambda f: loss(f, y))


def _rates(shape, seed=0):
    return torch.rand(shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed)) * 3 + 0.1


@pytest.mark.parametrize("shape", [(5, 3), (3, 2, 2), (6, 1)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "make",
    [
        lambda r: nn.PoissonNLLLoss(reduction=r),
        lambda r: nn.PoissonNLLLoss(full=True, reduction=r),
        lambda r: nn.PoissonNLLLoss(log_input=False, eps=1e-3, reduction=r),
        lambda r: nn.HuberLoss(delta=0.7, reduction=r),
        lambda r: nn.SmoothL1Loss(beta=0.7, reduction=r),
    ],
)
def test_elementwise_losses(make, reduction, shape):
    loss, f = make(reduction), _rates(shape)
    # counts on both sides of torch's threshold for Stirling's formula
    y = torch.randint(5, shape, generator=torch.Generator().manual_seed(1)).to(DTYPE)
    _check(loss, f, y, lambda f: loss(f, y))


def test_huber_is_quadratic_near_zero_and_linear_beyond():
    lik = as_likelihood(nn.HuberLoss(delta=1.5, reduction="sum"))
    f, y = torch.tensor([[0.0], [0.0], [0.0]], dtype=DTYPE), torch.tensor([1.0, 2.0, -9.0], dtype=DTYPE)
    at = lik.derivatives(f, y)
    torch.testing.assert_close(at.nll, torch.tensor([0.5, 1.5 * (2 - 0.75), 1.5 * (9 - 0.75)], dtype=DTYPE))
    torch.testing.assert_close(at.gradient, torch.tensor([[-1.0], [-1.5], [1.5]], dtype=DTYPE))
    assert at.hessian is not None
    torch.testing.assert_close(at.hessian.diagonal(), torch.tensor([[1.0], [0.0], [0.0]], dtype=DTYPE))
    assert lik.concave
    with pytest.raises(_errors.InputError, match=r"torch\.nn\.HuberLoss is known by its value only"):
        lik.fisher(f)


@pytest.mark.parametrize(("log_input", "eps"), [(True, 1e-8), (False, 0.5)])
def test_a_poisson_loss_has_the_information_of_its_counts(log_input, eps):
    lik = as_likelihood(nn.PoissonNLLLoss(log_input=log_input, eps=eps, reduction="sum"))
    f = torch.full((40_000, 1), 0.8, dtype=DTYPE)
    y = lik.sample(f, torch.Generator().manual_seed(0))
    lik.check(y, 1)
    hessians = lik.hessian(f, y).diagonal()
    information = float(lik.fisher(f[:1]).to_dense())
    assert abs(float(hessians.mean()) - information) <= 5 * float(hessians.std()) / 200 + 1e-12
    assert float(lik.mean(f[:1])) == pytest.approx(float(y.mean()), abs=5 * float(y.std()) / 200)
    assert float(lik.variance(f[:1])) == pytest.approx(float(y.var()), rel=0.05)


@pytest.mark.parametrize("weight", [None, _CLASSES])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_binary_cross_entropy_of_probabilities(weight, reduction):
    loss, g = nn.BCELoss(weight=weight, reduction=reduction), torch.Generator().manual_seed(0)
    f = 0.05 + 0.9 * torch.rand(5, 3, dtype=DTYPE, generator=g)
    y = torch.rand(5, 3, dtype=DTYPE, generator=g)

    def plain(f):
        # not torch's second derivative, which adds 1e-12 to a denominator
        terms = (1 if weight is None else weight) * (y * torch.log(f) + (1 - y) * torch.log(1 - f))
        return -terms.mean() if reduction == "mean" else -terms.sum()

    _check(loss, f, y, plain)
    torch.testing.assert_close(plain(f), loss(f, y), rtol=1e-13, atol=0)
    assert as_likelihood(loss).nll(f + 1, y).isinf().all()


def test_a_small_squared_error_keeps_its_digits():
    f = torch.tensor([[1.0, 2.0]])
    y = f + torch.tensor([[1e-6, -2e-6]])
    value, *_ = _combine(from_torch(nn.MSELoss()), f, y)
    assert value.item() == pytest.approx(nn.MSELoss()(f, y).item(), rel=1e-6)


def test_the_sum_of_squares_samples_what_it_says():
    """A Gaussian of variance 1/2: score products at sampled targets have the Hessian 2 as their mean."""
    lik = as_likelihood(nn.MSELoss(reduction="sum"))
    f = torch.zeros(40_000, 1, dtype=DTYPE)
    g = lik.gradient(f, lik.sample(f, torch.Generator().manual_seed(0)))
    assert float(g.square().mean()) == pytest.approx(2.0, abs=5 * 2 * 2**0.5 / 200)


def test_a_likelihood_passes_through():
    lik = Categorical(label_smoothing=0.2)
    assert as_likelihood(lik) is lik
    assert from_torch(lik).reduction is None
    assert isinstance(as_likelihood(nn.CrossEntropyLoss()), Categorical)
    assert isinstance(as_likelihood(nn.BCEWithLogitsLoss(reduction="sum")), Bernoulli)
    assert isinstance(as_likelihood(nn.MSELoss(reduction="sum")), Gaussian)
    assert from_torch(nn.MSELoss(reduction="sum")).reduction == "sum"


def test_functions_and_families_say_nothing_about_the_reduction():
    assert from_torch(lambda f, y: ((f - y) ** 2).sum()).reduction is None
    assert from_torch(torch.distributions.Gamma).reduction is None
    assert from_torch(torch.distributions.Gamma).likelihood.parameters == ("log_concentration", "log_rate")


def test_a_loss_may_have_links():
    lik = as_likelihood(nn.MSELoss(reduction="sum"), links="exp")
    f, y = _draw((4, 2)), _draw((4, 2), 1)
    torch.testing.assert_close(lik.nll(f, y).sum(), nn.functional.mse_loss(f.exp(), y, reduction="sum"))


class _Different(nn.CrossEntropyLoss):
    def forward(self, input, target):
        return 2 * super().forward(input, target)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (nn.CrossEntropyLoss(reduction="none"), "reduction='none', .* use reduction='mean'"),
        (nn.MSELoss(reduction="none"), "reduction='none'"),
        (nn.L1Loss(), "L1Loss is not a known loss. Known are torch.nn.CrossEntropyLoss.* absolute error is zero"),
        (nn.SmoothL1Loss(beta=0.0), "beta=0 is L1Loss.* use HuberLoss"),
        (nn.NLLLoss(), "linear in the log probabilities .* use CrossEntropyLoss"),
        (nn.GaussianNLLLoss(), r"use HeteroscedasticGaussian\('mean_variance'\)"),
        (nn.TripletMarginLoss(), r"TripletMarginLoss is not a known loss.* function nll\(f, y\)"),
        (nn.PoissonNLLLoss(reduction="none"), "reduction='none'"),
        (nn.BCELoss(weight=torch.ones(4, 3)), r"BCELoss has a weight of shape \(4, 3\)"),
        (_Different(), "_Different is not a known loss"),
        ("categorical", r"str is not a known loss.* Names are for VectorGLM .* such as rp.Poisson\(\)"),
        (nn.BCEWithLogitsLoss(weight=torch.ones(4, 3)), r"weight of shape \(4, 3\).* example weights"),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, -1.0])), "class_weight"),
    ],
)
def test_what_is_not_understood_is_refused(loss, words):
    with pytest.raises(_errors.InputError, match=words):
        from_torch(loss)
