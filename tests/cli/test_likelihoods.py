from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch
from statsmodels.miscmodels.ordinal_model import OrderedModel

import raphson as rp
from raphson.likelihoods import commands


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, pd.DataFrame]:
    rng = np.random.default_rng(0)
    n = 400
    x, g = rng.normal(size=n), rng.choice(["a", "b"], n)
    eta = 0.5 * x + 0.4 * (g == "b")
    frame = pd.DataFrame({
        "x": x,
        "g": g,
        "visits": rng.poisson(np.exp(eta + 2.5)),
        "size": rng.normal(eta, np.where(g == "b", 2.0, 0.5)),
        "time": rng.gamma(3.0, np.exp(eta)),
        "share": rng.beta(2 + x**2, 3.0),
        "grade": np.array(["low", "mid", "high"])[np.digitize(eta + rng.logistic(size=n), [-0.5, 1.0])],
        "passed": np.where(eta + rng.logistic(size=n) > 0, "yes", "no"),
        "years": rng.integers(1, 9, n),
    })
    frame.to_csv(tmp_path / "d.csv", index=False)
    return tmp_path / "d.csv", frame


def rows(out: str, heading: str) -> dict[str, list[float]]:
    """Coefficient and standard error by name, in the block under a heading."""
    block = out.split(f"\n{heading}\n")[1].split("\n\n")[0]
    found = {}
    for line in block.splitlines()[2:]:
        parts = line.replace("<", "").split()
        found[parts[0]] = [float(part) for part in parts[1:3]]
    return found


def exog(frame: pd.DataFrame) -> np.ndarray:
    return np.column_stack([np.ones(len(frame)), frame["x"], frame["g"] == "b"]).astype(float)


def test_counts_are_poisson_by_default_and_say_so(cli, table) -> None:
    path, frame = table
    code, out, err = cli("fit", path, "--formula", "visits ~ x + g")
    assert (code, err) == (0, "") and "- likelihood poisson for visits" in out
    oracle = sm.GLM(frame["visits"], exog(frame), family=sm.families.Poisson()).fit(tol=1e-12)
    found = np.array(list(rows(out, "log_mean of visits").values()))
    np.testing.assert_allclose(found, np.column_stack([oracle.params, oracle.bse]), rtol=1e-3)


def test_offset_and_exposure(cli, table, tmp_path: Path) -> None:
    path, frame = table
    frame.assign(log_years=np.log(frame["years"])).to_csv(path, index=False)
    arguments = ["--formula", "visits ~ x + g", "--likelihood", "poisson", "--offset", "log_years"]
    code, out, _ = cli("fit", path, *arguments, "--save", tmp_path / "m")
    oracle = sm.GLM(frame["visits"], exog(frame), family=sm.families.Poisson(), exposure=frame["years"]).fit(tol=1e-12)
    assert code == 0 and rows(out, "log_mean of visits")["x"][0] == pytest.approx(oracle.params["x1"], rel=1e-3)
    assert cli("predict", tmp_path / "m", path, "--out", tmp_path / "p.csv")[0] == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "p.csv")["predicted"], oracle.fittedvalues, rtol=1e-6)


def test_numbers_are_gaussian_by_default_and_scale_has_a_formula(cli, table, tmp_path: Path) -> None:
    path, frame = table
    code, out, _ = cli(
        "fit", path, "--formula", "size ~ C(g)", "--formula", "log_scale=~ C(g)", "--save", tmp_path / "m"
    )
    assert code == 0 and "- likelihood gaussian for size (numbers)" in out
    groups = frame.groupby("g")["size"]
    mean, scale, n = groups.mean(), groups.std(ddof=0), groups.count()
    assert rows(out, "mean of size")["(intercept)"] == pytest.approx([mean["a"], scale["a"] / n["a"] ** 0.5], rel=1e-3)
    in_scale = rows(out, "log_scale of size")
    assert in_scale["(intercept)"] == pytest.approx([np.log(scale["a"]), (2 * n["a"]) ** -0.5], rel=1e-3)
    assert in_scale["C(g)[T.b]"][0] == pytest.approx(np.log(scale["b"] / scale["a"]), rel=1e-3)
    frame.drop(columns="size").to_csv(path, index=False)
    assert cli("predict", tmp_path / "m", path, "--out", tmp_path / "p.csv")[0] == 0
    predicted = pd.read_csv(tmp_path / "p.csv")
    np.testing.assert_allclose(predicted["predicted"], mean[frame["g"]], rtol=1e-9)
    np.testing.assert_allclose(np.exp(predicted["linear[log_scale]"]), scale[frame["g"]], rtol=1e-9)


