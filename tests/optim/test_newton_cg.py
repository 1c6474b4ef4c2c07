"""Trust-region Newton-CG against dense solutions."""

from __future__ import annotations

import pytest
import scipy.optimize
import torch
from torch import nn

import raphson as rp
from raphson.optim._newton_cg import steihaug

DTYPE = torch.float64


def problem(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(60, 4, dtype=DTYPE)
    return model, x, (x[:, :3] + 0.5 * torch.randn(60, 3)).argmax(1)


@pytest.mark.parametrize("l2", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("curvature", ["auto", "hessian"])
def test_it_converges_to_a_minimum(curvature, l2):
    model, x, y = problem()
    opt = rp.optim.NewtonCG(model, rp.Categorical(), curvature=curvature, l2=l2, tol=1e-9)
    solution = opt.minimize((x, y))
    assert solution.converged and solution.gradient_norm <= 1e-9
    matrix = rp.hessian(rp.Objective(model, rp.Categorical(), (x, y), l2=l2), "dense")
    assert float(matrix.eigh().eigenvalues.min()) > 0
    assert_falling(solution)


def test_the_gauss_newton_matrix_alone_converges_linearly():
    model, x, y = problem()
    opt = rp.optim.NewtonCG(model, rp.Categorical(), curvature="ggn", l2=1e-2)
    solution = opt.minimize((x, y))
    assert solution.gradient_norm < 0.02 * solution.history[0].gradient_norm
    assert_falling(solution)
    # the default takes over from there, with the Hessian
    assert rp.optim.NewtonCG(model, rp.Categorical(), l2=1e-2, tol=1e-9).minimize((x, y)).gradient_norm <= 1e-9


def assert_falling(solution):
    values = [step.value for step in solution.history]
    assert all(b <= a for a, b in zip(values, values[1:], strict=False))


def test_a_convex_problem_ends_where_another_solver_does():
    torch.manual_seed(0)
    x, y = torch.randn(50, 3, dtype=DTYPE), torch.randint(0, 2, (50,)).double()[:, None]
    model = nn.Linear(3, 1).double()

    def value(theta):
        with torch.no_grad():
            model.weight.copy_(torch.tensor(theta[None, :3]))
            model.bias.copy_(torch.tensor(theta[3:]))
        objective = rp.Objective(model, rp.Bernoulli(), (x, y))
        return float(objective.value()), objective.gradient().numpy()

    expected = scipy.optimize.minimize(value, [0.0] * 4, jac=True, method="BFGS", options={"gtol": 1e-10})
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    solution = rp.optim.NewtonCG(model, rp.Bernoulli(), tol=1e-10).minimize((x, y))
    torch.testing.assert_close(solution.theta, torch.tensor(expected.x), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("radius", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("shift", [2.0, -0.5])
def test_the_model_is_minimized_as_well_as_along_the_gradient_and_more(radius, shift):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(8, 8, generator=generator, dtype=DTYPE)
    matrix = rp.Dense(a @ a.T / 8 + shift * torch.eye(8, dtype=DTYPE))
    g = torch.randn(8, generator=generator, dtype=DTYPE)
    found = steihaug(matrix, g, radius, 1e-10, 100)
    p = found.step
    assert float(p.norm()) <= radius * (1 + 1e-10)
    assert found.promised == pytest.approx(float(g @ p + 0.5 * p @ (matrix @ p)))
    lengths = torch.linspace(0, radius / float(g.norm()), 1001, dtype=DTYPE)
    cauchy = min(float(-t * g @ g + 0.5 * t**2 * g @ (matrix @ g)) for t in lengths)
    assert found.promised <= cauchy + 1e-12
    newton = -torch.linalg.solve(matrix.to_dense(), g)
    if shift > 0 and float(newton.norm()) < radius:
        torch.testing.assert_close(p, newton)
        assert not found.on_boundary
    if shift < 0 or float(newton.norm()) > radius:
        assert found.on_boundary
        assert float(p.norm()) == pytest.approx(radius)


def test_steps_on_mini_batches_lower_the_loss():
    model, x, y = problem()
    opt = rp.optim.NewtonCG(model, rp.Categorical())
    losses = [float(opt.step(x[i % 2 :: 2], y[i % 2 :: 2])) for i in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def test_what_cannot_be_used_is_refused():
    model, x, y = problem()
    with pytest.raises(rp.InputError, match="curvature is 'fisher'"):
        rp.optim.NewtonCG(model, rp.Categorical(), curvature="fisher")
    with pytest.raises(rp.InputError, match=r"Call model\.eval"):
        rp.optim.NewtonCG(nn.Sequential(model, nn.Dropout(0.5)), rp.Categorical()).step(x, y)
    for option, value in (("max_iter", -1), ("max_iter", 1.5), ("max_products", 0), ("tol", -1.0), ("radius", "1")):
        with pytest.raises(rp.InputError, match=f"{option} is"):
            rp.optim.NewtonCG(model, rp.Categorical(), **{option: value})
    with pytest.raises(rp.InputError, match=r"cannot be run on inputs of shape .*Module '0' \(Linear\) says"):
        rp.optim.NewtonCG(model, rp.Categorical()).minimize((torch.ones(5, 6, dtype=DTYPE), torch.zeros(5).long()))


def test_optimizers_are_shown_in_a_line():
    model = torch.nn.Linear(2, 1)
    assert repr(rp.optim.NewtonCG(model, rp.Gaussian(), l2=0.1)).endswith("curvature='auto', radius=None, l2=0.1)")
    shown = repr(rp.optim.LevenbergMarquardt(model, rp.Gaussian()))
    assert shown.startswith("LevenbergMarquardt(Gaussian(") and shown.endswith("solver='auto', damping=0.01, l2=0)")
