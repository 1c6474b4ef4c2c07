"""A model in the span of its gradients: the same objective on that span, and the optimum of all columns in the end."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from raphson.data import DenseDesign, SparseDesign
from raphson.likelihoods import Categorical, Gaussian
from raphson.linear import GradientSpace, LinearObjective, OutputMap
from raphson.solve import newton


def made(likelihood="categorical", *, sparse=False, weights=False, offset=False, intercept=True, n=40, d=25):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-0.5, 0.5, d) + rng.normal(size=d)
    if sparse:
        x[rng.random((n, d)) < 0.5] = 0.0
        design = SparseDesign(sp.csr_matrix(x), intercept=intercept, standardize=True)
    else:
        design = DenseDesign(torch.from_numpy(x), intercept=intercept, standardize=True)
    lik, y = Categorical(), torch.from_numpy(rng.integers(0, 3, n))
    if likelihood == "gaussian":
        lik, y = Gaussian(0.7, normalized=False), torch.from_numpy(rng.normal(size=(n, 3)))
    return LinearObjective(
        design,
        lik,
        y,
        OutputMap.relative(3, 0, design.n_columns, intercept),
        weights=torch.from_numpy(rng.uniform(0.5, 2.0, n)) if weights else None,
        offset=torch.from_numpy(rng.normal(size=(n, 3))) if offset else None,
        l2=0.3,
    )


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize("kind", ["plain", "sparse", "weights", "offset", "no intercept"])
def test_gradients_lead_to_the_optimum_of_all_columns(likelihood, kind):
    options = {"no intercept": {"intercept": False}, "plain": {}}.get(kind, {kind: True})
    objective = made(likelihood, **options)
    space, start = GradientSpace(objective), torch.zeros(objective.n_parameters, dtype=torch.float64)
    theta = space.of_intercepts(start)
    for _ in range(40):
        everywhere, gradient = space.gradient(theta)
        torch.testing.assert_close(gradient, objective.gradient(everywhere), rtol=1e-10, atol=1e-12)
        assert not space.objective.n_parameters or objective.value(everywhere) == pytest.approx(
            space.objective.value(theta), rel=1e-12
        )
        if objective.gradient_norm(gradient) < 1e-11 or not space.extend(gradient):
            break
        small = space.objective
        torch.testing.assert_close(space.back(space.into(theta)), everywhere, rtol=1e-13, atol=1e-14)
        theta = newton(small, space.into(theta), tol=1e-13).theta
    assert space.rank <= 25
    direct = newton(objective, start, tol=1e-13)
    torch.testing.assert_close(everywhere, direct.theta, rtol=1e-8, atol=1e-8)


def test_a_gradient_in_the_span_adds_nothing():
    objective = made()
    space = GradientSpace(objective)
    _, gradient = space.gradient(space.of_intercepts(torch.zeros(objective.n_parameters, dtype=torch.float64)))
    assert space.extend(gradient) and space.rank == 2
    assert not space.extend(-3.0 * gradient) and space.rank == 2