def test_without_a_formula_heteroscedastic_columns_act_on_both(cli, table) -> None:
    path, _ = table
    code, out, _ = cli("fit", path, "--target", "size", "--likelihood", "heteroscedastic_gaussian")
    assert code == 0 and rows(out, "log_scale of size").keys() == rows(out, "mean of size").keys()
    _, out, _ = cli("fit", path, "--target", "size", "--likelihood", "gaussian")
    assert list(rows(out, "log_scale of size")) == ["(intercept)"]


def test_missing_values_are_dropped_in_all_formulas_alike(cli, table) -> None:
    path, frame = table
    frame.loc[3, "x"] = np.nan
    frame.loc[5, "g"] = None
    frame.to_csv(path, index=False)
    code, out, _ = cli("fit", path, "--formula", "size ~ x", "--formula", "log_scale=~ C(g)")
    assert code == 0 and "398" in out.split("Log-likelihood")[0]
    assert "(x 1)" in out and "(g 1)" in out


def test_ordered_levels_and_their_prediction(cli, table, tmp_path: Path) -> None:
    path, frame = table
    fit = ["fit", path, "--formula", "grade ~ x + g", "--likelihood", "ordinal"]
    code, _, err = cli(*fit)
    assert code == 2 and "--levels" in err and "high,low,mid" in err
    code, out, _ = cli(*fit, "--levels", "low,mid,high", "--save", tmp_path / "m")
    assert code == 0 and "- grade: levels in the order low < mid < high" in out
    codes = frame["grade"].map({"low": 0, "mid": 1, "high": 2})
    oracle = OrderedModel(codes, exog(frame)[:, 1:], distr="logit").fit(disp=0, method="newton")
    found = np.array(list(rows(out, "shared of grade").values()))
    np.testing.assert_allclose(found[:, 0], oracle.params[:2], rtol=1e-3)
    np.testing.assert_allclose(found[:, 1], oracle.bse[:2], rtol=1e-3)
    assert cli("predict", tmp_path / "m", path, "--out", tmp_path / "p.csv")[0] == 0
    predicted = pd.read_csv(tmp_path / "p.csv")
    shares = predicted[["probability[low]", "probability[mid]", "probability[high]"]].to_numpy()
    np.testing.assert_allclose(shares, oracle.predict(exog(frame)[:, 1:]), atol=1e-4)
    assert set(predicted["predicted"]) <= {"low", "mid", "high"}


def test_two_levels_of_text(cli, table, tmp_path: Path) -> None:
    path, frame = table
    arguments = ["--formula", "passed ~ x", "--likelihood", "bernoulli", "--save", tmp_path / "m"]
    code, out, _ = cli("fit", path, *arguments)
    oracle = sm.Logit((frame["passed"] == "yes").astype(float), sm.add_constant(frame["x"])).fit(disp=0, tol=1e-12)
    assert code == 0 and "- passed: levels in the order no < yes" in out
    assert rows(out, "logit of passed")["x"] == pytest.approx([oracle.params["x"], oracle.bse["x"]], rel=1e-3)
    assert cli("predict", tmp_path / "m", path, "--out", tmp_path / "p.csv")[0] == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "p.csv")["probability[yes]"], oracle.predict(), rtol=1e-6)


def test_successes_out_of_a_number_of_trials(cli, table) -> None:
    path, frame = table
    code, out, _ = cli("fit", path, "--formula", "years ~ x", "--likelihood", "binomial", "--trials", "8")
    counts = np.column_stack([frame["years"], 8 - frame["years"]])
    oracle = sm.GLM(counts, sm.add_constant(frame[["x"]]), family=sm.families.Binomial()).fit(tol=1e-12)
    assert code == 0
    assert rows(out, "logit of years")["x"] == pytest.approx([oracle.params.iloc[1], oracle.bse.iloc[1]], rel=1e-3)


