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

from raphson.estimators.separation._find_recession import find_recession
from raphson.likelihoods import Categorical
from raphson.linear import OutputMap


def search(x, y, n_classes, weights=None, names=None, class_names=None, intercept=True, reference=None, **options):
    """The outcome for classes with coefficients of their own, relative to one of them where it is given."""
    columns = x.shape[1] + intercept
    mapping = OutputMap.own(n_classes, columns, intercept)
    classes = list(range(n_classes))
    if reference is not None:
        mapping = OutputMap.relative(n_classes, reference, columns, intercept)
        classes.remove(reference)
    names = [*["(intercept)"] * intercept, *(names or [f"x{j}" for j in range(x.shape[1])])]
    labels = [(str(k), name) for k in classes for name in names]
    y = torch.as_tensor(np.asarray(y))
    return find_recession(x, y, Categorical(), mapping, weights, labels, class_names, **options)


def diverging(x, y, n_classes, reference, **options):
    """Which coefficients relative to a class are infinite, ``(K - 1, D + 1)``."""
    found = search(x, y, n_classes, reference=reference, **options).recession
    return found.diverging.reshape(n_classes - 1, -1).tolist()


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


def margins(direction, x, y, n_classes, intercept=True):
    """Margins ``(N, K)`` of a table of coefficients and the sums of their terms' absolute values.

    At the mean of the columns terms of the constant cancel, which leaves ten of their units in the last place.
    """
    center, scale = (x.mean(0), x.std(0)) if intercept else (0.0, np.abs(x).max(0))
    scale = np.where(scale > 0, scale, 1.0)
    table = direction.numpy().reshape(n_classes, -1)
    slopes = table[:, int(intercept) :] * scale
    constant = table[:, 0] + table[:, 1:] @ center if intercept else np.zeros(n_classes)
    cancelled = np.abs(table[:, 0]) + np.abs(table[:, 1:]) @ np.abs(center) if intercept else np.zeros(n_classes)
    z = (x - center) / scale
    scores, terms = z @ slopes.T + constant, np.abs(z) @ np.abs(slopes).T + np.abs(constant) + 1e-7 * cancelled
    own = np.arange(len(x)), np.asarray(y)
    return scores[own][:, None] - scores, terms[own][:, None] + terms


def assert_consistent(found, x, y, n_classes, intercept=True):
    """The direction separates the reported rows, and no row goes against it."""
    margin, size = margins(found.direction, x, y, n_classes, intercept)
    assert (margin >= -1e-8 * size).all()
    strict = margin > 1e-8 * size
    np.testing.assert_array_equal(strict.any(1), found.rows.numpy())
    sums = found.direction.reshape(n_classes, -1).sum(0)
    assert torch.allclose(sums, torch.zeros(()).double(), atol=1e-9 * float(found.direction.abs().max()))
    assert (found.kind == "complete") == bool((strict.sum(1) == n_classes - 1).all())
    assert "Remedy" in found.sentence() and "nan" not in found.sentence()
    return strict


def test_iris_names_setosa_and_the_column():
    data = load_iris()
    names = {"names": data.feature_names, "class_names": list(data.target_names)}
    status, found = search(data.data, data.target, 3, **names)
    assert status == "found" and found.kind == "quasi-complete" and found.is_exact and found.n_rows == 150
    assert "Class 'setosa' is completely separated from the others by 'petal length (cm)'" in found.sentence()
    assert "every value below 2.45" in found.sentence() and "l2=1e-3" in found.sentence()
    # relative to virginica only setosa's coefficients are infinite: versicolor's are estimable
    assert diverging(data.data, data.target, 3, 2) == [[True] * 5, [False] * 5]
    assert found.diverging.all()
    strict = assert_consistent(found, data.data, data.target, 3)
    assert strict[:50, 1:].all() and strict[50:, 0].all() and not strict[50:, 1:].any()
    assert search(data.data[50:], data.target[50:] - 1, 2) == ("none", None)


def test_binary_separation_beside_a_collinear_column():
    x = np.array([[1, 0, 1], [1, 0, 1], [1, 2, 1], [1, 1, 1]], dtype=float)
    y = [1, 1, 0, 0]
    found = search(x, y, 2, names=["a", "b", "c"]).recession
    assert found.kind == "complete" and found.n_rows == 4
    assert len(found.statements) == 1 and "by 'b' (" in found.statements[0]
    assert diverging(x, y, 2, 0) == [[True, False, True, False]]
    assert_consistent(found, x, y, 2)


