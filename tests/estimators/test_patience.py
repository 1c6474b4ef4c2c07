"""How many gradients a fit tries first: by what columns and penalty tell of it, and until what is left is too much."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import raphson as rp
from raphson.data import DenseDesign, SparseDesign
from raphson.estimators.fit._patience import mean_square_eigenvalue


def columns(n, d, correlation, seed=0):
    """Return normal columns of which each two have this correlation."""
    rng = np.random.default_rng(seed)
    return math.sqrt(1.0 - correlation) * rng.normal(size=(n, d)) + math.sqrt(correlation) * rng.normal(size=(n, 1))


def labels(x, k, seed=1):
    """Return classes of a linear model, each present."""
    rng = np.random.default_rng(seed)
    f = x @ rng.normal(size=(x.shape[1], k)) / math.sqrt(x.shape[1]) + rng.gumbel(size=(len(x), k))
    return np.where(np.arange(len(x)) < k, np.arange(len(x)) % k, f.argmax(1))


@pytest.mark.parametrize("d", [3, 40, 90])
def test_mean_square_eigenvalue_is_that_of_the_correlations(d):
    """Of few rows it is the exact one, less what sampling adds, whichever of rows and columns are fewer."""
    x = torch.from_numpy(columns(60, d, 0.3)) * 7.0 + 100.0
    exact = (np.linalg.eigvalsh(np.corrcoef(x.numpy().T)) ** 2).mean()
    assert mean_square_eigenvalue(DenseDesign(x, standardize=True)) == pytest.approx(exact - d / 60, rel=1e-9)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_some_rows_tell_it(correlation):
    """Of 20,000 rows some are looked at: those of 50 columns tell 1 and 13 apart."""
    found = mean_square_eigenvalue(DenseDesign(torch.from_numpy(columns(20_000, 50, correlation)), standardize=True))
    assert found == pytest.approx(1.0 + 49.0 * correlation**2, rel=0.3)


def test_of_sparse_columns_nothing_is_said():
    assert mean_square_eigenvalue(SparseDesign(sp.eye(5).tocsr(), standardize=True)) == math.inf


@pytest.mark.parametrize(("correlation", "first"), [(0.0, True), (0.5, False)])
def test_columns_that_are_apart_are_fitted_by_gradients(correlation, first):
    """Ten classes with a weak penalty; the coefficients are those of Newton's method either way."""
    x = columns(5000, 40, correlation)
    y = labels(x, 10)
    found = rp.MultinomialLogisticRegression(l2=1e-5, tol=1e-7, reference=None).fit(x, y)
    assert found.solution_.reason.startswith("Gradients alone") == first
    direct = rp.MultinomialLogisticRegression(l2=1e-5, tol=1e-10, reference=None).fit(x, y)
    assert direct.solution_.method != "lbfgs"
    np.testing.assert_allclose(found.coef_, direct.coef_, rtol=0, atol=1e-4)
    assert found.loglik_ == pytest.approx(direct.loglik_, rel=1e-10)


@pytest.mark.parametrize(("l2", "first"), [(1.0, True), (1e-3, False)])
def test_a_strong_penalty_is_fitted_by_gradients(l2, first):
    """Five dependent columns and 50 classes: where the penalty is most of the Hessian, steps are few."""
    x = columns(500, 5, 0.9)
    found = rp.MultinomialLogisticRegression(l2=l2, tol=1e-6, reference=None).fit(x, labels(x, 50))
    assert found.solution_.reason.startswith("Gradients alone") == first
    assert found.solution_.gradient_norm <= 1e-6
