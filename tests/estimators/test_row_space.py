"""Penalized fits with more columns than rows: what is published is that of a direct solve in all columns."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import raphson as rp
from raphson.estimators.fit import _by_rows, _covariance, _solver
from raphson.estimators.input import _rows
from raphson.linear import _block_jacobi
from tests.awkward_tables import spoil


@pytest.fixture(autouse=True, scope="module")
def as_sparse():
    """Small sparse tables are fitted as such, as large ones are, not as dense ones."""
    with mock.patch.object(_rows, "_FEW_ENTRIES", 0):
        yield


@contextmanager
def in_all_columns():
    """Fit and infer without the span of the rows, by a dense Hessian of all columns in double precision."""
    with (
        mock.patch.object(_by_rows, "_cost_by_rows", return_value=math.inf),
        mock.patch.object(_by_rows, "gradients_to_try", lambda *_, **__: 0.0),
        mock.patch.object(_solver, "has_row_space", lambda _: False),
        mock.patch.object(_covariance, "row_space_of", lambda _: None),
    ):
        yield


def prototypes(n, d, k, seed=0, noise=0.6):
    """Class prototypes of binary columns: each entry is its class's bit or, with some probability, a random one."""
    rng = np.random.default_rng(seed)
    y, bits = np.arange(n) % k, rng.integers(0, 2, (k, d))
    return np.where(rng.random((n, d)) < noise, rng.integers(0, 2, (n, d)), bits[y]).astype(float), y


def close(found, expected, rtol=1e-8):
    found, expected = (np.asarray(v, dtype=float) for v in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * max(1e-300, np.nanmax(np.abs(expected))))


def numbers(frame):
    """The columns of a frame that hold numbers."""
    return frame.select_dtypes("number").to_numpy(dtype=float, na_value=np.nan)


