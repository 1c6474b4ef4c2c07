"""Closed forms of linear models against torch.func and against both forms of the derivation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raphson.data import DenseDesign, SparseDesign
from raphson.data import _dense_design as data
from raphson.likelihoods import Bernoulli, Categorical, Gaussian
from raphson.linalg import DiagonalPlusLowRank
from raphson.linear import TargetSums, group_scores, lipschitz_bound, score_gram
from raphson.linear._khatri_rao import GivenPairs, KhatriRaoGram, output_pairs
from tests.linear.objectives import linear_objective

N, D, K = 23, 4, 3


def plain_nll(name, f, y):
    """The textbook losses, written with torch alone."""
    if name == "categorical":
        t = y if y.is_floating_point() else torch.nn.functional.one_hot(y, f.shape[1]).double()
        return -(t * torch.log_softmax(f, 1)).sum(1)
    if name == "bernoulli":
        return torch.nn.functional.binary_cross_entropy_with_logits(f, y, reduction="none").sum(1)
    return (0.5 * ((y - f) / 0.7).square() + math.log(0.7) + 0.5 * math.log(2 * math.pi)).sum(1)


def make(
    likelihood="categorical",
    *,
    sparse=False,
    intercept=True,
    weights=False,
    offset=False,
    reference=None,
    l2=0.0,
    soft=False,
    standardize=False,
    seed=0,
    n=N,
    d=D,
    k=K,
):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    x[torch.rand(n, d, generator=g) < 0.3] = 0.0
    w = torch.randint(1, 5, (n,), generator=g).double() * 0.7 if weights else None
    o = torch.randn(n, k, generator=g, dtype=torch.float64) if offset else None
    if likelihood == "categorical":
        lik, y = Categorical(), torch.randint(k, (n,), generator=g)
        if soft:
            y = torch.rand(n, k, generator=g, dtype=torch.float64)
            y = y / y.sum(1, keepdim=True)
    elif likelihood == "bernoulli":
        lik, y = Bernoulli(), torch.randint(2, (n, k), generator=g).double()
    else:
        lik, y = Gaussian(scale=0.7), torch.randn(n, k, generator=g, dtype=torch.float64)
    design = (
        SparseDesign(sp.csr_matrix(x.numpy()), intercept=intercept, standardize=standardize)
        if sparse
        else DenseDesign(x, intercept=intercept, standardize=standardize)
    )
    objective = linear_objective(design, lik, y, n_outputs=k, weights=w, offset=o, l2=l2, reference=reference)

    def naive(theta):
        """The objective as the definition reads, in the design's coordinates."""
        z = (x - design.center) / design.scale
        xhat = torch.cat([torch.ones(n, 1, dtype=torch.float64), z], 1) if intercept else z
        free = theta.view(-1, xhat.shape[1])
        if reference is not None:
            zero = torch.zeros(1, xhat.shape[1], dtype=torch.float64)
            free = torch.cat([free[:reference], zero, free[reference:]])
        f = xhat @ free.mT + (0.0 if o is None else o)
        ww = torch.ones(n, dtype=torch.float64) if w is None else w
        slopes = (free[:, 1:] if intercept else free) / design.scale
        centered = slopes - slopes.mean(0) if likelihood == "categorical" else slopes
        return (ww * plain_nll(likelihood, f, y)).sum() / ww.sum() + 0.5 * l2 * centered.square().sum()

    theta = torch.randn(objective.n_parameters, generator=g, dtype=torch.float64)
    return objective, naive, theta


