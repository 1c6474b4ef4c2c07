"""Directions of recession against one linear program per condition, published fits, and the limit of the likelihood."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from sklearn.datasets import load_iris

from raphson.estimators.separation._find_recession import find_recession
from raphson.likelihoods import (
    Bernoulli,
    Binomial,
    Categorical,
    Gamma,
    Linked,
    Multinomial,
    NegativeBinomial,
    Ordinal,
    Poisson,
    ScaledLikelihood,
)
from raphson.linear import OutputMap
from tests.published.r_tables import ENDOMETRIAL

INF = np.inf


def output_map(n_outputs, n_columns, slope=None, intercept=None):
    eye = torch.eye(n_outputs, dtype=torch.float64)
    slope = eye if slope is None else torch.as_tensor(slope, dtype=torch.float64)
    intercept = eye if intercept is None else torch.as_tensor(intercept, dtype=torch.float64)
    return OutputMap.of_columns(intercept, [slope] * n_columns)


def output_jacobian(x, mapping):
    """``(N, C, p)``, written out: parameters ``[vec(Theta_1); ...]``, each ``(r, d)`` row by row."""
    design = np.column_stack([np.ones(len(x)), x]) if mapping.intercept else x
    blocks = []
    for group in mapping.groups:
        h = group.matrix.numpy()
        for r in range(h.shape[1]):
            for j in np.arange(design.shape[1])[group.columns]:
                blocks.append(design[:, j, None] * h[None, :, r])
    return np.stack(blocks, 2)


def conditions(likelihood, y, n_outputs):
    """For each row the outputs' conditions ``(vector, kind)`` of a direction, written out from the definitions."""
    eye = np.eye(n_outputs)
    found = []
    for target in np.asarray(y):
        if isinstance(likelihood, Poisson | NegativeBinomial):
            own = [(-eye[0], "gain")] if target == 0 else [(eye[0], "zero")]
            own += [(eye[c], "zero") for c in range(1, n_outputs)]
        elif isinstance(likelihood, Binomial):
            own = [(eye[0], "gain")] if target == likelihood.trials else [(eye[0], "zero")]
            own = [(-eye[0], "gain")] if target == 0 else own
        elif isinstance(likelihood, Bernoulli):
            labels = np.atleast_1d(target)
            own = [((2 * t - 1) * eye[c], "gain") for c, t in enumerate(labels)]
        elif isinstance(likelihood, Categorical):
            own = [(eye[target] - eye[k], "gain") for k in range(n_outputs) if k != target]
        elif isinstance(likelihood, Multinomial):
            present = np.flatnonzero(target)
            own = [(eye[present[0]] - eye[k], "zero" if target[k] else "gain") for k in range(n_outputs)]
            own.pop(present[0])
        else:
            own = [(eye[target], "gain")] if target < n_outputs else []
            own += [(-eye[target - 1], "gain")] if target > 0 else []
            own += [(eye[c + 1] - eye[c], "order") for c in range(n_outputs - 1)]
        found.append(own)
    return found


def programs(x, y, likelihood, mapping):
    """Rows whose likelihood can rise for ever, and coefficients that can move along the way: a program for each."""
    jacobian = output_jacobian(x, mapping)
    a, kinds, rows = [], [], []
    for i, own in enumerate(conditions(likelihood, y, mapping.n_outputs)):
        for vector, kind in own:
            a.append(vector @ jacobian[i])
            kinds.append(kind)
            rows.append(i)
    a, kinds, rows = np.array(a), np.array(kinds), np.array(rows)
    zero, some = kinds == "zero", kinds != "zero"
    limits = {"bounds": (-1, 1), "method": "highs"}
    if some.any():
        limits |= {"A_ub": -a[some], "b_ub": np.zeros(some.sum())}
    if zero.any():
        limits |= {"A_eq": a[zero], "b_eq": np.zeros(zero.sum())}
    separated = np.zeros(len(x), dtype=bool)
    for row, i in zip(a[kinds == "gain"], rows[kinds == "gain"], strict=True):
        separated[i] |= -linprog(-row, **limits).fun > 1e-7
    moving = np.array([
        max(-linprog(-s * e, **limits).fun for s in (1, -1)) > 1e-7 for e in np.eye(mapping.n_parameters)
    ])
    return separated, moving


