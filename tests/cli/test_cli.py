from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import raphson

ANES = Path(__file__).parent.parent.parent / "examples" / "anes96.csv"


def numbers(line: str) -> list[float]:
    """Numbers of a row of the coefficient table, behind its name; nothing for another line."""
    try:
        return [float(part) for part in line.replace("<", "").split()[1:]]
    except ValueError:
        return []


def test_anes96_prints_the_published_fit(cli) -> None:
    ran = cli("fit", ANES, "--target", "party")
    assert ran.code == 0 and ran.err == ""
    for fact in ("944", "-1461.922747", "-1750.346710", "0.164781", "2995.8455", "3170.4500"):
        assert fact in ran.out
    blocks = ran.out.split("party = ")
    assert len(blocks) == 7
    rows = {line.split()[0]: values for line in blocks[6].splitlines() if (values := numbers(line))}
    assert blocks[6].startswith("6 strong republican")
    # Stata 11, as published with statsmodels' copy of the data.
    np.testing.assert_allclose(rows["(intercept)"][:2], [-12.105751, 1.059954821], rtol=5e-4)
    np.testing.assert_allclose(rows["left_right"][:2], [2.0700801, 0.1434089089], rtol=5e-4)
    np.testing.assert_allclose(rows["income"][:2], [0.10889408, 0.025300888], rtol=5e-4)
    for bound, sign in zip(rows["education"][4:], (-1, 1), strict=True):
        assert bound == pytest.approx(0.3219257 + sign * 1.959964 * 0.0910979921, rel=1e-3)


def test_reference_formula_and_level(cli, tmp_path: Path) -> None:
    frame = pd.read_csv(ANES)
    frame.assign(degree=np.where(frame["education"] > 4, 1, 0)).to_csv(tmp_path / "d.csv", index=False)
    formula = "party ~ age + C(degree)"
    reference = ("--reference", "6 strong republican")
    ran = cli("fit", tmp_path / "d.csv", "--formula", formula, *reference, "--level", "0.9")
    assert ran.code == 0
    assert "party = 0 strong democrat" in ran.out and "party = 6" not in ran.out
    assert "C(degree)[T.1]" in ran.out and "[0.05" in ran.out and "0.95]" in ran.out
    assert "- C(degree): 2 levels, coded against '0'" in ran.out


def test_save_and_predict_round_trip(cli, tmp_path: Path) -> None:
    fitted = cli("fit", ANES, "--target", "party", "--save", tmp_path / "m", "--quiet")
    assert (fitted.code, fitted.out, fitted.err) == (0, "", "")
    for name in ("p.csv", "p.parquet"):
        assert cli("predict", tmp_path / "m", ANES, "--out", tmp_path / name).code == 0
    table = pd.read_csv(tmp_path / "p.csv")
    pd.testing.assert_frame_equal(table, pd.read_parquet(tmp_path / "p.parquet"), check_dtype=False)
    probabilities = table.filter(like="probability[")
    assert probabilities.shape == (944, 7)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-12)
    # The score equations of the intercepts: mean predicted probabilities are the observed shares.
    shares = pd.read_csv(ANES)["party"].value_counts(normalize=True).sort_index()
    np.testing.assert_allclose(probabilities.mean(), shares, rtol=1e-6)
    assert sorted(os.listdir(tmp_path)) == ["m", "p.csv", "p.parquet"]


def test_weights_are_repeated_rows(cli, tmp_path: Path) -> None:
    frame = pd.read_csv(ANES).head(300).assign(w=1 + np.arange(300) % 3)
    frame.to_csv(tmp_path / "weighted.csv", index=False)
    rows = frame.loc[frame.index.repeat(frame["w"])].drop(columns="w")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    common = ["--formula", "party ~ age + left_right"]
    weighted = cli("fit", tmp_path / "weighted.csv", *common, "--weights", "w")
    repeated = cli("fit", tmp_path / "rows.csv", *common)
    assert weighted.code == 0
    assert weighted.out.split("party = ")[1:] == repeated.out.split("party = ")[1:]


def test_a_class_without_weight_is_named_by_its_row_in_the_file(cli, tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1.0, 3, np.nan, 4, 2, 5, 1], "y": list("ababacb"), "w": [1.0] * 7})
    frame.loc[5, "w"] = 0.0
    frame.to_csv(tmp_path / "d.csv", index=False)
    ran = cli("fit", tmp_path / "d.csv", "--target", "y", "--weights", "w")
    assert ran.code == 2 and "column 'w': every row of the class 'c' has weight 0" in ran.err
    assert "data row 6" in ran.err


