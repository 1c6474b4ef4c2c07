"""Solvers reach the same optimum, say how they ended, and cope with hard starts."""

from __future__ import annotations

import math
import types

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

from raphson.data import DenseDesign
from raphson.likelihoods import Bernoulli, Categorical
from raphson.linear import LinearObjective, OutputMap, block_jacobi_inverse, lipschitz_bound, row_lipschitz_bound
from raphson.solve import (
    Finish,
    Status,
    gradient_descent,
    newton,
    newton_cg,
    quasi_newton,
    stochastic_gradient_descent,
)
from tests.linear.objectives import linear_objective


def objective(load, l2, scale=True):
    x, y = load(return_X_y=True)
    x = x[:, x.std(0) > 0]
    if scale:
        x = (x - x.mean(0)) / x.std(0)
    return linear_objective(
        DenseDesign(torch.from_numpy(np.ascontiguousarray(x)), standardize=True),
        Categorical(),
        torch.from_numpy(y),
        n_outputs=int(y.max()) + 1,
        l2=l2,
        reference=int(y.max()),
    )


def blocks(at):
    return block_jacobi_inverse(at.hessian)


def relative(problem, coef):
    return (coef[problem.output_map.selected] - coef[problem.output_map.left_out]).reshape(-1)


def zeros(problem):
    return torch.zeros(problem.n_parameters, dtype=torch.float64)


@pytest.mark.parametrize("load", [load_iris, load_wine, load_breast_cancer, load_digits])
def test_newton_ends_with_a_gradient_below_1e_minus_8(load):
    problem = objective(load, 1e-3, scale=False)
    found = newton(problem, zeros(problem), tol=1e-9)
    assert found.status is Status.CONVERGED and found.gradient_norm < 1e-8
    assert [s.iteration for s in found.history] == list(range(found.iterations + 1))
    values = [s.value for s in found.history]
    assert all(b <= a + 1e-12 for a, b in zip(values, values[1:], strict=False))
    assert found.newton_decrement < 1e-6


def test_three_methods_reach_one_optimum_on_digits():
    problem = objective(load_digits, 0.3)
    exact = newton(problem, zeros(problem), tol=1e-10)
    slow = gradient_descent(problem, zeros(problem), lipschitz=lipschitz_bound(problem), tol=1e-8, max_iter=20_000)
    assert slow.status is Status.CONVERGED
    values = [s.value for s in slow.history]
    assert all(b <= a + 1e-14 for a, b in zip(values, values[1:], strict=False))  # the fixed bound is monotone
    torch.testing.assert_close(slow.theta, exact.theta, rtol=0, atol=1e-5)
    noisy = stochastic_gradient_descent(
        problem,
        zeros(problem),
        lipschitz=row_lipschitz_bound(problem) / 50,
        batch_size=32,
        tol=1e-2,
        max_iter=60,
    )
    assert noisy.status is Status.CONVERGED and noisy.gradient_norm <= 1e-2
    assert noisy.value - exact.value < 0.05


@pytest.mark.parametrize("batch_size", [1, 7, 150])
def test_stochastic_descent_with_any_batch_size_repeats_exactly(batch_size):
    problem = objective(load_iris, 0.1)
    run = [
        stochastic_gradient_descent(
            problem,
            zeros(problem),
            lipschitz=row_lipschitz_bound(problem),
            batch_size=batch_size,
            tol=1e-12,
            max_iter=3,
            generator=torch.Generator().manual_seed(5),
        )
        for _ in range(2)
    ]
    assert torch.equal(run[0].theta, run[1].theta)
    assert run[0].value < problem.value(zeros(problem))
    assert run[0].status is Status.MAX_ITERATIONS


@pytest.mark.parametrize("precondition", [True, False])
def test_conjugate_gradients_reach_the_same_point(precondition):
    problem = objective(load_digits, 1e-3)
    exact = newton(problem, zeros(problem), tol=1e-10)
    found = newton_cg(
        problem,
        zeros(problem),
        tol=1e-9,
        precondition=blocks if precondition else None,
        refresh_cost=5.0,
    )
    assert found.status is Status.CONVERGED and found.gradient_norm <= 1e-9
    torch.testing.assert_close(found.theta, exact.theta, rtol=0, atol=1e-5)


def test_symmetric_coordinates_have_the_same_optimum():
    problem = objective(load_digits, 1e-3)
    exact = newton(problem, zeros(problem), tol=1e-10)
    here = problem.output_map
    symmetric = problem.with_map(OutputMap.own(here.n_outputs, here.n_columns, here.intercept))
    found = newton_cg(symmetric, zeros(symmetric), tol=1e-9, precondition=blocks)
    assert found.status is Status.CONVERGED
    assert found.value == pytest.approx(exact.value, rel=1e-12)
    torch.testing.assert_close(
        relative(problem, symmetric.output_map.expand(found.theta)), exact.theta, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("single", [True, False])
def test_a_frozen_factorization_reaches_the_same_point(single):
    problem = objective(load_digits, 1e-3)
    exact = newton(problem, zeros(problem), tol=1e-10)
    working = problem.with_curvature(torch.float32) if single else problem
    found = newton(
        working, zeros(problem), factor_cost=working.cost.dense_in_evaluations, tol=1e-9, finish=Finish(problem)
    )
    assert found.status is Status.CONVERGED and found.gradient_norm <= 1e-9
    torch.testing.assert_close(found.theta, exact.theta, rtol=0, atol=1e-5)


def test_steps_on_nearly_separated_data_are_extended():
    """Wine is separated: the loss is an exponential tail, of which an extended Newton step takes more than one unit."""
    problem = objective(load_wine, 1e-5)
    exact = newton(problem, zeros(problem), tol=1e-9)
    longer = newton(problem, zeros(problem), extended=True, tol=1e-9)
    assert longer.status is Status.CONVERGED
    assert longer.iterations <= 0.8 * exact.iterations
    torch.testing.assert_close(longer.theta, exact.theta, rtol=0, atol=1e-4)
    values = [step.value for step in longer.history]
    assert all(b < a for a, b in zip(values, values[1:], strict=False))


def test_letter_like_data_with_26_classes():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 16, (4000, 16), generator=g).double()
    f = (x - 7.5) @ torch.randn(16, 26, generator=g, dtype=torch.float64) * 0.2
    y = (f - torch.empty_like(f).exponential_(generator=g).log()).argmax(1)
    problem = linear_objective(DenseDesign(x, standardize=True), Categorical(), y, n_outputs=26, l2=1e-5, reference=25)
    found = newton(problem, zeros(problem), tol=1e-9)
    assert found.status is Status.CONVERGED and found.gradient_norm < 1e-8


