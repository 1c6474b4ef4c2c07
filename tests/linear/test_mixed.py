"""Evaluations in single precision that lead a fit, against those in double precision and a direct solve."""

from unittest import mock

import numpy as np
import pytest
import torch

import raphson as rp
from raphson import Bernoulli, Categorical, _native
from raphson.data import DenseDesign
from raphson.linear import MixedStepper, _mixed
from raphson.solve import quasi_newton
from tests.instruction_sets import each_instruction_set as each_instruction_set
from tests.linear.objectives import linear_objective

pytestmark = pytest.mark.usefixtures("each_instruction_set")


def make(n, d, c, *, weighted=False, intercept=True, apart=1, seed=0):
    """Return an objective of c outputs whose rows are `apart` rows of a larger table apart."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, dtype=torch.float64, generator=generator) * torch.logspace(-12, 140, d, dtype=torch.float64)
    x[:, 3] = 1.0  # constant
    wide = torch.zeros(apart * n, d + apart - 1, dtype=torch.float64)
    wide[::apart, :d] = x
    y = torch.randint(max(c, 2), (n,), generator=generator)
    return linear_objective(
        DenseDesign(wide[::apart, :d], intercept=intercept, standardize=True),
        Bernoulli() if c == 1 else Categorical(),
        y[:, None].double() if c == 1 else y,
        n_outputs=c,
        weights=torch.rand(n, dtype=torch.float64, generator=generator) + 0.5 if weighted else None,
        l2=1e-3,
    )


@pytest.mark.parametrize("c", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "options",
    [{}, {"weighted": True}, {"intercept": False}, {"apart": 2}],
    ids=["plain", "weights", "no intercept", "rows apart"],
)
@pytest.mark.parametrize(("n", "d"), [(5, 171), (301, 93), (2000, 77)])
def test_single_precision_agrees_to_its_rounding(n, d, c, options):
    """The copy is the standardized table, rounded; value and gradient of it are those in double precision."""
    objective = make(n, d, c, **options)
    compiled = objective.compiled
    assert objective.is_in_place and compiled is not None
    theta = torch.randn(objective.n_parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theta /= objective.ridge.diagonal.clamp_min(1.0)  # slopes of columns in tiny units are small
    copy = torch.full((n, d), np.nan, dtype=torch.float32)
    exact = compiled.at(theta, None, copy)
    ones = int(objective.design.intercept)
    torch.testing.assert_close(
        copy, objective.design.standardized(slice(0, n))[ones:].mT.float(), rtol=3e-7, atol=1e-30
    )
    plain = compiled.at(theta, None)
    assert exact.value == plain.value and torch.equal(exact.gradient, plain.gradient)
    found = compiled.in_single(copy).at(theta.float(), None)
    assert found.gradient.dtype == torch.float32
    # outputs of size 10 are rounded to 1e-6
    assert found.value == pytest.approx(exact.value, rel=2e-6, abs=4e-6)
    torch.testing.assert_close(found.gradient.double(), exact.gradient, rtol=2e-5, atol=4e-6)
    # in the table's units
    assert found.norm == pytest.approx(exact.norm, rel=2e-5, abs=4e-6 * float(objective.design.scale.max()))


def test_values_add_up_in_double_precision():
    """A sum over 200,000 rows alike, whose outputs are exact, has digits that one in single precision would lack."""
    n, d = 200_000, 32
    x = torch.ones(n, d, dtype=torch.float64)
    x[::2] = -1.0
    objective = linear_objective(
        DenseDesign(x, standardize=True), Categorical(), torch.arange(n) % 3, n_outputs=3, l2=1e-3
    )
    theta = torch.arange(objective.n_parameters, dtype=torch.float64) / 1024 - 0.05078125
    copy = torch.empty(n, d, dtype=torch.float32)
    exact = objective.compiled.at(theta, None, copy)
    found = objective.compiled.in_single(copy).at(theta.float(), None)
    assert found.value == pytest.approx(exact.value, rel=1e-7)


def run(objective, tol):
    """Minimize by L-BFGS in mixed precision; also the precision of every step, and pairs that it begins with."""
    start = torch.zeros(objective.n_parameters, dtype=torch.float64)
    at = objective.evaluate(start, None)
    diagonal = objective.ridge.diagonal + 0.2
    mixed, kinds = MixedStepper(objective, diagonal, None, None, at.norm, tol), []
    numbers = []
    plain = mixed.step

    def step(*given):
        kinds.append("single" if mixed.leads else "double")
        numbers.append(mixed.number)
        return plain(*given)

    with mock.patch.object(mixed, "step", step):
        return quasi_newton(objective, start, tol=tol, at=at, patience=1e6, stepper=mixed), kinds, numbers


@pytest.mark.parametrize("c", [1, 3, 10])
def test_a_fit_begins_and_ends_in_double_precision(c, monkeypatch):
    """The answer is that of the same steps in double precision, which alone say that it is one."""
    monkeypatch.setattr(_mixed, "_LEAST", 0.0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 120, dtype=torch.float64, generator=generator)
    x += 2.0 * x[:, :1]  # columns that depend on each other take many steps
    y = torch.randint(max(c, 2), (1000,), generator=generator)
    objective = linear_objective(
        DenseDesign(x, standardize=True),
        Bernoulli() if c == 1 else Categorical(),
        y[:, None].double() if c == 1 else y,
        n_outputs=c,
        l2=1e-4,
    )
    assert MixedStepper.suits(objective)
    found, kinds, numbers = run(objective, 1e-7)
    assert found.converged and kinds[0] == kinds[-1] == "double" and kinds.count("single") > 5
    again = len(kinds) - kinds[::-1].index("single")
    assert min(numbers[again - 1 : again + 2]) >= min(again - 1, 9)  # pairs stay
    exact = objective.evaluate(found.theta)
    assert exact.norm <= 1e-7 and exact.value == found.value and found.gradient_norm == exact.norm
    newton = found.theta.clone()
    for _ in range(4):
        at = objective.evaluate(newton)
        newton -= torch.linalg.pinv(at.hessian.to_dense(), hermitian=True) @ at.gradient  # equal intercepts are free
    assert objective.value(newton) == pytest.approx(found.value, abs=1e-10)
    # a gradient of 1e-7 may be 1e-7 over the least eigenvalue, 1e-4, in every coefficient
    torch.testing.assert_close(found.theta, newton, rtol=0, atol=1e-3)


def test_no_copy_is_made_where_the_end_is_near(monkeypatch):
    """A fit that two or three steps end has none, and a coarse tolerance neither."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 600, dtype=torch.float64, generator=generator)
    y = torch.randint(3, (500,), generator=generator)
    objective = linear_objective(DenseDesign(x, standardize=True), Categorical(), y, n_outputs=3, l2=1.0)
    monkeypatch.setattr(_mixed, "new_table", mock.Mock(side_effect=AssertionError("a copy was made")))
    for tol in (1e-2, 1e-3):
        found, kinds, _ = run(objective, tol)
        assert found.converged and set(kinds) == {"double"}


