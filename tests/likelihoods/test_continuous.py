"""Bernoulli, Gaussian and scaled likelihoods: against SciPy, at saturation, and what they refuse."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch

from raphson import _errors
from raphson.likelihoods import Bernoulli, Categorical, Gaussian, ScaledLikelihood
from raphson.linalg import Diagonal

DTYPE = torch.float64


def test_gaussian_is_scipys():
    f = torch.tensor([[0.3, -1.0], [2.0, 5.0]], dtype=DTYPE)
    y = torch.tensor([[1.0, 1.0], [-4.0, 0.5]], dtype=DTYPE)
    scale = torch.tensor([0.3, 2.5], dtype=DTYPE)
    expected = -scipy.stats.norm(f.numpy(), scale.numpy()).logpdf(y.numpy()).sum(-1)
    np.testing.assert_allclose(Gaussian(scale).nll(f, y).numpy(), expected, rtol=1e-14)
    np.testing.assert_allclose(Gaussian(scale).variance(f).numpy(), np.tile([0.09, 6.25], (2, 1)), rtol=1e-14)


def test_bernoulli_is_scipys():
    f = torch.linspace(-6, 6, 13, dtype=DTYPE).unsqueeze(-1)
    y = torch.tensor([0.0, 1.0] * 6 + [1.0], dtype=DTYPE)
    p = scipy.special.expit(f.squeeze(-1).numpy())
    expected = -scipy.stats.bernoulli(p).logpmf(y.numpy().astype(int))
    np.testing.assert_allclose(Bernoulli().nll(f, y).numpy(), expected, rtol=1e-12)


def test_bernoulli_is_the_categorical_of_two_classes():
    f = torch.randn(6, 1, dtype=DTYPE)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    logits = torch.cat([torch.zeros_like(f), f], -1)
    torch.testing.assert_close(Bernoulli().nll(f, y), Categorical().nll(logits, y))
    torch.testing.assert_close(Bernoulli().gradient(f, y)[:, 0], Categorical().gradient(logits, y)[:, 1])
    both = Categorical().hessian(logits, y).to_dense()[:, 1, 1]
    torch.testing.assert_close(Bernoulli().hessian(f, y).diagonal()[:, 0], both)


@pytest.mark.parametrize("logit", [-1e4, -700.0, -45.0, -1e-9, 0.0, 25.0, 45.0, 700.0])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_saturated_bernoulli_keeps_relative_accuracy(logit, y):
    with mpmath.workdps(60):
        odds = mpmath.exp(mpmath.mpf(logit if y == 0 else -logit))
        value = float(mpmath.log1p(odds))
        score = float(odds / (1 + odds)) * (1 if y == 0 else -1)
        curvature = float(odds / (1 + odds) ** 2)
    f, label = torch.tensor([[logit]], dtype=DTYPE), torch.tensor([[y]], dtype=DTYPE)
    at = Bernoulli().derivatives(f, label)
    assert at.nll.item() == pytest.approx(value, rel=1e-13, abs=1e-300)
    assert at.gradient.item() == pytest.approx(score, rel=1e-13, abs=1e-300)
    assert at.hessian is not None
    assert at.hessian.diagonal().item() == pytest.approx(curvature, rel=1e-13, abs=1e-300)


@pytest.mark.parametrize("lik", [Bernoulli(), Gaussian(2.0)])
def test_one_output_may_drop_its_axis(lik):
    f = torch.randn(4, 2, 1, dtype=DTYPE)
    y = torch.randint(2, (4, 2, 1)).to(DTYPE)
    short = y.squeeze(-1)
    torch.testing.assert_close(lik.nll(f, short), lik.nll(f, y))
    torch.testing.assert_close(lik.gradient(f, short), lik.gradient(f, y))
    torch.testing.assert_close(lik.hessian(f, short).to_dense(), lik.hessian(f, y).to_dense())
    lik.check(short, 1)
    lik.check(y, 1)


@pytest.mark.parametrize("lik", [Bernoulli(), Gaussian()])
@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3), (2,), (4, 2, 1)])
def test_targets_never_broadcast(lik, shape):
    with pytest.raises(_errors.InputError, match="one target per response"):
        lik.nll(torch.zeros(4, 2), torch.zeros(shape))


@pytest.mark.parametrize(
    ("lik", "y", "words"),
    [
        (Bernoulli(), torch.tensor([[0.0], [2.0]]), r"row 1 is 2, .* from 0 to 1"),
        (Bernoulli(), torch.tensor([0.0, 1.0, torch.nan]), r"row 2 is nan"),
        (Gaussian(), torch.tensor([0.0, torch.inf]), r"row 1 is inf, .* finite"),
        (Gaussian(torch.ones(2)), torch.zeros(3), r"scale has 2 entries"),
        (Bernoulli(pos_weight=torch.ones(3)), torch.zeros(3), r"pos_weight has 3 entries"),
        (ScaledLikelihood(Bernoulli(), 2.0), torch.tensor([3.0, 1.0]), r"row 0 is 3"),
    ],
)
def test_check_names_the_first_bad_row(lik, y, words):
    with pytest.raises(_errors.InputError, match=words):
        lik.check(y, 1)


@pytest.mark.parametrize("lik", [Bernoulli(), Gaussian()])
@pytest.mark.parametrize("shape", [(4,), (4, 3), ()])
def test_check_wants_one_target_per_output(lik, shape):
    with pytest.raises(_errors.InputError, match="the model has 2 outputs"):
        lik.check(torch.zeros(shape), 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gaussian(0.0),
        lambda: Gaussian(math.nan),
        lambda: Gaussian(torch.ones(2, 2)),
        lambda: Bernoulli(pos_weight=torch.tensor([-1.0])),
        lambda: Bernoulli(label_weight=torch.ones(2, 2)),
        lambda: ScaledLikelihood(Gaussian(), 0.0),
        lambda: ScaledLikelihood(Gaussian(), math.inf),
        lambda: Gaussian(torch.ones(3)).nll(torch.zeros(2, 1), torch.zeros(2, 1)),
        lambda: Bernoulli(pos_weight=torch.ones(3)).nll(torch.zeros(2, 1), torch.zeros(2, 1)),
    ],
)
def test_what_cannot_be_used_is_refused(make):
    with pytest.raises(_errors.InputError):
        make()


def test_hessians_are_diagonal_operators():
    f = torch.zeros(5, 3)
    assert isinstance(Bernoulli().hessian(f, f), Diagonal)
    assert isinstance(Gaussian().hessian(f, f), Diagonal)


def test_scaling_leaves_the_model_and_the_denominator_alone():
    base = Categorical(torch.tensor([1.0, 3.0, 5.0]), ignore_index=0)
    scaled = ScaledLikelihood(base, 4.0)
    f, y = torch.randn(6, 3, dtype=DTYPE), torch.tensor([0, 1, 2, 1, 0, 2])
    assert scaled.concave
    assert scaled.hessian_bound == 10.0
    torch.testing.assert_close(scaled.weight(y), base.weight(y))
    torch.testing.assert_close(scaled.mean(f), base.mean(f))
    torch.testing.assert_close(scaled.variance(f), base.variance(f))
    drawn = scaled.sample(f, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, base.sample(f, torch.Generator().manual_seed(0)))


def test_bounds_count_every_weight():
    lik = Bernoulli(pos_weight=torch.tensor([4.0, 0.5]), label_weight=torch.tensor([2.0, 3.0]))
    assert lik.hessian_bound == 3.0
    assert Gaussian(torch.tensor([0.5, 2.0])).hessian_bound == 4.0


def test_the_exponential_family_form_gives_the_same_derivatives():
    g = torch.Generator().manual_seed(0)
    f = 5 * torch.randn(20, 3, generator=g, dtype=torch.float64)
    y = torch.rand(20, 3, generator=g, dtype=torch.float64)
    lik = Bernoulli()
    t, partition, at = lik.statistic(y, 3), lik.log_partition(f), lik.derivatives(f, y)
    torch.testing.assert_close(partition.nll - (t * f).sum(-1), at.nll)
    torch.testing.assert_close(partition.gradient - t, at.gradient)
    torch.testing.assert_close(partition.hessian.to_dense(), at.hessian.to_dense())
    assert lik.log_partition(f, hessian=False).hessian is None
    assert Bernoulli(pos_weight=torch.tensor(2.0)).statistic(y, 3) is None
