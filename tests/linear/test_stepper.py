"""Steps of L-BFGS in compiled code are those made for any objective."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from raphson import Categorical, _native
from raphson._native import _module
from raphson._native._module import own
from raphson.data import DenseDesign
from raphson.linear import CompiledStepper
from raphson.solve import InversePairs, PairsStepper, descend
from tests.instruction_sets import each_instruction_set as each_instruction_set
from tests.linear.objectives import linear_objective
from tests.linear.test_compiled_sparse import make, table

pytestmark = pytest.mark.usefixtures("each_instruction_set")


@dataclass(frozen=True)
class Inverse:
    """The inverse of a matrix that is diagonal for centered columns."""

    diagonal: torch.Tensor
    means: torch.Tensor | None
    shape: tuple[int, int]

    def __call__(self, v):
        """Multiply by its factors as dense matrices."""
        c, d = self.shape
        shift = torch.eye(d, dtype=v.dtype)
        if self.means is not None:
            shift[1:, 0] = -self.means[1:]
        whole = torch.kron(torch.eye(c, dtype=v.dtype), shift)
        return whole.mT @ ((whole @ v) / self.diagonal)


def inverse_of(objective, *, means):
    """Return a rough inverse with numbers that are all different."""
    shape, p = objective.output_map.shapes[0], objective.n_parameters
    given = 0.3 * torch.linspace(-1, 1, shape[1], dtype=torch.float64) if means else None
    if means:
        given[0] = 0.0
    return Inverse(torch.linspace(0.4, 1.5, p, dtype=torch.float64), given, shape)


def both(objective, theta, *, means=False, length=0.3, steps=25):
    """Return the points of both ways."""
    inverse, at = inverse_of(objective, means=means), objective.evaluate(theta, None)
    stepper = CompiledStepper(objective.compiled.evaluator, inverse.diagonal, inverse.means, length)
    pairs = InversePairs(inverse, at.gradient, scaled=True, length=length)
    ways = stepper, PairsStepper(lambda v: objective.evaluate(v, None), pairs)
    return [[reached for reached, _ in zip(descend(way, theta, at), range(steps), strict=False)] for way in ways]


def check(objective, theta, **options):
    """Points, values, norms and numbers of evaluations agree."""
    ours, theirs = both(objective, theta, **options)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.evaluations == b.evaluations
        torch.testing.assert_close(a.theta, b.theta, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(a.at.gradient, b.at.gradient, rtol=1e-6, atol=1e-8)
        assert a.at.value == pytest.approx(b.at.value, rel=1e-10, abs=1e-12)
        assert a.at.norm == pytest.approx(b.at.norm, rel=1e-6, abs=1e-8)
    return ours


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "poisson"])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
def test_sparse_tables(likelihood, weights, intercept):
    """Softmax, logistic and Poisson models, of columns that are not centered where there is an intercept."""
    objective, theta = make(table(300, 20, 1, full=2), likelihood, weights=weights, intercept=intercept)
    check(objective, 0.1 * theta, means=intercept, steps=12)


@pytest.mark.parametrize("d", [4, 40])
@pytest.mark.parametrize("c", [2, 3, 12])
@pytest.mark.parametrize("weights", [False, True])
def test_dense_tables(c, d, weights):
    """Rows that are turned into columns, and rows that are read in place."""
    generator = torch.Generator().manual_seed(c + d)
    x = torch.randn(200, d, dtype=torch.float64, generator=generator)
    weight = torch.rand(200, dtype=torch.float64, generator=generator) + 0.1 if weights else None
    y = torch.randint(c, (200,), generator=generator)
    objective = linear_objective(
        DenseDesign(x, intercept=True, standardize=True),
        Categorical(),
        y,
        n_outputs=c,
        weights=weight,
        l2=0.01,
        reference=0,
    )
    check(objective, torch.zeros(objective.n_parameters, dtype=torch.float64), steps=12)


def test_steps_that_are_too_long_are_shortened():
    """A first step a thousand times too long: the same trials, and an end as near."""
    objective, theta = make(table(300, 20, 1), "bernoulli", l2=0.01)
    ours = check(objective, theta, length=1e3, steps=15)
    assert ours[0].evaluations > 1
    assert ours[-1].at.norm < 1e-2 * objective.evaluate(theta, None).norm


def test_a_first_step_without_a_length_has_length_one():
    """As that of any objective."""
    objective, theta = make(table(300, 20, 1), "bernoulli", l2=0.01)
    ours = check(objective, theta, length=None, steps=8)
    assert float(torch.linalg.vector_norm(ours[0].theta - theta)) == pytest.approx(1.0, rel=1e-12)


def test_at_the_rounding_of_the_value_slopes_decide():
    """Steps go on where values no longer show that they help, and none rises by more than their rounding."""
    objective, theta = make(table(300, 20, 1), "bernoulli", l2=0.01)
    for reached in both(objective, theta, steps=60):
        values = [step.at.value for step in reached]
        assert min(step.at.norm for step in reached) < 1e-11
        assert max(values[30:]) - min(values) <= 2.0**-45


@pytest.mark.parametrize("most", [2, 3, 5, 8])
@pytest.mark.parametrize("length", [0.3, 1e3])
def test_several_steps_in_one_call_are_those_of_as_many_calls(most, length):
    """To the last digit: points, gradients, values, norms and evaluations, to where no length helps and beyond."""
    objective, theta = make(table(300, 20, 1), "categorical", l2=0.01)
    inverse, at = inverse_of(objective, means=True), objective.evaluate(theta, None)
    one, several = (
        descend(
            CompiledStepper(objective.compiled.evaluator, inverse.diagonal, inverse.means, length, steps),
            theta,
            at,
            tol=1e-300,
        )
        for steps in (1, most)
    )
    taken = 0
    for ends, _ in zip(several, range(80 // most), strict=False):
        states = [next(one) for _ in range(len(ends.passed) + 1)]
        taken += len(states)
        last = states[-1]
        assert [(state.at.value, state.at.norm) for state in states[:-1]] == ends.passed
        assert (last.at.value, last.at.norm, last.evaluations) == (ends.at.value, ends.at.norm, ends.evaluations)
        assert torch.equal(last.theta, ends.theta) and torch.equal(last.at.gradient, ends.at.gradient)
    assert taken > 60


def test_several_steps_end_at_the_tolerance():
    """The first gradient that is not above it is the last one."""
    objective, theta = make(table(300, 20, 1), "bernoulli", l2=0.01)
    inverse, at = inverse_of(objective, means=False), objective.evaluate(theta, None)
    stepper = CompiledStepper(objective.compiled.evaluator, inverse.diagonal, None, 0.3, 8)
    norms = []
    for ends in descend(stepper, theta, at, tol=1e-5):
        norms += [norm for _, norm in ends.passed] + [ends.at.norm]
        if ends.at.norm <= 1e-5:
            break
    assert norms[-1] <= 1e-5 < min(norms[:-1])


def test_infinite_values_are_stepped_back_from():
    """Of a Poisson model whose means overflow."""
    objective, theta = make(table(300, 20, 1), "poisson", l2=0.01)
    ours = check(objective, theta, length=1e5, steps=5)
    assert all(torch.isfinite(reached.theta).all() for reached in ours)


def test_where_it_is_not_the_faster_way_there_is_none(monkeypatch):
    """Many numbers and threads that cannot be used, no compiled code for the family, coefficients that are negative."""
    objective, _ = make(table(300, 20, 1), "bernoulli")
    inverse = inverse_of(objective, means=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with monkeypatch.context() as patch:
        patch.setattr(_module, "runtime", lambda: "")
        assert _native.has_pairs(40_000, 10) and not _native.has_pairs(60_000, 10)
    gamma, _ = make(table(300, 20, 1), "gamma")
    assert gamma.compiled.negative and CompiledStepper.of(gamma, inverse.diagonal, None, 1.0) is None
    monkeypatch.setattr(_module, "kernels", None)
    assert CompiledStepper.of(objective, inverse.diagonal, None, 1.0) is None


def test_the_compiled_module_checks_what_it_is_given():
    """Every array, and every number: nothing is read or written where one does not fit."""
    objective, theta = make(table(300, 20, 1), "bernoulli")
    inverse, at = inverse_of(objective, means=True), objective.evaluate(theta, None)
    stepper = CompiledStepper.of(objective, inverse.diagonal, inverse.means, 1.0)
    p, descent = objective.n_parameters, stepper._descent
    assert descent.step(theta, at.value, at.gradient, 1.0, at.value).path
    for wrong in (theta[:-1], theta.float(), torch.cat([theta, theta])[::2]):
        with pytest.raises(ValueError, match="'theta'"):
            descent.step(wrong, at.value, at.gradient, 1.0, at.value)
        with pytest.raises(ValueError, match="'gradient'"):
            descent.step(theta, at.value, wrong, 1.0, at.value)
    tensors = torch.zeros(5, p, dtype=torch.float64)
    vectors = [own(tensor) for tensor in tensors]
    path = own(torch.zeros(3, dtype=torch.float64))
    good = [*descent._constants, *vectors, None, None, path, 0.0, 0.0, 1.0, 1.0, 0.0, 1e-14]
    few, none = (vectors[0][0], p - 1, "d"), (0, p, "d")
    _module.kernels.descend(*good)
    for place in (3, 4, 6, 7, 8, 9, 10, 11, 12, 13):
        for wrong in (few, none, (vectors[0][0], p, "f")):
            with pytest.raises(ValueError):
                _module.kernels.descend(*[wrong if i == place else value for i, value in enumerate(good)])
    with pytest.raises(ValueError, match="'copy'"):  # of a sparse table there is none
        _module.kernels.descend(*[(vectors[0][0], 300 * 20, "f") if i == 15 else value for i, value in enumerate(good)])
    for wrong in (few, none, (vectors[0][0], 6 * p - 1, "d")):
        with pytest.raises(ValueError, match="'turns'"):
            _module.kernels.descend(*[wrong if i == 14 else value for i, value in enumerate(good)])
    for wrong in ((path[0], 0, "d"), (path[0], 2, "d"), (path[0], 6, "d")):  # no steps, no whole one, no room for two
        with pytest.raises(ValueError, match="step"):
            _module.kernels.descend(*[wrong if i == 16 else value for i, value in enumerate(good)])
    for place in (0, 2, 17, 18, 19, 20, 21, 22):
        with pytest.raises(TypeError):
            _module.kernels.descend(*[None if i == place else value for i, value in enumerate(good)])
    other = _native.Pairs(p - 1, 10, torch.float64, scaled=True, scale=1.0)
    single = _native.Pairs(p, 10, torch.float32, scaled=True, scale=1.0)
    for pairs in (other, single):
        with pytest.raises(ValueError):
            _module.kernels.descend(*[pairs.arguments if i == 2 else value for i, value in enumerate(good)])
    with pytest.raises(ValueError, match="threads"):
        _module.kernels.descend(*[0 if i == 1 else value for i, value in enumerate(good)])
    with pytest.raises(TypeError, match="23 arguments"):
        _module.kernels.descend(*good, 1)