def random_targets(rng, name, n):
    if name in ("poisson", "negative binomial"):
        return torch.from_numpy(rng.poisson(0.5, n))
    if name == "binomial":
        return torch.from_numpy(rng.binomial(2, 0.5, n))
    if name == "labels":
        return torch.from_numpy(rng.integers(0, 2, (n, 2))).double()
    if name == "multinomial":
        return torch.from_numpy(rng.multinomial(2, [0.3, 0.3, 0.4], n))
    return torch.from_numpy(rng.integers(0, 3, n))


CASES = {
    "poisson": (Poisson(), 1, None),
    "negative binomial": (NegativeBinomial(), 2, [[1.0], [0.0]]),
    "binomial": (Binomial(trials=2), 1, None),
    "labels": (Bernoulli(), 2, None),
    "shared labels": (Bernoulli(), 2, [[1.0], [1.0]]),
    "categorical": (Categorical(), 3, [[0.0, 0], [1, 0], [0, 1]]),
    "categorical, sums": (Categorical(), 3, [[1.0, 0], [0, 1], [-1, -1]]),
    "stereotype": (Categorical(), 3, [[0.0], [1.0], [2.0]]),
    "multinomial": (Multinomial(), 3, [[0.0, 0], [1, 0], [0, 1]]),
    "ordinal": (Ordinal(3), 2, [[-1.0], [-1.0]]),
}


def case(name, d):
    likelihood, c, slope = CASES[name]
    intercept = [[0.0, 0], [1, 0], [0, 1]] if c == 3 else None
    return likelihood, output_map(c, d, slope, intercept)


@pytest.mark.parametrize("name", list(CASES))
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(4, 14), d=st.integers(1, 3), levels=st.integers(2, 5))
def test_what_is_separated_and_diverges_is_what_single_programs_find(name, seed, n, d, levels):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, levels, (n, d)).astype(float)
    likelihood, mapping = case(name, d)
    y = random_targets(rng, name.removeprefix("shared "), n)
    separated, moving = programs(x, y.numpy(), likelihood, mapping)
    status, found = find_recession(x, y, likelihood, mapping)
    assert status == ("found" if separated.any() else "none")
    if found is None:
        return
    assert found.is_exact and "Remedy" in found.sentence() and "nan" not in found.sentence()
    np.testing.assert_array_equal(found.rows.numpy(), separated)
    if np.linalg.matrix_rank(np.column_stack([np.ones(n), x])) == d + 1:
        np.testing.assert_array_equal(found.diverging.numpy(), moving)
        assert torch.equal(found.is_finite(torch.eye(mapping.n_parameters)), ~found.diverging)
        assert int(found.limit.kept.sum()) == mapping.n_parameters - found.span.shape[1]


def newton(likelihood, y, jacobian, offset):
    """The optimum of the summed negative log-likelihood over ``(N, C, p)``, by damped Newton steps."""
    theta = torch.zeros(jacobian.shape[2], dtype=torch.float64)
    if isinstance(likelihood, Ordinal):
        theta[: jacobian.shape[1]] = torch.arange(jacobian.shape[1])  # thresholds in order
    for _ in range(100):
        f = jacobian @ theta + offset
        value, gradient = likelihood.nll(f, y).sum(), likelihood.gradient(f, y)
        gradient = torch.einsum("ncp,nc->p", jacobian, gradient)
        hessian = likelihood.hessian(f, y).to_dense()
        step = -torch.linalg.lstsq(
            torch.einsum("ncp,ncd,ndq->pq", jacobian, hessian, jacobian), gradient[:, None], driver="gelsd"
        ).solution[:, 0]
        while not likelihood.nll(jacobian @ (theta + step) + offset, y).sum() <= value + 1e-12:
            step = step / 2
        theta = theta + step
        if step.abs().max() < 1e-11:
            break
    return theta


