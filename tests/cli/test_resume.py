"""``raphson fit --resume``: a fit that goes on from the model of an earlier one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import raphson as rp


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    x, z = rng.normal(size=300), rng.normal(size=300)
    frame = pd.DataFrame({
        "x": x,
        "z": z,
        "party": np.array(["a", "b", "c"])[np.digitize(2 * x + rng.logistic(size=300), [-1.0, 1.0])],
        "visits": rng.poisson(np.exp(1.0 + 0.8 * x)),
        "over": rng.negative_binomial(2, 2.0 / (2.0 + np.exp(1.0 + 0.8 * x))),
        "income": 2.0 + x + np.exp(0.5 * z) * rng.normal(size=300),
    })
    frame.to_csv(tmp_path / "d.csv", index=False)
    return tmp_path / "d.csv"


FITS = {
    "classes": ("--formula", "party ~ x + z"),
    "counts": ("--formula", "visits ~ poly(x, 2)", "--likelihood", "poisson"),
    "two formulas": ("--formula", "income ~ x", "--likelihood", "gaussian", "--formula", "log_scale=~ z"),
    "negative binomial": ("--formula", "over ~ x", "--likelihood", "negative-binomial"),
}


@pytest.mark.parametrize("fit", FITS)
def test_a_fit_that_was_cut_short_goes_on_to_the_same_optimum(cli, table: Path, tmp_path: Path, fit: str) -> None:
    args, saved = ("fit", table, *FITS[fit], "--quiet"), tmp_path / "m"
    assert cli(*args, "--save", tmp_path / "whole").code == 0
    whole = rp.load(tmp_path / "whole").model
    assert cli(*args, "--save", saved, "--max-iter", "1").code == 1
    short = rp.load(saved).model
    assert not np.allclose(short.coef_, whole.coef_, rtol=1e-9, atol=0)
    assert cli(*args, "--save", saved, "--resume").code == 0
    rest = rp.load(saved).model
    np.testing.assert_allclose(rest.coef_, whole.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(rest.standard_errors(), whole.standard_errors(), rtol=1e-6)
    assert rest.warm_start is False
    code, out, _ = cli("fit", table, *FITS[fit], "--save", saved, "--resume")
    assert code == 0 and "began at the coefficients of the model that was saved before" in " ".join(out.split())
    assert rp.load(saved).model.n_iter_ <= 1


def test_without_a_model_the_fit_begins_anew(cli, table: Path, tmp_path: Path) -> None:
    code, out, _ = cli("fit", table, *FITS["classes"], "--save", tmp_path / "m", "--resume")
    assert code == 0 and "no model was saved before" in out


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (("--formula", "party ~ x"), "other columns"),
        (("--formula", "visits ~ x + z", "--likelihood", "poisson"), "other columns"),
        (("--target", "party", "--likelihood", "ordinal", "--levels", "a,b,c", "--formula", "~ x + z"), "likelihood"),
        (("--formula", "party ~ x + z - 1"), "other formulas"),
    ],
)
def test_a_model_of_another_fit_is_refused(
    cli, table: Path, tmp_path: Path, other: tuple[str, ...], words: str
) -> None:
    saved = tmp_path / "m"
    assert cli("fit", table, *FITS["classes"], "--save", saved, "--quiet").code == 0
    before = (saved / "model.json").read_bytes()
    code, out, err = cli("fit", table, *other, "--save", saved, "--resume")
    assert code == 2 and words in err and str(saved) in err and not out
    assert (saved / "model.json").read_bytes() == before


def test_other_classes_no_directory_and_damage_are_refused(cli, table: Path, tmp_path: Path) -> None:
    saved = tmp_path / "m"
    args = ("fit", table, *FITS["classes"])
    assert cli(*args, "--save", saved, "--quiet").code == 0
    frame = pd.read_csv(table)
    frame[frame["party"] != "c"].to_csv(tmp_path / "two.csv", index=False)
    code, _, err = cli("fit", tmp_path / "two.csv", *FITS["classes"], "--save", saved, "--resume")
    assert code == 2 and "other classes" in err
    code, _, err = cli(*args, "--resume")
    assert code == 2 and "--save DIR" in err
    code, _, err = cli("fit", table, "--target", "visits", "--model", "mlp:3", "--save", tmp_path / "n", "--resume")
    assert code == 2 and "--resume is for linear models" in err
    (saved / "tensors.safetensors").write_bytes(b"")
    code, _, err = cli(*args, "--save", saved, "--resume")
    assert code == 2 and "damaged one" in err
