"""Random fits of every likelihood: never nan as converged, never worse than SciPy, no invented standard error.

A case is made by its seed alone; a failure names likelihood and seed, and ``check_fit(likelihood, seed)`` repeats it.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import raphson as rp
from raphson.estimators.fit._fit import _from_table
from raphson.estimators.fit._start import start_coefficients
from raphson.likelihoods import Likelihood, catalogue
from raphson.linalg import DiagonalPlusLowRank

FAMILIES = [kind for kind in catalogue().values() if kind.examples()]
CASES, FEW = 500, 50


def random_table(rng: np.random.Generator, n: int) -> np.ndarray:
    """Columns of all kinds: measurements of any unit, groups, counts, near copies, constants."""
    columns = []
    for _ in range(int(rng.integers(1, 4))):
        kind = int(rng.integers(0, 7))
        x = rng.normal(size=n)
        if kind == 1:
            x = x * 10.0 ** rng.integers(-8, 9) + rng.integers(-3, 4)
        elif kind == 2:
            x = rng.integers(0, 2, n).astype(float)
        elif kind == 3:
            x = rng.integers(0, 5, n).astype(float)
        elif kind == 4 and columns:
            x = columns[0] + 10.0 ** -rng.integers(0, 12) * x
        elif kind == 5:
            x = np.where(rng.random(n) < 0.8, 0.0, x)
        elif kind == 6 and rng.random() < 0.2:
            x = np.full(n, 3.0)
        columns.append(x)
    return np.column_stack(columns)


def random_targets(rng: np.random.Generator, likelihood: Likelihood, x: np.ndarray) -> torch.Tensor:
    """Targets drawn at random outputs near the member's example, some of them then made extreme."""
    outputs, example = likelihood.definition().example
    f = torch.tensor(outputs, dtype=torch.float64).expand(len(x), -1)
    z = torch.from_numpy((x - x.mean(0)) / (x.std(0) + 1e-12))
    tilted = f + float(rng.choice([0.0, 0.1, 0.5])) * (z @ torch.from_numpy(rng.normal(size=(x.shape[1], f.shape[1]))))
    inside = torch.stack([
        likelihood.domains[c % len(likelihood.domains)].contains(tilted[:, c]) for c in range(f.shape[1])
    ]).all(0)
    f = torch.where(inside[:, None], tilted, f)
    if isinstance(likelihood, rp.Ordinal):
        f = f.sort(-1).values
    y = likelihood.sample(f, torch.Generator().manual_seed(int(rng.integers(2**31))))
    extreme = rng.random()
    if extreme < 0.1:
        y = y[:1].expand_as(y).clone()  # all the same
    elif extreme < 0.2:
        y = torch.where(torch.from_numpy(rng.random(y.shape[0]) < 0.5).view(-1, *[1] * (y.ndim - 1)), y, y[:1])
    del example
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def check_fit(kind: type[Likelihood], seed: int) -> str:
    """Fit one random case and check what comes out; returns how it ended."""
    rng = np.random.default_rng(seed)
    members = kind.examples()
    likelihood = members[int(rng.integers(len(members)))].definition().likelihood
    n = int(rng.integers(4, 50))
    x = random_table(rng, n)
    y = random_targets(rng, likelihood, x)
    weights = None
    if rng.random() < 0.3:
        weights = rng.choice([0.0, 1.0, 2.0, 0.5], n) if rng.random() < 0.7 else 10.0 ** rng.integers(-6, 7, n)
        if not weights.any():
            weights = None
    penalty = float(rng.choice([0.0, 0.0, 0.0, 1e-3, 0.3]))
    constraints = "own" if rng.random() < 0.2 and not likelihood.differences_only else None
    model = rp.VectorGLM(likelihood, l2=penalty, constraints=constraints)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model.fit(x, y.numpy(), sample_weight=weights)
        except rp.RaphsonError as error:
            return type(error).__name__
        solution = model.solution_
        if not solution.converged:
            return solution.status.name
        assert np.isfinite(model.coef_).all() and np.isfinite(model.intercept_).all()
        assert np.isfinite(solution.value) and np.isfinite(model.loglik_)
        _not_worse_than_scipy(model)
        try:
            errors = model.standard_errors("sandwich" if penalty else "observed").to_numpy(dtype=float).ravel()
        except rp.RaphsonError:
            return "no standard errors"
        assert not np.isinf(errors).any() and not (errors == 0).any(), errors
        if not penalty:
            _are_those_of_the_numerical_hessian(model, errors)
    return "CONVERGED"