def fit_limit(likelihood, x, y, mapping, found, offset=0.0):
    """All parameters at the optimum of the limiting model, those left out zero, and its value."""
    limit = found.limit
    jacobian = torch.from_numpy(output_jacobian(x, mapping))[limit.rows]
    offset = torch.as_tensor(offset, dtype=torch.float64).expand(len(x), mapping.n_outputs)[limit.rows]
    if limit.offset is not None:
        offset = offset + limit.offset[limit.rows]
    theta = torch.zeros(mapping.n_parameters, dtype=torch.float64)
    theta[limit.kept] = newton(likelihood, y[limit.rows], jacobian[:, :, limit.kept], offset)
    return theta, float(likelihood.nll(jacobian @ theta + offset, y[limit.rows]).sum())


@pytest.mark.parametrize(
    "name", ["poisson", "binomial", "labels", "categorical", "stereotype", "multinomial", "ordinal"]
)
@pytest.mark.parametrize("seed", range(4))
def test_the_limiting_model_is_the_supremum_of_the_likelihood(name, seed):
    """Far along the direction the whole data's value and gradient are those of the limit's optimum."""
    rng = np.random.default_rng(seed)
    n, d = 60, 2
    x = np.column_stack([rng.integers(0, 2, n), rng.normal(size=n)])
    likelihood, mapping = case(name, d)
    y = random_targets(rng, name, n)
    empty = {"multinomial": torch.tensor([0, 2, 0]), "categorical": torch.tensor([1]), "labels": torch.tensor([1.0, 0])}
    y[x[:, 0] == 1] = empty.get(name, torch.zeros(1, dtype=y.dtype)).to(y.dtype)
    status, found = find_recession(x, y, likelihood, mapping)
    assert status == "found" and found.kind == "quasi-complete"
    theta, value = fit_limit(likelihood, x, y, mapping, found)
    jacobian = torch.from_numpy(output_jacobian(x, mapping))
    values = []
    for far in (0.0, 20.0, 60.0, 200.0):
        f = jacobian @ (theta + far * found.direction)
        values.append(float(likelihood.nll(f, y).sum()))
    assert values[0] > values[1] >= values[2] >= values[3] > value - 1e-9
    assert values[3] == pytest.approx(value, rel=1e-9)
    gradient = torch.einsum("ncp,nc->p", jacobian, likelihood.gradient(f, y))
    assert gradient.abs().max() < 1e-7


def test_endometrial():
    """R: NV is infinite, PI and EH are -0.04218 and -2.90261 (Heinze and Schemper 2002; Agresti 2015)."""
    frame = np.array(ENDOMETRIAL, dtype=float)
    x, y = frame[:, :3], torch.from_numpy(frame[:, 3])
    labels = [("logit", name) for name in ("(intercept)", "NV", "PI", "EH")]
    for likelihood, target in ((Bernoulli(), y), (Binomial(trials=1), y), (Binomial(), torch.stack([y, 1 - y], 1))):
        status, found = find_recession(x, target, likelihood, output_map(1, 3), labels=labels)
        assert status == "found" and found.kind == "quasi-complete" and found.is_exact
        assert found.names == (("logit", "NV"),) and found.n_rows == 13
        assert "coefficient of 'NV' has no finite" in found.sentence() and "other 3 are finite" in found.sentence()
        theta, value = fit_limit(likelihood, x, target, output_map(1, 3), found)
        assert theta[2].item() == pytest.approx(-0.04218, abs=5e-6)
        assert theta[3].item() == pytest.approx(-2.90261, abs=5e-6)


