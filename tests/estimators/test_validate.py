"""Plain arrays take a short way through the checks; what comes out is what the long way gives."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raphson as rp
from raphson import MultinomialLogisticRegression
from raphson._errors import InputError
from raphson.estimators.input._classes import encode_classes
from raphson.estimators.input._labels import number_labels
from raphson.estimators.input._validate import check_table


@given(
    st.lists(st.integers(-128, 127), min_size=2, max_size=60).filter(lambda v: len(set(v)) > 1),
    st.sampled_from([np.int8, np.int16, np.int32, np.int64]),
    st.sampled_from([1, 10**7]),
)
def test_whole_numbers_are_classes_without_sorting(values, dtype, spread):
    """Labels near each other or far apart, of any width, are numbered as ``numpy.unique`` does."""
    labels = np.array(values, dtype=dtype)
    if np.dtype(dtype).itemsize >= 4:
        labels = labels * dtype(spread)
    classes, codes = encode_classes(labels, len(labels), None)
    expected, inverse = np.unique(labels, return_inverse=True)
    assert classes.dtype == labels.dtype
    np.testing.assert_array_equal(classes, expected)
    np.testing.assert_array_equal(codes.numpy(), inverse)


@pytest.mark.parametrize("labels", [np.array([2**64 - 1, 0, 3], dtype=np.uint64), np.array([True, False, True])])
def test_labels_that_are_no_int64_are_sorted(labels):
    classes, codes = encode_classes(labels, len(labels), None)
    np.testing.assert_array_equal(classes[codes.numpy()], labels)
    assert list(classes) == sorted(set(labels.tolist()))


@pytest.mark.parametrize("kind", ["str", object, "category"])
def test_texts_are_hashed_once_and_numbered_as_numpy_does(kind, monkeypatch):
    texts = np.array(["b", "a", "c", "b", "a"], dtype=object)
    y = pd.Series(texts, index=[5, 4, 3, 2, 1]).astype(kind)
    monkeypatch.setattr("raphson.estimators.input._labels.column_or_1d", None)  # what would make texts of all rows
    classes, codes = number_labels(y if kind is not object else y.to_numpy(), 5)
    expected, inverse = np.unique(texts.astype(str), return_inverse=True)
    assert classes.dtype == object and codes.dtype == np.int64
    assert classes.tolist() == expected.tolist()
    np.testing.assert_array_equal(codes, inverse)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (pd.Series(["a", None, "b"], dtype="str"), "missing in row 1"),
        (pd.Series(pd.Categorical(["a", "b", None])), "missing in row 2"),
        (np.array(["a", None, np.nan], dtype=object), r"missing in row 1 \(2 such"),
        (pd.array([1, None, 2], dtype="Int64"), "missing in row 1"),
        (np.array(["a", 1, "b"], dtype=object), "mixes types"),
        (pd.Series(pd.Categorical([1.0, 2.0, 0.5])), "row 2: 0.5"),
        (pd.Series(["a", "b"], dtype="str"), "inconsistent numbers of samples"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_in_a_sentence(y, message):
    with pytest.raises(InputError, match=message):
        number_labels(y, 3)


def test_a_frame_of_numbers_is_copied_once(monkeypatch):
    """Columns of several types become one table by rows, which is read in place; one block is not copied at all."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=50), "n": rng.integers(0, 9, 50), "b": rng.normal(size=50)})
    table = check_table(MultinomialLogisticRegression(), frame, reset=True)
    assert table.flags.c_contiguous
    np.testing.assert_array_equal(table, frame.to_numpy(dtype=np.float64))
    block = pd.DataFrame(rng.normal(size=(50, 3)), columns=list("abc"), copy=False)
    assert np.shares_memory(check_table(MultinomialLogisticRegression(), block, reset=True), block.to_numpy())
    model = MultinomialLogisticRegression(l2=0.1).fit(frame, np.arange(50) % 3)
    assert list(model.feature_names_in_) == ["a", "n", "b"] and model.n_features_in_ == 3
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename(columns={"a": "c"}))


def test_part_of_a_table_is_checked_without_a_copy():
    table = np.random.default_rng(0).normal(size=(60, 5))
    table[7, 0] = np.nan  # no part of it
    assert np.shares_memory(check_table(MultinomialLogisticRegression(), table[:, 1:], reset=True), table)
    with pytest.raises(InputError, match="row 7, column 'x0'"):
        check_table(MultinomialLogisticRegression(), table[:, :4], reset=True)


def test_an_array_after_a_frame_forgets_the_names():
    """An estimator that is fitted again with an array has the names x0, x1, ... and no feature_names_in_."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2)), np.arange(60) % 3
    model = MultinomialLogisticRegression(l2=0.1).fit(pd.DataFrame(x, columns=["a", "b"]), y)
    assert list(model.feature_names_in_) == ["a", "b"]
    model.fit(x, y)
    assert not hasattr(model, "feature_names_in_") and model.n_features_in_ == 2
    with pytest.raises(ValueError, match="2 features"):
        model.predict(x[:, :1])


@pytest.mark.parametrize("x", [np.empty((0, 2)), np.empty((4, 0)), np.zeros(4), np.zeros((4, 2, 1))])
def test_arrays_of_another_shape_are_refused_in_a_sentence(x):
    with pytest.raises(InputError):
        MultinomialLogisticRegression(l2=0.1).fit(x, np.arange(len(x)))


def test_arrays_of_any_strides_are_fitted():
    """Reversed, transposed and thinned arrays, and such weights, give the fit of their copies."""
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(90, 3)), np.arange(90) % 3, rng.uniform(0.5, 1.5, size=90)
    plain = MultinomialLogisticRegression(l2=0.1).fit(x, y, w)
    twice = np.repeat(x, 2, axis=0)[::2]
    for arrays in ((x[::-1], y[::-1], w[::-1]), (np.asfortranarray(x), y, w), (twice, y, np.repeat(w, 2)[::2])):
        found = MultinomialLogisticRegression(l2=0.1).fit(*arrays)
        np.testing.assert_allclose(found.coef_, plain.coef_, atol=1e-12)
        found.predict_proba(arrays[0])


def test_an_infinite_target_has_no_other_unit() -> None:
    y = np.arange(10.0)
    for bad in (np.inf, -np.inf):
        with pytest.raises(rp.InputError, match="target in row 4 is infinite; drop or impute"):
            rp.VectorGLM(rp.Gaussian()).fit(np.ones((10, 1)), np.where(y == 4, bad, y))


@pytest.mark.parametrize("value", ["no", None, 2, 0.5])
def test_fit_intercept_is_a_truth_value(value: Any) -> None:
    with pytest.raises(rp.InputError, match="fit_intercept must be True or False"):
        rp.VectorGLM(rp.Gaussian(), fit_intercept=value).fit(np.arange(10.0)[:, None], np.arange(10.0))


def test_labels_of_half_characters_are_not_saved(tmp_path: Any) -> None:
    y = np.array(["a", "\ud800"] * 10, dtype=object)
    model = rp.MultinomialLogisticRegression().fit(np.random.default_rng(0).normal(size=(20, 1)), y)
    with pytest.raises(rp.InputError, match="half a character"):
        rp.save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()
