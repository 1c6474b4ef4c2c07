"""A model that is dropped frees its table and its parameters at once: nothing waits for the garbage collector."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor, nn

import raphson as rp

_g = np.random.default_rng(0)
X = _g.normal(size=(80, 3))
WIDE = _g.normal(size=(30, 200))
CLASSES, BINARY, COUNTS = _g.integers(0, 3, 80), _g.integers(0, 2, 30), _g.poisson(2.0, 80)
REAL, SHARE = _g.normal(size=80), _g.uniform(0.1, 0.9, 80)


def _asked(model: Any) -> Any:
    """Ask a fitted model for what it works out later, and keeps."""
    model.summary()
    model.margins()
    _ = model.loglik_, model.loglik_null_, model.solution_.error_bound
    return model


def _classes(**options: Any) -> rp.MultinomialLogisticRegression:
    return rp.MultinomialLogisticRegression(**options)


LINEAR = {
    "newton": lambda: _classes().fit(X.copy(), CLASSES),
    "penalty": lambda: _classes(l2=0.1, reference=None).fit(X.copy(), CLASSES),
    "products": lambda: _classes(solver="newton-cg").fit(X.copy(), CLASSES),
    "jeffreys": lambda: _classes(penalty="jeffreys").fit(X.copy(), CLASSES),
    "separated": lambda: _classes().fit(X.copy(), X[:, 0] > 0),
    "collinear": lambda: _classes().fit(np.c_[X, X[:, 0]], CLASSES),
    "wide": lambda: _classes(l2=0.1).fit(WIDE.copy(), BINARY),
    "sparse": lambda: _classes(l2=0.1).fit(sp.csr_array(X), CLASSES),
    "asked": lambda: _asked(_classes().fit(X.copy(), CLASSES)),
    "poisson": lambda: _asked(rp.VectorGLM(rp.Poisson()).fit(X.copy(), COUNTS)),
    "negative binomial": lambda: rp.VectorGLM(rp.NegativeBinomial()).fit(X.copy(), COUNTS),
    "gaussian": lambda: rp.VectorGLM(rp.HeteroscedasticGaussian()).fit(X.copy(), REAL),
    "ordinal": lambda: rp.VectorGLM(rp.Ordinal(3)).fit(X.copy(), CLASSES),
}


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def _objective() -> rp.Objective:
    return rp.Objective(_network(), rp.Gaussian(), (torch.tensor(X), torch.tensor(REAL)[:, None]))


def _posterior() -> Any:
    data = torch.tensor(X), torch.tensor(REAL)[:, None]
    posterior = rp.laplace(_network(), rp.Gaussian(), data, structure="dense")
    posterior.predict(data[0])
    return posterior.tune_prior()


def _products() -> Any:
    objective = _objective()
    v = torch.ones(objective.n_parameters, dtype=torch.float64)
    return [rp.ggn(objective) @ v, rp.hessian(objective) @ v, rp.kfac(objective)]


MADE = LINEAR | {
    "products of a network": _products,
    "posterior": _posterior,
    "bayesian network": lambda: rp.BayesianMLP(hidden=(4,), max_iter=5).fit(X, REAL),
}


@pytest.mark.filterwarnings("ignore::raphson.RaphsonWarning")
@pytest.mark.parametrize("name", MADE)
def test_no_tensor_is_left_to_the_garbage_collector(name: str):
    MADE[name]()  # what is made once for all models
    gc.collect()
    gc.disable()
    try:
        MADE[name]()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [type(found).__name__ for found in gc.garbage if isinstance(found, Tensor | nn.Module)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


def test_a_table_goes_with_its_model():
    gc.collect()
    gc.disable()
    try:
        x = X.copy()
        table = weakref.ref(x)
        model = _asked(_classes().fit(x, CLASSES))
        del x
        assert table() is not None, "the model holds the rows, for what it is asked later"
        kept = model.solution_
        del model
        assert kept.error_bound.certified, "a solution alone can still be certified"
        del kept
        assert table() is None
    finally:
        gc.enable()