def test_many_whole_numbers_as_classes_are_pointed_out(cli) -> None:
    ran = cli("fit", ANES, "--formula", "income ~ age", "--l2", "0.1")
    assert ran.code == 0 and "- income: 24 different whole numbers, each taken as a class" in ran.out


def test_the_model_is_saved_though_the_reader_of_the_pipe_leaves(tmp_path: Path) -> None:
    command = f"{sys.executable} -c 'from raphson.cli import main; main()'"
    saved = tmp_path / "m"
    subprocess.run(f"{command} fit {ANES} --target party --save {saved} | true", shell=True, check=True)
    assert (saved / "model.json").exists()


def test_binary_offset(cli, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, o = rng.normal(size=(2, 400))
    y = (rng.random(400) < 1 / (1 + np.exp(-(x + o)))).astype(int)
    pd.DataFrame({"x": x, "o": o, "y": y}).to_csv(tmp_path / "d.csv", index=False)
    arguments = ["fit", tmp_path / "d.csv", "--target", "y", "--offset", "o", "--save", tmp_path / "m"]
    ran = cli(*arguments)
    import statsmodels.api as sm

    oracle = sm.GLM(y, sm.add_constant(x), family=sm.families.Binomial(), offset=o).fit(tol=1e-12)
    line = next(line for line in ran.out.splitlines() if line.startswith("x "))
    np.testing.assert_allclose(numbers(line)[:2], [oracle.params[1], oracle.bse[1]], rtol=1e-3)
    assert cli("predict", tmp_path / "m", tmp_path / "d.csv", "--out", tmp_path / "p.csv").code == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "p.csv")["probability[1]"], oracle.fittedvalues, rtol=1e-6)
    three = cli("fit", ANES, "--target", "party", "--offset", "age")
    assert three.code == 2 and "once per class" in three.err


def test_clustered_standard_errors(cli, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"x": rng.normal(size=300), "g": np.repeat(np.arange(30), 10)})
    noise = rng.logistic(size=300) + rng.normal(size=30)[frame["g"]]
    frame["y"] = (frame["x"] + noise > 0).astype(int)
    frame.to_csv(tmp_path / "d.csv", index=False)
    ran = cli("fit", tmp_path / "d.csv", "--target", "y", "--groups", "g")
    line = next(line for line in ran.out.splitlines() if line.startswith("x "))
    import statsmodels.api as sm

    oracle = sm.Logit(frame["y"], sm.add_constant(frame["x"])).fit(
        disp=0, tol=1e-12, cov_type="cluster", cov_kwds={"groups": frame["g"], "use_correction": False}
    )
    # Stata's factor G / (G - 1) on the variance.
    assert numbers(line)[1] == pytest.approx(oracle.bse["x"] * np.sqrt(30 / 29), rel=1e-3)
    assert cli("fit", tmp_path / "d.csv", "--target", "y", "--groups", "g", "--covariance", "observed").code == 2


def test_separated_classes_are_reported_and_not_usable(cli, tmp_path: Path) -> None:
    frame = pd.DataFrame({"dose": [1, 2, 3, 4, 5, 6, 7, 8], "cured": list("nnnnyyyy")})
    frame.to_csv(tmp_path / "d.csv", index=False)
    ran = cli("fit", tmp_path / "d.csv", "--target", "cured")
    assert ran.code == 1
    assert "not estimable" in ran.out and "separated" in ran.out and "l2" in ran.out
    assert ran.err.count("\n") == 1 and ran.err.startswith("raphson: this fit is not usable.")
    penalized = cli("fit", tmp_path / "d.csv", "--target", "cured", "--l2", "0.1")
    assert penalized.code == 0 and penalized.err == ""


def test_a_fit_that_stops_early_is_not_usable(cli) -> None:
    ran = cli("fit", ANES, "--target", "party", "--max-iter", "1", "--quiet")
    assert ran.code == 1 and ran.out == "" and ran.err.startswith("raphson: this fit is not usable.")