def test_a_start_deep_in_saturation_still_converges():
    problem = objective(load_iris, 1e-2)
    exact = newton(problem, zeros(problem), tol=1e-10)
    far = torch.full((problem.n_parameters,), 300.0, dtype=torch.float64)
    found = newton(problem, far, tol=1e-8, max_iter=200)
    assert found.status.converged
    torch.testing.assert_close(found.theta, exact.theta, rtol=0, atol=1e-4)


def test_statuses():
    problem = objective(load_iris, 1e-2)
    assert newton(problem, zeros(problem), max_iter=1).status is Status.MAX_ITERATIONS
    bad = torch.full((problem.n_parameters,), math.nan, dtype=torch.float64)
    assert newton(problem, bad).status is Status.NOT_FINITE
    assert newton_cg(problem, bad).status is Status.NOT_FINITE
    assert newton(problem, zeros(problem), tol=1e-30).status.converged  # as far as rounding goes, and no further
    for status in Status:
        assert status.sentence.endswith(".")


def test_callback_sees_every_step():
    problem, seen = objective(load_iris, 1e-2), []
    found = newton(problem, zeros(problem), callback=seen.append)
    assert tuple(seen) == found.history


def test_many_independent_labels():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(300, 4, generator=g, dtype=torch.float64)
    y = (torch.rand(300, 3, generator=g, dtype=torch.float64) < torch.sigmoid(x[:, :3])).double()
    problem = linear_objective(DenseDesign(x), Bernoulli(), y, n_outputs=3, l2=1e-4)
    found = newton(problem, zeros(problem), tol=1e-10)
    assert found.status is Status.CONVERGED
    each = []
    for m in range(3):
        one = linear_objective(DenseDesign(x), Bernoulli(), y[:, m : m + 1], n_outputs=1, l2=1e-4)
        each.append(newton(one, zeros(one), tol=1e-10).theta)
    torch.testing.assert_close(found.theta, torch.cat(each), rtol=0, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4])
def test_limited_memory_steps_reach_the_optimum_of_a_quadratic_and_give_up_when_it_is_far(scale):
    class Quadratic:
        n_parameters = 30
        curvature = torch.linspace(1.0, 50.0, 30, dtype=torch.float64) * scale

        def evaluate(self, theta, hessian="observed"):
            gradient = self.curvature * (theta - 1.0)
            value = float(gradient @ (theta - 1.0)) / 2
            return types.SimpleNamespace(value=value, gradient=gradient, norm=float(gradient.abs().max()), hessian=None)

    problem, start = Quadratic(), torch.zeros(30, dtype=torch.float64)
    found = quasi_newton(problem, start, tol=1e-6 * scale, patience=200.0)
    assert found.converged and found.method == "lbfgs" and found.gradient_norm <= 1e-6 * scale
    torch.testing.assert_close(found.theta, torch.ones(30, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert len(found.history) == found.iterations + 1
    few = quasi_newton(problem, start, tol=1e-10 * scale, patience=8.0)
    assert few.status is Status.MAX_ITERATIONS and few.iterations <= 8 and few.value < problem.evaluate(start).value
    stuck = quasi_newton(problem, start, tol=1e-15 * scale, patience=500.0)
    assert not stuck.converged or stuck.gradient_norm <= 1e-15 * scale
    hopeless = quasi_newton(problem, start, tol=1e-300, patience=30.0)
    assert hopeless.iterations < 10


def test_the_decrement_is_that_at_the_end():
    """A converged run says what is left there, by the last Hessian, and not what was left before its last step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, dtype=torch.float64, generator=generator)
    y = (x[:, :1] + torch.randn(400, 1, dtype=torch.float64, generator=generator) > 0).double()
    output_map = OutputMap.own(1, 4, True)
    objective = LinearObjective(DenseDesign(x, standardize=True), Bernoulli(), y, output_map, l2=0.01)
    start = torch.zeros(4, dtype=torch.float64)
    for cost in (0.0, 30.0):
        found = newton(objective, start, tol=1e-3, factor_cost=cost, finish=Finish(objective, step=False))
        gradient, hessian = objective.evaluate(found.theta, None).gradient, objective.hessian(found.theta).to_dense()
        left = math.sqrt(float(gradient @ torch.linalg.solve(hessian, gradient)))
        assert found.converged and 0.5 * left < found.newton_decrement < 2.0 * left
