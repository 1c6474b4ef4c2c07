"""scikit-learn's own checks, and the company that estimators keep."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from raphson.estimators import MultinomialLogisticRegression


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([
    MultinomialLogisticRegression(l2=1e-2),
    MultinomialLogisticRegression(l2=1e-2, reference=None),
])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("load", [load_iris, load_wine, load_digits, load_breast_cancer])
def test_same_optimum_as_scikit_learn(load):
    x, y = load(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    n, k, l2 = len(y), len(np.unique(y)), 1e-3
    ours = MultinomialLogisticRegression(l2=l2, reference=None).fit(x, y)
    c = 1 / (l2 * n) if k > 2 else 2 / (l2 * n)
    theirs = LogisticRegression(C=c, tol=1e-10, solver="newton-cholesky", max_iter=1000).fit(x, y)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-6)
    if k > 2:
        np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)


def test_pipeline_grid_search_and_clone():
    x, y = load_wine(return_X_y=True, as_frame=True)
    pipe = make_pipeline(StandardScaler(), MultinomialLogisticRegression(l2=1e-2))
    assert cross_val_score(pipe, x, y, cv=5).mean() > 0.95
    search = GridSearchCV(pipe, {"multinomiallogisticregression__l2": [1e-3, 1e-2, 1e-1]}, cv=3).fit(x, y)
    assert search.best_score_ > 0.95
    assert clone(pipe).get_params()["multinomiallogisticregression__l2"] == 1e-2


def test_the_same_fit_from_frame_array_sparse_and_tensor():
    x, y = load_iris(return_X_y=True, as_frame=True)
    kinds = {
        "frame": x,
        "array": x.to_numpy(),
        "csr": sp.csr_matrix(x.to_numpy()),
        "csc": sp.csc_array(x.to_numpy()),
        "tensor": torch.from_numpy(x.to_numpy().copy()),
        "fortran": np.asfortranarray(x.to_numpy()),
        "float32": x.to_numpy().astype(np.float32).astype(float),
    }
    fits = {name: MultinomialLogisticRegression(l2=1e-2).fit(v, y) for name, v in kinds.items()}
    for name, model in fits.items():
        tol = 1e-5 if name == "float32" else 1e-7
        np.testing.assert_allclose(
            model.predict_proba(kinds[name]), fits["array"].predict_proba(kinds["array"]), atol=tol
        )
    assert ("1", "petal width (cm)") in fits["frame"].summary().to_frame().index


def test_labels_of_any_kind():
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])
    reference = MultinomialLogisticRegression(l2=1e-2).fit(x, y).predict(x)
    numbers = np.array([-1.0, 3.0, 7.0])
    for labels in (names, names.astype(object), pd.Series(names).astype("string"), numbers):
        target = np.asarray(labels)[y]
        model = MultinomialLogisticRegression(l2=1e-2).fit(x, target)
        assert (model.predict(x) == np.asarray(labels)[reference]).all()
    boolean = MultinomialLogisticRegression(l2=1e-2).fit(x, y == 1)
    assert boolean.classes_.dtype == bool and boolean.predict(x).dtype == bool


def test_predictions_do_not_depend_on_the_reference():
    x, y = load_wine(return_X_y=True)
    fits = [MultinomialLogisticRegression(l2=1e-2, reference=r).fit(x, y) for r in ("first", "last", 1, None)]
    for model in fits[1:]:
        np.testing.assert_allclose(model.predict_proba(x), fits[0].predict_proba(x), atol=1e-10)
    np.testing.assert_allclose(fits[3].coef_.sum(0), 0.0, atol=1e-12)
    assert (fits[2].coef_[1] == 0).all() and (fits[1].coef_[2] == 0).all()


def test_covariance_changes_with_the_reference_as_the_coefficients_do():
    x, y = load_wine(return_X_y=True)
    rng = np.random.default_rng(0)
    y = np.where(rng.random(len(y)) < 0.4, rng.integers(0, 3, len(y)), y)  # overlap, so that there is an optimum
    x = x[:, :3]
    first, last = (MultinomialLogisticRegression(reference=r).fit(x, y) for r in ("first", "last"))
    d = x.shape[1] + 1
    eye, zero = np.eye(d), np.zeros((d, d))
    to_last = np.block([[zero, -eye], [eye, -eye]])  # (b1, b2) relative to 0 -> (-b2, b1 - b2) relative to 2
    v = first.covariance().to_numpy(dtype=float)
    np.testing.assert_allclose(last.covariance().to_numpy(dtype=float), to_last @ v @ to_last.T, rtol=1e-6, atol=1e-12)
