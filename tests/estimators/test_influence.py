"""Influence of rows on fitted linear models against fitting again, and Cook's distances of the textbooks."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.datasets import load_diabetes, load_iris

import raphson as rp


def table(n=40):
    g = np.random.default_rng(0)
    x = g.standard_normal((n, 3))
    return x, x @ [1.0, -0.5, 0.2] + 0.7 + g.standard_normal(n), g.uniform(0.5, 2.0, n), g.standard_normal(n)


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("intercept", [True, False])
def test_a_gaussian_is_that_of_fitting_again(l2, intercept):
    x, y, w, offset = table()
    given = {"sample_weight": w, "offset": offset}
    model = rp.VectorGLM(rp.Gaussian(), l2=l2, fit_intercept=intercept).fit(x, y, **given)
    rows = [5, 0, 39]
    found = rp.influence(model, rows)
    assert found.rows.tolist() == rows
    for i, row in enumerate(rows):
        keep = np.arange(40) != row
        # the penalty is that of all rows: its share of an average over fewer is larger
        again = rp.VectorGLM(rp.Gaussian(), l2=l2 * w.sum() / w[keep].sum(), fit_intercept=intercept)
        again.fit(x[keep], y[keep], sample_weight=w[keep], offset=offset[keep])
        before, after = (np.append([m.intercept_] if intercept else [], m.coef_) for m in (model, again))
        np.testing.assert_allclose(found.parameters[i], after - before, rtol=1e-8, atol=1e-12)
        moved = (again.predict(x[[row]]) - model.predict(x[[row]]))[0]
        np.testing.assert_allclose(found.outputs[i], moved, rtol=1e-8)
        residuals = [y[row] - offset[row] - m.predict(x[[row]])[0] for m in (again, model)]
        assert float(found.loss[i]) == pytest.approx(0.5 * (residuals[0] ** 2 - residuals[1] ** 2), rel=1e-8)


def test_cooks_distance_of_least_squares():
    x, y = load_diabetes(return_X_y=True)
    ones = np.column_stack([np.ones(len(x)), x])
    beta, p = np.linalg.lstsq(ones, y, rcond=None)[0], ones.shape[1]
    residual = y - ones @ beta
    s2 = residual @ residual / (len(y) - p)
    leverage = np.einsum("ij,ij->i", ones @ np.linalg.inv(ones.T @ ones), ones)
    textbook = residual**2 * leverage / (p * s2 * (1 - leverage) ** 2)
    model = rp.VectorGLM(rp.Gaussian(scale=float(np.sqrt(s2)))).fit(x, y)
    np.testing.assert_allclose(model.influence(slice(None)).cook, textbook, rtol=1e-6)


@pytest.mark.parametrize("reference", [0, 2, None])
def test_cooks_distance_of_a_multinomial_fit(reference):
    x, y = load_iris(return_X_y=True)
    x, y = x[:, :2], np.where(np.arange(150) % 7 == 0, (y + 1) % 3, y)  # no class is separated
    model = rp.MultinomialLogisticRegression(reference=reference).fit(x, y)
    found = model.influence(slice(None))
    # Lesaffre and Albert (1989): classes 1 and 2 relative to class 0, designs X_i = I (x) x_i
    ones = np.column_stack([np.ones(150), x])
    p = model.predict_proba(x)[:, 1:]
    target = (y[:, None] == [1, 2]).astype(float)
    designs = np.stack([np.kron(np.eye(2), row) for row in ones])
    v = np.stack([np.diag(q) - np.outer(q, q) for q in p])
    information = np.einsum("ica,icd,idb->ab", designs, v, designs)
    inverse = np.linalg.inv(information)
    for i in range(150):
        z = designs[i]
        step = -inverse @ z.T @ np.linalg.solve(np.eye(2) - v[i] @ z @ inverse @ z.T, target[i] - p[i])
        assert float(found.cook[i]) == pytest.approx(step @ information @ step / 6, rel=1e-6)
        if reference == 0:
            np.testing.assert_allclose(found.parameters[i], step, rtol=1e-5, atol=1e-9)
            np.testing.assert_allclose(found.outputs[i, 1:], z @ step, rtol=1e-5, atol=1e-9)
            assert float(found.outputs[i, 0]) == 0


@pytest.mark.parametrize("family", ["poisson", "softmax", "negative binomial"])
def test_one_step_differs_from_fitting_again_to_second_order(family):
    g = np.random.default_rng(1)
    x = g.standard_normal((80, 2))
    if family == "softmax":
        y = g.integers(0, 3, 80)
        make = rp.MultinomialLogisticRegression
    else:
        y = g.poisson(np.exp(0.5 * x[:, 0] + g.standard_normal(80) * (family != "poisson")))
        make = lambda: rp.VectorGLM(rp.Poisson() if family == "poisson" else rp.NegativeBinomial())  # noqa: E731
    without = make().fit(x[1:], y[1:])

    def gap(weight):
        model = make().fit(x, y, sample_weight=np.r_[weight, np.ones(79)])
        step = model.influence([0]).parameters[0].numpy()
        # Wald intervals are symmetric about the estimates, and in the order of the covariance
        estimates = [m.confint(method="wald").to_numpy().mean(1) for m in (without, model)]
        return step, estimates[0] - estimates[1]

    gaps = []
    for weight in (0.4, 0.2, 0.1):
        step, difference = gap(weight)
        gaps.append(np.linalg.norm(step - difference))
        assert gaps[-1] < 0.3 * np.linalg.norm(difference)
    # of second order: half the weight, a quarter of the gap
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.25) and gaps[1] / gaps[2] == pytest.approx(4, rel=0.25)


def test_sparse_tables_and_rows_of_weight_zero():
    x, y, w, _ = table()
    w[3] = 0.0
    one = rp.VectorGLM(rp.Gaussian()).fit(x, y, sample_weight=w).influence([4, -1])
    other = rp.VectorGLM(rp.Gaussian()).fit(sp.csr_matrix(x), y, sample_weight=w).influence([4, 39])
    np.testing.assert_allclose(one.parameters, other.parameters, rtol=1e-8, atol=1e-12)
    with pytest.raises(rp.InputError, match="Row 3 was no part of the fit"):
        rp.VectorGLM(rp.Gaussian()).fit(x, y, sample_weight=w).influence([3])


def test_clear_errors():
    x, y, _, _ = table()
    model = rp.VectorGLM(rp.Gaussian()).fit(x, y)
    for rows, words in ([40], "Row 40 is none of the 40"), ([0.5], "numbers of rows"), ([], "none of the 40"):
        with pytest.raises(rp.InputError, match=words):
            rp.influence(model, rows)
    with pytest.raises(rp.InputError, match="has no influence"):
        rp.influence(object(), [0])
    x[:, 2] = np.arange(40) == 7
    with pytest.raises(rp.NotEstimableError, match="Row 7 decides a coefficient"):
        rp.influence(rp.VectorGLM(rp.Gaussian()).fit(x, y), [6, 7])
    with pytest.warns(rp.SeparationWarning):
        separated = rp.MultinomialLogisticRegression().fit(x[:, :1], (x[:, 0] > 0).astype(int))
    with pytest.raises(rp.NotEstimableError, match="separated"):
        rp.influence(separated, [0])
