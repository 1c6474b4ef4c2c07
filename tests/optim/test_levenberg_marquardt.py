"""Levenberg-Marquardt against certified values, closed forms and other solvers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import scipy.optimize
import torch
from torch import nn

import raphson as rp

from . import nist

GAUSSIAN = rp.Gaussian(normalized=False)

# National Institute of Standards and Technology, Statistical Reference Datasets: Misra1a, BoxBOD and MGH09
TYPED_IN = [
    (
        "Misra1a",
        [[500.0, 1e-4], [250.0, 5e-4]],
        [77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0],
        [10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78],
        [2.3894212918e02, 5.5015643181e-04],
        1.0187876330e-01,
    ),
    (
        "BoxBOD",
        [[1.0, 1.0], [100.0, 0.75]],
        [1.0, 2.0, 3.0, 5.0, 7.0, 10.0],
        [109.0, 149.0, 149.0, 191.0, 213.0, 224.0],
        [2.1380940889e02, 5.4723748542e-01],
        1.7088072423e01,
    ),
    (
        "MGH09",
        [[25.0, 39.0, 41.5, 39.0], [0.25, 0.39, 0.415, 0.39]],
        [4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625],
        [0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246],
        [1.9280693458e-01, 1.9128232873e-01, 1.2305650693e-01, 1.3606233068e-01],
        6.6279236551e-03,
    ),
]

FOLDER = Path(os.environ.get("RAPHSON_NIST", "no such folder"))
"""Where the files of all 27 problems are."""


def fitted(name, start, x, y, **options):
    model = nist.Regression(name, start)
    solution = rp.optim.LevenbergMarquardt(model, GAUSSIAN, **options).minimize((x, y))
    deviation = (2 * solution.value * len(y) / (len(y) - len(start))) ** 0.5
    return solution, deviation


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("problem", TYPED_IN, ids=[problem[0] for problem in TYPED_IN])
def test_certified_values(problem, start):
    name, starts, x, y, certified, sigma = problem
    x, y = (torch.tensor(v, dtype=torch.float64)[:, None] for v in (x, y))
    solution, deviation = fitted(name, starts[start], x, y)
    assert solution.converged
    assert nist.digits(solution.theta, torch.tensor(certified, dtype=torch.float64)) > 8
    assert deviation == pytest.approx(sigma, rel=1e-9)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="RAPHSON_NIST does not name a folder with NIST's files")
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("name", sorted(nist.MODELS))
def test_all_certified_values(name, start):
    problem = nist.read(FOLDER / f"{name}.dat")
    solution, deviation = fitted(name, problem.starts[start], problem.x, problem.y, max_iter=2000)
    assert solution.converged
    assert nist.digits(solution.theta, problem.certified) > 6
    if name != "Lanczos1":  # its residuals, 1e-13, are rounding of the data as float64 holds them
        assert deviation == pytest.approx(problem.deviation, rel=1e-6)


def exponential():
    x = torch.linspace(0, 3, 12, dtype=torch.float64)[:, None]
    y = torch.poisson(3 * torch.exp(-x) + 0.5, generator=torch.Generator().manual_seed(0))
    params = {"a": torch.ones(1, dtype=torch.float64), "b": torch.zeros(1, dtype=torch.float64)}
    return (lambda p, x: p["a"] + p["b"] * x + 0.1 * p["b"] ** 2 * x**2), params, x, y


@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_another_likelihood_reaches_the_optimum_of_another_solver(solver):
    model, params, x, y = exponential()
    objective = rp.Objective(model, rp.Poisson(), (x, y), params=params)

    def value(theta):
        found = rp.Objective(
            model, rp.Poisson(), (x, y), params={"a": torch.tensor(theta[:1]), "b": torch.tensor(theta[1:])}
        )
        return float(found.value()), found.gradient().numpy()

    expected = scipy.optimize.minimize(value, [1.0, 0.0], jac=True, method="BFGS", options={"gtol": 1e-10})
    solution = rp.optim.LevenbergMarquardt(model, rp.Poisson(), params, solver=solver).minimize((x, y))
    assert solution.converged
    torch.testing.assert_close(solution.theta, torch.tensor(expected.x), rtol=1e-6, atol=1e-8)
    assert solution.value == pytest.approx(float(objective.value()), abs=0)  # the model has the solution


def test_step_by_step_is_the_first_iterations_of_minimize():
    model, params, x, y = exponential()
    lm = rp.optim.LevenbergMarquardt(model, rp.Poisson(), params)
    losses = [float(lm.step(x, y)) for _ in range(4)]
    _, again, _, _ = exponential()
    solution = rp.optim.LevenbergMarquardt(model, rp.Poisson(), again).minimize((x, y))
    assert losses == pytest.approx([step.value for step in solution.history[:4]], rel=1e-12)


def test_products_and_factors_take_the_same_steps():
    torch.manual_seed(0)
    x, y = torch.randn(60, 4, dtype=torch.float64), torch.randint(0, 3, (60,))
    ends = []
    for solver in ("dense", "cg"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        lm = rp.optim.LevenbergMarquardt(model, rp.Categorical(), l2=1e-2, solver=solver, geodesic=False, tol=1e-8)
        ends.append(lm.minimize((x, y)))
    assert ends[0].converged and ends[1].converged
    assert ends[0].value == pytest.approx(ends[1].value, rel=1e-7)
    assert ends[0].gradient_norm < 1e-7


def test_what_cannot_be_used_is_refused_in_a_sentence():
    model, params, x, y = exponential()
    with pytest.raises(rp.InputError, match="solver is 'qr'"):
        rp.optim.LevenbergMarquardt(model, rp.Poisson(), params, solver="qr")
    for option, value in (("damping", "1"), ("tol", 0.0), ("max_iter", -3), ("geodesic", "no")):
        with pytest.raises(rp.InputError, match=f"{option} is"):
            rp.optim.LevenbergMarquardt(model, rp.Poisson(), params, **{option: value})
    y[3] = float("nan")
    with pytest.raises(rp.InputError, match="row 3"):
        rp.optim.LevenbergMarquardt(model, GAUSSIAN, params).minimize((x, y))