def test_a_dummy_of_one_class_only_is_quasi_separation():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = np.column_stack([rng.normal(size=(300, 2)), (y == 1) & (rng.random(300) < 0.3)])
    found = search(x, y, 3, names=["a", "b", "d"], class_names=["p", "q", "r"]).recession
    assert found.kind == "quasi-complete" and found.n_rows == x[:, 2].sum()
    assert found.statements[0].startswith("Class 'q' is partly (quasi-completely) separated from the others by 'd'")
    # where d = 1 there is only q: its coefficient there is infinite, and that of r relative to p is anything
    assert diverging(x, y, 3, 0) == [[False, False, False, True]] * 2
    strict = assert_consistent(found, x, y, 3)
    assert strict.tolist() == [[bool(d) and k != 1 for k in range(3)] for d in x[:, 2]]


@pytest.mark.parametrize("seed", range(3))
def test_rare_classes_agree_with_the_whole_linear_program(seed):
    """Class counts of statsmodels #3635."""
    y = np.repeat(np.arange(8), [766, 89, 22, 6, 5, 2, 1, 1])
    x = np.random.default_rng(seed).normal(size=(len(y), 3)) * [1, 10, 1000]
    x[-1] += [0, 40, 4000][seed]  # the single row of the last class inside, and outside, of the others
    status, found = search(x, y, 8, class_names=[1, 2, 3, 5, 4, 7, 6, 9])
    assert status != "undecided"
    assert (found is not None) == (program(x, y, 8) > 1e-6) == (seed > 0)
    if found is not None:
        assert found.is_exact and "'9'" in found.sentence()
        assert_consistent(found, x, y, 8)


def test_a_class_of_one_row():
    x = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]])
    x = np.vstack([x, x, [[3.0, 3.0]]])
    y = np.array([0] * 5 + [1] * 5 + [2])
    assert search(x, y, 3).recession.statements[0].startswith("Class '2' is completely separated")
    inside = x.copy()
    inside[-1] = [0.4, 0.6]
    assert search(inside, y, 3) == ("none", None)


@pytest.mark.parametrize("gap, kind", [(0.5, "complete"), (0.0, "quasi-complete"), (-0.5, None)])
def test_one_column_with_a_threshold(gap, kind):
    x = np.concatenate([np.linspace(-3, 0, 7), np.linspace(gap, 4, 9)])[:, None]
    y = np.repeat([0, 1], [7, 9])
    status, found = search(x, y, 2)
    assert status == ("found" if kind else "none") and (found.kind if found else None) == kind
    if kind == "quasi-complete":
        assert found.n_rows == 14  # the two rows at zero are ties


def test_without_an_intercept_the_threshold_is_zero():
    x = np.array([[1.0], [2.0], [3.0], [4.0]])
    y = [0, 0, 1, 1]
    assert search(x, y, 2).recession.kind == "complete"
    assert search(x, y, 2, intercept=False) == ("none", None)
    found = search(x - 2.5, y, 2, intercept=False).recession
    assert found.kind == "complete" and found.direction.shape == (2,)
    assert search(x - 3.0, y, 2, intercept=False).recession.kind == "quasi-complete"


def test_rows_of_weight_zero_do_not_count():
    x = np.array([[0.0], [1.0], [2.0], [3.0], [0.5], [2.5]])
    y = np.array([0, 0, 1, 1, 1, 0])
    assert search(x, y, 2) == ("none", None)
    found = search(x, y, 2, weights=torch.tensor([1.0, 2, 1, 1, 0, 0])).recession
    assert found.kind == "complete" and found.rows.tolist() == [True] * 4 + [False] * 2


def test_a_class_without_rows_is_named():
    x = np.array([[0.0], [1.0], [2.0], [0.5], [1.5]])
    y = [0, 0, 0, 1, 1]
    found = search(x, y, 3, class_names=["a", "b", "c"]).recession
    assert len(found.statements) == 1 and found.statements[0].startswith("Class 'c' is completely separated")
    assert "no rows" in found.sentence() and "Remedy: drop the class" in found.sentence()
    assert diverging(x, y, 3, 0) == [[False, False], [True, True]]


