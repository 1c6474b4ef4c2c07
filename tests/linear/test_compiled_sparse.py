"""Sparse tables in compiled code against the same objective in PyTorch and against its definition."""

from unittest import mock

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raphson import Bernoulli, Categorical, Gamma, Poisson
from raphson._native import _module
from raphson.data import DenseDesign, SparseDesign
from raphson.linear import LinearObjective, OutputMap, _compiled
from tests.instruction_sets import each_instruction_set as each_instruction_set
from tests.linear.objectives import linear_objective, through_pytorch

pytestmark = pytest.mark.usefixtures("each_instruction_set")

LIKELIHOODS = {
    "bernoulli": (Bernoulli(), lambda u: u[:, None].round()),
    "poisson": (Poisson(), lambda u: (5 * u[:, None]).round()),
    "gamma": (Gamma(dispersion=0.7), lambda u: u + 0.1),
}


def table(n, d, seed, *, density=0.2, full=0):
    """A sparse table whose first ``full`` columns have an entry in every row, with a mean."""
    rng = np.random.default_rng(seed)
    x = sp.random(n, d, density=density, format="lil", random_state=rng, data_rvs=rng.standard_normal)
    x[:, :full] = 3.0 + rng.standard_normal((n, full))
    return x.tocsr()


def make(x, likelihood="categorical", c=3, *, weights=False, intercept=True, reference=None, l2=0.1, seed=0):
    """Return an objective of a sparse table, and a point."""
    g, n = torch.Generator().manual_seed(seed), x.shape[0]
    lik, y = Categorical(), torch.randint(c, (n,), generator=g)
    if likelihood != "categorical":
        lik, targets = LIKELIHOODS[likelihood]
        y, c = targets(torch.rand(n, dtype=torch.float64, generator=g)), 1
    objective = linear_objective(
        SparseDesign(x, intercept=intercept, standardize=True),
        lik,
        y,
        n_outputs=c,
        weights=torch.rand(n, dtype=torch.float64, generator=g) + 0.1 if weights else None,
        l2=l2,
        reference=reference,
    )
    theta = torch.randn(objective.n_parameters, dtype=torch.float64, generator=g) / max(1, x.shape[1]) ** 0.5
    return objective, theta


