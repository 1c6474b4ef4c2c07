from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raphson import IndefiniteError, InputError
from raphson.infer import Estimates
from raphson.linalg import Dense


def estimates(values, covariance, **options):
    values = torch.tensor(values).double()
    labels = tuple(("a", f"x{i}") for i in range(len(values)))
    return Estimates(values, Dense(torch.tensor(covariance).double()), labels, "observed information", **options)


def test_against_statsmodels(anes):
    fit = anes.fit
    ours = anes.estimates
    np.testing.assert_allclose(ours.z.reshape(6, 6), np.asarray(fit.tvalues).T, rtol=1e-8)
    np.testing.assert_allclose(ours.p_values.reshape(6, 6), np.asarray(fit.pvalues).T, rtol=1e-6)
    interval = np.asarray(fit.conf_int(alpha=0.1))
    np.testing.assert_allclose(ours.confint(0.9), interval.reshape(-1, 2), rtol=1e-8)


def test_published_interval(anes):
    # Stata 11 mlogit on anes96, equation 6, self-placement left/right.
    frame = anes.estimates.to_frame()
    row = frame.loc[("6", "selfLR")]
    assert row["lower"] == pytest.approx(1.789004, abs=1e-6)
    assert row["upper"] == pytest.approx(2.351156, abs=1e-6)
    assert row["z"] == pytest.approx(14.43480847, rel=1e-8)
    assert frame.index.names == ["class", "feature"]
    assert list(frame.columns) == ["coef", "std_err", "z", "p_value", "lower", "upper"]


def test_far_tail_keeps_digits():
    assert float(estimates([30.0], [[1.0]]).p_values) == pytest.approx(2 * stats.norm.sf(30.0), rel=1e-12)


def test_not_estimable_is_declared():
    ours = estimates([1.0, 2.0, 3.0], np.eye(3), estimable=torch.tensor([True, False, True]))
    frame = ours.to_frame()
    assert frame.loc[("a", "x1")].isna().all() and frame.iloc[0].notna().all()
    assert frame["coef"].iloc[1] is pd.NA
    assert ours.covariance_frame().isna().to_numpy().sum() == 5
    image = ours.transform(torch.tensor([[1.0, 0, 1], [0, 1, 1]]).double(), (("", "x0+x2"), ("", "x1+x2")))
    assert image.estimable.tolist() == [True, False]
    assert float(image.standard_errors[0]) == pytest.approx(2**0.5)


def test_contrasts_of_a_duplicated_column():
    # y = b0 x + b1 x: minimum norm, only the sum is determined. The pseudo-inverse is the covariance.
    direction = torch.tensor([[1.0], [-1.0], [0.0]]).double() / 2**0.5
    ours = estimates([0.5, 0.5, 2.0], [[0.25, 0.25, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 1.0]], null_space=direction)
    assert ours.estimable.tolist() == [False, False, True]
    labels = (("", "sum"), ("", "difference"), ("", "third"))
    image = ours.transform(torch.tensor([[1.0, 1, 0], [1, -1, 0], [0, 0, 2]]).double(), labels)
    assert image.estimable.tolist() == [True, False, True]
    assert image.standard_errors[[0, 2]].tolist() == [1.0, 2.0]
    again = image.transform(torch.tensor([[1.0, 0, 1], [0, 1, 0]]).double(), (("", "u"), ("", "v")))
    assert again.estimable.tolist() == [True, False]


def test_reference_row_is_fixed_not_nan(anes):
    frame = anes.full.to_frame().loc["0"]
    assert (frame["std_err"] == 0).all() and frame["z"].isna().all() and frame["p_value"].isna().all()


@settings(max_examples=30, deadline=None)
@given(p=st.integers(1, 5), q=st.integers(1, 6), seed=st.integers(0, 999))
def test_transform_is_the_linear_map(p, q, seed):
    generator = np.random.default_rng(seed)
    root, matrix, values = (
        generator.normal(size=(p, p)),
        generator.normal(size=(q, p)),
        generator.normal(size=p),
    )
    covariance = root @ root.T
    labels = tuple(("b", i) for i in range(q))
    image = estimates(values, covariance).transform(torch.tensor(matrix), labels)
    np.testing.assert_allclose(image.values, matrix @ values, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(image.covariance.to_dense(), matrix @ covariance @ matrix.T, rtol=1e-11, atol=1e-11)
    assert image.labels == labels and bool(image.estimable.all())


def test_refusals():
    with pytest.raises(InputError, match="x1 of a is not finite"):
        estimates([1.0, np.inf], np.eye(2))
    with pytest.raises(IndefiniteError, match="variance of x1 of a is negative"):
        _ = estimates([1.0, 1.0], np.diag([1.0, -1.0])).standard_errors
    for level in (0.0, 1.0, 95):
        with pytest.raises(InputError, match="between 0 and 1"):
            estimates([1.0], [[1.0]]).confint(level)
