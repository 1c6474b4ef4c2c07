from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.sandwich_covariance import cov_cluster

from raphson import IndefiniteError, InputError, NotEstimableError
from raphson.infer import inverse_information, sandwich, small_sample_factor
from raphson.linalg import Dense, Diagonal

# Stata 11's mlogit on anes96; column order of the published table: five covariates, constant last.
ANES_SE_1 = [0.0342823657, 0.093626795, 0.0065248584, 0.0735865799, 0.0176336937, 0.6298376313]
ANES_SE_6 = [0.042138047, 0.1434089089, 0.0081338625, 0.0910979921, 0.025300888, 1.059954821]
STATA_ROBUST_SE = [0.19233713248134, 0.55301404772037, 0.66532523368388]
# Stata's logit on spector: covariance of GPA, TUCE, PSI, constant.
SPECTOR_COV = [
    [1.59502033639, -0.036920566629, 0.427615725153, -4.57347950298],
    [-0.036920566629, 0.0200375937069, 0.0149126464275, -0.346255757562],
    [0.427615725153, 0.0149126464275, 1.13329715236, -2.35916128427],
    [-4.57347950298, -0.346255757562, -2.35916128427, 24.3179625937],
]


def cluster_sums(scores, groups):
    """Sums of the scores of every group."""
    return torch.stack([scores[groups == group].sum(0) for group in np.unique(groups)])


def test_published_standard_errors(anes):
    se = anes.estimates.standard_errors.reshape(6, 6)
    np.testing.assert_allclose(torch.roll(se[0], -1), ANES_SE_1, rtol=1e-8)
    np.testing.assert_allclose(torch.roll(se[5], -1), ANES_SE_6, rtol=1e-8)


def test_published_covariance(spector):
    covariance = spector.estimates.covariance.to_dense()
    np.testing.assert_allclose(torch.roll(covariance, (-1, -1), (0, 1)), SPECTOR_COV, rtol=1e-6)
    np.testing.assert_allclose(covariance, np.asarray(spector.fit.cov_params()), rtol=1e-9)


def test_sandwich_against_statsmodels(spector):
    meat = Dense(spector.scores.mT @ spector.scores)
    fit = sm.Logit(spector.fit.model.endog, spector.design).fit(method="newton", tol=1e-12, disp=0, cov_type="HC0")
    ours = sandwich(spector.estimates.covariance, meat, small_sample_factor("HC0", 32, 4)).to_dense()
    np.testing.assert_allclose(ours, fit.cov_params(), rtol=1e-9)


def test_least_squares_hc1_against_statsmodels(spector):
    fit = sm.OLS(spector.fit.model.endog, spector.design).fit(cov_type="HC1")
    x = torch.tensor(spector.design)
    scores = torch.tensor(fit.resid).unsqueeze(-1) * x
    bread = inverse_information(Dense(x.mT @ x))
    ours = sandwich(bread, Dense(scores.mT @ scores), small_sample_factor("HC1", 32, 4))
    np.testing.assert_allclose(ours.to_dense(), fit.cov_params(), rtol=1e-9)


def test_clustered_against_statsmodels(spector):
    groups = np.arange(32) % 7
    fit = sm.Logit(spector.fit.model.endog, spector.design).fit(
        method="newton", tol=1e-12, disp=0, cov_type="cluster", cov_kwds={"groups": groups}
    )
    sums = cluster_sums(spector.scores, groups)
    factor = small_sample_factor("CR1", 32, 4, 7)
    ours = sandwich(spector.estimates.covariance, Dense(sums.mT @ sums), factor).to_dense()
    np.testing.assert_allclose(ours, fit.cov_params(), rtol=1e-9)
    np.testing.assert_allclose(ours, cov_cluster(fit, groups), rtol=1e-9)


def test_stata_robust_and_clustered_poisson():
    # "poisson accident yr_con op_75_79" with vce(robust) and vce(cluster ship): yr_con, op_75_79, _cons.
    import pandas as pd
    import statsmodels.discrete.tests.results as results

    data = pd.read_csv(f"{next(iter(results.__path__))}/ships.csv", index_col=False).dropna()
    design = np.column_stack([data[["yr_con", "op_75_79"]], np.ones(len(data))]).astype(float)
    beta = sm.Poisson(data["accident"].to_numpy(), design).fit(method="newton", tol=1e-12, disp=0).params
    x, y = torch.tensor(design), torch.tensor(data["accident"].to_numpy()).double()
    mean = (x @ torch.tensor(beta)).exp()
    bread = inverse_information(Dense(x.mT @ (mean.unsqueeze(-1) * x)))
    scores = (y - mean).unsqueeze(-1) * x
    sums = cluster_sums(scores, data["ship"].factorize()[0])
    for rows, groups, published in (
        (scores, None, STATA_ROBUST_SE),
        (sums, 5, [0.19933709357097, 0.11093628220713, 1.1048569901548]),
    ):
        covariance = sandwich(bread, Dense(rows.mT @ rows), small_sample_factor("stata", len(y), 3, groups))
        np.testing.assert_allclose(covariance.diagonal().sqrt(), published, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 6), seed=st.integers(0, 99), exponent=st.integers(-24, 24))
def test_inverse_at_any_scale(n, seed, exponent):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n + 3, n, generator=generator, dtype=torch.float64)
    unit = torch.ones(n, dtype=torch.float64)
    unit[0] = 10.0**exponent
    covariance = inverse_information(Dense((root * unit).mT @ (root * unit))).to_dense()
    expected = torch.linalg.inv(root.mT @ root) / unit / unit.unsqueeze(-1)
    torch.testing.assert_close(
        covariance * unit * unit.unsqueeze(-1), expected * unit * unit.unsqueeze(-1), rtol=1e-8, atol=1e-10
    )


def test_diagonal_information_and_labels():
    covariance = inverse_information(Diagonal(torch.tensor([4.0, 0.5]).double(), labels=("a", "b")))
    torch.testing.assert_close(covariance.to_dense(), torch.diag(torch.tensor([0.25, 2.0]).double()))
    assert covariance.labels == ("a", "b")


def test_singular_information_is_refused():
    twice = torch.tensor([[2.0, 1.0, 2.0], [1.0, 3.0, 1.0], [2.0, 1.0, 2.0]]).double()
    with pytest.raises(NotEstimableError, match="parameter 'copy' is determined"):
        inverse_information(Dense(twice, labels=("age", "income", "copy")))
    with pytest.raises(NotEstimableError, match="no information about parameter 1"):
        inverse_information(Diagonal(torch.tensor([1.0, 0.0]).double()))
    with pytest.raises(NotEstimableError, match="nan or infinite"):
        inverse_information(Dense(torch.tensor([[torch.nan]]).double()))
    for matrix in ([[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]]):
        with pytest.raises(IndefiniteError, match="parameter 1"):
            inverse_information(Dense(torch.tensor(matrix).double()))


def test_factors():
    assert small_sample_factor("HC0", 10, 3) == small_sample_factor("CR0", 10, 3) == 1.0
    assert small_sample_factor("CR1", 100, 4, 10) == pytest.approx(10 / 9 * 99 / 96)
    for arguments, match in (
        (("HC9", 10, 3), "choose one of"),
        (("HC1", 3, 3), "more rows than parameters"),
        (("stata", 10, 3, 1), "at least 2 clusters"),
    ):
        with pytest.raises(InputError, match=match):
            small_sample_factor(*arguments)
