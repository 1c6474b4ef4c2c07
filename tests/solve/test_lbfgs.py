"""The inverse Hessian of limited-memory BFGS is that of the dense update formula, and its loop finds a minimum."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from scipy.optimize import minimize, rosen, rosen_der

from raphson import _native
from raphson.solve import PairsStepper, Status, descend, lbfgs, quasi_newton
from raphson.solve._pairs import InversePairs
from raphson.solve._quasi_newton import _hopeless


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 4, 9])
def test_directions_are_those_of_the_dense_update(scaled, steps, compiled, monkeypatch):
    """Of the last four pairs, updated one by one from the initial matrix (Nocedal and Wright 2006, equation 6.17)."""
    if not compiled:
        monkeypatch.setattr(_native, "has_pairs", lambda *_: False)
    generator = torch.Generator().manual_seed(steps)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    root, spread = draw(7, 7), draw(7, 7)
    initial, hessian = root @ root.mT + torch.eye(7), spread @ spread.mT + torch.eye(7)
    gradient, taken = draw(7), []
    pairs = InversePairs(lambda v: initial @ v, gradient, memory=4, scaled=scaled)
    for number in range(steps):
        step = draw(7)
        change = hessian @ step if number != 1 else -(hessian @ step)  # the second one is no pair: it has no curvature
        gradient = gradient + change
        pairs.move(step, gradient)
        if number != 1:
            taken.append((step, change))
        if number % 2:
            pairs.direction()  # looking changes nothing
    scale = 1.0
    if scaled:
        step, change = taken[-1]
        scale = float(step @ change / (change @ initial @ change))
    dense, eye = scale * initial, torch.eye(7, dtype=torch.float64)
    # where a pair was refused when the memory was full, the oldest one had made room for it
    for step, change in taken[-4:]:
        rho = 1.0 / (step @ change)
        left = eye - rho * torch.outer(step, change)
        dense = left @ dense @ left.mT + rho * torch.outer(step, step)
    torch.testing.assert_close(pairs.direction(), -(dense @ gradient), rtol=1e-9, atol=1e-9)
    pairs.clear()
    assert pairs.number == 0


def test_pairs_in_single_precision_lead_steps_in_double_as_far():
    """A quadratic function of condition 1e4, to a gradient that single precision does not have."""
    spread = torch.logspace(0, 4, 30, dtype=torch.float64)
    least = torch.linspace(-1.0, 1.0, 30, dtype=torch.float64)

    def evaluate(v):
        change = spread * (v - least)
        return SimpleNamespace(value=float(0.5 * change @ (v - least)), gradient=change, norm=float(change.abs().max()))

    start = torch.zeros(30, dtype=torch.float64)
    taken = {}
    for dtype in (torch.float64, torch.float32):
        first = evaluate(start)
        pairs = InversePairs(torch.clone, first.gradient.to(dtype), scaled=True)
        for reached in descend(PairsStepper(evaluate, pairs), start, first, tol=1e-9):
            if reached.at.norm <= 1e-9:
                break
        assert reached.theta.dtype == torch.float64 and reached.at.norm <= 1e-9
        taken[dtype] = reached.evaluations
    assert taken[torch.float32] <= 1.3 * taken[torch.float64]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_loop_finds_the_minimum_of_a_curved_valley(dtype):
    """Rosenbrock's function of six variables, in not many more evaluations than SciPy's L-BFGS takes."""

    def function(v):
        x = v.double().numpy()
        return torch.tensor(rosen(x), dtype=dtype), lambda: torch.from_numpy(rosen_der(x)).to(dtype)

    start = torch.full((6,), -0.5, dtype=dtype)
    found = lbfgs(function, start, lambda g: g / 100.0, max_iter=300)
    expected = minimize(rosen, start.double().numpy(), jac=rosen_der, method="L-BFGS-B", options={"ftol": 1e-14})
    atol = 1e-5 if dtype == torch.float64 else 1e-2
    torch.testing.assert_close(found.theta, torch.ones(6, dtype=dtype), rtol=0, atol=atol)
    assert found.evaluations <= 1.5 * expected.nfev and found.iterations < found.evaluations


def test_rises_that_rounding_allows_do_not_add_up():
    """Where a gradient is wrong, and each step along it raises the value by no more than its rounding."""
    rounding, values = 64 * torch.finfo(torch.float32).eps, []

    def function(v):
        value = 2e-4 * v[0]
        return value, lambda: values.append(float(value)) or torch.full_like(v, -1e-4)

    lbfgs(function, torch.zeros(1), lambda g: 100.0 * g, max_iter=400, tol=-1.0)
    assert len(values) > 2
    assert max(values) <= 1.01 * rounding


def test_steps_that_rounding_stalls_are_ended():
    """Near the rounding of the gradient some steps without a smaller one end it; far above it they do not."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, 2, 20, dtype=torch.float32)

    class Noisy:
        def evaluate(self, v, hessian=None):
            gradient = scale * v + 1e-4 * torch.randn(20, generator=generator)
            value = float((scale * v * v).sum() / 2)
            return SimpleNamespace(value=value, gradient=gradient, norm=float(gradient.abs().max()), hessian=None)

    found = quasi_newton(Noisy(), torch.ones(20), tol=1e-7, patience=1e6, rounded=1e-2)
    norms = [step.gradient_norm for step in found.history]
    assert found.status is Status.STALLED
    assert norms.index(min(norms)) >= len(norms) - 7
    generator.manual_seed(0)
    longer = quasi_newton(Noisy(), torch.ones(20), tol=1e-7, patience=500, rounded=1e-9)
    assert len(longer.history) > len(found.history) + 50


@pytest.mark.parametrize(
    ("evaluations", "fallen", "gives_up"),
    [(10, 5.0, False), (10, 2.0, True), (24, 5.5, False), (24, 4.0, True), (36, 5.9, True)],
)
def test_a_run_near_its_end_goes_on(evaluations, fallen, gives_up):
    """Of six decades some are behind it: with little left it goes on beyond its patience, never by more than half."""
    least = 10.0**-fallen
    assert _hopeless(evaluations, evaluations, 1.0, least, 1e-6, 24.0) == gives_up
