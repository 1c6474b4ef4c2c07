from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raphson import InputError
from raphson.infer import Estimates, _mean, binary_columns, margins, of_root
from raphson.likelihoods import Bernoulli, Categorical, Gaussian
from raphson.linalg import Dense

# Stata 11, margins, dydx(*) predict(outcome(#)) on anes96: rows are logpopul, selfLR, age, educ, income.
OVERALL_0 = [0.00868085993550, -0.09779854015456, 0.00272556969847, -0.01992376579372, -0.00603133322764]
OVERALL_0_SE = [0.0038581061, 0.0080471125, 0.0007068488, 0.0082318967, 0.0020261706]
OVERALL_6 = [-0.00741820702809, 0.12459834487569, 0.00063806819375, 0.01766610701188, 0.00539385283759]
OVERALL_6_SE = [0.0033641608, 0.008376629, 0.0006774697, 0.0073505286, 0.0021660086]
MEAN_5 = [-0.00574308219449, 0.11126535089794, -0.00057337915464, 0.01467424346725, 0.00641760846097]
MEAN_5_SE = [0.0045654631, 0.0130329403, 0.0009128134, 0.0100053262, 0.0028048602]
# The same with the 0/1 column vote added as a factor: discrete change in the last entry.
VOTE_0 = [0.00549149574321, -0.05348235321783, 0.00298963549049, -0.01479461677951, -0.00332167981255]
VOTE_0 += [-0.26502967041815]
VOTE_0_SE = [0.0037314453, 0.0094102332, 0.000688838, 0.0079744554, 0.0019365971, 0.0243914836]
VOTE_5 = [0.00217597030999, -0.01279456622853, -0.00091882392767, 0.00001651192759, -0.00037998290789]
VOTE_5 += [0.27175070356670]
VOTE_5_SE = [0.0034443743, 0.0097296187, 0.0006774867, 0.0075996454, 0.0021993881, 0.038600835]


def columns(result):
    size = len(result.kinds)
    estimates = result.estimates
    return estimates.values.reshape(-1, size), estimates.standard_errors.reshape(-1, size)


# Stata stops iterating when its coefficients are good to about 1e-6.
def test_published_multinomial_effects(anes):
    effects, se = columns(margins(Categorical(), anes.full, anes.x))
    for row, values, errors in ((0, OVERALL_0, OVERALL_0_SE), (6, OVERALL_6, OVERALL_6_SE)):
        np.testing.assert_allclose(effects[row], values, rtol=1e-5)
        np.testing.assert_allclose(se[row], errors, rtol=1e-5)
    effects, se = columns(margins(Categorical(), anes.full, anes.x, at="mean"))
    np.testing.assert_allclose(effects[5], MEAN_5, rtol=1e-5)
    np.testing.assert_allclose(se[5], MEAN_5_SE, rtol=1e-5)


