"""Plain arrays take a short way through the checks; what comes out is what the long way gives."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raphson import MultinomialLogisticRegression
from raphson._errors import InputError
from raphson.estimators.input._classes import encode_classes
from raphson.estimators.input._validate import check_labels


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
    classes, codes = encode_classes(labels, None)
    expected, inverse = np.unique(labels, return_inverse=True)
    assert classes.dtype == labels.dtype
    np.testing.assert_array_equal(classes, expected)
    np.testing.assert_array_equal(codes.numpy(), inverse)


@pytest.mark.parametrize("labels", [np.array([2**64 - 1, 0, 3], dtype=np.uint64), np.array([True, False, True])])
def test_labels_that_are_no_int64_are_sorted(labels):
    classes, codes = encode_classes(labels, None)
    np.testing.assert_array_equal(classes[codes.numpy()], labels)
    assert list(classes) == sorted(set(labels.tolist()))


def test_integers_need_no_search_for_missing_labels():
    labels = np.arange(5)
    assert check_labels(labels, 5) is labels
    with pytest.raises(InputError, match="row 1"):
        check_labels(pd.array([1, None, 2], dtype="Int64"), 3)


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
