"""Copies of fitted models, made before anybody asked for a summary, say what the model says."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest

import raphson as rp

N = 80
RNG = np.random.default_rng(0)
FRAME = pd.DataFrame({
    "x": RNG.normal(size=N),
    "z": RNG.normal(size=N),
    "g": RNG.choice(list("abc"), N),
    "w": RNG.random(N) + 0.5,
    "y": RNG.integers(0, 2, N),
    "k": RNG.poisson(3, N),
    "p": RNG.choice(list("pqr"), N),
    "h": RNG.gamma(2, size=N),
})
APART = FRAME.assign(y=(FRAME.x > 0).astype(int))
WIDE = RNG.normal(size=(N, 100))
MODELS = {
    "classes": lambda: rp.MultinomialLogisticRegression().fit(FRAME[["x", "z"]], FRAME.p),
    "no reference": lambda: rp.MultinomialLogisticRegression(reference=None).fit(FRAME[["x", "z"]], FRAME.p),
    "ridge": lambda: rp.MultinomialLogisticRegression(l2=0.1).fit(FRAME[["x", "z"]], FRAME.p),
    "separated": lambda: rp.VectorGLM("bernoulli", formula="y ~ x + z").fit(APART),
    "jeffreys": lambda: rp.VectorGLM("bernoulli", formula="y ~ x + z", penalty="jeffreys").fit(APART),
    "separated ridge": lambda: rp.VectorGLM("bernoulli", formula="y ~ x + z", l2=0.01).fit(APART),
    "weights": lambda: rp.VectorGLM("poisson", formula="k ~ x * g").fit(FRAME, sample_weight=FRAME.w),
    "censored": lambda: rp.VectorGLM(rp.Weibull(censored=True), formula="Surv(h, y) ~ bs(x, df=4)").fit(FRAME),
    "wide": lambda: rp.VectorGLM("poisson", l2=0.1).fit(WIDE, FRAME.k),
}


def by_joblib(model):
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


WAYS = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "twice": lambda model: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(model)))),
    "joblib": by_joblib,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.filterwarnings("ignore::raphson.RaphsonWarning")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_has_the_summary(name, way):
    model = MODELS[name]()
    made = WAYS[way](model)
    assert str(made.summary()) == str(model.summary())


@pytest.mark.parametrize("way", ["copy", "deepcopy"])
def test_a_copy_in_the_process_has_the_rows_and_leaves_the_model_alone(way):
    model = MODELS["weights"]()
    made = WAYS[way](model)
    assert str(made.margins()) == str(model.margins())
    before = str(model.summary())
    made.fit(FRAME.assign(k=RNG.poisson(9, N)))
    assert made.loglik_ != model.loglik_ and str(model.summary()) == before


@pytest.mark.filterwarnings("ignore::raphson.RaphsonWarning")
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_has_the_summary(name, tmp_path: Path):
    model = MODELS[name]()
    rp.save(model, tmp_path / "m")
    loaded = rp.load(tmp_path / "m").model
    theirs, ours = model.summary(), loaded.summary()
    assert (ours.facts, set(ours.notes)) == (theirs.facts, set(theirs.notes))
    pd.testing.assert_frame_equal(ours.to_frame(), theirs.to_frame(), rtol=1e-10)
