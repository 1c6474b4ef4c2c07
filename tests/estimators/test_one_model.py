"""The two estimators are one linear model: what one of them says of classes the other one says, too."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_iris

import raphson as rp


def overlapping(n=400, d=4, k=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d))
    return x, (x @ rng.normal(size=(d, k)) + rng.gumbel(size=(n, k))).argmax(1)


@pytest.mark.parametrize("l2", [0.0, 1e-2])
@pytest.mark.parametrize("reference", ["first", None])
def test_coefficients_and_standard_errors_are_the_same(l2, reference):
    x, y = overlapping()
    one = rp.MultinomialLogisticRegression(l2=l2, reference=reference).fit(x, y)
    other = rp.VectorGLM(rp.Categorical(), l2=l2, constraints=None if reference else "own").fit(x, y)
    np.testing.assert_array_equal(one.coef_, other.coef_)
    np.testing.assert_array_equal(one.intercept_, other.intercept_)
    assert one.loglik_ == pytest.approx(other.loglik_, rel=1e-13)
    assert one.loglik_null_ == pytest.approx(other.loglik_null_, rel=1e-9)
    kind = "sandwich" if l2 else "observed"
    np.testing.assert_array_equal(one.standard_errors(kind).to_numpy(), other.standard_errors(kind).to_numpy())
    assert (one.df_model_, one.n_iter_) == (other.df_model_, other.n_iter_)


def test_separation_is_told_in_the_same_words():
    x, y = load_iris(return_X_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other = rp.MultinomialLogisticRegression().fit(x, y), rp.VectorGLM(rp.Categorical()).fit(x, y)
    names = {f"'{k}'": f"'logit[{k}]'" for k in range(3)}
    sentence = one.separation_.sentence()
    for class_, output in names.items():
        sentence = sentence.replace(f"Class {class_}", f"Class {output}").replace(
            f"classes {class_}", f"classes {output}"
        )
    for k in range(3):
        sentence = sentence.replace(f" of {k}'", f" of logit[{k}]'")
    assert "separated" in sentence and other.separation_.sentence() == sentence


def test_a_plain_model_and_one_by_constraint_matrices_are_the_same():
    """Constraints that say what is so anyway lead to the same numbers by way of column groups."""
    x, y = overlapping()
    own = np.eye(3)[:, 1:]
    plain = rp.VectorGLM(rp.Categorical()).fit(x, y)
    grouped = rp.VectorGLM(rp.Categorical(), constraints={"x0": own[:, :1] @ np.eye(1), "x1": own}).fit(x, y)
    spelled = rp.VectorGLM(rp.Categorical(), constraints={f"x{j}": own for j in range(4)}).fit(x, y)
    np.testing.assert_allclose(spelled.coef_, plain.coef_, rtol=0, atol=1e-12)
    assert grouped.coef_[2, 0] == 0.0 and grouped.loglik_ < plain.loglik_