def test_poisson_names_the_group_of_zeros_and_not_the_intercept():
    rng = np.random.default_rng(0)
    group = np.arange(60) % 3
    x = np.column_stack([group == 1, group == 2, rng.normal(size=60)]).astype(float)
    exposure = np.log(rng.uniform(1, 9, 60))[:, None]
    y = torch.from_numpy(np.where(group == 2, 0, rng.poisson(2 * np.exp(exposure[:, 0]))))
    labels = [("log_mean", name) for name in ("(intercept)", "b", "c", "x")]
    status, found = find_recession(x, y, Poisson(), output_map(1, 3), labels=labels)
    assert found.sentence() == (
        "In all 20 rows where 'c' is above 0 the target is 0. The coefficient of 'c' has no finite maximum likelihood "
        "estimate (it goes to -inf); the other 3 are finite. Remedy: penalty='jeffreys' for estimates with standard "
        "errors, l2=1e-3 for predictions alone, merge the groups or drop the column."
    )
    assert found.limit.rows.tolist() == (group != 2).tolist() and found.limit.kept.tolist() == [True, True, False, True]
    theta, _ = fit_limit(Poisson(), x, y, output_map(1, 3), found, exposure)
    kept = group != 2
    import statsmodels.api as sm

    design = sm.add_constant(x[kept][:, [0, 2]])
    peer = sm.GLM(y.numpy()[kept], design, family=sm.families.Poisson(), offset=exposure[kept, 0]).fit(tol=1e-14)
    np.testing.assert_allclose(theta[[0, 1, 3]], peer.params, rtol=1e-8)
    assert found.is_finite([[1.0, 1, 0, 0], [1.0, 0, 1, 0]]).tolist() == [True, False]


def test_a_reference_group_of_zeros_makes_the_intercept_diverge_and_keeps_the_contrast():
    group = np.arange(60) % 3
    x = np.column_stack([group == 1, group == 2]).astype(float)
    y = torch.from_numpy(np.where(group == 0, 0, 1 + np.arange(60) % 4))
    _, found = find_recession(x, y, Poisson(), output_map(1, 2))
    assert found.diverging.tolist() == [True, True, True]
    assert found.is_finite([[1.0, 1, 0], [0.0, 1, -1], [0.0, 1, 0]]).tolist() == [True, True, False]


def test_all_zero_counts_are_complete_separation():
    x = np.arange(5.0)[:, None]
    status, found = find_recession(x, torch.zeros(5), Poisson(), output_map(1, 1))
    assert found.kind == "complete" and found.diverging.all() and not found.limit.rows.any()
    assert "In every row the target is 0" in found.sentence()


def test_iris_relative_to_virginica():
    data = load_iris()
    relative = torch.eye(3, dtype=torch.float64)[:, :2]
    mapping = OutputMap.of_columns(relative, [relative] * 4)
    names = ["(intercept)", *data.feature_names]
    labels = [(s, name) for s in data.target_names[:2] for name in names]
    y = torch.from_numpy(data.target)
    _, found = find_recession(data.data, y, Categorical(), mapping, None, labels, list(data.target_names))
    assert "Class 'setosa' is completely separated from the others by 'petal length (cm)'" in found.sentence()
    assert {output for output, _ in found.names} == {"setosa"} and len(found.names) == 5
    assert found.limit.rows.tolist() == (data.target != 0).tolist()
    theta, value = fit_limit(Categorical(), data.data, y, mapping, found)
    two = data.target != 0
    binary = output_map(1, 4)
    alone = newton(
        Bernoulli(),
        torch.from_numpy((data.target[two] == 1).astype(float)),
        torch.from_numpy(output_jacobian(data.data[two], binary)),
        torch.zeros(100, 1, dtype=torch.float64),
    )
    np.testing.assert_allclose(theta[5:], alone, rtol=1e-6)


