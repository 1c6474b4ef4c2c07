"""Separation against independent linear programs, one per pair of row and class, and published cases."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from sklearn.datasets import load_digits, load_iris

from raphson.estimators.separation._separation import certify, find_separation, search_separation


def constraint_rows(x, y, n_classes, intercept=True):
    """Rows of the constraints ``A vec(B) >= 0`` over all classes, in (row, class) order, with their pairs."""
    design = np.column_stack([np.ones(len(x)), x]) if intercept else x
    rows, pairs = [], []
    for i, row in enumerate(design):
        for k in range(n_classes):
            if k != y[i]:
                a = np.zeros((n_classes, design.shape[1]))
                a[y[i]] += row
                a[k] -= row
                rows.append(a.ravel())
                pairs.append((i, k))
    return np.array(rows), pairs


def separable_pairs(x, y, n_classes, intercept=True):
    """The pairs of row and class whose margin can be positive: one feasibility problem each."""
    a, pairs = constraint_rows(x, y, n_classes, intercept)
    out = np.zeros((len(x), n_classes), dtype=bool)
    for row, (i, k) in zip(a, pairs, strict=True):
        best = linprog(-row, A_ub=-a, b_ub=np.zeros(len(a)), bounds=(-1, 1), method="highs")
        out[i, k] = -best.fun > 1e-7
    return out


def program(x, y, n_classes):
    """Optimum of Konis' linear program for the whole data, on standardized columns."""
    a, _ = constraint_rows((x - x.mean(0)) / x.std(0), y, n_classes)
    result = linprog(-a.sum(0), A_ub=-a, b_ub=np.zeros(len(a)), bounds=(-1, 1), method="highs")
    return -result.fun


def assert_consistent(found, x, y, n_classes, weights=None, intercept=True):
    """The direction certifies itself and separates the reported rows."""
    strict = certify(found.direction, x, y, weights, intercept)
    assert strict is not None
    assert torch.equal(strict.any(1), found.rows)
    assert torch.allclose(found.direction.sum(0), torch.zeros(()).double(), atol=1e-9 * found.direction.abs().max())
    assert (found.kind == "complete") == bool((strict.sum(1) == n_classes - 1)[found.rows].all() and found.rows.all())
    assert "Remedy" in found.sentence() and "nan" not in found.sentence()


def test_iris_names_setosa_and_the_column():
    data = load_iris()
    found = find_separation(data.data, data.target, 3, names=data.feature_names, class_names=list(data.target_names))
    assert found.kind == "quasi" and found.exact and found.n_rows == 150
    assert "Class 'setosa' is completely separated from the others by 'petal length (cm)'" in found.sentence()
    assert "every value below 2.45" in found.sentence() and "l2=1e-3" in found.sentence()
    expected = torch.tensor([[False, True, True], [True, False, False], [True, False, False]])
    assert torch.equal(found.complete_pairs, expected) and torch.equal(found.touched_pairs, expected)
    # relative to virginica only setosa's coefficients are infinite: versicolor's are estimable
    assert found.diverging(2).tolist() == [[True] * 5, [False] * 5, [False] * 5]
    assert found.diverging().all()
    assert_consistent(found, data.data, data.target, 3)
    assert find_separation(data.data[50:], data.target[50:] - 1, 2) is None


def test_binary_separation_beside_a_collinear_column():
    x = np.array([[1, 0, 1], [1, 0, 1], [1, 2, 1], [1, 1, 1]], dtype=float)
    found = find_separation(x, [1, 1, 0, 0], 2, names=["a", "b", "c"])
    assert found.kind == "complete" and found.n_rows == 4
    assert [f.columns for f in found.findings] == [("b",)]
    assert found.diverging(0).tolist() == [[False] * 4, [True, False, True, False]]
    assert_consistent(found, x, [1, 1, 0, 0], 2)


def test_a_dummy_of_one_class_only_is_quasi_separation():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = np.column_stack([rng.normal(size=(300, 2)), (y == 1) & (rng.random(300) < 0.3)])
    found = find_separation(x, y, 3, names=["a", "b", "d"], class_names=["p", "q", "r"])
    assert found.kind == "quasi" and found.n_rows == x[:, 2].sum()
    assert found.findings[0].left == ("q",) and found.findings[0].columns == ("d",)
    assert not found.complete_pairs.any()
    assert found.touched_pairs.tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    # where d = 1 there is only q: its coefficient there is infinite, and that of r relative to p is anything
    assert found.diverging(0).tolist() == [[False] * 4] + [[False, False, False, True]] * 2
    assert_consistent(found, x, y, 3)