TARGETS = {"two": "passed", "ordered": "years", "successes": "years"}


def within(kind: type[rp.Likelihood], column: pd.Series) -> bool:
    return bool(kind.support.contains(torch.tensor(column.to_numpy())).all())


@pytest.mark.parametrize("name", commands())
def test_every_name_fits(cli, table, name: str) -> None:
    path, frame = table
    kind, command = commands()[name]
    numbers = (column for column in ("size", "time", "visits", "share") if within(kind, frame[column]))
    target = TARGETS.get(command.target) or next(numbers)
    trials = ["--trials", "8"] if command.target == "successes" else []
    code, _, err = cli("fit", path, "--formula", f"{target} ~ x", "--likelihood", name, "--quiet", *trials)
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "visits", "--likelihood", "poison"], "did you mean 'poisson'"),
        (["--target", "size", "--likelihood", "gamma"], "must be a positive finite number"),
        (["--formula", "size ~ x", "--formula", "log_scale=~ nix"], "log_scale=...: there is no column 'nix'"),
        (["--formula", "size ~ x", "--formula", "sigma=~ x"], "no parameter called 'sigma'"),
        (["--formula", "size ~ x", "--formula", "size ~ g"], "both name no parameter"),
        (["--formula", "log_scale=~ x", "--formula", "log_scale=~ g", "--target", "size"], "two formulas"),
        (["--formula", "grade ~ x", "--formula", "log_scale=~ x"], "does not go with classes"),
        (["--target", "size", "--likelihood", "gaussian", "--reference", "a"], "has none"),
        (["--target", "visits", "--likelihood", "poisson", "--levels", "a,b"], "has numbers"),
        (["--target", "grade", "--likelihood", "ordinal", "--levels", "low,mid"], "'high' is missing"),
        (["--target", "years", "--likelihood", "binomial"], "successes out of how many? Say it with --trials N"),
        (["--target", "years", "--likelihood", "binomial", "--trials", "5"], "from 0 to 5"),
        (["--target", "years", "--likelihood", "poisson", "--trials", "5"], "'poisson' has none"),
        (["--target", "years", "--trials", "5"], "--trials does not go with classes"),
        (["--target", "grade", "--likelihood", "bernoulli"], "has 3 levels"),
        (
            ["--formula", "grade ~ x", "--formula", "0|1=~ g", "--likelihood", "ordinal", "--levels", "low,mid,high"],
            "share their slopes",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(cli, table, arguments: list[str], message: str) -> None:
    code, out, err = cli("fit", table[0], *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err, err


def test_links_by_name(cli, table, tmp_path: Path) -> None:
    path, frame = table
    code, out, err = cli("fit", path, "--formula", "passed ~ x + g", "--likelihood", "bernoulli", "--link", "probit")
    assert (code, err) == (0, "")
    binomial = sm.families.Binomial(sm.families.links.Probit())
    oracle = sm.GLM(frame["passed"] == "yes", exog(frame), family=binomial).fit(tol=1e-12)
    found = np.array(list(rows(out, "probit of passed").values()))
    np.testing.assert_allclose(found[:, 0], oracle.params, rtol=1e-3)

    options = ("--likelihood", "gamma", "--link", "inverse", "--save", tmp_path / "m")
    assert cli("fit", path, "--formula", "time ~ g", *options).code == 0
    assert cli("predict", tmp_path / "m", path, "--out", tmp_path / "p.csv").code == 0
    means = pd.read_csv(tmp_path / "p.csv").iloc[:, 0].groupby(frame["g"]).first()
    np.testing.assert_allclose(means, frame.groupby("g")["time"].mean(), rtol=1e-4)

    code, _, err = cli("fit", path, "--formula", "visits ~ x", "--likelihood", "poisson", "--link", "probit")
    assert code == 2 and "'poisson' has no link 'probit'; choose one of log, identity, sqrt" in err
    code, _, err = cli("fit", path, "--formula", "years ~ x", "--link", "log", "--likelihood", "student-t")
    assert code == 2 and "it takes none" in err
    code, out, err = cli("explain", "bernoulli", "--link", "probit")
    assert (code, err) == (0, "") and out.startswith("Bernoulli(link='probit')") and "p = Φ(η)" in out