def test_ordinal_with_one_group_at_the_lowest_level():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.arange(80) % 4 == 3, rng.normal(size=80)]).astype(float)
    y = torch.from_numpy(np.where(x[:, 0] == 1, 0, rng.integers(0, 3, 80)))
    likelihood, mapping = case("ordinal", 2)
    labels = [("0|1", "(intercept)"), ("1|2", "(intercept)"), ("shared", "g"), ("shared", "z")]
    _, found = find_recession(x, y, likelihood, mapping, None, labels, ["low", "middle", "high"])
    assert found.names == (("shared", "g"),)
    assert "In all 20 rows where 'g' is above 0 the target is low" in found.sentence()
    theta, _ = fit_limit(likelihood, x, y, mapping, found)
    rest = x[:, 0] == 0
    small = output_map(2, 1, [[-1.0], [-1.0]])
    jacobian = torch.from_numpy(output_jacobian(x[rest][:, 1:], small))
    alone = newton(likelihood, y[rest], jacobian, torch.zeros(60, 2, dtype=torch.float64))
    np.testing.assert_allclose(theta[[0, 1, 3]], alone, rtol=1e-8)


def test_the_middle_of_three_groups_needs_two_columns():
    """No single column separates, a combination does."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 2))
    zero = x.sum(1) > 1
    positive = np.abs(x.sum(1)) < 1e-12
    x, y = x[zero | positive], np.zeros((zero | positive).sum(), dtype=np.int64)
    x = np.concatenate([x, np.column_stack([np.linspace(-2, 2, 9), -np.linspace(-2, 2, 9)])])
    y = np.concatenate([y, np.arange(1, 10)])
    _, found = find_recession(x, torch.from_numpy(y), Poisson(), output_map(1, 2))
    assert found.n_rows == zero.sum() and found.span.shape[1] == 1
    assert found.diverging.tolist() == [False, True, True]
    assert f"A combination of 'x0' and 'x1' picks out {zero.sum()} rows in which the target is 0" in found.sentence()


@pytest.mark.parametrize("scales", [(1e24, 1e-24), (1e-24, 1e24)])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_the_scale_and_the_mean_of_columns_do_not_matter(scales, shift):
    rng = np.random.default_rng(0)
    x = np.column_stack([np.arange(60) % 3 == 2, rng.normal(size=60)]).astype(float)
    y = torch.from_numpy(np.where(x[:, 0] == 1, 0, 1 + rng.poisson(2, 60)))
    moved = (x + shift) * np.array(scales)
    status, found = find_recession(moved, y, Poisson(), output_map(1, 2))
    assert found.n_rows == 20 and not found.diverging[2] and found.diverging[1]
    assert found.diverging[0] == (shift > 0)
    y[2] = 1
    assert find_recession(moved, y, Poisson(), output_map(1, 2)) == ("none", None)


def test_nearly_equal_is_not_equal():
    """Positive counts at 1 and 1 + 1e-7 hold the column's coefficient, although a Gram matrix hardly sees it."""
    x = np.array([[1.0], [1.0 + 1e-7], [2.0], [3.0]])
    y = torch.tensor([1, 2, 0, 0])
    assert find_recession(x, y, Poisson(), output_map(1, 1)) == ("none", None)
    assert find_recession(x.round(3), y, Poisson(), output_map(1, 1)).status == "found"


def test_rows_of_weight_zero_do_not_count_and_sparse_rows_agree():
    x = np.array([[0.0], [0.0], [1.0], [1.0]])
    y = torch.tensor([1, 2, 0, 1])
    assert find_recession(x, y, Poisson(), output_map(1, 1)).status == "none"
    for table in (x, sp.csr_matrix(x)):
        _, found = find_recession(table, y, Poisson(), output_map(1, 1), torch.tensor([1.0, 1, 1, 0]))
        assert found.rows.tolist() == [False, False, True, False]
        assert found.limit.rows.tolist() == [True, True, False, False]
    assert find_recession(x, y, Poisson(), output_map(1, 1), torch.zeros(4)) == ("none", None)