@pytest.mark.parametrize("seed", range(3))
def test_rare_classes_agree_with_the_whole_linear_program(seed):
    """Class counts of statsmodels #3635."""
    y = np.repeat(np.arange(8), [766, 89, 22, 6, 5, 2, 1, 1])
    x = np.random.default_rng(seed).normal(size=(len(y), 3)) * [1, 10, 1000]
    x[-1] += [0, 40, 4000][seed]  # the single row of the last class inside, and outside, of the others
    search = search_separation(x, y, 8, class_names=[1, 2, 3, 5, 4, 7, 6, 9])
    assert search.decided
    assert (search.separation is not None) == (program(x, y, 8) > 1e-6) == (seed > 0)
    if search.separation is not None:
        assert "'9'" in search.separation.sentence()
        assert_consistent(search.separation, x, y, 8)


def test_a_class_of_one_row():
    x = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]])
    x = np.vstack([x, x, [[3.0, 3.0]]])
    y = np.array([0] * 5 + [1] * 5 + [2])
    found = find_separation(x, y, 3)
    assert found.findings[0].left == ("2",) and found.findings[0].complete
    inside = x.copy()
    inside[-1] = [0.4, 0.6]
    assert search_separation(inside, y, 3) == (None, True)


@pytest.mark.parametrize("gap, kind", [(0.5, "complete"), (0.0, "quasi"), (-0.5, None)])
def test_one_column_with_a_threshold(gap, kind):
    x = np.concatenate([np.linspace(-3, 0, 7), np.linspace(gap, 4, 9)])[:, None]
    y = np.repeat([0, 1], [7, 9])
    search = search_separation(x, y, 2)
    assert search.decided and (search.separation.kind if search.separation else None) == kind
    if kind == "quasi":
        assert search.separation.n_rows == 14  # the two rows at zero are ties


def test_without_an_intercept_the_threshold_is_zero():
    x = np.array([[1.0], [2.0], [3.0], [4.0]])
    y = [0, 0, 1, 1]
    assert find_separation(x, y, 2).kind == "complete"
    assert search_separation(x, y, 2, has_intercept=False) == (None, True)
    found = find_separation(x - 2.5, y, 2, has_intercept=False)
    assert found.kind == "complete" and found.direction.shape == (2, 1)
    assert find_separation(x - 3.0, y, 2, has_intercept=False).kind == "quasi"


def test_rows_of_weight_zero_do_not_count():
    x = np.array([[0.0], [1.0], [2.0], [3.0], [0.5], [2.5]])
    y = np.array([0, 0, 1, 1, 1, 0])
    assert find_separation(x, y, 2) is None
    found = find_separation(x, y, 2, weights=torch.tensor([1.0, 2, 1, 1, 0, 0]))
    assert found.kind == "complete" and found.rows.tolist() == [True] * 4 + [False] * 2


def test_a_class_without_rows_is_named():
    x = np.array([[0.0], [1.0], [2.0], [0.5], [1.5]])
    found = find_separation(x, [0, 0, 0, 1, 1], 3, class_names=["a", "b", "c"])
    assert [f.left for f in found.findings] == [("c",)]
    assert "no rows" in found.sentence()
    assert found.diverging(0).tolist() == [[False, False], [False, False], [True, True]]


@pytest.mark.parametrize("scales", [(1e24, 1e-24, 1.0), (1e-24, 1.0, 1e24)])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_the_scale_and_the_mean_of_columns_do_not_matter(scales, shift):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 3))
    y = (x[:, 0] - x[:, 2] > 0.2).astype(int)
    x[:, 0] += 0.05 * np.sign(x[:, 0] - x[:, 2] - 0.2)
    scaled = (x + shift) * np.array(scales)
    found = find_separation(scaled, y, 2, names=["a", "b", "c"])
    assert found.kind == "complete" and set(found.findings[0].columns) == {"a", "c"}
    assert_consistent(found, scaled, y, 2)
    flipped = np.where(rng.random(150) < 0.2, 1 - y, y)
    assert search_separation(scaled, flipped, 2) == (None, True)


def test_more_columns_than_rows_is_answered_at_once():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(336, 3348)), rng.integers(0, 3, 336)
    start = time.perf_counter()
    found = find_separation(x, y, 3)
    assert time.perf_counter() - start < 5
    assert found.kind == "complete" and "3349 coefficients per class for 336 rows" in found.sentence()
    assert found.diverging(0)[1:].all()
    assert certify(found.direction, x, y).sum() == 336 * 2


