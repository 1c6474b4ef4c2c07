"""Compiled sums of tables that are read in place, and models that have none."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raphson import Bernoulli, Categorical, _native
from raphson._native import _module
from raphson.data import DenseDesign
from raphson.linear import LinearObjective, OutputMap, _compiled
from tests.instruction_sets import each_instruction_set as each_instruction_set
from tests.linear.objectives import linear_objective, through_pytorch

from .compiled_cases import make, plain

pytestmark = pytest.mark.usefixtures("each_instruction_set")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n, intercept, weighted", [(1, True, False), (259, True, True), (700, False, False)])
def test_rows_as_given_are_standardized_as_they_are_read(monkeypatch, n, intercept, weighted, dtype):
    """A table that is not copied gives the value, gradient, Hessian and products of its standardized columns."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n + 1, 7, dtype=torch.float64, generator=generator)[1:, :5] * 3 + 40  # strides are not D
    y = torch.randint(4, (n,), generator=generator)
    w = torch.rand(n, dtype=torch.float64, generator=generator) + 0.1 if weighted else None

    def make_objective():
        design = DenseDesign(x, intercept=intercept, standardize=n > 1)
        common = {"n_outputs": 4, "weights": w, "l2": 0.1, "reference": 3, "curvature_dtype": dtype}
        return linear_objective(design, Categorical(), y, **common)

    theta = torch.randn(make_objective().n_parameters, dtype=torch.float64, generator=generator)
    objective = make_objective()
    assert objective.compiled.table.factor is not None
    read = objective.evaluate(theta)
    monkeypatch.setattr(DenseDesign, "is_raw", False)
    objective = make_objective()
    assert objective.compiled.table.factor is None
    copied = objective.evaluate(theta)
    assert read.value == pytest.approx(copied.value, rel=1e-12)
    torch.testing.assert_close(read.gradient, copied.gradient, rtol=1e-10, atol=1e-12)
    # the norm, in the table's parameters: columns of mean 40 and scale 3, whose rounding is left out
    table = objective.table_gradient(read.gradient).abs().view(3, -1)[:, int(intercept) :]
    rounding = torch.hypot(objective.design.center, objective.design.scale) * 2.0**-46
    rest = torch.where(rounding > 1e-12, rounding, 0.0)
    slopes, ones = (table - rest).max(), read.gradient.view(3, -1)[:, : int(intercept)].abs()
    assert read.norm == pytest.approx(float(torch.cat([slopes[None], ones.flatten()]).max()), rel=1e-12)
    assert read.norm == pytest.approx(objective.gradient_norm(read.gradient), rel=1e-14)
    rtol = 1e-10 if dtype == torch.float64 else 2e-5
    v = torch.linspace(-1, 1, theta.shape[0], dtype=dtype)
    for f in (lambda h: h.to_dense(), lambda h: h.blocks(), lambda h: h.mv(v)):
        torch.testing.assert_close(f(read.hessian), f(copied.hessian), rtol=rtol, atol=rtol * 10)


def test_columns_too_small_for_a_reciprocal_are_divided():
    """A column of size 1e-310 is standardized as any other, by way of a copy."""
    x = torch.randn(80, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(80) % 3
    small = x * torch.tensor([1.0, 1e-310, 1.0], dtype=torch.float64)
    common = {"n_outputs": 3, "l2": 0.0, "reference": 2}
    scale = torch.tensor([1.0, 1e-310, 1.0], dtype=torch.float64)
    design = DenseDesign(small, moments=(torch.zeros(3, dtype=torch.float64), scale))
    theta = torch.linspace(-1, 1, 8, dtype=torch.float64)
    found = linear_objective(design, Categorical(), y, **common).evaluate(theta)
    expected = linear_objective(DenseDesign(x), Categorical(), y, **common).evaluate(theta)
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 70),
    st.integers(1, 7),
    st.fixed_dictionaries({name: st.booleans() for name in ("weights", "intercept", "reference")}),
    st.integers(1, 3),
    st.integers(0, 999),
)
def test_rows_in_place_give_what_their_standardized_columns_do(n, d, c, options, parts, seed):
    """Many columns, read in place by one thread or several: value, gradient, norm and the targets' linear term."""
    generator = torch.Generator().manual_seed(seed)
    # strides are not D
    x = torch.randn(n, d + 3, dtype=torch.float64, generator=generator)[:, 1 : d + 1] * 3 + 40
    intercept, size = options["intercept"], d + options["intercept"]
    center = x.mean(0) if intercept else torch.zeros(d, dtype=torch.float64)
    design = DenseDesign(x, intercept=intercept, moments=(center, torch.full((d,), 2.0, dtype=torch.float64)))
    weights = torch.rand(n, dtype=torch.float64, generator=generator) if options["weights"] else None
    penalty = torch.tensor([1.0, -0.3 / c]).double(), torch.linspace(0.0, 1.0, size, dtype=torch.float64)
    rest = weights, *penalty, c, 1.0 / n, False
    given_rows = _native.LinearModel(x, center, design.scale.reciprocal(), intercept, *rest, True)
    columns = _native.LinearModel(design.standardized(slice(0, n)), None, None, False, *rest)
    theta, linear = torch.randn(2, c, size, dtype=torch.float64, generator=generator) / size
    units = torch.rand(3, size, dtype=torch.float64, generator=generator)
    t = torch.randn(c, n, dtype=torch.float64, generator=generator)
    with mock.patch.object(_module, "threads", lambda *_: parts):
        for dtype in (None, torch.float64, torch.float32):
            found, expected = (
                _native.Evaluator(model, linear, options["reference"], units).at(theta.view(-1), dtype)
                for model in (given_rows, columns)
            )
            assert found.value == pytest.approx(expected.value, rel=1e-12, abs=1e-12)
            assert found.norm == pytest.approx(expected.norm, rel=1e-10, abs=1e-10)
            torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-10, atol=1e-10)
            if dtype is not None:
                torch.testing.assert_close(found.p, expected.p, rtol=1e-6, atol=1e-10)
        found, expected = (_native.adjoint(model, t) for model in (given_rows, columns))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("c", [1, 3, 5])
