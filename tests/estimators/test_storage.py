"""A table says the same as an array, as a small sparse matrix and as one too large to be made dense.

Columns without a zero among their entries are centered in either, those that nearly depend on each other are made
orthogonal, and constant or duplicated ones are named.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import raphson as rp

N = 120
RNG = np.random.default_rng(3)
X, Z, U = (RNG.normal(size=N) * (RNG.random(N) < 0.5) for _ in range(3))
G = np.eye(3)[RNG.integers(0, 3, N)]
ETA = 0.5 * X - 0.3 * Z + 0.2 * U
LEVELS = np.digitize(ETA + RNG.logistic(size=N), [-1.0, 0.7])
TABLES = {
    "constant": np.column_stack([X, np.full(N, 3.0), U]),
    "zero": np.column_stack([X, np.zeros(N), U]),
    "duplicated": np.column_stack([X, Z, -2 * X]),
    "shifted": np.column_stack([X, Z, X + 1]),
    "dummies": np.column_stack([X, G]),
    **{f"copied to {e:g}": np.column_stack([X, X + e * Z, U]) for e in (1e-4, 1e-6, 1e-8, 1e-12)},
    **{f"constant to {e:g}": np.column_stack([X, 1 + e * Z, U]) for e in (1e-4, 1e-7, 1e-9)},
    **{f"mean {e:g}": np.column_stack([X, e + Z, U]) for e in (1e3, 1e6, 1e8)},
    "units": np.column_stack([1e24 * X, 1e-24 * (1 + Z), U]),
}
MODELS = {
    "multinomial": (lambda **o: rp.MultinomialLogisticRegression(**o), LEVELS),
    "heteroscedastic": (lambda **o: rp.VectorGLM(rp.HeteroscedasticGaussian(), **o), ETA + RNG.normal(size=N)),
}
OPTIONS = {
    "plain": {},
    "without an intercept": {"fit_intercept": False},
    "ridge": {"l2": 1e-3},
    "jeffreys": {"penalty": "jeffreys"},
}


def told(make, y, table):
    """Log-likelihood, standard errors of two kinds, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = make().fit(table, y)
        except rp.RaphsonError as error:
            return None, str(error)
        found = [np.array(model.loglik_)]
        for kind in ("observed", "sandwich"):
            try:
                found.append(model.standard_errors(kind).to_numpy(dtype=float))
            except rp.NotEstimableError as error:
                found.append(str(error)[:60])
    return found, sorted(str(warning.message)[:80] for warning in caught)


@pytest.mark.parametrize("columns", TABLES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("options", OPTIONS)
def test_storage_changes_nothing(columns, model, options, monkeypatch):
    make, y = MODELS[model]
    table = TABLES[columns]
    of_array, said = told(lambda: make(**OPTIONS[options]), y, table)
    for limit in (2**18, 0):  # of entries, up to which a sparse table is a dense one
        monkeypatch.setattr("raphson.estimators.input._rows._FEW_ENTRIES", limit)
        of_sparse, also = told(lambda: make(**OPTIONS[options]), y, scipy.sparse.csr_array(table))
        assert also == said
        for ours, theirs in zip(of_sparse or (), of_array or (), strict=True):
            if isinstance(ours, str) or isinstance(theirs, str):
                assert ours == theirs
            else:
                np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_constant_column_beside_a_penalty_has_no_standard_error(sparse, monkeypatch):
    monkeypatch.setattr("raphson.estimators.input._rows._FEW_ENTRIES", 0)
    y, table = RNG.poisson(3, N), TABLES["constant"]
    make = functools.partial(rp.VectorGLM, rp.Poisson(), l2=0.01)
    model = make().fit(scipy.sparse.csr_array(table) if sparse else table, y)
    with pytest.warns(rp.RaphsonWarning, match="'x1 of log_mean' is zero whatever the targets: the column is constant"):
        errors = model.standard_errors("sandwich")
    plain = make().fit(table[:, [0, 2]], y).standard_errors("sandwich")
    assert pd.isna(errors["log_mean", "x1"])
    np.testing.assert_allclose(errors.drop(("log_mean", "x1")).to_numpy(dtype=float), plain.to_numpy(), rtol=1e-8)
