"""Cases in which other tools fail, each with the outcome wanted here; test_published has case 9."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.datasets import load_iris, make_classification
from sklearn.preprocessing import StandardScaler

from raphson._errors import CollinearityWarning, InputError, NotEstimableError, SeparationWarning
from raphson.estimators import MultinomialLogisticRegression
from raphson.solve import Status


def gradient(x, y, model, l2=0.0, weights=None):
    """Mean-scale gradient at the fit, by NumPy alone, for sum-to-zero penalties."""
    w = np.ones(len(y)) if weights is None else weights
    f = x @ model.coef_.T + model.intercept_
    p = np.exp(f - f.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    r = (p - (y[:, None] == model.classes_)) * w[:, None] / w.sum()
    centered = model.coef_ - model.coef_.mean(0)
    return np.column_stack([r.sum(0), r.T @ x + l2 * centered])


def test_1_iris_without_a_penalty_names_what_is_separated():
    """statsmodels: nan or 'Singular matrix'."""
    data = load_iris(as_frame=True)
    names = data.target_names[data.target]
    with pytest.warns(SeparationWarning, match="setosa"):
        model = MultinomialLogisticRegression().fit(data.data, names)
    text = model.separation_.sentence()
    assert "petal" in text and "l2" in text
    assert model.solution_.status is Status.DIVERGING
    for ask in (model.standard_errors, model.covariance, model.confint, model.margins):
        with pytest.raises(NotEstimableError, match="setosa"):
            ask()
    printed = str(model.summary())
    assert "nan" not in printed.lower() and "setosa" in printed
    assert np.isfinite(model.coef_).all() and model.score(data.data, names) > 0.95
    penalized = MultinomialLogisticRegression(l2=1e-3).fit(data.data, names)
    assert penalized.solution_.converged


def test_2_separation_and_collinearity_are_both_reported():
    """statsmodels #659."""
    x = pd.DataFrame([[1, 0, 1], [1, 0, 1], [1, 2, 1], [1, 1, 1]], columns=["a", "b", "c"])
    with pytest.warns() as seen:
        model = MultinomialLogisticRegression().fit(x, [1, 1, 0, 0])
    kinds = {w.category for w in seen}
    assert {CollinearityWarning, SeparationWarning} <= kinds
    collinear = " ".join(model.collinearity_.sentences())
    assert "'a'" in collinear and "'c'" in collinear
    assert "'b'" in model.separation_.sentence()
    with pytest.raises(NotEstimableError):
        model.standard_errors()


def test_3_more_columns_than_rows():
    """statsmodels #4839: 'converged' with nan."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(336, 3348)), rng.integers(0, 3, 336)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MultinomialLogisticRegression().fit(x, y)
    with pytest.raises(NotEstimableError, match="separated|rows"):
        model.standard_errors()
    penalized = MultinomialLogisticRegression(l2=0.1).fit(x, y)
    assert penalized.solution_.converged
    assert np.abs(gradient(x, y, penalized, 0.1)).max() < 1e-7


def test_4_rare_classes_do_not_overflow():
    """statsmodels #3635: overflow in exp."""
    counts = {1: 766, 2: 89, 3: 22, 5: 6, 4: 5, 7: 2, 6: 1, 9: 1}
    y = np.repeat(list(counts), list(counts.values()))
    x = np.random.default_rng(1).normal(size=(len(y), 3)) * [1, 10, 1000]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = MultinomialLogisticRegression().fit(x, y)
    assert not any(issubclass(w.category, RuntimeWarning) for w in seen)
    assert np.isfinite(model.coef_).all()
    if model.separation_ is None:
        assert np.isfinite(model.standard_errors().to_numpy(dtype=float)).all()
    else:
        assert any(f"'{c}'" in model.separation_.sentence() for c in (6, 7, 9))
    assert np.isfinite(model.predict_proba(x * 1e6)).all()  # logits far beyond 709.8


