"""``raphson fit --model mlp:...`` and its predictions."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes, load_iris
from typer.testing import CliRunner

from raphson.cli import main  # noqa: F401
from raphson.cli._app import app

run = CliRunner().invoke


@pytest.fixture
def diabetes(tmp_path):
    frame = load_diabetes(as_frame=True).frame.iloc[:200, -5:]
    frame.to_csv(tmp_path / "d.csv", index=False)
    return tmp_path


def test_mean_scale_and_interval_of_a_table(diabetes):
    file, net, out = (str(diabetes / name) for name in ("d.csv", "net", "p.csv"))
    options = ["--target", "target", "--likelihood", "heteroscedastic-gaussian", "--model", "mlp:4", "--save", net]
    fitted = run(app, ["fit", file, *options])
    assert fitted.exit_code == 0, fitted.output
    assert "HeteroscedasticGaussian network, hidden units 4" in fitted.output
    assert run(app, ["predict", net, file, "--out", out]).exit_code == 0
    found = pd.read_csv(out)
    assert list(found) == ["predicted", "sd", "lower", "upper"] and len(found) == 200
    y = pd.read_csv(file)["target"]
    assert np.mean((y > found["lower"]) & (y < found["upper"])) > 0.9


def test_classes(tmp_path):
    frame = load_iris(as_frame=True).frame
    frame["target"] = frame["target"].map({0: "a", 1: "b", 2: "c"})
    frame.to_csv(tmp_path / "i.csv", index=False)
    file, net, out = (str(tmp_path / name) for name in ("i.csv", "net", "p.csv"))
    fitted = run(app, ["fit", file, "--target", "target", "--model", "mlp:4,3", "--save", net])
    assert fitted.exit_code == 0 and re.search(r"Classes: +a, b, c", fitted.output)
    assert run(app, ["predict", net, file, "--out", out]).exit_code == 0
    found = pd.read_csv(out)
    assert list(found) == ["predicted", *(f"probability[{label}]" for label in "abc")]
    assert np.mean(found["predicted"] == frame["target"]) > 0.95


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "mlp"], "as in mlp:50"),
        (["--model", "mlp:0"], "as in mlp:50"),
        (["--model", "mlp:3", "--l2", "1"], "--l2"),
    ],
)
def test_what_does_not_suit_a_network(diabetes, options, words):
    result = run(app, ["fit", str(diabetes / "d.csv"), "--target", "target", *options])
    assert isinstance(result.exception, Exception) and words in str(result.exception) + result.output


@pytest.mark.parametrize("form", ["html", "md", "json"])
def test_a_report_of_a_network(diabetes, form):
    if form == "html":
        pytest.importorskip("matplotlib", reason="a page has figures: pip install 'raphson[plot]'")
    out = diabetes / f"net.{form}"
    options = ["--target", "target", "--likelihood", "gaussian", "--model", "mlp:4", "--report", str(out), "--quiet"]
    fitted = run(app, ["fit", str(diabetes / "d.csv"), *options])
    assert fitted.exit_code == 0, fitted.output
    text = out.read_text(encoding="utf-8")
    assert "Layers and priors" in text or json.loads(text)["layers_and_priors"][0]["layer"] == "layer 1"
    assert "as if left out" in text and "Coverage of predictive intervals" in text