def check(objective, theta):
    """Value but for a constant, gradient, norm, Hessian and products are those through PyTorch."""
    slow, zero = through_pytorch(objective), torch.zeros_like(theta)
    assert objective.compiled is not None and objective.compiled.table.starts is not None
    ours, theirs = objective.evaluate(theta), slow.evaluate(theta)
    change = theirs.value - slow.value(zero)
    assert ours.value - objective.value(zero) == pytest.approx(change, rel=1e-11, abs=1e-12)
    torch.testing.assert_close(ours.gradient, theirs.gradient, rtol=1e-10, atol=1e-12)
    assert ours.norm == pytest.approx(theirs.norm, rel=1e-10, abs=1e-12)
    torch.testing.assert_close(ours.hessian.mv(theta), theirs.hessian.mv(theta), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.hessian.to_dense(), theirs.hessian.to_dense(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.hessian.blocks(), theirs.hessian.blocks(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("likelihood", ["categorical", *LIKELIHOODS])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
def test_every_family(likelihood, weights, intercept):
    """Softmax, logistic, Poisson and gamma models, with columns that are centered where there is an intercept."""
    objective, theta = make(table(300, 20, 1, full=2), likelihood, weights=weights, intercept=intercept)
    assert bool(objective.design.center.any()) == intercept
    check(objective, theta)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 700),
    st.integers(1, 60),
    st.integers(2, 40),
    st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    st.integers(0, 2),
    st.fixed_dictionaries({
        "weights": st.booleans(),
        "intercept": st.booleans(),
        "reference": st.sampled_from([None, 1]),
    }),
    st.integers(1, 3),
    st.integers(0, 999),
)
def test_any_shape(n, d, c, density, full, options, parts, seed):
    """Rows, columns, outputs that fill no unit, empty rows and columns, several threads; the targets' sums, too."""
    x = table(n, d, seed, density=density, full=min(full, d) if n > 5 else 0)
    with mock.patch.object(_module, "threads", lambda *_: parts):
        objective, theta = make(x, c=c, seed=seed, **options)
        assume(objective.design.has_small_means)  # of two rows nearly alike they are not
        slow = through_pytorch(objective)
        ours, theirs = objective.evaluate(theta, None), slow.evaluate(theta, None)
        t = torch.randn(c, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        sums = _compiled.adjoint(objective.compiled.table, objective.weights, t)
    assert ours.value == pytest.approx(theirs.value, rel=1e-12, abs=1e-12)
    torch.testing.assert_close(ours.gradient, theirs.gradient, rtol=1e-10, atol=1e-12)
    expected = objective.design.adjoint(t if objective.weights is None else t * objective.weights)
    torch.testing.assert_close(sums, expected, rtol=1e-10, atol=1e-10)


def test_rows_too_long_for_the_cache():
    """Blocks then have fewer rows, down to four; columns are many for one of the final loops."""
    for n, d, likelihood, c in ((30, 3000, "categorical", 3), (9, 12000, "bernoulli", 1)):
        objective, theta = make(table(n, d, c, density=0.9), likelihood, c)
        ours, theirs = objective.evaluate(theta), through_pytorch(objective).evaluate(theta)
        assert ours.value == pytest.approx(theirs.value, rel=1e-12)
        torch.testing.assert_close(ours.gradient, theirs.gradient, rtol=1e-10, atol=1e-12)
        assert ours.hessian.compiled is not None  # products, since a dense matrix has 81 million entries
        product = theirs.hessian.mv(theta)
        torch.testing.assert_close(ours.hessian.mv(theta), product, rtol=1e-9, atol=1e-12)


HESSIANS = {
    "of dense rows": (20, "categorical", 4, True, True),
    "of one output": (20, "poisson", 1, True, True),
    "by nonzeros": (140, "categorical", 4, False, True),
    "of one output by nonzeros": (520, "bernoulli", 1, False, True),
    "through PyTorch": (140, "categorical", 20, False, False),
}


@pytest.mark.parametrize("d, likelihood, c, dense, products", HESSIANS.values(), ids=HESSIANS)
def test_hessians_come_from_where_they_are_cheapest(d, likelihood, c, dense, products):
    """Dense, its blocks, products in both precisions, of a dense copy, of the nonzeros, or through PyTorch."""
    objective, theta = make(table(600, d, 10, density=0.1, full=1), likelihood, c, weights=True)
    own = objective.compiled.table
    assert (own.has_hessians, own.has_products(c)) == (dense, products)
    check(objective, theta)
    expected = through_pytorch(objective).evaluate(theta).hessian
    single = objective.with_curvature(torch.float32, products=True).evaluate(theta).hessian
    size = float(expected.to_dense().abs().max())
    for found, wanted in (
        (single.mv(theta.float()), expected.mv(theta)),
        (single.to_dense(), expected.to_dense()),
        (single.blocks(), expected.blocks()),
    ):
        assert found.dtype == torch.float32
        assert float((found.double() - wanted).abs().max()) < 1e-5 * size


def test_the_value_is_that_of_the_definition():
    """Against the softmax written out, by automatic differentiation."""
    x = table(200, 15, 4, full=1)
    objective, theta = make(x, c=4, weights=True)
    design, w = objective.design, objective.weights

    def value(theta):
        z = (torch.from_numpy(x.toarray()) - design.center) / design.scale
        b = theta.view(4, 16)
        nll = torch.nn.functional.cross_entropy(b[:, 0] + z @ b[:, 1:].mT, objective.y, reduction="none")
        slopes = (b[:, 1:] - b[:, 1:].mean(0)) / design.scale
        return (w * nll).sum() / w.sum() + 0.05 * slopes.square().sum()

    at = objective.evaluate(theta)
    assert at.value == pytest.approx(float(value(theta)), rel=1e-13)
    torch.testing.assert_close(at.gradient, torch.func.grad(value)(theta), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("change", ["mean", "indices", "single"])
def test_large_means_and_other_types_go_the_old_way(change):
    """Sums that are centered afterwards would lose their digits; other types have no compiled form."""
    x = table(200, 8, 5, full=1)
    if change == "mean":
        x.data[x.indices == 0] += 1e5
    elif change == "indices":
        x.indices = x.indices.astype(np.int64)
    else:
        x.data = x.data.astype(np.float32)
    objective, theta = make(x)
    assert objective.compiled is None
    dense = linear_objective(
        DenseDesign(torch.from_numpy(x.toarray()).double(), moments=(objective.design.center, objective.design.scale)),
        Categorical(),
        objective.y,
        n_outputs=3,
        l2=0.1,
    )
    torch.testing.assert_close(
        objective.evaluate(theta, None).gradient, dense.evaluate(theta, None).gradient, rtol=1e-8, atol=1e-10
    )


def test_columns_too_small_for_a_reciprocal_go_the_old_way():
    """A column of size 1e-310 is divided by it."""
    x = table(80, 3, 9)
    x.data[x.indices == 1] *= 1e-310
    scale = torch.tensor([1.0, 1e-310, 1.0], dtype=torch.float64)
    design = SparseDesign(x, moments=(torch.zeros(3, dtype=torch.float64), scale))
    objective = linear_objective(design, Categorical(), torch.arange(80) % 3, n_outputs=3)
    assert objective.compiled is None
    assert bool(torch.isfinite(objective.evaluate(torch.ones(12, dtype=torch.float64), None).gradient).all())


def test_a_constant_column_has_no_gradient_at_all():
    """Rounding must not make it look like one that varies; columns of center and scale alike that vary are fitted."""
    full = np.column_stack([np.full(90, 0.1), np.tile([0.5, 1.5], 45)])
    x = sp.csr_matrix(np.hstack([full, table(90, 4, 6).toarray()]))
    objective, theta = make(x, "bernoulli", l2=0.0)
    assert objective.design.factor[0] == 0.0 and objective.design.factor[1] > 0.0
    gradient = objective.evaluate(theta, None).gradient
    assert gradient[1] == 0.0 and gradient[2] != 0.0
    moments = objective.design.center, objective.design.scale.clone()
    moments[1][1] = 1.0  # as its center is
    assert SparseDesign(x, moments=moments).factor[1] == 1.0


def test_large_tables_of_many_sums_lead_in_single_precision(monkeypatch):
    """Their sparse products do; single evaluations in double precision are compiled, and need no copies.

    Smaller ones and those whose sums stay in the cache have compiled steps.
    """
    objective, _ = make(table(100, 30, 7))
    assert objective.has_compiled_steps and not objective.compiled.table.is_large
    monkeypatch.setattr(_compiled, "_SINGLE_WORK", 100)
    objective, _ = make(table(100, 30, 7))
    assert objective.has_compiled_steps
    monkeypatch.setattr(_compiled, "_CACHED_SUMS", 50)
    objective, theta = make(table(100, 30, 7))
    assert objective.compiled.table.is_large and not objective.has_compiled_steps and objective.nonzeros is None
    monkeypatch.setattr(_compiled, "_SINGLE_WORK", 10**9)
    expected = make(table(100, 30, 7))[0].evaluate(theta)
    found, v = objective.evaluate(theta), torch.linspace(-1.0, 1.0, len(theta), dtype=torch.float64)
    assert not objective.design._blocks  # no copy of the table was made
    single = objective.with_curvature(torch.float32).evaluate(theta.float(), None)
    assert single.gradient.dtype == torch.float32
    torch.testing.assert_close(single.gradient.double(), expected.gradient, rtol=1e-4, atol=1e-5)
    assert found.value == pytest.approx(expected.value, rel=1e-13)
    torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.hessian @ v, expected.hessian @ v, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.hessian.to_dense(), expected.hessian.to_dense(), rtol=1e-9, atol=1e-12)


def test_rows_of_a_table_and_entries_behind_it():
    """Some rows, and values behind the last row that belong to none, as SciPy allows."""
    x = table(50, 6, 8)
    longer = sp.csr_matrix((50, 6))
    longer.indptr, longer.indices = x.indptr, np.append(x.indices, np.int32(3))
    longer.data = np.append(x.data, 1e6)
    objective, theta = make(x)
    behind = LinearObjective(
        SparseDesign(longer, moments=(objective.design.center, objective.design.scale)),
        Categorical(),
        objective.y,
        OutputMap.own(3, 7, True),
        l2=0.1,
    )
    assert behind.value(theta) == pytest.approx(objective.value(theta), rel=1e-14)
    part = objective.compiled.table.rows(slice(10, 37))
    t = torch.randn(2, 27, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_compiled.adjoint(part, None, t), objective.design.take(torch.arange(10, 37)).adjoint(t))
