"""The first step of a constrained fit: least squares where that is the answer, and nothing worse than the start."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import raphson as rp
from raphson.data import DenseDesign
from raphson.estimators.fit._start import scoring_step
from raphson.estimators.input._layout import make_layout
from raphson.linear import LinearObjective
from raphson.solve import newton


def made(n=400, d=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d))) + 2.0
    return x, 1.0 + x @ rng.normal(size=d), rng


def objective_of(likelihood, x, y, **options):
    y = torch.from_numpy(y)
    c = likelihood.n_outputs(y)
    layout = make_layout(likelihood, c, [f"x{i}" for i in range(x.shape[1])], None, True)
    design = DenseDesign(torch.from_numpy(x), intercept=True, standardize=True)
    objective = LinearObjective(design, likelihood, y, layout.output_map, **options)
    start = torch.zeros(objective.n_parameters, dtype=torch.float64)
    start[layout.output_map.is_intercept] = likelihood.start(y, c, options.get("weights"))
    return objective, start


@pytest.mark.parametrize("n", [400, 60_000])  # the latter on random subsets first
@pytest.mark.parametrize("parametrization", ["mean_log_scale", "mean_softplus_scale"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_gaussian_of_constant_scale_is_least_squares(n, parametrization, weighted):
    x, eta, rng = made(n, d=9)
    y, w = rng.normal(eta, 0.7), rng.uniform(0.5, 2.0, size=n) if weighted else None
    model = rp.VectorGLM(rp.HeteroscedasticGaussian(parametrization)).fit(x, y, w)
    assert model.n_iter_ == 0
    root = np.ones(n) if w is None else np.sqrt(w)
    ones = np.column_stack([np.ones(n), x])
    b = np.linalg.lstsq(ones * root[:, None], y * root, rcond=None)[0]
    np.testing.assert_allclose(np.r_[model.intercept_[0], model.coef_[0]], b, rtol=1e-10, atol=1e-10)
    residual = (y - ones @ b) * root
    variance = residual @ residual / (root**2).sum()
    scale = (
        np.exp(model.intercept_[1]) if parametrization == "mean_log_scale" else np.log1p(np.exp(model.intercept_[1]))
    )
    assert scale**2 == pytest.approx(variance, rel=1e-11)
    np.testing.assert_array_equal(model.coef_[1], 0.0)
    errors = np.sqrt(variance * np.diag(np.linalg.inv((ones * (root**2)[:, None]).T @ ones)))
    np.testing.assert_allclose(model.standard_errors("observed").to_numpy()[: len(b)], errors, rtol=1e-9)


@pytest.mark.parametrize(
    ("likelihood", "targets"),
    [
        (
            rp.NegativeBinomial(),
            lambda mean, rng: rng.poisson(mean * rng.gamma(2.0, 0.5, size=len(mean))).astype(float),
        ),
        (rp.Gamma(), lambda mean, rng: rng.gamma(2.0, mean / 2.0)),
        (rp.Ordinal(3), lambda mean, rng: np.digitize(np.log(mean) + rng.logistic(size=len(mean)), [0.0, 1.0])),
    ],
    ids=["negative binomial", "gamma", "ordinal"],
)
def test_it_goes_most_of_the_way(likelihood, targets):
    x, eta, rng = made()
    y = targets(np.exp(0.3 * (eta - eta.mean())), rng)
    objective, start = objective_of(likelihood, x, y)
    at = objective.evaluate(start)
    theta, value = scoring_step(objective, start, at), at.value
    best = newton(objective, theta, scoring=True).value
    assert objective.value(theta) - best < 0.1 * (value - best)


def test_rows_that_differ_already_are_left_alone():
    x, eta, rng = made()
    likelihood, y = rp.HeteroscedasticGaussian(), rng.normal(eta, 0.7)
    objective, start = objective_of(likelihood, x, y)
    assert scoring_step(objective, start, objective.evaluate(start)) is not None
    start[-1] = 0.1
    assert scoring_step(objective, start, objective.evaluate(start)) is None
    objective, start = objective_of(likelihood, x, y, offset=torch.ones(len(y), 2, dtype=torch.float64))
    assert scoring_step(objective, start, objective.evaluate(start)) is None


def test_a_first_step_that_leads_astray_does_no_harm():
    """Outliers in a column of counts: the linearized step overflows, and the fit goes on from the constants."""
    x = np.r_[np.zeros(50), np.ones(50), 400.0][:, None] / 400.0
    y = np.r_[np.tile([1.0, 2.0], 25), np.tile([2.0, 4.0], 25), 3.0]
    with pytest.warns(rp.SeparationWarning, match="no overdispersion: use Poisson"):
        model = rp.VectorGLM(rp.NegativeBinomial(), l2=1e-6).fit(x, y)
    assert model.solution_.gradient_norm <= 1e-8


@pytest.mark.parametrize("near", [1e-11, 1e-12, 0.0])
def test_a_copied_column_does_not_spoil_the_start_without_an_intercept(near):
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(120, 1)), rng.normal(size=(120, 1))
    y = 1.0 + 0.5 * x[:, 0] + rng.normal(size=120)
    one = rp.VectorGLM(rp.HeteroscedasticGaussian(), fit_intercept=False).fit(x, y)
    with pytest.warns(rp.CollinearityWarning, match="duplicates"):
        both = rp.VectorGLM(rp.HeteroscedasticGaussian(), fit_intercept=False).fit(np.hstack([x, x + near * z]), y)
    assert both.solution_.converged
    np.testing.assert_allclose(both.loglik_, one.loglik_, rtol=1e-9)
    assert both.solution_.history[0].value == pytest.approx(one.solution_.history[0].value, rel=1e-6)
