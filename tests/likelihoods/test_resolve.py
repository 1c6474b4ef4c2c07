"""torch's losses: the same number, gradient and Hessian with every option they have."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.func import grad, hessian

from raphson import _errors
from raphson.likelihoods import Bernoulli, Categorical, Gaussian, Resolved, as_likelihood, resolve_loss

DTYPE = torch.float64


def _combine(resolved: Resolved, f, y):
    """The objective L of the convention, with its gradient and dense Hessian in all entries of ``f``."""
    lik = resolved.likelihood
    lik.check(y, f.shape[-1])
    at = lik.derivatives(f, y)
    denominator = 1.0
    if resolved.reduction == "mean":
        w = lik.weight(y)
        denominator = float(at.nll.numel() if w is None else w.sum())
    assert at.hessian is not None
    blocks = at.hessian.to_dense().reshape(-1, f.shape[-1], f.shape[-1])
    return at.nll.sum() / denominator, at.gradient / denominator, torch.block_diag(*blocks) / denominator


def _check(loss, f, y, torch_value):
    value, gradient, curvature = _combine(resolve_loss(loss), f, y)
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


def test_a_small_squared_error_keeps_its_digits():
    f = torch.tensor([[1.0, 2.0]])
    y = f + torch.tensor([[1e-6, -2e-6]])
    value, *_ = _combine(resolve_loss(nn.MSELoss()), f, y)
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
    assert resolve_loss(lik).reduction is None
    assert isinstance(as_likelihood(nn.CrossEntropyLoss()), Categorical)
    assert isinstance(as_likelihood(nn.BCEWithLogitsLoss(reduction="sum")), Bernoulli)
    assert isinstance(as_likelihood(nn.MSELoss(reduction="sum")), Gaussian)
    assert resolve_loss(nn.MSELoss(reduction="sum")).reduction == "sum"


class _Different(nn.CrossEntropyLoss):
    def forward(self, input, target):
        return 2 * super().forward(input, target)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (nn.CrossEntropyLoss(reduction="none"), "reduction='none', .* use reduction='mean'"),
        (nn.MSELoss(reduction="none"), "reduction='none'"),
        (nn.L1Loss(), "L1Loss is not a known loss. Known are torch.nn.CrossEntropyLoss"),
        (_Different(), "_Different is not a known loss"),
        ("categorical", "str is not a known loss"),
        (nn.BCEWithLogitsLoss(weight=torch.ones(4, 3)), r"weight of shape \(4, 3\).* example weights"),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, -1.0])), "class_weight"),
    ],
)
def test_what_is_not_understood_is_refused(loss, words):
    with pytest.raises(_errors.InputError, match=words):
        resolve_loss(loss)