def _not_worse_than_scipy(model) -> None:
    objective, solution = model._fitted.objective, model.solution_
    likelihood = objective.likelihood
    relative = likelihood.differences_only and model._layout.is_relative
    start = torch.zeros(objective.n_parameters, dtype=torch.float64)
    if not relative:
        columns = model._fitted.kept
        full = start_coefficients(model._training, likelihood, model._layout.output_map)
        if not model._layout.output_map.is_uniform:
            return _locally_best(objective, solution)
        start = _from_table(objective, full[:, columns], relative, model._fitted.orthogonal)
    found = _scipy(objective, start)
    if likelihood.concave or found is None:
        return _best(objective, solution, found)
    # another local optimum is no error; that this one is none would be
    return _locally_best(objective, solution)


def _locally_best(objective, solution) -> None:
    _best(objective, solution, _scipy(objective, solution.theta))


def _best(objective, solution, found) -> None:
    value = objective.value(solution.theta)
    if found is not None:
        assert value <= found + 1e-6 * max(1.0, abs(found)), f"SciPy is better: {found!r} against {value!r}"


def _scipy(objective, start) -> float | None:
    def value_and_gradient(theta):
        value, gradient = objective.value_and_gradient(torch.from_numpy(theta.copy()))
        return (value if np.isfinite(value) else 1e300), np.nan_to_num(gradient.numpy())

    with np.errstate(all="ignore"):
        found = minimize(
            value_and_gradient, start.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-13}
        )
    return float(found.fun) if np.isfinite(found.fun) and found.fun < 1e299 else None


def _are_those_of_the_numerical_hessian(model, errors: np.ndarray) -> bool:
    """Compare with differences of gradients, at two step sizes: where these disagree, they have too few digits."""
    wide, narrow = (_hessian_by_differences(model, step) for step in (1e-3, 2.5e-4))
    if not bool(torch.isfinite(wide).all() and torch.isfinite(narrow).all()):
        return False
    lowest = float(torch.linalg.eigvalsh(narrow)[0])
    rounding = float(torch.linalg.matrix_norm(wide - narrow, 2))
    assert lowest > -rounding, "standard errors at a point that is no minimum"
    if lowest < 2e3 * rounding:
        return False
    root = torch.linalg.inv(torch.linalg.cholesky(narrow)).mT
    covariance = model._fitted.covariance(DiagonalPlusLowRank(torch.zeros(len(root), dtype=root.dtype), root))
    expected = covariance.diagonal().sqrt().numpy()
    known = ~np.isnan(errors)
    np.testing.assert_allclose(errors[known], expected[known], rtol=1e-3)
    return True


def _hessian_by_differences(model, step: float) -> torch.Tensor:
    """Central differences of the fourth order."""
    objective, theta = model._fitted.objective, model.solution_.theta
    columns = []
    for j, unit in enumerate(torch.eye(objective.n_parameters, dtype=torch.float64)):
        h = step * max(1.0, abs(float(theta[j])))
        near, far = (
            objective.evaluate(theta + k * h * unit, None).gradient
            - objective.evaluate(theta - k * h * unit, None).gradient
            for k in (1, 2)
        )
        columns.append((8.0 * near - far) / (12.0 * h))
    hessian = torch.stack(columns) * objective.total_weight
    return 0.5 * (hessian + hessian.mT)


def _ids(value):
    return value.__name__ if isinstance(value, type) else None


def test_some_random_fits():
    for seed in range(FEW):
        kind = FAMILIES[seed % len(FAMILIES)]
        try:
            check_fit(kind, seed)
        except AssertionError as error:
            raise AssertionError(f"{kind.__name__}, seed {seed}: {error}") from error


@pytest.mark.nightly
@pytest.mark.parametrize("kind", FAMILIES, ids=_ids)
def test_many_random_fits(kind):
    failures = []
    for seed in range(CASES):
        try:
            check_fit(kind, seed)
        except Exception as error:  # every failure is listed, whatever it is
            failures.append(f"seed {seed}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    assert not failures, f"{len(failures)} of {CASES}: " + "\n".join(failures[:20])
