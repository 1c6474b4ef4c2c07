"""A column that copies another but for a little noise: the same model as with that noise as a column, to many digits.

The noise is what the copy really holds, ``(copy - x) / size``: coefficients, standard errors of every kind, tests,
intervals and predictions of the two tables say the same, the copy's coefficient divided by the size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import raphson as rp

RNG = np.random.default_rng(1)
N = 60
X, NOISE, U = RNG.normal(size=N) + 3, RNG.normal(size=N), RNG.normal(size=N)
ETA = 0.3 * (X - 3) + 0.4 * NOISE + 0.2 * U
LEVELS = np.digitize(ETA + RNG.logistic(size=N), [-1.0, 0.5])
CASES = {
    "bernoulli": (rp.Bernoulli(), (RNG.random(N) < 1 / (1 + np.exp(-ETA))).astype(float)),
    "poisson": (rp.Poisson(), RNG.poisson(3 * np.exp(ETA / 2))),
    "gamma": (rp.Gamma(), RNG.gamma(2, np.exp(ETA / 2))),
    "negative binomial": (rp.NegativeBinomial(), RNG.negative_binomial(2, 1 / (1 + 2 * np.exp(ETA / 2)))),
    "heteroscedastic": (rp.HeteroscedasticGaussian(), ETA + RNG.normal(size=N)),
    "student t": (rp.StudentT(), ETA + RNG.standard_t(4, size=N)),
    "ordinal": (rp.Ordinal(3), LEVELS),
    "categorical": (None, LEVELS),
}


def tables(size: float) -> tuple[np.ndarray, np.ndarray]:
    copy = X + size * NOISE
    return np.column_stack([X, copy, U]), np.column_stack([X, (copy - X) / size, U])


def fitted(likelihood, y, table, **options):
    model = rp.MultinomialLogisticRegression(**options) if likelihood is None else rp.VectorGLM(likelihood, **options)
    return model.fit(table, y)


def by_column(errors, size: float) -> np.ndarray:
    """Standard errors of all but the copied column, the copy's in units of the noise."""
    unit = np.array([size if name == "x1" else 1.0 for _, name in errors.index])
    values = errors.to_numpy(dtype=float) * unit
    return values[[name != "x0" for _, name in errors.index]]


@pytest.mark.parametrize("size", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("penalty", ["ridge", "jeffreys"])
def test_standard_errors_of_every_kind(name, penalty, size):
    likelihood, y = CASES[name]
    near, plain = (fitted(likelihood, y, table, penalty=penalty) for table in tables(size))
    assert near.solution_.converged and abs(near.loglik_ - plain.loglik_) < 1e-6
    rtol = 1e-6
    for kind in ("observed", "expected", "sandwich"):
        ours, true = by_column(near.standard_errors(kind), size), by_column(plain.standard_errors(kind), 1.0)
        np.testing.assert_allclose(ours, true, rtol=rtol)
    grouped = [model.standard_errors("sandwich", groups=np.arange(N) // 4) for model in (near, plain)]
    np.testing.assert_allclose(by_column(grouped[0], size), by_column(grouped[1], 1.0), rtol=rtol)


@pytest.mark.parametrize("kind", ["observed", "expected", "sandwich"])
def test_what_is_well_determined_keeps_its_digits(kind, tmp_path: Path):
    size = 1e-7
    likelihood, y = CASES["bernoulli"]
    (near_table, plain_table), options = tables(size), {"kind": kind}
    near, plain = (fitted(likelihood, y, table) for table in (near_table, plain_table))
    # the coefficient of x beside the noise is that of x and its copy together
    together, alone = near.wald_test("x0 + x1 = 0", **options), plain.wald_test("x0 = 0", **options)
    assert together.statistic == pytest.approx(alone.statistic, rel=1e-6)
    ours, true = near.predict_interval(near_table, **options), plain.predict_interval(plain_table, **options)
    np.testing.assert_allclose(ours.standard_errors, true.standard_errors, rtol=1e-6)
    if kind == "observed":
        rp.save(near, tmp_path / "m")
        loaded = rp.load(tmp_path / "m").model
        assert loaded.wald_test("x0 + x1 = 0").statistic == pytest.approx(alone.statistic, rel=1e-6)
        ours, true = near.confint(method="profile"), plain.confint(method="profile")
        np.testing.assert_allclose(ours.iloc[2].astype(float) * size, true.iloc[2].astype(float), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-6, 1e-7, 1e-8])
def test_refused_by_name_where_columns_are_not_made_orthogonal(size):
    likelihood, y = CASES["bernoulli"]
    model = fitted(likelihood, y, tables(size)[0], l2=1e-13)  # a penalty too small
    with pytest.raises(rp.NotEstimableError, match="x1|did not converge"):
        model.standard_errors("sandwich")