def test_5_scales_of_1e24_and_1e_minus_24():
    """scikit-learn PR 25462: ZeroDivisionError."""
    x, y = make_classification(300, 6, n_informative=4, n_classes=3, random_state=0, flip_y=0.3)
    scales = np.array([1e24, 1e-24, 1.0, 1e24, 1e-24, 1.0])
    plain = MultinomialLogisticRegression().fit(StandardScaler().fit_transform(x), y)
    scaled = MultinomialLogisticRegression().fit(x * scales, y)
    assert scaled.solution_.converged
    expected = plain.predict_proba(StandardScaler().fit_transform(x))
    np.testing.assert_allclose(scaled.predict_proba(x * scales), expected, atol=1e-9)
    sparse = MultinomialLogisticRegression().fit(sp.csr_matrix(x * scales), y)
    np.testing.assert_allclose(sparse.predict_proba(sp.csr_matrix(x * scales)), expected, atol=1e-9)


@pytest.mark.parametrize("solver", ["newton", "newton-cg", "gradient-descent"])
def test_6_warm_start_continues(solver):
    """scikit-learn #31859: the intercepts were forgotten."""
    x, y = make_classification(200, 5, n_informative=4, n_redundant=0, n_classes=3, random_state=0)
    x = x + 3.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice = MultinomialLogisticRegression(l2=0.01, max_iter=1, warm_start=True, solver=solver).fit(x, y).fit(x, y)
        once = MultinomialLogisticRegression(l2=0.01, max_iter=2, solver=solver).fit(x, y)
    np.testing.assert_allclose(twice.coef_, once.coef_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(twice.intercept_, once.intercept_, rtol=1e-9, atol=1e-12)


def test_7_the_gradient_is_zero_at_the_solution():
    """scikit-learn #11517: stuck at 0.02."""
    x, y = make_classification(
        1000, n_features=6, n_classes=5, n_informative=6, n_redundant=0, n_repeated=0, random_state=0
    )
    l2 = 1 / (0.5 * 1000)
    model = MultinomialLogisticRegression(l2=l2, tol=1e-11).fit(x, y)
    assert np.abs(gradient(x, y, model, l2)).max() < 1e-10


def test_8_only_the_ratio_of_weights_matters_without_a_penalty():
    """scikit-learn #10352: results change."""
    x, y = make_classification(400, 5, n_informative=4, n_redundant=0, n_classes=3, random_state=1, flip_y=0.3)
    w = np.random.default_rng(0).integers(1, 5, 400).astype(float)
    one = MultinomialLogisticRegression().fit(x, y, sample_weight=w)
    other = MultinomialLogisticRegression().fit(x, y, sample_weight=w / 1000)
    np.testing.assert_allclose(one.coef_, other.coef_, rtol=1e-8)
    np.testing.assert_allclose(one.intercept_, other.intercept_, rtol=1e-8)


def test_10_many_classes_and_one_hot_tables_on_their_raw_scale():
    """statsmodels: nan with converged=True; 40 s and not converged."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 16, size=(6000, 12)).astype(float)
    f = (x - 7.5) @ rng.normal(size=(12, 26)) * 0.15
    y = (f + rng.gumbel(size=f.shape)).argmax(1)
    letters = MultinomialLogisticRegression().fit(x, y)
    assert letters.solution_.converged and np.abs(gradient(x, y, letters)).max() < 1e-7
    assert np.isfinite(letters.standard_errors().to_numpy(dtype=float)).all()
    squares = rng.integers(0, 8, size=(3000, 3))
    onehot = np.concatenate([np.eye(8)[squares[:, j]] for j in range(3)], 1)
    depth = np.clip(squares.sum(1) // 3 + rng.integers(-2, 3, 3000), 0, 6)
    with pytest.warns(CollinearityWarning):
        chess = MultinomialLogisticRegression().fit(onehot, depth)
    assert np.isfinite(chess.coef_).all()
    assert chess.solution_.converged or "separated" in chess.separation_.sentence()


def test_12_duplicated_and_constant_columns():
    x, y = make_classification(
        300,
        3,
        n_informative=3,
        n_redundant=0,
        n_classes=3,
        n_clusters_per_class=1,
        random_state=0,
        flip_y=0.4,
    )
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "copy of a": x[:, 0], "one": 1.0})
    with pytest.warns(CollinearityWarning) as seen:
        model = MultinomialLogisticRegression().fit(frame, y)
    text = str(seen[0].message)
    assert "'copy of a'" in text and "'a'" in text and "'one'" in text
    plain = MultinomialLogisticRegression().fit(frame[["a", "b"]], y)
    np.testing.assert_allclose(model.predict_proba(frame), plain.predict_proba(frame[["a", "b"]]), atol=1e-9)
    # minimum norm: the duplicated effect is shared equally, the constant column gets nothing
    np.testing.assert_allclose(model.coef_[:, 0], plain.coef_[:, 0] / 2, atol=1e-8)
    np.testing.assert_allclose(model.coef_[:, 2], plain.coef_[:, 0] / 2, atol=1e-8)
    np.testing.assert_allclose(model.coef_[:, 3], 0.0, atol=1e-8)
    errors, expected = model.standard_errors(), plain.standard_errors()
    for k in ("1", "2"):
        assert float(errors[k, "b"]) == pytest.approx(float(expected[k, "b"]), rel=1e-7)
        assert all(pd.isna(errors[k, name]) for name in ("(intercept)", "a", "copy of a", "one"))
    together = np.zeros((1, len(errors)))
    together[0, [1, 3]] = 1.0
    estimable = model.estimates().transform(torch.as_tensor(together), (("1", "a + copy of a"),))
    assert float(estimable.standard_errors[0]) == pytest.approx(float(expected["1", "a"]), rel=1e-7)


X_GOOD = pd.DataFrame({"age": [20.0, 30.0, 40.0, 50.0, 60.0, 25.0], "size": [1.0, 5.0, 2.0, 4.0, 3.0, 2.0]})
Y_GOOD = ["a", "b", "a", "b", "a", "b"]


def _set(row, column, value):
    frame = X_GOOD.astype(object)
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (dict(X=_set(2, "size", np.nan)), ["row 2", "'size'", "NaN"]),
        (dict(X=_set(3, "age", np.inf)), ["row 3", "'age'", "inf"]),
        (dict(X=_set(1, "age", "old")), ["row 1", "'age'", "'old'"]),
        (dict(X=sp.csr_matrix(np.where(X_GOOD == 5.0, np.nan, X_GOOD))), ["row 1", "x1", "NaN"]),
        (dict(y=["a", None, "a", "b", "a", "b"]), ["row 1", "missing"]),
        (dict(y=[0, 1, np.nan, 1, 0, 1]), ["row 2", "missing"]),
        (dict(y=["a"] * 6), ["only one class", "'a'"]),
        (dict(y=Y_GOOD[:-1]), ["5 rows", "6 rows"]),
        (dict(y=[0.5, 1.2, 3.3, 0.1, 0.7, 0.9]), ["continuous"]),
        (dict(sample_weight=[1, 1, -2, 1, 1, 1]), ["row 2", "-2"]),
        (dict(sample_weight=[1, 1, np.nan, 1, 1, 1]), ["row 2", "nan"]),
        (dict(sample_weight=[1, 1, 1]), ["sample_weight", "3 rows", "6 rows"]),
        (dict(sample_weight=np.zeros(6)), ["zero"]),
        (dict(y=["a", "b", "a", "b", "a", "c"], sample_weight=[1, 1, 1, 1, 1, 0]), ["'c'", "row 5", "zero"]),
        (dict(offset=np.zeros((6, 3))), ["offset", "(6, 2)"]),
        (dict(offset=np.where(np.arange(12).reshape(6, 2) == 7, np.nan, 0.0)), ["offset", "row 3"]),
    ],
    ids=lambda v: "" if isinstance(v, list) else "-".join(v),
)
def test_13_bad_input_is_one_clear_error(kwargs, words):
    arguments = {"X": X_GOOD, "y": Y_GOOD, **kwargs}
    with pytest.raises(ValueError) as error:
        MultinomialLogisticRegression(l2=0.1).fit(**arguments)
    for word in words:
        assert word in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        (dict(l2=-1), "l2"),
        (dict(solver="magic"), "magic"),
        (dict(tol=0), "tol"),
        (dict(max_iter=-3), "max_iter"),
        (dict(reference="zebra", l2=0.1), "zebra"),
    ],
    ids=str,
)
def test_13_bad_parameters(parameters, word):
    with pytest.raises(InputError, match=word):
        MultinomialLogisticRegression(**parameters).fit(X_GOOD, Y_GOOD)


def test_13_wrong_columns_at_prediction():
    model = MultinomialLogisticRegression(l2=0.1).fit(X_GOOD, Y_GOOD)
    with pytest.raises(ValueError, match="age"):
        model.predict(X_GOOD.rename(columns={"age": "ages"}))
    with pytest.raises(ValueError, match="features"):
        model.predict(X_GOOD.to_numpy()[:, :1])
