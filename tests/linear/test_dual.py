"""Penalized classes in combinations of their rows against the same objective in all columns."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raphson import _native
from raphson.data import DenseDesign, SparseDesign
from raphson.likelihoods import Categorical, Gaussian
from raphson.linear import DualClasses, DualCoordinates, LinearObjective, OutputMap, has_dual
from raphson.linear._dual import DualStep
from raphson.linear._dual_factors import _SMALL
from tests.awkward_tables import spoil


def make(n, d, k, *, seed=0, l2=1e-2, intercept=True, kinds=()):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    if "means" in kinds:
        x += 30.0 * rng.normal(size=d)
    if "small means" in kinds:
        x += 0.3
    spoil(x, kinds, rng, constant=0.3)
    if "sparse" in kinds:
        design = SparseDesign(sp.csr_matrix(x), intercept=intercept, standardize=True)
    else:
        design = DenseDesign(torch.from_numpy(x), intercept=intercept, standardize=True)
    y = torch.from_numpy(np.where(np.arange(n) < k, np.arange(n) % k, rng.integers(0, k, n)))
    weights = torch.from_numpy(rng.uniform(0.5, 3.0, n)) if "weights" in kinds else None
    here = OutputMap.relative(k, int(rng.integers(k)), d + intercept, intercept)
    return LinearObjective(design, Categorical(), y, here, weights=weights, l2=l2)


KINDS = st.sets(st.sampled_from(["means", "small means", "copied rows", "constant columns", "sparse", "weights"]))


@st.composite
def objectives(draw, classes=(2, 3, 5)):
    n, k = draw(st.integers(3, 14)), draw(st.sampled_from(classes))
    d = draw(st.one_of(st.integers(n // 2 + 1, n), st.integers(n + 1, 45)))
    l2 = draw(st.sampled_from([1e-3, 1e-2, 1.0]))
    given = {"seed": draw(st.integers(0, 2**16)), "intercept": draw(st.booleans()), "kinds": draw(KINDS), "l2": l2}
    return make(max(n, k + 1), max(d, k), k, **given)


def some_point(dual, seed):
    """A point off the start whose shares sum to zero over rows, and over classes."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(dual.q, dual.n)) * 0.3 / np.sqrt(dual.gram.trace() or 1.0)
    b = rng.normal(size=dual.q) if dual.objective.output_map.intercept else np.zeros(dual.q)
    if dual.objective.output_map.intercept:
        a -= a.mean(1, keepdims=True)
    if dual.q > 1:
        a, b = a - a.mean(0), b - b.mean()
    return dual.at(a, a @ dual.gram, b)