def test_counts_that_do_not_say_anything_and_labels_in_between():
    x = np.array([[0.0], [1.0], [2.0]])
    trials = torch.tensor([[0.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    assert find_recession(x, trials, Binomial(), output_map(1, 1)).recession.rows.tolist() == [False, True, True]
    y = torch.tensor([0.0, 0.5, 1.0])
    assert find_recession(x, y, Bernoulli(), output_map(1, 1)).recession.n_rows == 2
    probabilities = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.5, 0.5, 0]]).double()
    found = find_recession(x, probabilities, Categorical(), output_map(3, 1)).recession
    assert found.kind == "quasi-complete" and found.limit.rows[2]
    smooth = Categorical(label_smoothing=0.1)
    assert find_recession(x, torch.tensor([0, 1, 2]), smooth, output_map(3, 1)) == ("none", None)


def test_a_candidate_settles_what_the_program_has_no_time_for():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    y = torch.from_numpy((x.sum(1) > 0).astype(np.int64) * 2)
    arguments = (x, y, Binomial(trials=2), output_map(1, 3))
    assert find_recession(*arguments, time_limit=0.0) == ("undecided", None)
    candidate = torch.tensor([0.0, 1, 1, 1]) + 1e-9
    found = find_recession(*arguments, candidate=candidate, time_limit=0.0).recession
    assert found.kind == "complete" and found.is_exact


def test_collinear_and_constant_columns_are_left_out_of_the_limit():
    rng = np.random.default_rng(0)
    group = (np.arange(30) % 3 == 0).astype(float)
    x = np.column_stack([group, group, np.full(30, 2.0), np.zeros(30), rng.normal(size=30)])
    y = torch.from_numpy(np.where(group == 1, 0, 1 + rng.poisson(2, 30)))
    _, found = find_recession(x, y, Poisson(), output_map(1, 5))
    assert [column for _, column in found.names] == ["x0", "x1"] and found.span.shape == (6, 1)
    assert found.limit.kept.tolist() == [True, False, False, False, False, True]


def test_more_columns_than_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 300))
    labels = torch.from_numpy(rng.integers(0, 2, 40)).double()
    _, found = find_recession(x, labels, Bernoulli(), output_map(1, 300))
    assert found.kind == "complete" and not found.limit.kept.any() and "301 coefficients" in found.sentence()
    counts = torch.from_numpy(rng.poisson(1.0, 40))
    _, found = find_recession(x, counts, Poisson(), output_map(1, 300))
    assert found.n_rows == int((counts == 0).sum()) and int(found.limit.kept.sum()) == int((counts > 0).sum())


def test_no_columns_at_all():
    _, found = find_recession(np.zeros((3, 0)), torch.zeros(3), Poisson(), output_map(1, 0))
    assert "In every row the target is 0. The coefficient of '(intercept)' has no finite" in found.sentence()
    _, found = find_recession(np.zeros((1, 1)), torch.tensor([0]), *case("ordinal", 1))
    assert found.sentence().startswith("The intercepts pick out 1 row in which the target is 0.")


def test_what_is_not_known_is_undecided():
    x, y = np.arange(4.0)[:, None], torch.tensor([1.0, 2, 3, 4])
    two = output_map(2, 1)
    assert find_recession(x, y, Gamma(), two) == ("undecided", None)
    labels = torch.tensor([0.0, 0, 1, 1])
    assert find_recession(x, labels, Linked(Bernoulli(), "normal_cdf"), output_map(1, 1)).status == "undecided"
    assert find_recession(x, labels, Bernoulli(pos_weight=torch.tensor(0.0)), output_map(1, 1)).status == "undecided"
    assert find_recession(x, labels, ScaledLikelihood(Bernoulli(), 2.0), output_map(1, 1)).status == "found"


def test_without_an_intercept_the_boundary_is_zero():
    x = np.array([[0.0], [0.0], [1.0], [2.0]])
    none = OutputMap.of_columns(torch.zeros(1, 0, dtype=torch.float64), [torch.eye(1, dtype=torch.float64)])
    y = torch.tensor([1, 2, 0, 0])
    assert find_recession(x, y, Poisson(), none).recession.direction.tolist() == [-1.0]
    assert find_recession(x + 1, y, Poisson(), none) == ("none", None)