@pytest.mark.parametrize("scales", [(1e24, 1e-24, 1.0), (1e-24, 1.0, 1e24)])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_the_scale_and_the_mean_of_columns_do_not_matter(scales, shift):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 3))
    y = (x[:, 0] - x[:, 2] > 0.2).astype(int)
    x[:, 0] += 0.05 * np.sign(x[:, 0] - x[:, 2] - 0.2)
    scaled = (x + shift) * np.array(scales)
    found = search(scaled, y, 2, names=["a", "b", "c"]).recession
    assert found.kind == "complete" and "a combination of 'a' and 'c'" in found.statements[0]
    assert_consistent(found, scaled, y, 2)
    flipped = np.where(rng.random(150) < 0.2, 1 - y, y)
    assert search(scaled, flipped, 2) == ("none", None)


def test_more_columns_than_rows_is_answered_at_once():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(336, 3348)), rng.integers(0, 3, 336)
    start = time.perf_counter()
    found = search(x, y, 3).recession
    assert time.perf_counter() - start < 5
    assert found.kind == "complete" and "3349 coefficients per class for 336 rows" in found.sentence()
    assert found.diverging[3349:].all()
    assert assert_consistent(found, x, y, 3).sum() == 336 * 2


def test_digits_are_completely_separated():
    x, y = load_digits(return_X_y=True)
    start = time.perf_counter()
    found = search(x, y, 10, time_limit=6).recession
    assert time.perf_counter() - start < 10
    assert found.is_exact and found.kind == "complete"
    scores = np.column_stack([np.ones(len(x)), x]) @ found.direction.reshape(10, -1).numpy().T
    assert (scores.argmax(1) == y).all()


def test_a_noisy_candidate_is_cleaned_and_a_wrong_one_refused():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = rng.normal(size=(200, 3))
    rows = (y == 1) & (rng.random(200) < 0.2)
    x[:, 2] = rows - x[:, 1]  # only the sum of the last two columns separates
    both = np.array([0.0, 0.0, 1.0, 1.0])
    for noisy in (both, both + [1e-7, -2e-7, 1e-7, 0.0]):
        found = search(x, y, 2, candidate=np.stack([0.0 * both, noisy]), time_limit=0.0).recession
        np.testing.assert_array_equal(found.rows.numpy(), rows)
    for wrong in (-both, np.array([0.0, 1.0, 0.0, 0.0]), 0.0 * both):
        assert search(x, y, 2, candidate=np.stack([0.0 * both, wrong]), time_limit=0.0) == ("undecided", None)


def test_a_candidate_alone_settles_what_the_program_has_no_time_for():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 4))
    y = (x.sum(1) > 0).astype(int)
    assert search(x, y, 2, time_limit=0.0) == ("undecided", None)
    step = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]) + 1e-9 * rng.normal(size=(2, 5))
    status, found = search(x, y, 2, candidate=torch.from_numpy(step), time_limit=0.0)
    assert status == "found" and found.is_exact and found.kind == "complete"


def test_sparse_rows_agree_with_dense_ones():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, size=(120, 6)) * (rng.random((120, 6)) < 0.3)
    y = np.where(x[:, 2] > 0, 2, rng.integers(0, 3, 120))
    dense, sparse = x.astype(float), sp.csr_matrix(x.astype(float))
    assert search(dense, y, 3).recession.statements == search(sparse, y, 3).recession.statements
    assert diverging(dense, y, 3, 1) == diverging(sparse, y, 3, 1)


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
    status, found = search(x, y, n_classes, intercept=intercept)
    assert status == ("found" if expected.any() else "none")
    if found is not None:
        assert found.is_exact and found.statements
        strict = assert_consistent(found, x, y, n_classes, intercept)
        np.testing.assert_array_equal(strict, expected)


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
    status, found = search(x, y, n_classes, reference=n_classes - 1)
    assert status == "found" and found.is_exact
    a, _ = constraint_rows(x, y, n_classes)
    a = a.reshape(len(a), n_classes, 4)[:, :-1].reshape(len(a), -1)
    expected = np.zeros(a.shape[1], dtype=bool)
    for j in range(a.shape[1]):
        for sign in (1, -1):
            c = np.zeros(a.shape[1])
            c[j] = sign
            expected[j] |= -linprog(-c, A_ub=-a, b_ub=np.zeros(len(a)), bounds=(-1, 1), method="highs").fun > 1e-6
    np.testing.assert_array_equal(found.diverging.numpy(), expected)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), n_classes=st.integers(2, 5))
def test_overlapping_data_are_denied(seed, n_classes):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60 * n_classes, 3))
    y = np.arange(len(x)) % n_classes
    assert program(x, y, n_classes) < 1e-7
    assert search(x, y, n_classes) == ("none", None)
