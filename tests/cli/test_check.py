"""``raphson check`` and ``raphson diagnose``: a saved model and its table, without fitting."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def table(tmp_path):
    g = np.random.default_rng(0)
    frame = pd.DataFrame({"x": g.normal(size=80), "g": g.choice(["u", "v"], 80), "w": g.integers(1, 4, 80)})
    f = np.column_stack([np.zeros(80), frame.x, -frame.x + (frame.g == "v")])
    frame["party"] = np.array(["a", "b", "c"])[(f + g.gumbel(size=f.shape)).argmax(1)]
    frame["count"] = g.poisson(np.exp(0.3 * frame.x))
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False)
    return path, frame


ARGUMENTS = {
    "classes": ["--target", "party", "--drop", "count", "--weights", "w", "--l2", "0.1"],
    "counts": ["--formula", "count ~ x + C(g)", "--likelihood", "poisson"],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_saved_model_is_certified_and_diagnosed(cli, table, tmp_path, name):
    path, frame = table
    assert cli("fit", path, *ARGUMENTS[name], "--save", tmp_path / "model", "--quiet").code == 0
    ran = cli("check", tmp_path / "model", path)
    assert ran.code == 0, ran
    assert "standard errors of the exact optimum" in ran.out
    ran = cli("diagnose", tmp_path / "model", path)
    assert ran.code == 0 and "strongly convex" in ran.out and "Eigenvalues" in ran.out
    found = json.loads(cli("diagnose", tmp_path / "model", path, "--json").out)
    assert found["convex"] == "strongly convex" and found["inertia"][0] == 0
    other = frame.copy()
    other.loc[:20, "x"] += 1.0
    other.to_csv(tmp_path / "other.csv", index=False)
    ran = cli("check", tmp_path / "model", tmp_path / "other.csv")
    assert ran.code == 1 and "not the rows that the model was fitted to" in ran.out


def test_a_table_without_a_column_is_refused(cli, table, tmp_path):
    path, frame = table
    cli("fit", path, *ARGUMENTS["counts"], "--save", tmp_path / "model", "--quiet")
    frame.drop(columns="x").to_csv(tmp_path / "less.csv", index=False)
    ran = cli("check", tmp_path / "model", tmp_path / "less.csv")
    assert ran.code == 2 and "'x'" in ran.err


def test_a_changed_value_a_missing_row_and_another_order(cli, table, tmp_path):
    path, frame = table
    cli("fit", path, *ARGUMENTS["counts"], "--save", tmp_path / "model", "--quiet")
    changed = frame.copy()
    changed.loc[5, "x"] += 1e-3  # far within the tolerance of the certificate
    for name, other in (("changed", changed), ("fewer", frame.iloc[:-1])):
        other.to_csv(tmp_path / f"{name}.csv", index=False)
        ran = cli("check", tmp_path / "model", tmp_path / f"{name}.csv")
        assert ran.code == 1 and "not the rows that the model was fitted to" in ran.out, ran
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "shuffled.csv", index=False)
    assert cli("check", tmp_path / "model", tmp_path / "shuffled.csv").code == 0


@pytest.mark.parametrize("command", ["check", "diagnose"])
def test_a_network_is_refused_in_a_sentence(cli, table, tmp_path, command):
    path, _ = table
    options = ["--target", "x", "--likelihood", "gaussian", "--model", "mlp:2", "--save", tmp_path / "net", "--quiet"]
    assert cli("fit", path, *options).code == 0
    ran = cli(command, tmp_path / "net", path)
    assert ran.code == 2 and "is a network" in ran.err and "Traceback" not in ran.err
