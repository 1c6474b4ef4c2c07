"""Rank, null space and named dependencies against singular values, exact relations and hypothesis."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raphson.estimators._names import listed
from raphson.estimators.separation._collinear import find_collinear


def assert_null(x, found, intercept=True):
    """The null basis is one: independent columns, and the design times them vanishes to rounding."""
    x = np.asarray(x.todense() if sp.issparse(x) else x)
    design = np.column_stack([np.ones(len(x)), x]) if intercept else x
    basis = found.null_basis.numpy()
    assert basis.shape == (design.shape[1], found.nullity) and found.rank + found.nullity == design.shape[1]
    assert (np.abs(design @ basis) <= 1e-9 * (np.abs(design) @ np.abs(basis)).max(0)).all()
    if found.nullity:
        assert np.linalg.matrix_rank(basis / np.abs(basis).max(0)) == found.nullity


@pytest.fixture
def columns():
    return np.random.default_rng(0).normal(size=(2, 200))


def test_each_kind_of_dependency_is_named(columns):
    a, b = columns
    x = np.column_stack([a, b, a + b, np.full(200, 0.1), 2.54 * a, b, np.zeros(200)])
    found = find_collinear(x, names=["a", "b", "c", "k", "a_inch", "b_copy", "none"])
    assert found.rank == 3 and found.nullity == 5
    assert [(g.kind, g.names) for g in found.groups] == [
        ("combination", ("a", "b", "c")),
        ("constant", ("k",)),
        ("duplicate", ("a", "a_inch")),
        ("duplicate", ("b", "b_copy")),
        ("zero", ("none",)),
    ]
    text = found.sentences()
    assert "c = a + b" in text[0] and "constant (0.1) beside the intercept" in text[1]
    assert "'a_inch' duplicates 'a' up to scale (a_inch = 2.54 a)" in text[2]
    assert "duplicates 'b' exactly" in text[3] and all("Remedy" in t for t in text)
    assert not found.mask.any()
    assert_null(x, found)


@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix, torch.from_numpy])
def test_the_dummy_variable_trap_for_two_factors(make):
    rng = np.random.default_rng(0)
    x = np.hstack([
        np.eye(3)[rng.integers(0, 3, 90)],
        np.eye(2)[rng.integers(0, 2, 90)],
        rng.normal(size=(90, 1)),
    ])
    found = find_collinear(make(x), names=list("pqrstz"))
    assert [(g.kind, g.names) for g in found.groups] == [("total", ("p", "q", "r")), ("total", ("s", "t"))]
    assert "add up to 1 in every row" in found.sentences()[0]
    assert found.mask.tolist() == [False] * 6 + [True]
    assert_null(x, found)
    without = find_collinear(make(x), names=list("pqrstz"), has_intercept=False)
    assert [g.equation() for g in without.groups] == ["t = p + q + r - s"]
    assert_null(x, without, intercept=False)


def test_estimable_contrasts_of_a_one_hot_factor():
    x = np.eye(3)[np.arange(30) % 3]
    found = find_collinear(x)
    assert found.estimable(torch.tensor([0.0, 1.0, -1.0, 0.0]))
    assert not found.estimable(np.array([0.0, 1.0, 0.0, 0.0]))
    both = found.estimable(np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]))
    assert both.tolist() == [True, False]


@pytest.mark.parametrize("scales", [(1e24, 1e-24, 1.0), (1e-24, 1.0, 1e24)])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_scales_and_means_do_not_change_the_rank(columns, scales, shift):
    a, b = columns + shift
    s, t, u = scales
    independent = np.column_stack([s * a, t * b, u * a * b])
    assert find_collinear(independent).nullity == 0
    dependent = np.column_stack([s * a, t * b, u * (a - 3 * b)])
    found = find_collinear(dependent)
    assert found.rank == 3 and [g.columns for g in found.groups] == [(0, 1, 2)]
    np.testing.assert_allclose(found.groups[0].coefficients, [-u / s, 3 * u / t, 1.0], rtol=1e-8)
    assert_null(dependent, found)


def test_nearly_dependent_is_not_dependent(columns):
    """Residuals of 1e-7 square to the rounding of a Gram matrix, and are told from zero all the same."""
    a, b = columns
    near = a + 1e-7 * b
    assert find_collinear(np.column_stack([a, near])).nullity == 0
    found = find_collinear(np.column_stack([a, near, near]))
    assert [g.columns for g in found.groups] == [(1, 2)]
    assert find_collinear(np.column_stack([a, a + 1e-13 * b])).nullity == 1


def test_the_shorter_relation_is_preferred(columns):
    a, b = columns
    found = find_collinear(np.column_stack([a, b, a + b, 5 * (a + b)]), names=list("abcd"))
    assert sorted(g.names for g in found.groups) == [("a", "b", "c"), ("c", "d")]


def test_rows_of_weight_zero_do_not_count(columns):
    x = columns.T.copy()
    x[:100, 1] = 2 * x[:100, 0]
    assert find_collinear(x).nullity == 0
    weights = torch.cat([torch.ones(100), torch.zeros(100)]).double()
    assert find_collinear(torch.from_numpy(x), weights).nullity == 1


def test_fewer_rows_than_coefficients():
    x = np.random.default_rng(0).normal(size=(30, 300))
    found = find_collinear(x)
    assert found.rank == 30 and found.nullity == 271 and found.groups == ()
    assert "301 coefficients per class and 30 rows" in found.sentences()[0]
    assert_null(x, found)
    found = find_collinear(np.array([[1.0, 0, 1], [1, 0, 1], [1, 2, 1], [1, 1, 1]]), names=["a", "b", "c"])
    assert [g.names for g in found.groups] == [("a",), ("c",)] and found.rank == 2


def test_a_wide_sparse_design_is_searched_for_proportional_columns():
    x = sp.random(400, 5200, 0.02, format="lil", random_state=0)
    x[:, 7] = -3 * x[:, 2]
    x[:, 9] = 0
    found = find_collinear(x.tocsr())
    assert not found.complete and "proportional" in found.sentences()[-1]
    assert {g.columns for g in found.groups} >= {(2, 7), (9,)}
    assert np.abs((x.tocsr() @ found.null[1:]).toarray()).max() < 1e-12
    assert not found.mask[8] and found.mask[1]


def test_names_are_listed():
    assert listed(["a"]) == "'a'" and listed(["a", "b", "c"]) == "'a', 'b' and 'c'"
    assert listed([str(i) for i in range(9)], limit=2) == "'0', '1' and 7 more"


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 14),
    d=st.integers(1, 8),
    intercept=st.booleans(),
    sparse=st.booleans(),
)
def test_the_rank_is_that_of_the_singular_values(seed, n, d, intercept, sparse):
    rng = np.random.default_rng(seed)
    x = rng.integers(-1, 2, size=(n, d)).astype(float)
    found = find_collinear(sp.csr_matrix(x) if sparse else x, has_intercept=intercept)
    design = np.column_stack([np.ones(n), x]) if intercept else x
    assert found.rank == np.linalg.matrix_rank(design)
    assert_null(x, found, intercept)
    # a coefficient is estimable iff its unit vector lies in the row space
    fitted = np.linalg.pinv(design) @ design
    np.testing.assert_array_equal(found.mask.numpy(), np.isclose(np.diag(fitted), 1.0))
    eye = torch.eye(design.shape[1], dtype=torch.float64)
    assert torch.equal(found.estimable(eye), found.mask)