def test_wide_tables_are_read_in_place_and_their_hessians_are_products(c):
    """More columns than a block in the cache has: value and gradient by automatic differentiation, the Hessian, too."""
    objective, theta = make(30, 9000, c, logistic=c == 1, reference=False)
    theta /= 100.0
    assert objective.compiled.table.in_place and not objective.compiled.table.has_hessians
    at, value, slow = objective.evaluate(theta, None), plain(objective), through_pytorch(objective)
    assert at.value == pytest.approx(float(value(theta)), rel=1e-13)
    torch.testing.assert_close(at.gradient, torch.func.grad(value)(theta), rtol=1e-11, atol=1e-13)
    assert at.norm == pytest.approx(slow.evaluate(theta, None).norm, rel=1e-10)
    product = torch.func.jvp(torch.func.grad(value), (theta,), (theta,))[1]
    torch.testing.assert_close(objective.evaluate(theta).hessian.mv(theta), product, rtol=1e-10, atol=1e-13)


def test_columns_with_large_means_are_not_read_in_place():
    """Sums that are centered afterwards would lose their digits."""
    x = torch.randn(60, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(60) % 3
    for mean, read in ((10.0, True), (1e5, False)):
        objective = linear_objective(DenseDesign(x + mean, standardize=True), Categorical(), y, n_outputs=3, l2=0.1)
        assert (objective.compiled is not None) is read


def test_what_is_not_a_number_stays_so():
    """A coefficient that is not finite gives a value that is not finite, as a solver expects."""
    objective, theta = make(50, 2, 3)
    for bad in (math.nan, math.inf):
        broken = theta.clone()
        broken[1] = bad
        assert not math.isfinite(objective.evaluate(broken).value)


def test_other_models_go_by_pytorch(monkeypatch):
    """Offsets, references in the middle, weighted classes, soft targets and wide models are not compiled."""
    objective, _ = make(60, 3, 4)
    parts = {"n_outputs": 4, "l2": 0.1}
    assert objective.compiled is not None
    y = torch.nn.functional.one_hot(objective.y, 4).double()
    others = [
        linear_objective(objective.design, Categorical(), objective.y, offset=torch.zeros(60, 4).double(), **parts),
        linear_objective(objective.design, Categorical(class_weight=torch.ones(4)), objective.y, **parts),
        linear_objective(objective.design, Categorical(), y, **parts),
        linear_objective(objective.design, Bernoulli(), y, **parts),
    ]
    assert [other.compiled for other in others] == [None] * 4
    monkeypatch.setattr(_compiled, "_OUTPUTS_AND_COLUMNS", 5)
    assert make(60, 3, 4)[0].compiled is None


def test_without_a_compiler_the_numbers_are_the_same(monkeypatch):
    """Where the compiled code is missing a fit goes through PyTorch and ends at the same coefficients."""
    from raphson import MultinomialLogisticRegression

    objective, _ = make(200, 3, 3)
    x, y = objective.design.x.numpy(), objective.y.numpy()
    compiled = MultinomialLogisticRegression().fit(x, y)
    monkeypatch.setattr(_module, "kernels", None)
    assert make(200, 3, 3)[0].compiled is None
    plain_fit = MultinomialLogisticRegression().fit(x, y)
    torch.testing.assert_close(torch.tensor(compiled.coef_), torch.tensor(plain_fit.coef_), rtol=0, atol=1e-9)
    assert compiled.standard_errors().to_numpy() == pytest.approx(plain_fit.standard_errors().to_numpy(), rel=1e-9)


@pytest.mark.parametrize("cached", [False, True])
def test_a_table_read_in_place_has_the_hessian_of_pytorch(monkeypatch, cached):
    """Value and gradient by compiled code, the Hessian of the same point later, made once where it may be kept."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6000, 60, dtype=torch.float64, generator=generator)
    y = torch.randint(2, (6000, 1), generator=generator).double()
    objective = LinearObjective(DenseDesign(x, standardize=True), Bernoulli(), y, OutputMap.own(1, 61, True), l2=0.1)
    assert objective.is_in_place and not objective._rows.table.has_hessians
    monkeypatch.setattr(LinearObjective, "_caches_output_hessians", lambda self: cached)
    slow = through_pytorch(objective)
    theta = torch.randn(61, dtype=torch.float64, generator=generator)
    with mock.patch.object(
        LinearObjective, "_recomputed", autospec=True, side_effect=LinearObjective._recomputed
    ) as made:
        at = objective.evaluate(theta)
        assert not made.called
        products = [at.hessian.mv(v) for v in torch.eye(61, dtype=torch.float64)[:3]]
        assert made.call_count == (1 if cached else 3)
    expected = slow.evaluate(theta)
    assert at.value == pytest.approx(expected.value, rel=1e-13)
    torch.testing.assert_close(at.gradient, expected.gradient, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(at.hessian.to_dense(), expected.hessian.to_dense(), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(torch.stack(products), expected.hessian.to_dense()[:3], rtol=1e-11, atol=1e-13)
