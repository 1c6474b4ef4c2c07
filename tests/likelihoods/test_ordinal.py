"""The ordinal likelihood: links where probabilities underflow, statsmodels, and predictors out of order."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from statsmodels.miscmodels.ordinal_model import OrderedModel

from raphson import _errors
from raphson.likelihoods import Bernoulli, Ordinal

from .conformance import DTYPE

_MP_CDF = {
    "logit": lambda x: 1 / (1 + mp.exp(-x)),
    "probit": lambda x: mp.erfc(-x / mp.sqrt(2)) / 2,
    "cloglog": lambda x: -mp.expm1(-mp.exp(x)),
}


def _ordinal_exact(link, level):
    def definition(*cuts):
        # enough digits that the difference of two probabilities near 1 has some left
        with mp.workdps(800):
            upper = _MP_CDF[link](cuts[level]) if level < len(cuts) else mp.mpf(1)
            lower = _MP_CDF[link](cuts[level - 1]) if level else mp.mpf(0)
            return -mp.log(upper - lower)

    return definition


_CUTS = {
    "logit": [[-800.0, -790.0], [790.0, 800.0], [-800.0, 800.0], [0.3, 0.3 + 1e-9], [40.0, 40.0001], [-1.0, 2.0]],
    "probit": [
        *([-40.0, -39.0], [39.0, 40.0], [-40.0, 40.0], [0.3, 0.3 + 1e-9], [-40.0, -40.0 + 1e-7], [35.0, 35.0028]),
        *([-1e-3, 2e-3], [-3.0, -2.9], [-0.5, 6.0], [-20.0, 0.1], [0.0, 0.2], [-1.0, 0.0]),
    ],
    "cloglog": [[-800.0, -790.0], [-40.0, 3.0], [0.3, 0.3 + 1e-9], [2.0, 6.5], [-800.0, 5.0], [-30.0, -29.9999]],
}


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize(("link", "cuts"), [(link, cuts) for link in _CUTS for cuts in _CUTS[link]])
def test_ordinal_where_probabilities_underflow(link, cuts, level):
    lik, definition = Ordinal(3, link), _ordinal_exact(link, level)
    with mp.workdps(800):
        point = tuple(mp.mpf(v) for v in cuts)
        value = float(definition(*point))
    f = torch.tensor([cuts], dtype=DTYPE)
    at = lik.derivatives(f, torch.tensor([level]))
    assert at.nll.item() == pytest.approx(value, rel=1e-9, abs=1e-300)
    ratios, curvature = _ordinal_ratios(link, cuts, level)
    torch.testing.assert_close(at.gradient[0], ratios, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        at.hessian.to_dense()[0], curvature, rtol=1e-9, atol=1e-12 * float(curvature.abs().max())
    )
    assert bool((at.hessian.diag >= 0).all())


def _ordinal_ratios(link, cuts, level):
    """Gradient and Hessian from the density and its derivative, with 800 digits."""
    density = {
        "logit": lambda x: mp.exp(-x) / (1 + mp.exp(-x)) ** 2,
        "probit": lambda x: mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi),
        "cloglog": lambda x: mp.exp(x - mp.exp(x)),
    }[link]
    slope = {
        "logit": lambda x: density(x) * -mp.tanh(x / 2),
        "probit": lambda x: -x * density(x),
        "cloglog": lambda x: density(x) * (1 - mp.exp(x)),
    }[link]
    with mp.workdps(800):
        points = [mp.mpf(v) for v in cuts]
        p = mp.exp(-_ordinal_exact(link, level)(*points))
        first, second = mp.matrix(2, 1), mp.matrix(2, 2)
        for k, sign in ((level, 1), (level - 1, -1)):
            if 0 <= k < 2:
                first[k] = -sign * density(points[k]) / p
                second[k, k] = -sign * slope(points[k]) / p
        total = second + first * first.T
        return (
            torch.tensor([float(v) for v in first], dtype=DTYPE),
            torch.tensor([[float(total[i, j]) for j in range(2)] for i in range(2)], dtype=DTYPE),
        )


@pytest.mark.parametrize("link", ["logit", "probit"])
def test_ordinal_is_statsmodels_at_given_parameters(link):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(60, 2)), rng.integers(0, 4, 60)
    model = OrderedModel(y, x, distr=link)
    cuts, beta = np.array([-0.9, 0.2, 1.1]), np.array([0.6, -1.2])
    params = np.r_[beta, cuts[0], np.log(np.diff(cuts))]
    f = torch.tensor(cuts - (x @ beta)[:, None], dtype=DTYPE)
    nll = Ordinal(4, link).nll(f, torch.tensor(y))
    np.testing.assert_allclose(nll, -model.loglikeobs(params), rtol=1e-10)
    np.testing.assert_allclose(Ordinal(4, link).mean(f), model.predict(params, which="prob"), rtol=1e-9, atol=1e-15)


def test_ordinal_of_two_levels_is_bernoulli_of_the_upper_one():
    f, y = torch.linspace(-6, 6, 12, dtype=DTYPE).unsqueeze(-1), torch.tensor([0, 1] * 6)
    torch.testing.assert_close(Ordinal(2).nll(f, y), Bernoulli().nll(-f, y))
    torch.testing.assert_close(Ordinal(2).hessian(f, y).to_dense(), Bernoulli().hessian(-f, y).to_dense())


def test_levels_are_drawn_with_their_probabilities():
    f = torch.tensor([-1.0, 0.5, 0.9], dtype=DTYPE)
    for link in ("logit", "probit", "cloglog"):
        lik = Ordinal(4, link)
        drawn = lik.sample(f.expand(40_000, 3), torch.Generator().manual_seed(0))
        share = torch.bincount(drawn, minlength=4) / 40_000
        p = lik.mean(f)
        assert p.sum().item() == pytest.approx(1, abs=1e-14)
        assert bool(((share - p).abs() < 5 * (lik.variance(f) / 40_000).sqrt()).all())


def test_cumulative_predictors_out_of_order_are_named_and_have_no_likelihood():
    f = torch.tensor([[-1.0, 0.0, 1.0], [-1.0, 2.0, 1.0]], dtype=DTYPE)
    for link in ("logit", "probit", "cloglog"):
        lik = Ordinal(4, link)
        with pytest.raises(_errors.InputError, match=r"row 1 are out of order: '1\|2' is 2 and '2\|3' is 1"):
            lik.check_outputs(f)
        for level in range(4):
            at = lik.derivatives(f, torch.tensor([level, level]))
            assert bool(torch.isfinite(at.nll[0])) and at.nll[1] == math.inf
            assert bool(torch.isfinite(at.gradient).all() & torch.isfinite(at.hessian.to_dense()).all())
    with pytest.raises(_errors.InputError, match=r"'1\|2' in the only row is nan"):
        Ordinal(3).check_outputs(torch.tensor([0.0, math.nan]))