def test_digits_are_completely_separated():
    x, y = load_digits(return_X_y=True)
    start = time.perf_counter()
    search = search_separation(x, y, 10, time_limit=6)
    assert time.perf_counter() - start < 10
    assert search.decided and search.separation.kind == "complete"
    scores = np.column_stack([np.ones(len(x)), x]) @ search.separation.direction.numpy().T
    assert (scores.argmax(1) == y).all()


def test_a_noisy_candidate_is_cleaned_and_a_wrong_one_refused():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = np.column_stack([rng.normal(size=200), (y == 1) & (rng.random(200) < 0.2)]).astype(float)
    noisy = np.array([[0.0, 0.0, 0.0], [1e-7, -2e-7, 1.0]])
    assert certify(noisy, x, y) is None
    assert certify(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), x, y).sum() == x[:, 1].sum()
    assert certify(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0]]), x, y) is None
    assert certify(np.zeros((2, 3)), x, y) is None
    found = search_separation(x, y, 2, candidate=noisy, time_limit=0.0)
    assert found.separation.n_rows == x[:, 1].sum()


def test_a_candidate_alone_settles_what_the_program_has_no_time_for():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 4))
    y = (x.sum(1) > 0).astype(int)
    assert search_separation(x, y, 2, time_limit=0.0) == (None, False)
    step = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]) + 1e-9 * rng.normal(size=(2, 5))
    search = search_separation(x, y, 2, candidate=torch.from_numpy(step), time_limit=0.0)
    assert search.decided and search.separation.kind == "complete"


def test_sparse_rows_agree_with_dense_ones():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, size=(120, 6)) * (rng.random((120, 6)) < 0.3)
    y = np.where(x[:, 2] > 0, 2, rng.integers(0, 3, 120))
    dense, sparse = (find_separation(v, y, 3) for v in (x.astype(float), sp.csr_matrix(x.astype(float))))
    assert dense.findings == sparse.findings and torch.equal(dense.diverging(1), sparse.diverging(1))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(3, 12),
    d=st.integers(1, 3),
    n_classes=st.integers(2, 3),
    levels=st.integers(2, 6),
    intercept=st.booleans(),
)
def test_the_separated_pairs_are_those_of_one_program_each(seed, n, d, n_classes, levels, intercept):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, levels, size=(n, d)).astype(float) - (0 if intercept else 1)
    y = rng.integers(0, n_classes, n)
    expected = separable_pairs(x, y, n_classes, intercept)
    search = search_separation(x, y, n_classes, has_intercept=intercept)
    assert search.decided
    if not expected.any():
        assert search.separation is None
        return
    strict = certify(search.separation.direction, x, y, has_intercept=intercept)
    np.testing.assert_array_equal(strict.numpy(), expected)
    assert search.separation.findings
    assert_consistent(search.separation, x, y, n_classes, intercept=intercept)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n_classes=st.integers(2, 4))
def test_infinite_coefficients_are_those_a_linear_program_can_move(seed, n_classes):
    """Relative to the last class: maximize and minimize each coefficient over the cone."""
    rng = np.random.default_rng(seed)
    n = 8 * n_classes
    x = np.column_stack([rng.normal(size=n), rng.integers(0, 2, n), rng.integers(0, 3, n)]).astype(float)
    y = np.arange(n) % n_classes
    x[y == 0, 1] = 0.0
    if np.linalg.matrix_rank(np.column_stack([np.ones(n), x])) < 4:
        return
    found = find_separation(x, y, n_classes)
    assert found is not None and found.exact
    a, _ = constraint_rows(x, y, n_classes)
    a = a.reshape(len(a), n_classes, 4)[:, :-1].reshape(len(a), -1)
    expected = np.zeros(a.shape[1], dtype=bool)
    for j in range(a.shape[1]):
        for sign in (1, -1):
            c = np.zeros(a.shape[1])
            c[j] = sign
            expected[j] |= -linprog(-c, A_ub=-a, b_ub=np.zeros(len(a)), bounds=(-1, 1), method="highs").fun > 1e-6
    mask = found.diverging(n_classes - 1).numpy()
    np.testing.assert_array_equal(mask[:-1].ravel(), expected)
    assert not mask[-1].any()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), n_classes=st.integers(2, 5))
def test_overlapping_data_are_denied(seed, n_classes):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60 * n_classes, 3))
    y = np.arange(len(x)) % n_classes
    assert program(x, y, n_classes) < 1e-7
    assert search_separation(x, y, n_classes) == (None, True)
