"""Fits that a few gradients end: what they start from, and that their answer is that of Newton's method."""

from __future__ import annotations

import math
import warnings
from unittest import mock

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import raphson as rp
from raphson import _native
from raphson.data import DenseDesign, SparseDesign
from raphson.estimators.fit import _by_rows, _first_step
from raphson.estimators.fit._first_step import first_length, further, rough_inverse
from raphson.estimators.input import _rows
from raphson.linear import LinearObjective

LIKELIHOODS = {"classes": 3, "two classes": 2, "bits": None, "counts": None}


@pytest.fixture(autouse=True, scope="module")
def as_sparse():
    """Small sparse tables are fitted as such, as large ones are, not as dense ones."""
    with mock.patch.object(_rows, "_FEW_ENTRIES", 0):
        yield


def table(kind, n, d, *, sparse, weights, offset, constant, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    if sparse:
        x[rng.random((n, d)) < 0.7] = 0.0
        x += 2.0 * (x != 0)
    if constant:
        x[:, :2] = 3.0
    k = LIKELIHOODS[kind]
    y = rng.permutation(np.arange(n) % k) if k else rng.poisson(1.5, n) if kind == "counts" else np.arange(n) % 2
    shift = rng.normal(size=(n, k or 1)) if offset else None
    return sp.csr_matrix(x) if sparse else x, y, rng.uniform(0.5, 2.0, n) if weights else None, shift


def estimator(kind, **options):
    if LIKELIHOODS[kind]:
        return rp.MultinomialLogisticRegression(reference=None, **options)
    return rp.VectorGLM(rp.Bernoulli() if kind == "bits" else rp.Poisson(), **options)


@pytest.mark.nightly
@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(LIKELIHOODS)),
    st.integers(30, 60),
    st.integers(30, 90),
    st.fixed_dictionaries({name: st.booleans() for name in ("sparse", "weights", "offset", "constant")}),
    st.integers(0, 999),
)
def test_few_gradients_lead_where_newton_steps_do(kind, n, d, options, seed):
    """A fit to 1e-10 by gradients has the coefficients and log-likelihood of a direct one to 1e-8."""
    x, y, weights, offset = table(kind, n, d, **options, seed=seed)
    l2 = 0.3
    with (
        mock.patch.object(_by_rows, "gradients_to_try", return_value=500.0),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        found = estimator(kind, l2=l2, tol=1e-10, max_iter=1000).fit(x, y, weights, offset)
    assert found.solution_.converged and found.solution_.gradient_norm <= 1e-10
    assert found.solution_.reason.startswith("Gradients alone")
    direct = estimator(kind, l2=l2, tol=1e-12, solver="newton").fit(x, y, weights, offset)
    np.testing.assert_allclose(found.coef_, direct.coef_, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.intercept_, direct.intercept_, rtol=0, atol=1e-8)
    assert found.loglik_ == pytest.approx(direct.loglik_, rel=1e-8)
    np.testing.assert_allclose(estimator_mean(found, x, offset), estimator_mean(direct, x, offset), rtol=0, atol=1e-8)
    errors = (model.standard_errors("sandwich").to_numpy(dtype=float) for model in (found, direct))
    np.testing.assert_allclose(*errors, rtol=0, atol=1e-8)


def estimator_mean(model, x, offset):
    """Return what a model predicts: probabilities, or means."""
    return model.predict_proba(x, offset=offset) if hasattr(model, "predict_proba") else model.predict(x, offset=offset)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
def test_the_rough_inverse_is_exact_at_the_start_of_uncorrelated_columns(sparse, intercept):
    """Two classes of equal size, columns without correlations: the Hessian is the diagonal that is assumed."""
    x = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) + (3.0 if intercept else 0.0)
    y = np.array([0, 1, 1, 0])
    model = rp.MultinomialLogisticRegression(l2=0.2, fit_intercept=intercept)
    model.fit(sp.csr_matrix(x) if sparse else x, y)
    objective = model._fitted.objective.reduced
    assert isinstance(objective, LinearObjective)
    start = torch.zeros(objective.n_parameters, dtype=torch.float64)
    inverse = rough_inverse(objective, start)
    product = torch.stack([inverse(row) for row in objective.hessian(start).to_dense()])
    torch.testing.assert_close(product, torch.eye(len(start), dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_rough_inverse_is_exact_in_the_span_of_orthogonal_rows(sparse):
    """Slopes feel more curvature there than in the mean of all directions, an intercept does not; units differ."""
    n, d, rng = 16, 400, np.random.default_rng(0)
    x = np.linalg.qr(rng.normal(size=(d, n)) * 10.0 ** rng.uniform(-1, 1, (d, 1)))[0].T * np.sqrt(d)
    x -= x.mean(0)
    model = rp.MultinomialLogisticRegression(l2=0.02).fit(sp.csr_matrix(x) if sparse else x, np.arange(n) % 2)
    objective = model._fitted.objective.reduced
    start = torch.zeros(objective.n_parameters, dtype=torch.float64)
    v = objective.evaluate(start).gradient
    v[1:] /= objective.ridge.diagonal[1:]
    v[0] = 0.5 * v.norm()
    product = rough_inverse(objective, start)(objective.hessian(start) @ v)
    torch.testing.assert_close(product, v, rtol=0.05, atol=0.05 * float(v.abs().max()))
    assert float(product[0]) == pytest.approx(float(v[0]), rel=1e-9)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_step_beyond_the_lowest_point_ends_a_fit_with_a_weak_penalty(sparse):
    """Where it did not go further, 3 steps were needed."""
    rng = np.random.default_rng(0)
    n, d, k = 300, 1200, 30
    x = rng.normal(size=(n, d))
    if sparse:
        x[rng.random((n, d)) < 0.8] = 0.0
        x = np.rint(4.0 * x)
    y = np.arange(n) % k
    model = rp.MultinomialLogisticRegression(l2=1e-6, tol=1e-6, reference=None).fit(
        sp.csr_matrix(x) if sparse else x, y
    )
    f = x @ model.coef_.T + model.intercept_
    residual = np.exp(f - f.max(1, keepdims=True))
    residual /= residual.sum(1, keepdims=True)
    residual[np.arange(n), y] -= 1.0
    gradient = residual.T @ x / n + 1e-6 * model.coef_
    assert model.solution_.converged and np.abs(gradient).max() <= 1e-6 and np.abs(residual.mean(0)).max() <= 1e-6
    assert model.n_iter_ == 1


def test_a_step_goes_no_further_than_the_penalty_allows():
    assert further(1e-6, 1e-9) == further(1e-6, 0.0) + 0.6 == 1.6
    assert further(1e-6, 0.6e-6) == pytest.approx(1.5)
    assert further(1e-6, 1e-6) == further(1e-6, 1.0) == 1.0


def test_a_small_sparse_table_is_fitted_as_the_dense_one():
    x, y, weights, _ = table("classes", 200, 8, sparse=True, weights=True, offset=False, constant=False, seed=0)
    found = []
    for limit in (0, 2**18):
        with mock.patch.object(_rows, "_FEW_ENTRIES", limit):
            model = rp.MultinomialLogisticRegression(l2=0.1, tol=1e-11).fit(x, y, weights)
            found.append([model.coef_, model.intercept_, model.standard_errors("sandwich").to_numpy(dtype=float)])
        assert isinstance(model._fitted.objective.design, SparseDesign if not limit else DenseDesign)
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", ["two classes", "classes", "counts"])
@pytest.mark.parametrize("l2", [1e-4, 0.03, 3.0])
def test_the_length_of_the_first_step_is_the_best_one_where_rows_are_orthogonal(kind, l2):
    """Orthogonal rows of many columns, centered: the objective along the first direction is least at that length."""
    n, d, rng = 24, 400, np.random.default_rng(3)
    x = np.linalg.qr(rng.normal(size=(d, n)))[0].T * np.sqrt(d)
    x -= x.mean(0)
    y = rng.permutation(np.arange(n) % LIKELIHOODS[kind]) if LIKELIHOODS[kind] else rng.permutation(np.arange(n) % 4)
    objective = estimator(kind, l2=l2).fit(x, y)._fitted.objective.reduced
    start = torch.zeros(objective.n_parameters, dtype=torch.float64)
    start.view(objective.output_map.shapes[0])[:, 0] = float(np.log(y.mean())) if kind == "counts" else 0.0
    at = objective.evaluate_constant(start)
    assert at is not None
    step = -rough_inverse(objective, start)(at.gradient)
    length = first_length(objective, start, at.gradient, step)
    assert length is not None
    values = {factor: objective.value(start + factor * length * step) for factor in (0.5, 0.7, 1.0, 1.4, 2.0)}
    assert min(values, key=values.get) in (0.7, 1.0, 1.4)
    assert values[0.5] > values[0.7] and values[2.0] > values[1.4]


@settings(max_examples=60, deadline=None)
@given(st.floats(-7.0, 3.0), st.sampled_from(["two classes", "classes", "counts"]), st.integers(0, 100))
def test_looking_at_some_lengths_first_finds_the_same_one(magnitude, kind, seed):
    """Slopes along a line rise, so that their change of sign lies between two of any lengths; at both ends as well."""
    n, d, rng = 12, 40, np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    y = rng.permutation(np.arange(n) % LIKELIHOODS[kind]) if LIKELIHOODS[kind] else rng.permutation(np.arange(n) % 4)
    objective = estimator(kind, l2=10.0**magnitude).fit(x, y)._fitted.objective.reduced
    start = torch.zeros(objective.n_parameters, dtype=torch.float64)
    at = objective.evaluate_constant(start)
    assert at is not None
    step = -rough_inverse(objective, start)(at.gradient) * 10.0 ** (seed % 5 - 2)
    lengths = []
    for limit in (math.inf, 0):
        with mock.patch.object(_first_step, "_LOOKED_AT", limit):
            lengths.append(first_length(objective, start, at.gradient, step))
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-12)


@pytest.mark.parametrize("y", [[2, 0, 2, 5], [-3, 1, 1, 0], [0.5, 2.0, 0.5, -1.0], [0, 1, 10**6, 1]])
def test_distinct_targets_are_counted(y):
    values, shares = _first_step._some(torch.tensor(y))
    wanted, counts = np.unique(y, return_counts=True)
    np.testing.assert_array_equal(values.numpy(), wanted)
    np.testing.assert_array_equal(shares, counts / len(y))


@pytest.mark.parametrize("kind", ["two classes", "classes"])
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95])
def test_the_length_of_the_first_step_is_told_by_some_rows_where_columns_are_few(kind, correlation):
    """However columns depend on each other, most of what the first direction can gain is gained at that length."""
    n, d, rng = 5000, 30, np.random.default_rng(3)
    x = math.sqrt(1.0 - correlation) * rng.normal(size=(n, d)) + math.sqrt(correlation) * rng.normal(size=(n, 1))
    f = x @ rng.normal(size=(d, LIKELIHOODS[kind])) / math.sqrt(d)
    y = (f + rng.gumbel(size=f.shape)).argmax(1)
    objective = estimator(kind, l2=1e-3).fit(x, y)._fitted.objective.reduced
    start = torch.zeros(objective.n_parameters, dtype=torch.float64)
    at = objective.evaluate_constant(start)
    assert at is not None
    step = -rough_inverse(objective, start)(at.gradient)
    length = first_length(objective, start, at.gradient, step)
    assert length is not None
    gains = {
        factor: at.value - objective.value(start + factor * length * step) for factor in (0.25, 0.5, 1.0, 2.0, 4.0)
    }
    assert gains[1.0] >= 0.8 * max(gains.values()) > 0.0