CASES = [
    dict(),
    dict(sparse=True),
    dict(weights=True, offset=True, l2=0.3),
    dict(sparse=True, weights=True, offset=True, l2=0.3, standardize=True),
    dict(reference=0, weights=True),
    dict(reference=2, l2=0.1, standardize=True),
    dict(reference=1, sparse=True, l2=0.1),
    dict(soft=True, weights=True),
    dict(soft=True, reference=1, offset=True, l2=0.2),
    dict(intercept=False, l2=0.2),
    dict(intercept=False, sparse=True, reference=0),
    dict(likelihood="bernoulli", weights=True, l2=0.1),
    dict(likelihood="gaussian", weights=True, offset=True, l2=0.1),
    dict(likelihood="gaussian", sparse=True, standardize=True),
    dict(reference=2, weights=True, offset=True),
    dict(k=8, d=3, reference=3, weights=True),  # 28 pairs: the half-vectorized form
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_derivatives_equal_automatic_ones(case):
    objective, naive, theta = make(**case)
    value, gradient = objective.value_and_gradient(theta)
    exact = torch.func.hessian(naive)(theta)
    torch.testing.assert_close(torch.tensor(value, dtype=torch.float64), naive(theta), rtol=1e-12, atol=1e-12)
    assert objective.value(theta) == pytest.approx(value, rel=1e-13)
    torch.testing.assert_close(gradient, torch.func.grad(naive)(theta), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(objective.hessian(theta).to_dense(), exact, rtol=1e-10, atol=1e-12)
    v = torch.randn_like(theta)
    torch.testing.assert_close(objective.hessian(theta).mv(v), exact @ v, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(objective.hessian(theta).diagonal(), exact.diagonal(), rtol=1e-10, atol=1e-12)
    d = objective.design.n_columns
    blocks = torch.stack([exact[i : i + d, i : i + d] for i in range(0, len(theta), d)])
    torch.testing.assert_close(objective.hessian(theta).blocks(), blocks, rtol=1e-10, atol=1e-12)


def test_the_two_forms_of_the_derivation_agree_with_the_hessian():
    """(1/N) sum A_n (x) x_n x_n^T, and [(I (x) X D^-1) - 1^T (x) (E [x] X D^-2)] R (I (x) X^T)."""
    objective, _, theta = make()
    x = torch.cat([b.features() for b in objective.design.blocks(K)], 1)  # columns are examples, as in the text
    b = objective.output_map.expand(theta)
    s = torch.softmax(b @ x, 0)
    by_sum = sum(
        torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(xn, xn)) for p, xn in zip(s.mT, x.mT, strict=True)
    )
    e = (b @ x).exp()
    d_inverse = torch.diag(1.0 / e.sum(0))
    eye = torch.eye(K, dtype=torch.float64)
    r = torch.diag(e.reshape(-1))  # vec(E^T) stacks classes
    khatri_rao = torch.stack([torch.kron(e[:, n], (x @ d_inverse @ d_inverse)[:, n]) for n in range(N)], 1)
    left = torch.kron(eye, x @ d_inverse) - torch.kron(torch.ones(1, K, dtype=torch.float64), khatri_rao)
    by_matrix = left @ r @ torch.kron(eye, x.mT.contiguous())
    torch.testing.assert_close(by_sum, by_matrix, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(objective.hessian(theta).to_dense() * N, by_sum, rtol=1e-10, atol=1e-12)


def test_gradient_is_x_times_s_minus_y():
    objective, _, theta = make()
    x = torch.cat([b.features() for b in objective.design.blocks(K)], 1)
    s = torch.softmax(objective.output_map.expand(theta) @ x, 0)
    y = torch.nn.functional.one_hot(objective.y, K).double().mT
    torch.testing.assert_close(
        objective.evaluate(theta, None).gradient.view(K, -1), ((s - y) @ x.mT) / N, rtol=1e-12, atol=1e-14
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 300), st.booleans())
def test_khatri_rao_gram_equals_the_sum_of_kronecker_products(c, d, n, single):
    dtype = torch.float32 if single else torch.float64
    g = torch.Generator().manual_seed(c * 100 + d * 10 + n)
    a = torch.randn(n, c, c, generator=g, dtype=torch.float64)
    a = (a + a.mT) / 2  # indefinite
    x = torch.randn(d, n, generator=g, dtype=torch.float64)
    k, l = torch.triu_indices(c, c)  # noqa: E741
    gram = KhatriRaoGram(torch.stack([k, l]), c, d, dtype)
    gram.add(x.to(dtype), GivenPairs(torch.stack([k, l]), a.permute(1, 2, 0)[k, l].to(dtype)))
    expected = torch.einsum("nkl,in,jn->kilj", a, x, x).reshape(c * d, c * d)
    tol = 1e-3 if single else 1e-10
    torch.testing.assert_close(gram.to_dense().double(), expected, rtol=tol, atol=tol)


def test_single_precision_curvature_is_close_and_the_gradient_stays_double():
    objective, naive, theta = make(weights=True, l2=0.1, reference=0)
    single = linear_objective(
        objective.design,
        objective.likelihood,
        objective.y,
        n_outputs=K,
        weights=objective.weights,
        l2=0.1,
        reference=0,
        curvature_dtype=torch.float32,
    )
    at = single.evaluate(theta)
    assert at.gradient.dtype == torch.float64 and at.hessian.to_dense().dtype == torch.float32
    torch.testing.assert_close(at.gradient, torch.func.grad(naive)(theta), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(at.hessian.to_dense().double(), torch.func.hessian(naive)(theta), rtol=1e-4, atol=1e-5)


def test_scores_and_their_sums():
    objective, _, theta = make(weights=True, reference=0, offset=True)
    x = torch.cat([b.features() for b in objective.design.blocks(K)], 1)
    f = objective.predictors(theta)
    g = objective.likelihood.gradient(f.mT, objective.y)[:, objective.output_map.selected]
    scores = torch.einsum("nk,dn->nkd", g, x).reshape(N, -1)
    w = objective.weights[:, None]
    torch.testing.assert_close(score_gram(objective, theta), (w * scores).mT @ (w * scores))
    torch.testing.assert_close(score_gram(objective, theta, squared_weights=False), scores.mT @ (w * scores))
    groups = torch.arange(N) % 4
    sums = torch.stack([(w * scores)[groups == i].sum(0) for i in range(4)])
    torch.testing.assert_close(group_scores(objective, theta, groups, 4), sums)


def test_standardized_coordinates_and_back():
    objective, _, theta = make(standardize=True)
    design = objective.design
    coef = objective.output_map.expand(theta)
    table = design.to_table(coef)
    torch.testing.assert_close(design.from_table(table), coef)
    torch.testing.assert_close(coef @ design.to_table(torch.eye(design.n_columns, dtype=torch.float64)), table)
    raw = design.x @ table[:, 1:].mT + table[:, 0]
    torch.testing.assert_close(raw.mT, objective.predictors(theta))


def test_rows_taken_average_to_the_objective():
    objective, _, theta = make(weights=True, l2=0.2)
    parts = torch.arange(N - 3).split(5)
    whole = objective.take(torch.arange(N - 3)).evaluate(theta, None).gradient
    mean = sum(objective.take(p).evaluate(theta, None).gradient for p in parts) / len(parts)
    torch.testing.assert_close(mean, whole)


def test_bound_of_bohning_holds():
    objective, naive, theta = make()
    top = torch.linalg.eigvalsh(torch.func.hessian(naive)(theta))[-1]
    assert top <= lipschitz_bound(objective)
    x = np.asarray(torch.cat([b.features() for b in objective.design.blocks(K)], 1))
    assert lipschitz_bound(objective) == pytest.approx(0.5 * np.linalg.eigvalsh(x @ x.T / N)[-1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 9), st.booleans(), st.sampled_from([1, -1]))
def test_output_pairs_hold_the_upper_triangle(c, rank, n, weighted, sign):
    g = torch.Generator().manual_seed(c * 10 + n)
    operator = DiagonalPlusLowRank(
        torch.randn(n, c, generator=g, dtype=torch.float64),
        torch.randn(n, c, rank, generator=g, dtype=torch.float64),
        sign,
    )
    w = torch.rand(n, generator=g, dtype=torch.float64) if weighted else None
    keep = torch.arange(c)[1:] if c > 1 else slice(0, c)
    output = output_pairs(operator, keep)
    dense = operator.to_dense()[:, keep][:, :, keep]
    dense = dense * (1.0 if w is None else w[:, None, None])
    k, l = output.pairs  # noqa: E741
    torch.testing.assert_close(output.entries(slice(0, n), torch.float64, w), dense[:, k, l].mT)


@pytest.mark.parametrize("intercept", [True, False])
def test_a_table_read_in_place_gives_what_a_standardized_copy_does(intercept, monkeypatch):
    objective, _, theta = make(weights=True, l2=0.2, standardize=True, intercept=intercept)
    kept = objective.evaluate(theta)
    expected = kept.hessian.to_dense(), kept.hessian.mv(theta), kept.hessian.diagonal()
    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    large, _, _ = make(weights=True, l2=0.2, standardize=True, intercept=intercept)
    assert isinstance(next(large.design.blocks(K)), data.RawBlock)
    at = large.evaluate(theta)
    assert at.value == pytest.approx(kept.value, rel=1e-13)
    torch.testing.assert_close(at.gradient, kept.gradient, rtol=1e-11, atol=1e-13)
    found = at.hessian.to_dense(), at.hessian.mv(theta), at.hessian.diagonal()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_large_means_are_subtracted_from_the_rows(monkeypatch):
    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    x = torch.randn(50, 2, dtype=torch.float64) + torch.tensor([1e9, 0.0], dtype=torch.float64)
    design = DenseDesign(x, standardize=True)
    block = next(design.blocks(2))
    assert isinstance(block, data.DenseBlock)
    torch.testing.assert_close(block.features()[1].mean(), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("reference", [None, 0])
@pytest.mark.parametrize("likelihood", ["categorical", "soft"])
@pytest.mark.parametrize("sparse", [False, True])
def test_constant_outputs_are_evaluated_without_a_pass(likelihood, reference, sparse):
    """Of columns that sum to zero, and of sparse ones whose means are made in the pass that sums the targets."""
    options = {"standardize": True, "reference": reference, "l2": 0.2, "sparse": sparse}
    objective, _, theta = make(soft=likelihood == "soft", **options)
    slopes = ~objective.output_map.is_intercept
    theta = theta.clone()
    assert objective.evaluate_constant(theta) is None
    theta[slopes] = 0.0
    at, expected = objective.evaluate_constant(theta), objective.evaluate(theta, None)
    if at is None:
        assert likelihood == "soft"
        return
    assert at.value == pytest.approx(expected.value, rel=1e-13)
    torch.testing.assert_close(at.gradient, expected.gradient, rtol=1e-12, atol=1e-14)
    assert at.norm == pytest.approx(expected.norm, rel=1e-10)
    means = objective.design.adjoint(torch.full((1, objective.n_rows), 1.0 / objective.n_rows, dtype=torch.float64))
    torch.testing.assert_close(objective.means, means[0], rtol=1e-12, atol=1e-14)
    for other in ({"weights": True}, {"offset": True}, *([] if sparse else [{"standardize": False}])):
        assert make(**(options | other))[0].evaluate_constant(theta) is None


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("reference", [None, 0, 1])
def test_known_sums_of_the_targets_are_their_linear_term(k, intercept, reference):
    """Sums by class of the table as given, in place of a pass over the standardized columns; of two classes, too."""
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(3.0, 2.0, (40, 6))), torch.from_numpy(rng.permutation(np.arange(40) % k))
    onehot = torch.nn.functional.one_hot(y, k).double()
    sums = TargetSums(onehot.mT @ x, onehot.sum(0))
    design = DenseDesign(x, intercept=intercept, standardize=True)
    known, plain = (
        linear_objective(design, Categorical(), y, n_outputs=k, reference=reference, l2=0.1, sums=given)
        for given in (sums, None)
    )
    theta = torch.from_numpy(rng.normal(size=known.n_parameters))
    pairs = [(known, plain), (known.take(torch.arange(20)), plain.take(torch.arange(20)))]
    if known.reduced is not known:
        pairs.append((known.reduced, plain.reduced))
    for a, b in pairs:
        at, expected = a.evaluate(theta, None), b.evaluate(theta, None)
        assert at.value == pytest.approx(expected.value, rel=1e-12)
        torch.testing.assert_close(at.gradient, expected.gradient, rtol=1e-11, atol=1e-12)
