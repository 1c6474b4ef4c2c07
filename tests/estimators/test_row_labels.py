"""Pandas objects whose row labels contradict the order of the rows are refused, wherever rows go together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import raphson as rp

N = 60
RNG = np.random.default_rng(0)
X = pd.DataFrame(RNG.normal(size=(N, 2)), columns=["a", "b"], index=RNG.permutation(N) + 100)
Y = pd.Series(RNG.integers(0, 2, N), index=X.index)
W = pd.Series(RNG.integers(1, 4, N) * 1.0, index=X.index)
T = pd.Series(RNG.normal(size=N), index=X.index)
G = pd.Series(np.repeat(np.arange(12), 5), index=X.index)
CLASSES = rp.MultinomialLogisticRegression().fit(X, Y)
COUNTS = rp.VectorGLM(rp.Poisson()).fit(X, Y, W, T)
FORMULA = rp.VectorGLM("poisson", formula="y ~ a").fit(X.assign(y=Y))
BOTH = T.to_frame("u").assign(v=0.0)


def other(values: Any) -> Any:
    return values.sort_index()


CALLS = {
    "y of classes": (lambda: rp.MultinomialLogisticRegression().fit(X, other(Y)), "y"),
    "y": (lambda: rp.VectorGLM(rp.Poisson()).fit(X, other(Y)), "y"),
    "several responses": (lambda: rp.VectorGLM(rp.Poisson()).fit(X, other(BOTH.abs().round())), "y"),
    "weights": (lambda: rp.VectorGLM(rp.Poisson()).fit(X, Y, other(W)), "sample_weight"),
    "offset": (lambda: rp.VectorGLM(rp.Poisson()).fit(X, Y, None, other(T)), "offset"),
    "offsets of classes": (lambda: rp.MultinomialLogisticRegression().fit(X, Y, None, other(BOTH)), "offset"),
    "offset of a formula": (lambda: clone_of(FORMULA).fit(X.assign(y=Y), offset=other(T)), "offset"),
    "groups": (lambda: CLASSES.standard_errors(groups=other(G)), "groups"),
    "groups of a formula": (lambda: FORMULA.standard_errors(groups=other(G)), "groups"),
    "groups of margins": (lambda: COUNTS.margins(groups=other(G)), "groups"),
    "prediction": (lambda: COUNTS.predict(X, other(T)), "offset"),
    "probabilities": (lambda: CLASSES.predict_proba(X, other(BOTH)), "offset"),
    "labels": (lambda: CLASSES.predict(X, other(BOTH)), "offset"),
    "interval": (lambda: COUNTS.predict_interval(X, offset=other(T)), "offset"),
    "score": (lambda: COUNTS.score(X, other(Y), None, T), "y"),
    "weights of a score": (lambda: COUNTS.score(X, Y, other(W), T), "sample_weight"),
    "score of classes": (lambda: CLASSES.score(X, other(Y)), "y"),
    "attach": (lambda: CLASSES.attach(X, other(Y)), "y"),
    "network": (lambda: rp.BayesianMLP(hidden=(2,), max_iter=1, steps=1).fit(X, other(T)), "y"),
    "tables": (
        lambda: rp.VectorGLM(rp.HeteroscedasticGaussian()).fit({"mean": X, "log_scale": other(X)}, T),
        r"X\['log_scale'\]",
    ),
}


def clone_of(model: Any) -> Any:
    return rp.VectorGLM("poisson", formula=model.formula)


@pytest.mark.parametrize("call", CALLS)
def test_the_same_labels_in_another_order(call: str) -> None:
    make, name = CALLS[call]
    with pytest.raises(rp.InputError, match=rf"^{name} has the row labels of .* in another order \(row 0 is .*loc\["):
        make()


def test_two_selections_that_overlap() -> None:
    with pytest.raises(rp.InputError, match="some of them common"):
        rp.MultinomialLogisticRegression().fit(X.iloc[:50], Y.iloc[10:])


def test_labels_that_repeat() -> None:
    with pytest.raises(rp.InputError, match="row 30 is 0 in X and 1 in y"):
        labels = [0] * 40 + [1] * 20
        rp.MultinomialLogisticRegression().fit(X.set_axis(labels), Y.set_axis([0] * 30 + [1] * 20 + [0] * 10))


RESET = {
    "the target": (X, Y.reset_index(drop=True)),
    "the table": (X.reset_index(drop=True), Y),
    "a selection": (X.set_axis(np.arange(N) * 2), Y.reset_index(drop=True)),
    "nothing in common": (X.set_axis([f"r{i}" for i in range(N)]), Y),
    "an array": (X.to_numpy(), Y),
    "the same labels, as objects": (X, Y.set_axis(Y.index.astype(object))),
}


@pytest.mark.parametrize("kind", RESET)
def test_rows_by_position(kind: str) -> None:
    np.testing.assert_allclose(rp.MultinomialLogisticRegression().fit(*RESET[kind]).coef_, CLASSES.coef_, atol=1e-12)


def test_offsets_of_outputs_in_another_order() -> None:
    both = pd.DataFrame({"1": T, "0": 0.0})  # classes are sorted: 0, 1
    for call in (
        lambda: rp.MultinomialLogisticRegression().fit(X, Y, offset=both),
        lambda: CLASSES.predict(X, both),
        lambda: CLASSES.predict_proba(X, both),
        lambda: CLASSES.score(X, Y, offset=both),
    ):
        with pytest.raises(rp.InputError, match=r"column 0 is '1' where '0' stands.*offset\[\['0', '1'\]\]"):
            call()
    right = rp.MultinomialLogisticRegression().fit(X, Y, offset=both[["0", "1"]])
    for other_names in (both[["0", "1"]].to_numpy(), both[["0", "1"]].set_axis(["u", "v"], axis=1)):
        np.testing.assert_array_equal(
            rp.MultinomialLogisticRegression().fit(X, Y, offset=other_names).coef_, right.coef_
        )
    scales = pd.DataFrame({"log_scale": T, "mean": 0.0})
    with pytest.raises(rp.InputError, match="column 0 is 'log_scale' where 'mean' stands"):
        rp.VectorGLM(rp.HeteroscedasticGaussian()).fit(X, T, offset=scales)


def test_tables_of_parameters_in_another_order() -> None:
    model = rp.VectorGLM(rp.HeteroscedasticGaussian()).fit({"mean": X, "log_scale": X[["b"]] * 2}, T)
    found = model.predict({"mean": X, "log_scale": X[["b"]] * 2})
    with pytest.raises(rp.InputError, match=r"'mean' are in another order than at the fit: column 0 is 'b' where 'a'"):
        model.predict({"mean": X[["b", "a"]], "log_scale": X[["b"]]})
    with pytest.raises(rp.InputError, match="'log_scale' are other ones than at the fit: column 0 is 'a' where 'b'"):
        model.predict({"mean": X, "log_scale": X[["a"]]})
    np.testing.assert_array_equal(model.predict({"mean": X.to_numpy(), "log_scale": X[["b"]].to_numpy() * 2}), found)
    arrays = rp.VectorGLM(rp.HeteroscedasticGaussian()).fit({"mean": X.to_numpy()}, T)
    assert arrays.predict({"mean": X}).shape == (N,)


def test_containers_without_labels_go_by_position() -> None:
    mixed = X.set_axis(RNG.permutation(N), axis=0)  # of 0, 1, 2, ...
    arrow = pa.Table.from_pandas(X, preserve_index=False)
    records = X.to_records(index=False)
    y = Y.to_numpy()
    for table, target in ((mixed, pa.array(y)), (arrow, Y.set_axis(mixed.index)), (records, Y.set_axis(mixed.index))):
        found = rp.MultinomialLogisticRegression().fit(table, target)
        np.testing.assert_allclose(found.coef_, CLASSES.coef_, atol=1e-12)
        assert (
            found
            .standard_errors(groups=G.set_axis(RNG.permutation(N)) if table is arrow else pa.array(G))
            .notna()
            .all()
        )
    both = rp.VectorGLM(rp.HeteroscedasticGaussian()).fit({"mean": mixed, "log_scale": arrow}, T.to_numpy())
    assert both.solution_.converged


def test_responses_in_another_order() -> None:
    both = pd.DataFrame({"u": Y, "v": Y + 1})
    model = rp.VectorGLM(rp.Poisson()).fit(X, both)
    with pytest.raises(rp.InputError, match="columns of y are in another order .* column 0 is 'v' where 'u' stands"):
        model.score(X, both[["v", "u"]])
    assert model.score(X, both) == model.score(X, both.to_numpy())
    assert rp.VectorGLM(rp.Poisson()).fit(X, both.to_numpy()).score(X, both) == model.score(X, both)
