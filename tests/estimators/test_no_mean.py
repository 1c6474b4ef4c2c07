"""Predictions where the target has no mean, or no standard deviation: tails like Cauchy's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import raphson as rp
from raphson.likelihoods import StudentT


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.uniform(-2, 2, 120)})
    noise = rng.standard_cauchy(120)
    return frame.assign(y=np.sin(frame["x"]) + 0.1 * np.sign(noise) * np.abs(noise) ** 2)


def test_the_median_is_predicted_where_there_is_no_mean(table):
    model = rp.VectorGLM("student-t").fit(table[["x"]], table["y"])
    assert model.linear_predictors(table[["x"]])[0, 2] < 0  # less than one degree of freedom
    with pytest.warns(rp.RaphsonWarning, match="no finite mean in any row"):
        found = model.predict(table[["x"]])
    np.testing.assert_array_equal(found, model.linear_predictors(table[["x"]])[:, 0])
    with pytest.warns(rp.RaphsonWarning, match="nothing is given"):
        cauchy = rp.VectorGLM(rp.as_likelihood(torch.distributions.Cauchy)).fit(table[["x"]], table["y"])
        assert np.isnan(cauchy.predict(table[["x"]])).all()


def test_a_network_predicts_medians_and_no_deviation(table):
    model = rp.BayesianMLP(StudentT(1.0), (4,)).fit(table[["x"]], table["y"])
    with pytest.warns(rp.RaphsonWarning) as caught:
        mean, deviation = model.predict(table[["x"]], return_std=True)
    assert [str(one.message).split(" in ")[0] for one in caught] == [
        "The target has no finite mean",
        "The target has no finite standard deviation",
    ]
    low, high = model.predict_interval(table[["x"]], 0.5)
    assert ((low < mean) & (mean < high)).all() and np.isnan(deviation).all()


def test_effects_on_a_mean_that_is_none_are_refused(table):
    model = rp.VectorGLM("student-t", formula="y ~ x").fit(table)
    for ask in (model.margins, model.predictions, lambda: model.margins(at={"x": 1.0})):
        with pytest.raises(rp.NotEstimableError, match="has no mean"):
            ask()
