from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raphson import InputError, NotEstimableError
from raphson.infer import Estimates, aic, bic, likelihood_ratio_test, pseudo_r2, wald_test
from raphson.linalg import Dense


def test_identity_one_row_at_a_time_is_z_squared(anes):
    result = wald_test(anes.estimates, np.eye(36))
    assert result.rows.labels == anes.estimates.labels
    frame = result.to_frame()
    np.testing.assert_allclose(frame["statistic"].to_numpy(float), anes.estimates.z**2, rtol=1e-10)
    np.testing.assert_allclose(frame["p_value"].to_numpy(float), anes.estimates.p_values, rtol=1e-10)
    assert frame.loc[("6", "selfLR"), "statistic"] == pytest.approx(14.43480847**2, rel=1e-8)
    single = wald_test(anes.estimates, np.eye(36)[31 + 1])
    assert single.rows.labels == (("6", "selfLR"),)
    assert single.statistic == pytest.approx(14.43480847**2, rel=1e-8)


def test_joint_tests_against_statsmodels(anes):
    generator = np.random.default_rng(0)
    for rows in (1, 3, 7):
        R, q = generator.normal(size=(rows, 36)), generator.normal(size=rows)
        theirs = anes.fit.wald_test((R, q), use_f=False, scalar=True)
        ours = wald_test(anes.estimates, R, q)
        assert ours.statistic == pytest.approx(float(theirs.statistic), rel=1e-7)
        assert ours.p_value == pytest.approx(float(theirs.pvalue), rel=1e-5, abs=1e-300)
        assert ours.df == rows and not ours.note


def test_by_name(anes):
    age = wald_test(anes.estimates, "age")
    assert [label[1] for label in age.rows.labels] == ["age"] * 6 and age.df == 6
    R = np.zeros((6, 36))
    R[np.arange(6), np.arange(6) * 6 + 3] = 1
    assert age.statistic == pytest.approx(float(anes.fit.wald_test(R, use_f=False, scalar=True).statistic))
    assert wald_test(anes.estimates, "2").df == 6
    assert wald_test(anes.estimates, ["age", "educ"]).df == 12
    assert wald_test(anes.estimates, [("1", "age"), ("2", "age")]).rows.labels == (("1", "age"), ("2", "age"))
    assert wald_test(anes.estimates, ("1", "age")).df == 1
    with pytest.raises(InputError, match="did you mean income"):
        wald_test(anes.estimates, "incom")


def test_repeated_restrictions_count_once(anes):
    R = np.zeros((3, 36))
    R[0, 1] = R[1, 7] = 1
    R[2] = R[0] - 2 * R[1]
    result = wald_test(anes.estimates, R)
    assert result.df == 2 and "3 restrictions, of which 2" in result.note and result.note in str(result)
    assert result.statistic == pytest.approx(wald_test(anes.estimates, R[:2]).statistic, rel=1e-9)
    assert result.rows.labels[2] == ("", "+1 logpopul of 1 -2 logpopul of 2")
    with pytest.raises(InputError, match="contradict one another"):
        wald_test(anes.estimates, R, [0.0, 0.0, 1.0])


def test_sum_to_zero_coefficients_lose_one_degree(anes):
    center = torch.kron(torch.eye(7) - torch.ones(7, 7) / 7, torch.eye(6)).double()
    centered = anes.full.transform(center, anes.full.labels)
    result = wald_test(centered, "age")
    assert result.df == 6
    assert result.statistic == pytest.approx(wald_test(anes.estimates, "age").statistic, rel=1e-9)