def both(make, *arguments, **options):
    """The same fit in the span of the rows and in all columns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = make("auto").fit(*arguments, **options)
        with in_all_columns():
            direct = make("newton").fit(*arguments, **options)
    return ours, direct


def compare(ours, direct, x, groups, **options):
    """Compare all that is published."""
    for name in ("coef_", "intercept_", "loglik_", "df_model_", "loglik_null_"):
        close(getattr(ours, name), getattr(direct, name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours._only_penalized = direct._only_penalized = None, None  # which coefficients have an error is not the point
        found = [
            [
                model.covariance("sandwich"),
                model.standard_errors("sandwich", weights="frequency"),
                model.standard_errors(groups=groups, correction="CR0"),
                numbers(model.summary().table),
                numbers(model.margins(kind="sandwich").to_frame()),
            ]
            for model in (ours, direct)
        ]
    for a, b in zip(*found, strict=True):
        close(a, b, 2e-8)
    close(ours.predict(x, **options), direct.predict(x, **options))


@st.composite
def tables(draw):
    n, d = draw(st.integers(8, 24)), draw(st.integers(2, 60))
    d = draw(st.sampled_from([d, n - 1, n, n + 1]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-1, 1, d) + rng.normal(size=d)
    kinds = draw(st.sets(st.sampled_from(["copied rows", "constant columns", "weights", "offset", "sparse"])))
    spoil(x, kinds, rng)
    if "sparse" in kinds:
        x = sp.csr_matrix(x)
    weights = rng.integers(1, 4, n) * 1.0 if "weights" in kinds else None
    return x, weights, "offset" in kinds, rng, draw(st.sampled_from([1e-3, 1e-1, 1.0]))


@settings(max_examples=40, deadline=None)
@given(tables(), st.sampled_from([2, 3, 4]), st.sampled_from(["first", None]))
def test_a_multinomial_fit_is_that_of_a_direct_solve(table, k, reference):
    x, weights, with_offset, rng, l2 = table
    n = x.shape[0]
    y = rng.permutation(np.arange(n) % k)
    offset = rng.normal(size=(n, k)) if with_offset else None
    ours, direct = both(
        lambda solver: rp.MultinomialLogisticRegression(l2=l2, tol=1e-11, solver=solver, reference=reference),
        x,
        y,
        weights,
        offset,
    )
    assert (ours._fitted.row_space is not None) == (x.shape[1] > n)
    close(ours.coef_, direct.coef_)
    close(ours.loglik_, direct.loglik_)
    close(ours.predict_proba(x, offset), direct.predict_proba(x, offset))
    if x.shape[1] <= n:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours._only_penalized = direct._only_penalized = None, None
        errors = [m.standard_errors("sandwich").to_numpy(dtype=float, na_value=np.nan) for m in (ours, direct)]
    close(errors[0], errors[1], 2e-8)


def by_name(n, d):
    return [f"x{j}" for j in range(d)]


MODELS = {
    "gaussian": (lambda **o: rp.VectorGLM(rp.Gaussian(), **o), "numbers"),
    "poisson": (lambda **o: rp.VectorGLM(rp.Poisson(), **o), "counts"),
    "bernoulli": (lambda **o: rp.VectorGLM(rp.Bernoulli(), **o), "bits"),
    "scale apart": (lambda **o: rp.VectorGLM(rp.HeteroscedasticGaussian(), **o), "numbers"),
    "one column of the scale": (
        lambda **o: rp.VectorGLM(
            rp.HeteroscedasticGaussian(), constraints={f"x{j}": "mean" for j in range(2, 40)}, **o
        ),
        "numbers",
    ),
    "ordinal": (lambda **o: rp.VectorGLM(rp.Ordinal(3), **o), "levels"),
    "classes with shared slopes": (
        lambda **o: rp.VectorGLM(
            rp.Categorical(), constraints={f"x{j}": np.array([[0.0], [1.0], [2.0]]) for j in range(20)}, **o
        ),
        "levels",
    ),
    "without intercept": (lambda **o: rp.VectorGLM(rp.Poisson(), fit_intercept=False, **o), "counts"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weighted", [False, True])
def test_every_likelihood_and_layout_is_that_of_a_direct_solve(name, weighted):
    make, targets = MODELS[name]
    rng = np.random.default_rng(3)
    n, d = 14, 40
    x = rng.normal(size=(n, d)) + 1.0
    x[5] = x[3]
    y = {
        "numbers": rng.normal(size=n),
        "counts": rng.poisson(3.0, n),
        "bits": np.arange(n) % 2,
        "levels": np.arange(n) % 3,
    }[targets]
    weights = rng.uniform(0.5, 2.0, n) if weighted else None
    ours, direct = both(lambda solver: make(l2=0.3, tol=1e-12, solver=solver), x, y, weights)
    space = ours._fitted.row_space
    assert space is not None and space.objective.n_parameters < direct.df_model_
    assert ours.solution_.theta.shape == direct.solution_.theta.shape
    compare(ours, direct, x, np.arange(n) // 2)
    v = torch.from_numpy(rng.normal(size=ours.df_model_))
    hessians = [m._fitted.objective.hessian(m.solution_.theta) for m in (ours, direct)]
    close(hessians[0].mv(v), hessians[1].mv(v))


def test_the_whole_report_of_classes_is_that_of_a_direct_solve():
    x, y = prototypes(24, 90, 3)
    ours, direct = both(lambda s: rp.MultinomialLogisticRegression(l2=0.05, tol=1e-12, solver=s), x, y)
    compare(ours, direct, x, np.arange(24) // 2)
    assert ours.summary().table.shape == (182, 6)
    assert "sandwich" in str(ours.summary())


@pytest.mark.nightly
def test_standard_errors_of_a_table_too_wide_for_a_covariance():
    """Beyond the covariance that is formed, variances and contrasts go by the scores of the rows."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4500)), rng.poisson(2.0, 30)
    x[:, 7] = 1.0
    model = rp.VectorGLM(rp.Gaussian(), l2=1.0, tol=1e-10)
    wide = model.fit(x, np.column_stack([y, rng.normal(size=30)]))
    assert wide.df_model_ == 9002
    with pytest.warns(rp.RaphsonWarning, match="'x7 of"):
        errors = wide.standard_errors("sandwich").to_numpy(dtype=float, na_value=np.nan)
    few = np.r_[0:40]
    with mock.patch.object(_covariance, "DENSE_COVARIANCE", 10**5), pytest.warns(rp.RaphsonWarning, match="'x7 of"):
        wide._estimates_cache.clear()
        whole = wide.covariance("sandwich").to_numpy(dtype=float, na_value=np.nan)
    close(errors[few], np.sqrt(np.diag(whole))[few])
    with pytest.raises(rp.TooLargeError), mock.patch("raphson.linalg._size.MAX_DENSE_ELEMENTS", 10**5):
        wide._estimates_cache.clear()
        wide.standard_errors("sandwich")