@settings(max_examples=80, deadline=None)
@given(objectives(), st.integers(0, 1000))
def test_value_and_gradient_are_those_of_all_columns(objective, seed):
    dual = DualClasses(objective)
    at = some_point(dual, seed)
    checked = dual.checked(at.a, at.b)
    theta, there, norm = dual.parameters(checked), checked.at, checked.norm
    whole = objective.evaluate(theta, None)
    assert at.value == pytest.approx(whole.value, rel=1e-9, abs=1e-11)
    assert there.value == pytest.approx(whole.value, rel=1e-12)
    # of all outputs, of which the objective leaves one out
    own = objective.with_map(OutputMap.own(objective.n_outputs, *_columns(objective)))
    coef = objective.output_map.expand(theta)
    gradient = own.evaluate((coef - coef.mean(0)).reshape(-1), None).gradient
    if dual.q == 1:
        assert norm == pytest.approx(objective.reduced.evaluate(theta, None).norm, rel=1e-8, abs=1e-12)
    else:
        assert norm == pytest.approx(own.gradient_norm(gradient), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
def test_the_gradient_of_the_tables_columns_has_the_norm_of_standardized_ones(sparse, intercept):
    """Columns in tiny and huge units, and means that rounding shows in."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(12, 30)) * np.repeat([1e-9, 1e-4, 1.0, 1e3, 1e14], 6) + np.tile([0.0, 3.0], 15)
    x *= rng.random(x.shape) < (0.5 if sparse else 1.1)
    given = {"intercept": intercept, "standardize": True}
    design = SparseDesign(sp.csr_matrix(x), **given) if sparse else DenseDesign(torch.from_numpy(x), **given)
    here = OutputMap.own(3, 30 + intercept, intercept)
    objective = LinearObjective(design, Categorical(), torch.arange(12) % 3, here, l2=1e-3)
    for size in (1.0, 1e-6):
        gradient = torch.from_numpy(rng.normal(size=(3, 30 + intercept)) * size)
        ones = gradient[:, 0].clone() if intercept else None
        slopes = gradient[:, int(intercept) :] * design.scale
        slopes = slopes if ones is None else slopes + torch.outer(ones, design.center)
        whole = objective.gradient_norm(gradient.flatten())
        assert objective.gradient_norm.of_table(slopes, ones) == pytest.approx(whole, rel=1e-12)
    slopes = torch.full((3, 30), torch.nan, dtype=torch.float64)
    assert np.isnan(objective.gradient_norm.of_table(slopes, ones))


def parameters(dual, at):
    return dual.parameters(dual.checked(at.a, at.b))


def _columns(objective):
    return objective.output_map.n_columns, objective.output_map.intercept


@settings(max_examples=80, deadline=None)
@given(objectives((2,)), st.integers(0, 1000))
def test_newton_steps_are_those_of_all_columns(objective, seed):
    dual = DualClasses(objective)
    for at in (dual.start(), some_point(dual, seed)):
        step = dual.newton_step(at)
        theta = parameters(dual, at)
        there = parameters(dual, dual.moved(at, step, 1.0))
        whole = objective.evaluate(theta)
        wanted = -torch.linalg.solve(whole.hessian.to_dense(), whole.gradient)
        torch.testing.assert_close(there - theta, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()) + 1e-12)


def test_rows_for_which_pytorch_factorizes():
    objective = make(_SMALL + 9, 90, 2, seed=3)
    dual = DualClasses(objective)
    at = some_point(dual, 1)
    step = dual.newton_step(at)
    theta, there = (parameters(dual, p) for p in (at, dual.moved(at, step, 1.0)))
    whole = objective.evaluate(theta)
    wanted = -torch.linalg.solve(whole.hessian.to_dense(), whole.gradient)
    torch.testing.assert_close(there - theta, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.skipif(not _native.is_available(), reason="coordinates are those of compiled steps")
@settings(max_examples=80, deadline=None)
@given(objectives(), st.integers(0, 1000))
def test_coordinates_are_those_of_the_rows_span(objective, seed):
    """Values, gradients and shares, there and back; rows that depend on each other have none."""
    dual = DualClasses(objective)
    coordinates = DualCoordinates.of(dual)
    if coordinates is None:
        rank = np.linalg.matrix_rank(dual.gram, tol=1e-9 * dual.gram.trace())
        assert rank < dual.n - objective.output_map.intercept
        return
    products, size = dual.gram + coordinates.shift, dual.gram.trace()
    np.testing.assert_allclose(coordinates.rows @ coordinates.rows.T, products, atol=1e-9 * size)
    assert (coordinates.shift > 0.0) == objective.output_map.intercept
    at = some_point(dual, seed)
    begin, theta, state = coordinates.into(at)
    compiled = coordinates.family.at(theta, None)
    assert compiled.value == pytest.approx(at.value, rel=1e-9)
    torch.testing.assert_close(compiled.gradient, state.gradient, rtol=1e-6, atol=1e-9)
    assert compiled.norm == pytest.approx(state.norm, rel=1e-6, abs=1e-9)
    length = np.hypot(at.norm, coordinates.shift**0.5 * np.linalg.norm(at.r.sum(1)))
    assert float(compiled.gradient.norm()) == pytest.approx(length, rel=1e-6, abs=1e-9)
    assert begin.norm == pytest.approx(length, rel=1e-9, abs=1e-12) and begin.value == at.value
    a, b = coordinates.back(theta)
    np.testing.assert_allclose(a @ dual.gram, at.product, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(b, at.b, atol=1e-12)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("l2", [1e-6, 1.0])
def test_a_step_goes_about_as_far_as_lowers_the_objective_most(k, l2):
    dual = DualClasses(make(12, 60, k, seed=5, l2=l2))
    at = dual.start()
    step = dual.newton_step(at) if k == 2 else DualStep(-at.r, -at.r_product, -at.ones)
    length = dual.line(at, step).length(left=None if k == 2 else 1e-7)
    values = {h: dual.moved(at, step, h * length).value for h in (0.0, 0.9, 1.0, 1.1)}
    assert values[1.0] < values[0.0]
    least = min(dual.moved(at, step, h).value for h in np.linspace(0.0, 4.0 * length, 401))
    assert values[1.0] - least <= 0.01 * (values[0.0] - least)


def test_a_row_that_is_saturated_at_once_does_not_hide_that_a_step_is_too_long():
    """Beside the slope at the start, which a row of size 1e3 makes, that behind the minimum is small."""
    objective = make(12, 60, 2, seed=5, l2=1e-3)
    objective.design.x[0] *= 1e3
    dual = DualClasses(objective)
    start, best = dual.along_gradient(lambda _: 1.0)
    assert best.at.value < start.value


@pytest.mark.parametrize("k", [2, 3, 8])
@pytest.mark.parametrize("l2", [1e-8, 1e-6, 1e-3])
def test_the_best_point_along_the_gradient_is_the_lowest_one(k, l2):
    """However far off it is: the loss of separated rows falls to the penalty's size."""
    dual = DualClasses(make(24, 900, k, seed=2, l2=l2))
    start, best = dual.along_gradient(lambda _: 1.0)
    at, zero = best.at, dual.start()

    def value(share):
        a, b = share * at.a, share * at.b
        return dual.at(a, a @ dual.gram, b).value

    values = [value(share) for share in np.linspace(0.0, 2.0, 201)]
    assert start.value == zero.value == values[0]
    assert at.value - min(values) <= 0.2 * min(values) and at.value < 0.1 * start.value


def test_a_step_that_is_too_short_is_made_longer():
    dual = DualClasses(make(12, 60, 2, seed=5))
    at = dual.start()
    step = dual.newton_step(at)
    short = type(step)(step.a / 100, step.product / 100, step.b / 100)
    assert dual.line(at, short).length() == pytest.approx(100 * dual.line(at, step).length(), rel=0.2)


@settings(max_examples=40, deadline=None)
@given(objectives())
def test_the_best_point_along_the_gradient_needs_no_products_of_rows(objective):
    dual = DualClasses(objective)
    sizes = []
    start, checked = dual.along_gradient(lambda size: sizes.append(size) or 1.0)
    best = checked.at
    assert "gram" not in vars(dual)
    at = dual.start()
    assert start.norm == pytest.approx(at.norm, rel=1e-6, abs=1e-9) and start.value == at.value
    np.testing.assert_allclose(best.product, best.a @ dual.gram, rtol=1e-6, atol=1e-6)
    assert best.value < start.value or at.norm < 1e-9
    again = dual.checked(best.a, best.b)
    assert again.at.value == pytest.approx(best.value, rel=1e-9)
    assert checked.norm == pytest.approx(again.norm, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(checked.slopes, again.slopes, rtol=1e-9, atol=1e-12)
    assert sizes == [pytest.approx(dual.penalty * float(again.slopes.abs().max()))]
    further = dual.along_gradient(lambda _: 1.5)[1]
    torch.testing.assert_close(further.slopes, 1.5 * checked.slopes, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"l2": 0.0},
        {"likelihood": Categorical(label_smoothing=0.1)},
        {"likelihood": Categorical(class_weight=torch.tensor([1.0, 2.0, 1.0]))},
        {"likelihood": Gaussian(), "y": torch.zeros(10, 3, dtype=torch.float64)},
        {"y": torch.full((10, 3), 1.0 / 3.0, dtype=torch.float64)},
        {"y": torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, -100])},
        {"offset": torch.zeros(10, 3, dtype=torch.float64)},
        {"output_map": OutputMap.own(3, 41, True)},
        {
            "design": DenseDesign(torch.ones(10, 4, dtype=torch.float64)),
            "output_map": OutputMap.relative(3, 0, 5, True),
        },
        {"design": DenseDesign(torch.ones(10, 40))},
    ],
    ids=[
        "no penalty",
        "smoothed",
        "class weights",
        "not classes",
        "probabilities",
        "ignored",
        "offset",
        "own outputs",
        "few columns",
        "single precision",
    ],
)
def test_objectives_of_another_kind_have_none(change):
    whole = make(10, 40, 3)
    assert has_dual(whole)
    given = {"design": whole.design, "likelihood": whole.likelihood, "y": whole.y, "output_map": whole.output_map}
    given |= {"l2": whole.l2, "offset": None} | change
    positional = [given.pop(name) for name in ("design", "likelihood", "y", "output_map")]
    assert not has_dual(LinearObjective(*positional, **given))