def test_wald_refusals(anes):
    with pytest.raises(InputError, match=r"shape \(r, 36\)"):
        wald_test(anes.estimates, np.eye(6))
    with pytest.raises(InputError, match="one value for each of 36 rows"):
        wald_test(anes.estimates, np.eye(36), [1.0, 2.0])
    with pytest.raises(InputError, match="nothing to test"):
        wald_test(anes.full, ("0", "age"))
    flags = torch.ones(36, dtype=torch.bool)
    flags[3] = False
    broken = Estimates(anes.estimates.values, anes.estimates.covariance, anes.estimates.labels, "x", estimable=flags)
    with pytest.raises(NotEstimableError, match="age of 1"):
        wald_test(broken, "age")
    assert wald_test(broken, "educ").df == 6


@settings(max_examples=25, deadline=None)
@given(p=st.integers(2, 5), r=st.integers(1, 5), seed=st.integers(0, 999))
def test_invariant_to_a_change_of_restrictions(p, r, seed):
    r = min(p, r)
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(p, p + 2))
    labels = tuple(("", f"x{i}") for i in range(p))
    estimates = Estimates(torch.tensor(generator.normal(size=p)), Dense(torch.tensor(root @ root.T)), labels, "x")
    R = np.eye(p)[:r]
    mixed = np.diag(10.0 ** generator.integers(-6, 6, r)) @ np.tril(np.ones((r, r))) @ R
    expected = R @ estimates.values.numpy() @ np.linalg.solve(R @ root @ root.T @ R.T, R @ estimates.values.numpy())
    for matrix in (R, mixed):
        assert wald_test(estimates, matrix).statistic == pytest.approx(expected, rel=1e-6)


def test_published_likelihood_ratio():
    # Stata 11 mlogit on anes96.
    result = likelihood_ratio_test(-1461.922747312, 36, -1750.34670999, 6, 944, 944)
    assert result.statistic == pytest.approx(576.8479253554, rel=1e-10) and result.df == 30
    assert result.p_value == pytest.approx(1.8223179e-102, rel=1e-6)
    assert pseudo_r2(-1461.922747312, -1750.34670999, 944).mcfadden == pytest.approx(0.1647810465387, rel=1e-10)
    assert aic(-1461.922747312, 36) == pytest.approx(2995.84549462)
    assert bic(-1461.922747312, 36, 944) == pytest.approx(3170.45003661)


def test_pseudo_r2_against_statsmodels(spector):
    glm = sm.GLM(spector.fit.model.endog, spector.design, family=sm.families.Binomial()).fit(tol=1e-12)
    measures = pseudo_r2(glm.llf, glm.llnull, 32)
    assert measures.mcfadden == pytest.approx(glm.pseudo_rsquared("mcf"), rel=1e-10)
    assert measures.cox_snell == pytest.approx(glm.pseudo_rsquared("cs"), rel=1e-10)
    perfect = pseudo_r2(0.0, glm.llnull, 32)
    assert perfect.nagelkerke == pytest.approx(1.0) and perfect.mcfadden == 1.0
    assert measures.nagelkerke == pytest.approx(measures.cox_snell / perfect.cox_snell, rel=1e-10)


def test_comparison_refusals():
    assert likelihood_ratio_test(-10.0, 3, -10.0 + 1e-9, 2, 9, 9).statistic == 0.0
    for arguments, match in (
        ((-10.0, 3, -9.0, 2, 9, 9), "not nested in the full model"),
        ((-10.0, 2, -12.0, 2, 9, 9), "must have fewer"),
        ((-10.0, 3, -12.0, 2, 100, 99), "100 rows and the restricted one to 99"),
        ((float("nan"), 3, -12.0, 2, 9, 9), "must be finite"),
    ):
        with pytest.raises(InputError, match=match):
            likelihood_ratio_test(*arguments)
    with pytest.raises(InputError, match="at most zero"):
        pseudo_r2(3.0, -1.0, 10)
    with pytest.raises(InputError, match="never varies"):
        pseudo_r2(0.0, 0.0, 10)


def test_pseudo_r2_of_a_fit_far_below_the_mean():
    found = pseudo_r2(-1e19, -1e6, 60)
    assert found.mcfadden == pytest.approx(1 - 1e13) and found.cox_snell == found.nagelkerke == -math.inf