def test_missing_values_are_counted(cli, tmp_path: Path) -> None:
    frame = pd.read_csv(ANES)
    frame.loc[[3, 5], "income"] = np.nan
    frame.to_csv(tmp_path / "d.csv", index=False)
    ran = cli("fit", tmp_path / "d.csv", "--target", "party")
    assert ran.code == 0 and "- 2 of 944 rows left out for missing values (income 2)" in ran.out
    refused = cli("fit", tmp_path / "d.csv", "--target", "party", "--missing", "error")
    assert refused.code == 2 and "column 'income', data row 4: the value is missing" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "nowhere.csv", "--target", "y"], "nowhere.csv does not exist"),
        (["fit", ANES, "--target", "partie"], "did you mean 'party'"),
        (["fit", ANES], "say what to predict"),
        (
            ["fit", ANES, "--target", "party", "--reference", "2 independent-democrats"],
            "did you mean '2 independent",
        ),
        (["fit", ANES, "--target", "party", "--level", "95"], "a probability between 0 and 1"),
        (["fit", ANES, "--target", "party", "--drop", "agee"], "did you mean 'age'"),
        (
            ["fit", ANES, "--target", "party", "--l2", "0.1", "--covariance", "observed"],
            "use --covariance sandwich",
        ),
        (["fit", ANES, "--formula", "party ~ age +"], r"misplaced\)\.\n"),
        (["fit", ANES, "--target", "party", "--save", ANES], "is a file"),
        (["fit", ANES, "--formula", "party ~ open('x')"], "is not allowed"),
        (
            ["fit", ANES, "--target", "log_population", "--likelihood", "categorical"],
            "target 'log_population' holds fractional numbers",
        ),
        (["predict", ANES.parent, ANES, "--out", "p.txt"], "must end in .csv or .parquet"),
        (["predict", ANES.parent, ANES, "--out", "nowhere/p.csv"], "does not exist"),
        (["predict", ANES.parent, ANES, "--out", "p.csv"], "is not a saved model"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(cli, arguments: list[object], message: str) -> None:
    ran = cli(*arguments)
    assert ran.code == 2 and ran.out == ""
    assert ran.err.startswith("raphson: ") and ran.err.count("\n") == 1
    assert pd.Series([ran.err]).str.contains(message, regex=True).all(), ran.err


def test_predict_refuses_a_level_the_fit_did_not_see(cli, tmp_path: Path) -> None:
    frame = pd.read_csv(ANES).assign(region=["north", "south"] * 472)
    frame.to_csv(tmp_path / "d.csv", index=False)
    assert cli("fit", tmp_path / "d.csv", "--target", "party", "--save", tmp_path / "m", "-q").code == 0
    frame.loc[7, "region"] = "moon"
    frame.drop(columns="party").to_csv(tmp_path / "new.csv", index=False)
    ran = cli("predict", tmp_path / "m", tmp_path / "new.csv", "--out", tmp_path / "p.csv")
    assert ran.code == 2 and "column 'region', data row 8: the level 'moon'" in ran.err
    assert not (tmp_path / "p.csv").exists()


def test_wrong_usage_is_exit_code_2(cli) -> None:
    assert cli("fit", ANES, "--target", "party", "--covariance", "magic").code == 2
    assert cli("fit", ANES, "--colour", "red").code == 2


def test_version_says_what_runs(cli) -> None:
    assert cli("--version").out == f"{raphson.show_config()}\n"


def test_help_is_quick() -> None:
    code = "import sys; sys.argv = ['raphson', '--help']; from raphson.cli import main; main()"
    started = time.perf_counter()
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "predict" in ran.stdout
    # A loaded machine may be slow; torch alone would take longer than this.
    assert time.perf_counter() - started < 1.5


def test_a_reader_that_leaves_the_pipe_is_no_traceback() -> None:
    code = f"import sys; sys.argv = ['raphson', 'fit', {str(ANES)!r}, '--target', 'party']\n"
    code += "from raphson.cli import main; main()"
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert not ran.stderr and ran.returncode == -signal.SIGPIPE


@pytest.mark.parametrize("arguments", ["--help", "fit --help", "explain poisson", "--version"])
def test_every_output_ends_as_that_of_other_commands(arguments: str) -> None:
    command = [sys.executable, "-m", "raphson", *arguments.split()]
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert not ran.stderr and ran.returncode == -signal.SIGPIPE
    # and with no standard output at all
    ran = subprocess.run(f"exec {shlex.join(command)} >&-", shell=True, stderr=subprocess.PIPE, text=True)
    assert not ran.stderr and ran.returncode == 0


def test_python_runs_the_package_as_the_command() -> None:
    """``python -m raphson`` is the command line: what torchrun starts."""
    done = subprocess.run([sys.executable, "-m", "raphson", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{raphson.show_config()}\n"


def test_help_names_the_extra_that_figures_need(cli) -> None:
    assert "raphson[plot]" in " ".join(cli("fit", "--help").out.replace("│", " ").split())
