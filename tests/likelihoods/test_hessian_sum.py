"""Sums of output Hessians over rows, by the structure of each likelihood, against their dense forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.likelihoods import HessianSum, Likelihood, average_hessian, hessian_diagonal

from .test_every_family import close, every_member, example


def check(likelihood: Likelihood, f: torch.Tensor, y: torch.Tensor) -> None:
    weights = torch.linspace(0.5, 2.0, len(f), dtype=f.dtype)
    for kind in ("observed", "expected"):
        each = likelihood.hessian(f, y) if kind == "observed" else likelihood.fisher(f, y)
        expected = (weights[:, None, None] * each.to_dense()).sum(0)
        for diagonal in (False, True):
            total = HessianSum(likelihood, f.shape[-1], f, kind, diagonal)
            for rows in (slice(0, 1), slice(1, None)):
                total.add(f[rows], y[rows], weights[rows])
            close(total.total(), expected.diagonal() if diagonal else expected, 1e-12)
        close(hessian_diagonal(likelihood, f, y, kind), each.to_dense().diagonal(dim1=-2, dim2=-1), 1e-12)
        plain = HessianSum(likelihood, f.shape[-1], f, kind)
        plain.add(f, y)
        close(plain.total(), each.to_dense().sum(0), 1e-12)


@every_member
def test_every_likelihood(likelihood: Likelihood) -> None:
    check(*example(likelihood))


@pytest.mark.parametrize("name", ["mean squared error", "scaled classes"])
def test_likelihoods_made_of_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    f = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(5) % 3
    made = {
        "mean squared error": (rp.as_likelihood(nn.MSELoss()), f + 1),
        "scaled classes": (rp.likelihoods.ScaledLikelihood(rp.Categorical(), 0.7), labels),
    }
    monkeypatch.setattr("raphson.likelihoods._hessian_sum._CHUNK_ELEMENTS", 8)
    check(made[name][0], f, made[name][1])


def test_a_scale_that_is_a_number_keeps_its_digits() -> None:
    f = torch.zeros(2, 3, dtype=torch.float64)
    found = average_hessian(rp.as_likelihood(nn.MSELoss()), f, f).to_dense()
    torch.testing.assert_close(found, torch.eye(3, dtype=torch.float64) * 2 / 3, rtol=1e-15, atol=0)
    assert rp.Gaussian(0.1).hessian_bound == pytest.approx(100.0, rel=1e-15)


def test_nearly_sure_predictions_keep_their_digits() -> None:
    """In single precision p (1 - p) of a class that is sure to 1e-9 is not 0, as 1 - p would be."""
    f = torch.zeros(40, 4, dtype=torch.float64)
    f[:, 1] = torch.linspace(18.0, 21.0, 40, dtype=torch.float64)
    y = torch.ones(40, dtype=torch.long)
    expected = HessianSum(rp.Categorical(), 4, f)
    expected.add(f, y)
    for diagonal in (False, True):
        found = HessianSum(rp.Categorical(), 4, f.float(), diagonal=diagonal)
        found.add(f.float(), y)
        exact = expected.total().diagonal() if diagonal else expected.total()
        torch.testing.assert_close(found.total().double(), exact, rtol=1e-5, atol=0)


def test_no_more_memory_than_the_sum_of_many_classes() -> None:
    with pytest.raises(rp.TooLargeError, match="50257 x 50257"):
        HessianSum(rp.Categorical(), 50_257, torch.zeros(1))