def test_separated_rows_of_many_columns_need_a_step_or_two():
    """Ten classes of binary columns, each entry its class's or random, at a small penalty."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(300) % 4)
    x = np.where(rng.random((300, 2000)) < 0.7, rng.random((300, 2000)) < 0.5, (rng.random((4, 2000)) < 0.5)[y])
    model = rp.MultinomialLogisticRegression(l2=1e-5, tol=1e-6).fit(x.astype(float), y)
    assert model.solution_.converged and model.solution_.gradient_norm <= 1e-6
    assert model.n_iter_ <= 3 and model.solution_.reason.startswith("Gradients alone")


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_evaluations_in_single_precision_are_those_in_double_precision_rounded(kind, weights, sparse):
    x, y, w, shift = table(kind, 50, 40, sparse=sparse, weights=weights, offset=True, constant=False, seed=1)
    objective = estimator(kind, l2=0.2).fit(x, y, w, shift)._fitted.objective
    theta = torch.linspace(-0.5, 0.5, objective.n_parameters, dtype=torch.float64)
    at, rounded = objective.evaluate(theta), objective.with_curvature(torch.float32).evaluate(theta.float(), None)
    assert rounded.gradient.dtype == torch.float32
    torch.testing.assert_close(rounded.gradient.double(), at.gradient, rtol=1e-5, atol=1e-6)
    assert rounded.value == pytest.approx(at.value, rel=1e-5)
    assert rounded.norm == pytest.approx(at.norm, rel=1e-5, abs=1e-6)


def test_dense_tables_of_many_classes_are_led_by_single_precision_and_end_in_double(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 200)), rng.permutation(np.arange(400) % 60)
    found = []
    led = _by_rows._solve_in_single_precision
    monkeypatch.setattr(_by_rows, "_solve_in_single_precision", lambda *a, **k: found.append(led(*a, **k)) or found[-1])
    model = rp.MultinomialLogisticRegression(l2=1e-3, tol=1e-6).fit(x, y)
    assert len(found) == 1 and found[0].theta.dtype == torch.float64
    exact = rp.MultinomialLogisticRegression(l2=1e-3, tol=1e-9).fit(x, y)
    assert len(found) == 1  # a tight tolerance is below what single precision can tell
    np.testing.assert_allclose(model.coef_, exact.coef_, atol=1e-3)
    fitted = model._fitted
    assert fitted.objective.evaluate(fitted.solution.theta).norm <= 1e-6
    assert model.solution_.converged and model.loglik_ == pytest.approx(exact.loglik_, abs=1e-3)


@pytest.mark.parametrize(
    ("k", "l2", "way"), [(6, 1e-2, "Gradients"), (40, 1.0, "Gradients"), (40, 1e-3, "In the span")]
)
def test_wide_sparse_tables_go_by_gradients_where_few_are_enough(k, l2, way):
    """Few sums, or a strong penalty; else the span of the rows has fewer coefficients."""
    rng = np.random.default_rng(0)
    x, y = sp.random(300, 1000, 0.05, format="csr", random_state=rng), np.arange(300) % k
    # values differ by the square of the gradients that are left, 1e-7, over the penalty at most
    model = rp.MultinomialLogisticRegression(l2=l2, tol=1e-7).fit(x, y)
    assert model.solution_.converged
    assert model.solution_.reason.startswith(way) or not _native.is_available()
    with mock.patch("raphson.linear._compiled._sparse_table", return_value=None):
        plain = rp.MultinomialLogisticRegression(l2=l2, tol=1e-7).fit(x, y)
    assert model.solution_.value == pytest.approx(plain.solution_.value, rel=1e-9)
