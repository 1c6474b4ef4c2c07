"""Penalized classes of few rows and as many columns: the fit is that of the full objective, whatever led there."""

from __future__ import annotations

import warnings
from unittest import mock

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import raphson as rp
from raphson.estimators.fit import _few_rows
from raphson.estimators.input import _rows
from tests.awkward_tables import spoil


def gradient_norm(model, x, y, weights, l2, intercept):
    """The largest entry of the gradient of the mean objective, by NumPy alone."""
    x = x.toarray() if sp.issparse(x) else x
    w = np.ones(len(y)) if weights is None else weights
    f = x @ model.coef_.T + model.intercept_
    p = np.exp(f - f.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), np.searchsorted(model.classes_, y)] -= 1.0
    p *= w[:, None] / w.sum()
    slopes = p.T @ x + l2 * (model.coef_ - model.coef_.mean(0))
    return max(np.abs(slopes).max(), np.abs(p.sum(0)).max() if intercept else 0.0)


@st.composite
def tables(draw):
    n, k = draw(st.integers(6, 40)), draw(st.sampled_from([2, 3, 4, 12]))
    n = max(n, k + 2)
    d = draw(st.one_of(st.integers(n // 2 + 1, n), st.integers(n + 1, 120))) if k < 5 else draw(st.integers(n + 1, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    kinds = draw(st.sets(st.sampled_from(["units", "means", "copied rows", "constant columns", "weights", "sparse"])))
    x = rng.normal(size=(n, d))
    if "units" in kinds:
        x *= 10.0 ** rng.uniform(-1, 1, d)
    if "means" in kinds:
        x += 20.0 * rng.normal(size=d)
    spoil(x, kinds, rng)
    if "sparse" in kinds:
        x = sp.csr_matrix(x)
    return x, rng.permutation(np.arange(n) % k), rng.uniform(0.5, 2.0, n) if "weights" in kinds else None


@settings(max_examples=100, deadline=None)
@given(tables(), st.sampled_from([1e-6, 1e-3, 1.0]), st.booleans(), st.sampled_from(["first", None]), st.booleans())
def test_the_gradient_of_all_columns_is_below_the_tolerance(table, l2, intercept, reference, is_sparse):
    x, y, weights = table
    model = rp.MultinomialLogisticRegression(l2=l2, tol=1e-6, fit_intercept=intercept, reference=reference)
    with mock.patch.object(_rows, "_FEW_ENTRIES", 0 if is_sparse else 2**18):
        model.fit(x, y, weights)
    solution = model.solution_
    if x.shape[1] <= len(y) and len(model.classes_) < 5:
        assert "In combinations of the" not in solution.reason
        return
    # means beside which rows hardly differ leave few digits of a weak penalty: that goes on with all columns; columns
    # of very different size take more steps of L-BFGS than are tried
    few, by_rows = (f"In {words} of the" in solution.reason for words in ("combinations", "the span"))
    assert solution.converged and (few or (l2 < 1e-3 and not intercept) or (by_rows and len(model.classes_) > 2))
    assert gradient_norm(model, x, y, weights, l2, intercept) <= 1.05e-6
    assert solution.gradient_norm <= 1e-6
    assert model.n_iter_ == len(solution.history) - 1
    assert solution.value == pytest.approx(model._fitted.objective.value(solution.theta), rel=1e-9)
    assert solution.history[-1].value == pytest.approx(solution.value, rel=1e-9)
    assert solution.value <= solution.history[0].value


@pytest.mark.parametrize("k", [2, 3, 20])
def test_the_fit_is_that_of_newton_steps_in_all_columns(k):
    rng = np.random.default_rng(k)
    x, y = rng.normal(size=(60, 90)) + 0.5, rng.permutation(np.arange(60) % k)
    ours = rp.MultinomialLogisticRegression(l2=1e-2, tol=2e-8).fit(x, y)
    assert "In combinations of the" in ours.solution_.reason
    exact = rp.MultinomialLogisticRegression(l2=1e-2, tol=1e-11, solver="newton").fit(x, y)
    np.testing.assert_allclose(ours.coef_, exact.coef_, rtol=0, atol=1e-5 * np.abs(exact.coef_).max())
    np.testing.assert_allclose(ours.loglik_, exact.loglik_, rtol=1e-6)


def test_one_step_fits_many_classes_of_a_weak_penalty():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2000)), np.arange(60) % 30
    assert rp.MultinomialLogisticRegression(l2=1e-6, tol=1e-6).fit(x, y).n_iter_ == 1


@pytest.mark.parametrize("change", ["no newton", "no patience"])
def test_what_leads_no_further_goes_on_with_all_columns(change):
    """Without a factor, and where L-BFGS is given up, the fit goes on from there."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 100)), np.arange(40) % (2 if change == "no newton" else 20)
    dual = {"newton_step": lambda *_: None} if change == "no newton" else {}
    patched = (
        mock.patch.multiple(_few_rows.DualClasses, **dual) if dual else mock.patch.object(_few_rows, "_PATIENCE", 2)
    )
    with patched:
        model = rp.MultinomialLogisticRegression(l2=1e-3, tol=1e-6).fit(x, y)
    assert model.solution_.converged and gradient_norm(model, x, y, None, 1e-3, True) <= 1.05e-6
    assert len(model.solution_.history) == model.n_iter_ + 1


def test_entries_that_leave_no_digits_in_the_products_of_rows():
    """A column of size 1e9 hides the others in the products; outputs by the coefficients tell."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(30, 80)), np.arange(30) % 2
    x[:, 0] *= 1e9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = rp.MultinomialLogisticRegression(l2=1e-2, tol=1e-6).fit(x, y)
    theta = model.solution_.theta
    assert not model.solution_.converged or model._fitted.objective.evaluate(theta, None).norm <= 2e-6


def test_products_of_rows_that_overflow_are_left_alone():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(30, 80)), np.arange(30) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        model = rp.MultinomialLogisticRegression(l2=1e-2, tol=1e-6).fit(x * 1e149, y)
    assert np.isfinite(model.coef_).all() and all(np.isfinite(step.value) for step in model.solution_.history)


def test_what_is_called_back_and_who_takes_part():
    rng = np.random.default_rng(3)
    x, y, seen = rng.normal(size=(30, 80)), np.arange(30) % 3, []
    model = rp.MultinomialLogisticRegression(l2=1e-2, tol=1e-6, progress=seen.append).fit(x, y)
    assert [step.iteration for step in seen] == list(range(model.n_iter_ + 1))
    for other in ({"solver": "newton-cg"}, {"max_iter": 5}, {"tol": 1e-9}, {"l2": 0.5, "warm_start": True}):
        again = rp.MultinomialLogisticRegression(**{"l2": 1e-2, "tol": 1e-6, **other})
        if "warm_start" in other:
            again.fit(x, y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again.fit(x, y)
        assert "In combinations" not in again.solution_.reason
    assert torch.equal(model.solution_.theta, model._fitted.solution.theta)