def test_multinomial_effects_against_statsmodels(anes):
    for at in ("overall", "mean"):
        theirs = anes.fit.get_margeff(at=at)
        effects, se = columns(margins(Categorical(), anes.full, anes.x, at=at))
        np.testing.assert_allclose(effects, np.asarray(theirs.margeff).T, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(se, np.asarray(theirs.margeff_se).T, rtol=1e-7)


def test_published_discrete_change(anes_vote):
    binary = binary_columns(anes_vote.x)
    assert binary.tolist() == [False] * 5 + [True]
    result = margins(Categorical(), anes_vote.full, anes_vote.x, binary=binary)
    effects, se = columns(result)
    for row, values, errors in ((0, VOTE_0, VOTE_0_SE), (5, VOTE_5, VOTE_5_SE)):
        np.testing.assert_allclose(effects[row], values, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(se[row], errors, rtol=2e-6)
    frame = result.to_frame()
    assert frame.loc[("5", "vote"), "kind"] == "1 vs 0" and frame.loc[("5", "age"), "kind"] == "dy/dx"
    assert frame.loc[("5", "vote"), "effect"] == pytest.approx(0.27175070356670, rel=1e-6)


def test_published_logit_effects(spector):
    # Stata, spector: GPA, TUCE, PSI; PSI is 0/1.
    estimates, x = spector.estimates, spector.x
    effects, se = columns(margins(Bernoulli(), estimates, x))
    np.testing.assert_allclose(effects[0], [0.36258084688424, 0.01220841099085, 0.30517768382304], rtol=1e-6)
    np.testing.assert_allclose(se[0], [0.1094412, 0.0177942, 0.0923796], rtol=3e-6)
    psi = torch.tensor([False, False, True])
    effects, se = columns(margins(Bernoulli(), estimates, x, binary=psi))
    assert float(effects[0, 2]) == pytest.approx(0.35751515254729, rel=1e-6)
    assert float(se[0, 2]) == pytest.approx(0.1420034, rel=1e-6)
    effects, se = columns(margins(Bernoulli(), estimates, x, binary=psi, at="mean"))
    np.testing.assert_allclose(effects[0], [0.53385885781692, 0.01797548988961, 0.4564984096959], rtol=1e-6)
    np.testing.assert_allclose(se[0], [0.237038, 0.0262369, 0.1810537], rtol=3e-6)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 6),
    d=st.integers(1, 3),
    c=st.integers(1, 4),
    seed=st.integers(0, 99),
    at=st.sampled_from(["overall", "mean"]),
    chunk=st.sampled_from([1, 2, 1000]),
)
def test_jacobian_against_autograd_of_the_average(n, d, c, seed, at, chunk):
    g = torch.Generator().manual_seed(seed)
    coef, x = (torch.randn(size, generator=g, dtype=torch.float64) for size in ((c, d + 1), (n, d)))
    weights = torch.rand(n, generator=g, dtype=torch.float64) + 0.1
    offset = torch.randn((n, c), generator=g, dtype=torch.float64)
    binary = torch.rand(d, generator=g) < 0.5
    x[:, binary] = (x[:, binary] > 0).double()

    def naive(beta):
        w, rows, shift = weights / weights.sum(), x, offset
        if at == "mean":
            rows, shift, w = (w @ x).unsqueeze(0), (w @ offset).unsqueeze(0), torch.ones(1).double()

        def probability(z):
            return torch.softmax(beta[:, 0] + z @ beta[:, 1:].mT + shift, -1)

        effects = []
        for j in range(d):
            one, zero, step = rows.clone(), rows.clone(), torch.zeros_like(rows)
            one[:, j], zero[:, j], step[:, j] = 1.0, 0.0, 1.0
            change = (
                probability(one) - probability(zero) if binary[j] else torch.func.jvp(probability, (rows,), (step,))[1]
            )
            effects.append(w @ change)
        return torch.stack(effects, -1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_mean, "CHUNK_ELEMENTS", chunk * c * max(c, d))
        labels = tuple((k, j) for k in range(c) for j in range(d + 1))
        given = Estimates(coef.flatten(), of_root(torch.eye(c * (d + 1)).double()), labels, "given")
        result = margins(Categorical(), given, x, weights=weights, offset=offset, binary=binary, at=at)
    expected = torch.func.jacfwd(naive)(coef).reshape(c * d, c * (d + 1))
    torch.testing.assert_close(result.estimates.values.reshape(c, d), naive(coef), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.estimates.covariance.low_rank, expected, rtol=1e-9, atol=1e-12)


def test_identity_link_gives_the_coefficients():
    coef = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).double()
    labels = tuple((output, name) for output in "uv" for name in ("intercept", "a", "b"))
    given = Estimates(coef.flatten(), of_root(torch.eye(6).double()), labels, "given")
    result = margins(Gaussian(), given, torch.randn(5, 2).double())
    torch.testing.assert_close(result.estimates.values, coef[:, 1:].flatten())
    torch.testing.assert_close(result.estimates.covariance.low_rank, torch.eye(6).double()[[1, 2, 4, 5]])


def test_effects_of_collinear_columns_are_not_estimable():
    direction = torch.tensor([[0.0], [1.0], [-1.0], [0.0]]).double()
    labels = tuple(("y", name) for name in ("intercept", "a", "copy", "b"))
    coefficients = Estimates(
        torch.tensor([0.1, 0.5, 0.5, 1.0]).double(),
        Dense(torch.eye(4).double()),
        labels,
        "observed information",
        null_space=direction,
    )
    a = torch.linspace(-1, 1, 5).double()
    result = margins(Bernoulli(), coefficients, torch.stack([a, a, a**2], 1))
    assert result.estimates.estimable.tolist() == [False, False, True]
    assert result.to_frame()["effect"].isna().tolist() == [True, True, False]
    assert "not estimable" in str(result.summary())


def test_refusals(spector):
    with pytest.raises(InputError, match="'overall' or 'mean'"):
        margins(Bernoulli(), spector.estimates, spector.x, at="median")