@pytest.mark.parametrize("solver", ["auto", "newton", "newton-cg"])
def test_no_matrix_of_columns_is_formed(solver, monkeypatch):
    x, y = prototypes(20, 900, 3)
    sizes = []

    def formed(*shape, **options):
        sizes.append(shape)
        return zeros(*shape, **options)

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", formed)
    factored = []
    for name in ("cholesky_ex", "eigvalsh", "qr", "svd"):
        inner = getattr(torch.linalg, name)
        monkeypatch.setattr(
            torch.linalg, name, lambda a, *r, _inner=inner, **o: (factored.append(a.shape), _inner(a, *r, **o))[1]
        )
    model = rp.MultinomialLogisticRegression(l2=1e-3, solver=solver).fit(x, y)
    model.standard_errors("sandwich")
    assert all(min(s[-2:]) < 900 for s in factored) and factored
    assert all(sum(n >= 900 for n in (s[0] if isinstance(s[0], tuple) else s)) < 2 for s in sizes if s)


def test_two_fits_of_one_iteration_are_one_of_two():
    x, y = prototypes(25, 70, 3)
    once = rp.MultinomialLogisticRegression(l2=1e-2, max_iter=1, warm_start=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        once.fit(x, y).fit(x, y)
        twice = rp.MultinomialLogisticRegression(l2=1e-2, max_iter=2).fit(x, y)
    close(once.coef_, twice.coef_)
    close(once.intercept_, twice.intercept_)


def test_a_warm_start_from_outside_the_span_and_a_saved_model(tmp_path):
    x, y = prototypes(25, 70, 3)
    model = rp.MultinomialLogisticRegression(l2=1e-2, tol=1e-11, warm_start=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(np.random.default_rng(0).permuted(x, axis=0), y)
        model.fit(x, y)
        fresh = rp.MultinomialLogisticRegression(l2=1e-2, tol=1e-11).fit(x, y)
    close(model.coef_, fresh.coef_, 1e-7)
    rp.save(fresh, tmp_path / "model")
    np.testing.assert_array_equal(rp.load(tmp_path / "model").model.predict_proba(x), fresh.predict_proba(x))


def test_columns_of_very_different_size_go_on_with_all_columns():
    """Products of rows see the largest column alone: the gradient of the others says so, and the fit goes on."""
    x, y = prototypes(20, 60, 2)
    x[:, 0] *= 1e24
    ours, direct = both(lambda s: rp.MultinomialLogisticRegression(l2=1e-2, tol=1e-9, solver=s), x, y)
    assert ours.solution_.converged and ours._fitted.row_space is None
    close(ours.predict_proba(x), direct.predict_proba(x), 1e-5)


def test_a_wide_table_without_penalty_still_says_why_it_has_no_answer():
    x, y = prototypes(20, 60, 2)
    with pytest.warns(rp.SeparationWarning), pytest.warns(rp.CollinearityWarning, match="column"):
        model = rp.MultinomialLogisticRegression().fit(x, y)
    with pytest.raises(rp.NotEstimableError):
        model.standard_errors()


def gradient_norm(model, x, y, l2):
    """The largest entry of the gradient of the mean objective, by NumPy alone."""
    x = x.toarray() if sp.issparse(x) else x
    f = x @ model.coef_.T + model.intercept_
    p = np.exp(f - f.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1.0
    slopes = p.T @ x / len(y) + l2 * (model.coef_ - model.coef_.mean(0))
    return max(np.abs(p.mean(0)).max(), np.abs(slopes).max())


@pytest.mark.parametrize("l2", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("shape", [(200, 1500, 2), (200, 1500, 4), (900, 300, 3), (60, 3000, 10)])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_loose_fit_reaches_its_tolerance_and_says_how(l2, shape, sparse):
    x, y = prototypes(*shape, noise=0.7)
    x = sp.csr_matrix(x) if sparse else (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1.0)
    model = rp.MultinomialLogisticRegression(l2=l2, tol=1e-6, reference=None).fit(x, y)
    assert model.solution_.converged and gradient_norm(model, x, y, l2) <= 1.01e-6
    sentence = model.solution_.reason
    assert sentence.endswith(".") and any(word in sentence for word in ("gradients", "rows", "Hessian"))
    loglik = np.log(model.predict_proba(x)[np.arange(len(y)), y]).sum()
    assert model.loglik_ == pytest.approx(loglik, rel=1e-9, abs=1e-9)
    errors = rp.MultinomialLogisticRegression(l2=l2, tol=1e-11, reference=None).fit(x, y)
    if l2 == 1.0:
        close(model.coef_, errors.coef_, 1e-4)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (rp.MultinomialLogisticRegression(l2=1e-2), "Dense Hessians"),
        (rp.MultinomialLogisticRegression(l2=1e-2, solver="newton-cg"), "asked for, 'newton-cg'"),
    ],
)
def test_a_solution_says_why_its_solver_was_taken(model, words):
    x, y = prototypes(40, 5, 2)
    assert words in model.fit(x, y).solution_.reason


def test_a_wide_fit_says_what_its_rows_save():
    x, y = prototypes(40, 90, 3)
    reason = rp.MultinomialLogisticRegression(l2=1e-2).fit(x, y).solution_.reason
    assert reason.startswith("In the span of the 40 rows there are 80 coefficients in place of 182. Dense Hessians")


def test_blocks_that_have_no_factor_are_shifted_or_replaced_by_their_diagonal():
    """Rounding in single precision makes blocks indefinite: a smaller step, never a traceback."""
    g = torch.Generator().manual_seed(0)
    half = torch.randn(2, 30, 5, generator=g, dtype=torch.float32)
    blocks = half @ half.mT  # of rank 5
    shifted = blocks - 3e-6 * blocks.diagonal(dim1=1, dim2=2).mean() * torch.eye(30)
    assert _block_jacobi._factor(shifted) is not None
    assert _block_jacobi._factor(-blocks) is None
    x, y = prototypes(50, 80, 3)
    with in_all_columns(), mock.patch.object(_block_jacobi, "_factor", lambda _: None):
        model = rp.MultinomialLogisticRegression(l2=1e-2, solver="newton-cg").fit(x, y)
    assert model.solution_.converged


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("scale", [1e-7, 1e-9])
def test_a_column_in_tiny_units_does_not_stop_hessian_products(scale, sparse):
    """Its penalty is 1e18 times the others', and no size of the whole diagonal."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 480)) + 3.0 * rng.normal(size=480)
    y = rng.permutation(np.arange(240) % 2)
    x[:, 0] *= scale
    options = {"l2": 1.2, "tol": 1e-8, "solver": "newton-cg"}
    with_it = rp.MultinomialLogisticRegression(**options).fit(sp.csr_matrix(x) if sparse else x, y)
    without = rp.MultinomialLogisticRegression(**options).fit(x[:, 1:], y)
    assert with_it.solution_.converged
    np.testing.assert_allclose(with_it.coef_[:, 1:], without.coef_, atol=1e-6 * np.abs(without.coef_).max())