def test_tables_without_evaluations_in_place_have_no_mixed_precision():
    """Narrow, small and huge tables, and those whose means are large."""
    for n, d, shift in ((5000, 20, 0.0), (50, 40, 0.0), (2000, 300, 1e6)):
        x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + shift
        y = torch.arange(n) % 3
        objective = linear_objective(DenseDesign(x, standardize=True), Categorical(), y, n_outputs=3, l2=1.0)
        assert not MixedStepper.suits(objective)


@pytest.mark.parametrize("k", [2, 3])
def test_estimators_lead_in_single_precision(k):
    """The fit of a table that takes many steps agrees with one by Newton's method, to 1e-8 of its objective."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 500)) + rng.normal(size=(600, 1))
    x[:, 5] = 2.0
    y = (x[:, :k] + rng.gumbel(size=(600, k))).argmax(1)
    with mock.patch.object(_native.LinearModel, "is_single", new_callable=mock.PropertyMock) as never:
        never.return_value = False  # what is in single precision is refused then
        with pytest.raises(ValueError):
            rp.MultinomialLogisticRegression(l2=1e-3, tol=1e-7, reference=None).fit(x, y)
    found = rp.MultinomialLogisticRegression(l2=1e-3, tol=1e-7, reference=None).fit(x, y)
    exact = rp.MultinomialLogisticRegression(l2=1e-3, tol=1e-10, reference=None).fit(x, y)
    assert found.solution_.method == "lbfgs" and found.solution_.converged
    assert found.solution_.value == pytest.approx(exact.solution_.value, abs=1e-8)
    np.testing.assert_allclose(found.coef_, exact.coef_, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.predict_proba(x), exact.predict_proba(x), rtol=0, atol=2e-5)
