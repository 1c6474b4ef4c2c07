"""Options of ``raphson fit`` for rates, times, ratios and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf

import raphson as rp


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, pd.DataFrame]:
    rng = np.random.default_rng(4)
    n = 200
    x, days = rng.normal(size=n), rng.uniform(1, 400, n)
    frame = pd.DataFrame({
        "x": x,
        "days": days,
        "visits": rng.poisson(0.1 * days * np.exp(0.4 * x)),
        "time": rng.weibull(1.5, n) * np.exp(0.5 * x),
        "seen": (rng.random(n) < 0.7).astype(int),
    })
    frame.to_csv(tmp_path / "d.csv", index=False)
    return tmp_path / "d.csv", frame


def test_exposure_is_an_offset_of_logarithms(cli, table, tmp_path: Path) -> None:
    path, frame = table
    oracle = smf.glm("visits ~ x", frame, family=sm.families.Poisson(), offset=np.log(frame["days"])).fit(tol=1e-12)
    args = ("fit", path, "--likelihood", "poisson", "--quiet", "--save", tmp_path / "m", "--out", tmp_path / "c.csv")
    for options in (
        ("--formula", "visits ~ x", "--exposure", "days"),
        ("--formula", "visits ~ x + offset(log(days))"),
        ("--target", "visits", "--drop", "time", "--drop", "seen", "--exposure", "days"),
    ):
        assert cli(*args, *options) == (0, "", "")
        found = pd.read_csv(tmp_path / "c.csv")
        assert list(found.columns) == ["parameter", "column", "coef", "std_err", "z", "p_value", "lower", "upper"]
        np.testing.assert_allclose(found[["coef", "std_err"]], np.c_[oracle.params, oracle.bse], rtol=1e-6)
        assert cli("predict", tmp_path / "m", path, "--out", tmp_path / "p.csv")[0] == 0
        np.testing.assert_allclose(pd.read_csv(tmp_path / "p.csv")["predicted"], oracle.fittedvalues, rtol=1e-6)
    code, _, err = cli("fit", path, "--formula", "visits ~ x", "--offset", "days", "--likelihood", "poisson")
    assert code == 2 and "Is it an exposure?" in err and "--exposure" in err
    frame.assign(days=frame["days"].where(frame.index != 2, 0)).to_csv(path, index=False)
    code, _, err = cli("fit", path, "--formula", "visits ~ x", "--exposure", "days", "--likelihood", "poisson")
    assert code == 2 and "data row 3" in err and "exposure must be positive" in err


def test_offsets_of_formulas_by_parameter(cli, table, tmp_path: Path) -> None:
    path, frame = table
    given = ("--formula", "time ~ x + offset(days / 100)", "--formula", "log_scale=~ x + offset(x)")
    args = ("--likelihood", "gaussian", "--quiet", "--save", tmp_path / "m")
    assert cli("fit", path, *given, *args) == (0, "", "")
    assert cli("predict", tmp_path / "m", path, "--out", tmp_path / "p.csv")[0] == 0
    model = rp.VectorGLM(
        rp.HeteroscedasticGaussian(),
        formula={"mean": "time ~ x + offset(days / 100)", "log_scale": "~ x + offset(x)"},
    ).fit(frame)
    found = pd.read_csv(tmp_path / "p.csv")
    np.testing.assert_allclose(found["predicted"], model.predict(frame), rtol=1e-7)
    np.testing.assert_allclose(found["linear[log_scale]"], model.linear_predictors(frame)[:, 1], rtol=1e-6)


def test_events(cli, table, tmp_path: Path) -> None:
    path, frame = table
    model = rp.VectorGLM("weibull", formula="Surv(time, seen) ~ x").fit(frame)
    out = ("--quiet", "--out", tmp_path / "c.csv")
    for options in (
        ("--formula", "Surv(time, seen) ~ x"),
        ("--formula", "time ~ x", "--event", "seen", "--likelihood", "weibull"),
    ):
        assert cli("fit", path, *options, *out) == (0, "", "")
        np.testing.assert_allclose(pd.read_csv(tmp_path / "c.csv")["coef"], model.estimates().values, rtol=1e-8)
    code, _, err = cli("fit", path, "--formula", "Surv(time, seen) ~ x", "--likelihood", "gamma")
    assert code == 2 and "'seen' says which times are censored" in err
    code, _, err = cli("fit", path, "--formula", "visits ~ x", "--event", "seen", "--likelihood", "categorical")
    assert code == 2 and "--event does not go with classes" in err


def test_ratios_and_files(cli, table, tmp_path: Path) -> None:
    path, frame = table
    oracle = smf.logit("seen ~ x", frame).fit(disp=0)
    code, out, _ = cli("fit", path, "--formula", "seen ~ x", "--exp", "--out", tmp_path / "c.parquet")
    assert code == 0 and "exp(coef)" in out
    found = pd.read_parquet(tmp_path / "c.parquet")
    np.testing.assert_allclose(found["exp(coef)"], np.exp(oracle.params), rtol=1e-6)
    for name, message in (("c.txt", "must end in .csv or .parquet"), ("no/c.csv", "does not exist")):
        code, _, err = cli("fit", path, "--formula", "seen ~ x", "--out", tmp_path / name)
        assert code == 2 and message in err


def test_jeffreys_prior_and_profiles(cli, tmp_path: Path) -> None:
    rows = np.repeat([[0, 0], [0, 1], [1, 1]], [6, 4, 4], axis=0)
    pd.DataFrame(rows, columns=["g", "y"]).to_csv(tmp_path / "d.csv", index=False)
    given = ("fit", tmp_path / "d.csv", "--formula", "y ~ g")
    separated = cli(*given)
    assert separated.code == 1 and "--penalty jeffreys" in separated.out and "penalty=" not in separated.out
    files = ("--save", tmp_path / "m", "--out", tmp_path / "c.csv")
    ran = cli(*given, "--penalty", "jeffreys", *files)
    assert ran.code == 0 and "Jeffreys-penalized (Firth)" in ran.out and "--intervals profile" in ran.out
    table = pd.read_csv(tmp_path / "c.csv")
    assert table["coef"].iloc[1] == pytest.approx(np.log(4.5 / 0.5) - np.log(4.5 / 6.5), abs=1e-8)
    assert table["z"].iloc[1] == pytest.approx(1.44, abs=0.005)
    loaded = rp.load(tmp_path / "m").model
    assert loaded.penalty == "jeffreys" and "Jeffreys-penalized" in str(loaded.summary())
    np.testing.assert_allclose(loaded.standard_errors().to_numpy(float), table["std_err"], rtol=1e-12)
    ran = cli(*given, "--penalty", "jeffreys", "--intervals", "profile", "--exp", *files[2:])
    assert ran.code == 0 and "P>chi2" in ran.out
    found = pd.read_csv(tmp_path / "c.csv")
    frame = pd.DataFrame(rows, columns=["g", "y"])
    model = rp.MultinomialLogisticRegression(penalty="jeffreys", formula="y ~ g").fit(frame)
    bounds = np.exp(model.confint(method="profile").to_numpy(float))
    np.testing.assert_allclose(found[["lower", "upper"]], bounds, rtol=1e-6)
    np.testing.assert_allclose(found[["chi2", "p_value"]], model.profile_test().to_numpy(float), rtol=1e-6)
    for options in (
        ("--penalty", "jeffreys", "--l2", 0.1),
        ("--intervals", "profile", "--l2", 0.1),
        ("--intervals", "profile", "--covariance", "sandwich"),
        ("--intervals", "profile", "--groups", "g"),
    ):
        code, _, err = cli(*given, *options)
        assert code == 2 and "leave out" in err, err


def test_what_the_fit_warns_of_is_printed(cli, table, tmp_path: Path) -> None:
    path, frame = table
    frame.assign(tiny=frame["x"] * 1e-300).to_csv(path, index=False)
    ran = cli("fit", path, "--formula", "visits ~ tiny", "--likelihood", "poisson")
    assert ran.code == 0 and "not estimable" in ran.out
    assert "'tiny of log_mean' has a variance beyond the range of double precision" in " ".join(ran.out.split())
    assert "Change the unit of the column." in ran.out


def test_of_several_processes_by_torchrun_the_first_fits(cli, table, tmp_path: Path, monkeypatch) -> None:
    path, _ = table
    args = ("fit", path, "--formula", "visits ~ x", "--likelihood", "poisson", "--save", tmp_path / "m")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert cli(*args) == (0, "", "")
    assert not (tmp_path / "m").exists()
    monkeypatch.setenv("RANK", "0")
    code, out, err = cli(*args)
    assert code == 0 and "Poisson" in out and "torchrun started 3 processes" in err
    assert (tmp_path / "m").exists()
