"""Random command lines on random files: exit 0, 1 or 2, never a traceback, never nan or inf printed as an estimate.

A case is made by its seed alone; ``check_command(seed, folder)`` repeats it.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raphson.cli import main

CASES, FEW = 2000, 50
_NAMES = [*["x", "z", "y", "g", "n", "t", "w", "count"], *["a b", "ä", "x.1", "1st", "C", "I", "_", "é,è"]]
_LIKELIHOODS = [
    *("categorical", "bernoulli", "binomial", "ordinal", "poisson", "negative-binomial", "gaussian", "student-t"),
    *("heteroscedastic-gaussian", "gamma", "inverse-gaussian", "weibull", "beta", "ordinal-probit", "Poisson", "gama"),
]
_LINKS = ["logit", "probit", "cloglog", "log", "identity", "inverse", "sqrt", "cauchit", "", "inverse-squared"]
_BAD = re.compile(r"(?<![\w.\[:])[-+]?(nan|inf|infinity)(?![\w.\]:])", re.IGNORECASE)

_NUMBER = re.compile(r"(?<!\S)[-+]?\d+\.\d*(e[-+]?\d+)?(?!\S)")


def random_column(rng: np.random.Generator, n: int) -> list[object]:
    """Values of one column: any kind of number or text, some missing."""
    kind = int(rng.integers(0, 14)) if rng.random() < 0.4 else int(rng.choice([0, 4, 5, 6, 7, 9]))
    values: np.ndarray
    if kind <= 2:
        values = rng.normal(size=n)
    elif kind == 3:
        values = rng.normal(size=n) * 10.0 ** rng.integers(-300, 300)
    elif kind == 4:
        values = rng.integers(0, 3, n)
    elif kind == 5:
        values = rng.poisson(3, n)
    elif kind == 6:
        values = rng.choice(["a", "b", "c d"], n)
    elif kind == 7:
        values = rng.choice(["yes", "no"], n)
    elif kind == 8:
        values = np.full(n, rng.choice([0.0, 1.0, 7.5]))
    elif kind == 9:
        values = rng.random(n)
    elif kind == 10:
        values = np.array([f"level{i}" for i in range(n)])
    elif kind == 11:
        values = rng.choice(["1", "2", "three", "nan", "inf", "-inf", "1e400", "NA"], n)
    elif kind == 12:
        values = rng.choice([True, False], n)
    else:
        values = np.array([2**63 + i for i in range(n)], dtype=object)
    found = values.tolist()
    if rng.random() < 0.15:
        found = [None if rng.random() < 0.2 else value for value in found]
    return found


def random_file(rng: np.random.Generator, folder: Path) -> tuple[Path, list[str]]:
    """A table, mostly a good one, and the names of its columns."""
    n = int(rng.choice([0, 1, 2, 3, 8, 30, 60], p=[0.03, 0.04, 0.03, 0.05, 0.2, 0.35, 0.3]))
    names = [str(name) for name in rng.choice(_NAMES, int(rng.integers(1, 6)), replace=False)]
    frame = pd.DataFrame({name: pd.Series(random_column(rng, n), dtype=object) for name in names})
    if rng.random() < 0.1:
        path = folder / "d.parquet"
        with contextlib.suppress(Exception):
            frame.astype({name: str for name in names}).to_parquet(path)
        if path.exists():
            if rng.random() < 0.3:
                data = path.read_bytes()
                path.write_bytes(data[: int(rng.integers(0, len(data)))])
            return path, names
    path = folder / "d.csv"
    text = frame.to_csv(index=bool(rng.random() < 0.1), sep=str(rng.choice([",", ";", "\t"], p=[0.94, 0.03, 0.03])))
    damage = rng.random()
    if damage < 0.05:
        text = text.replace("\n", ",extra\n", 2)
    elif damage < 0.08:
        text = text[: int(rng.integers(0, len(text) + 1))]
    elif damage < 0.1:
        text = '"' + text
    elif damage < 0.12:
        text = text.replace("\n", "\r\n")
    elif damage < 0.14:
        text = text.replace("\n", "\n\n", 1)
    data = text.encode("utf-8-sig" if rng.random() < 0.05 else "utf-8")
    if rng.random() < 0.05:
        data = text.encode("latin-1", errors="replace")
    if rng.random() < 0.03:
        at = int(rng.integers(0, len(data) + 1))
        data = data[:at] + bytes(rng.integers(0, 256, 4).tolist()) + data[at:]
    path.write_bytes(data)
    return path, names


def random_formula(rng: np.random.Generator, names: list[str]) -> str:
    """A formula, mostly of columns that are there."""
    terms = []
    for _ in range(int(rng.integers(1, 4))):
        name = str(rng.choice(names)) if rng.random() < 0.93 else "missing"
        quoted = name if name.isidentifier() and rng.random() < 0.9 else f"`{name}`"
        forms = [
            "{}",
            "{}",
            "{}",
            "C({})",
            "log({})",
            "I({}**2)",
            "{}:{}",
            "{}*{}",
            "poly({}, 2)",
            "bs({}, df=4)",
            "0 + {}",
        ]
        terms.append(str(rng.choice(forms)).replace("{}", quoted))
    right = str(rng.choice([" + ", " + ", " - ", " * "])).join(terms)
    if rng.random() < 0.05:
        right += str(rng.choice([" +", " ~ ", ")", " + (", "**", "\\", "|", " + 1e400", "'"]))
    return f"{rng.choice(names)} ~ {right if rng.random() < 0.85 else '.'}"


def random_fit(rng: np.random.Generator, folder: Path) -> list[str]:
    """Arguments of ``raphson fit``."""
    path, names = random_file(rng, folder)
    if rng.random() < 0.02:
        path = folder / "none.csv"
    arguments = ["fit", str(path)]
    if rng.random() < 0.2:
        return [*arguments, "--target", names[0]]
    if rng.random() < 0.6:
        arguments += ["--target", str(rng.choice(names)) if rng.random() < 0.95 else ""]
    else:
        arguments += ["--formula", random_formula(rng, names)]
    column = lambda: str(rng.choice(names)) if rng.random() < 0.9 else "none"  # noqa: E731
    numbers = [*["0", "1", "0.1", "1e-3"] * 4, "1e9", "-1", "nan", "inf", "x", "", "1e400"]
    number = lambda: str(rng.choice(numbers))  # noqa: E731
    counts = [*["5", "20", "50"] * 4, "1", "0", "-3", "10000000000000000000000", "2.5", "x"]
    whole = lambda: str(rng.choice(counts))  # noqa: E731
    options = {
        "--likelihood": lambda: str(rng.choice(_LIKELIHOODS)),
        "--link": lambda: str(rng.choice(_LINKS)),
        "--levels": lambda: str(rng.choice(["a,b,c d", "yes,no", "0,1,2", "", "a"])),
        "--trials": whole,
        "--weights": column,
        "--offset": column,
        "--drop": column,
        "--missing": lambda: str(rng.choice(["drop", "error", "what"])),
        "--l2": number,
        "--reference": lambda: str(rng.choice(["first", "none", "last", "a", "yes", "0"])),
        "--covariance": lambda: str(rng.choice(["observed", "expected", "sandwich", "HC1"])),
        "--groups": column,
        "--level": lambda: str(rng.choice(["0.9", "0.5", "1", "0", "95", "nan"])),
        "--max-iter": whole,
        "--tol": number,
        "--save": lambda: str(folder / "model"),
    }
    often = {
        "--likelihood": 0.5,
        "--link": 0.06,
        "--save": 0.15,
        "--levels": 0.02,
        "--trials": 0.01,
        "--reference": 0.03,
    }
    for option, value in options.items():
        if rng.random() < often.get(option, 0.04):
            arguments += [option, value()]
    if "binomial" in arguments and "--trials" not in arguments and rng.random() < 0.8:
        arguments += ["--trials", "20"]
    return arguments


def suited_target(rng: np.random.Generator, likelihood: str, n: int, z: np.ndarray) -> list[object]:
    """A column that a likelihood takes, more or less moved by another one."""
    unit = float(10.0 ** rng.integers(-6, 7)) if rng.random() < 0.2 else 1.0
    f = float(rng.choice([0.0, 0.3, 1.0])) * z
    if likelihood in ("poisson", "negative-binomial"):
        return rng.poisson(np.exp(np.clip(1 + f, -5, 5)) * rng.choice([1, 50])).tolist()
    if likelihood == "binomial":
        return rng.binomial(20, 1 / (1 + np.exp(-f))).tolist()
    if likelihood == "beta":
        return rng.beta(2 * np.exp(f), 3).clip(1e-9, 1 - 1e-9).tolist()
    if likelihood in ("gamma", "inverse-gaussian", "weibull"):
        return (unit * np.exp(f + 0.5 * rng.normal(size=n))).tolist()
    if likelihood == "bernoulli":
        return np.where(f + rng.logistic(size=n) > 0, "yes", "no").tolist()
    if likelihood.startswith("ordinal"):
        return np.digitize(f + rng.logistic(size=n), [-1.0, 0.5, 1.5]).tolist()
    if likelihood == "categorical":
        return rng.choice(["a", "b", "c d"], n).tolist()
    return (unit * (f + rng.normal(size=n) + rng.integers(-3, 4))).tolist()


_SUITED_LINKS = {
    "bernoulli": ["logit", "probit", "cloglog", "loglog", "cauchit"],
    "binomial": ["logit", "probit", "cloglog"],
    "poisson": ["log", "sqrt"],
    "negative-binomial": ["log", "sqrt"],
    "gamma": ["log", "inverse"],
    "inverse-gaussian": ["log", "inverse"],
}


def suited_fit(rng: np.random.Generator, folder: Path) -> list[str]:
    """Arguments of ``raphson fit`` on a sound table with a target that suits the likelihood: mostly accepted."""
    n = int(rng.integers(20, 80))
    likelihood = str(rng.choice([name for name in _LIKELIHOODS if name not in ("Poisson", "gama")]))
    names = [str(name) for name in rng.choice(_NAMES, int(rng.integers(3, 6)), replace=False)]
    target, *others = names
    columns: dict[str, object] = {}
    for name in others:
        kind = int(rng.integers(0, 6))
        columns[name] = [
            rng.normal(size=n),
            rng.normal(size=n) * 10.0 ** rng.integers(-12, 13),
            rng.integers(0, 3, n),
            rng.choice(["a", "b", "c d"], n),
            rng.choice([True, False], n),
            np.where(rng.random(n) < 0.03, np.nan, rng.random(n)),
        ][kind]
    first = next((v for v in columns.values() if v.dtype.kind == "f"), np.zeros(n))
    z = np.nan_to_num(first - np.nanmean(first)) / (np.nanstd(first) + 1e-300)
    columns = {target: suited_target(rng, likelihood, n, z), **columns, "weight": rng.choice([1.0, 2.0, 0.5], n)}
    columns |= {"exposed": np.exp(rng.normal(size=n)), "seen": rng.integers(0, 2, n)}
    path = folder / ("s.parquet" if rng.random() < 0.1 else "s.csv")
    frame = pd.DataFrame(columns)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    quoted = {name: name if name.isidentifier() else f"`{name}`" for name in names}
    arguments = ["fit", str(path), "--likelihood", likelihood]
    if rng.random() < 0.5:
        arguments += ["--target", target, "--drop", "exposed", "--drop", "seen"]
        if "--weights" not in arguments:
            arguments += ["--weights", "weight"] if rng.random() < 0.3 else ["--drop", "weight"]
    else:
        forms = ["{}", "{}", "C({})", "{}:weight", "{} + exposed", "bs(exposed, df=4)", "poly(exposed, 2)", "I({}**2)"]
        plain = [name for name in others if frame[name].dtype.kind in "fi"] or ["exposed"]
        terms = []
        for _ in range(int(rng.integers(1, 3))):
            form = str(rng.choice(forms))
            name = str(rng.choice(plain if "**" in form else others))
            terms.append(form.replace("{}", quoted.get(name, name)))
        arguments += ["--formula", f"{quoted[target]} ~ {' + '.join(terms)}"]
    if likelihood == "binomial":
        arguments += ["--trials", "20"]
    options = {
        "--link": lambda: str(rng.choice(_SUITED_LINKS.get(likelihood, [""]))),
        "--l2": lambda: str(rng.choice(["0", "1e-3", "0.1", "10"])),
        "--covariance": lambda: str(rng.choice(["observed", "expected", "sandwich"])),
        "--level": lambda: str(rng.choice(["0.9", "0.99", "0.5"])),
        "--max-iter": lambda: str(rng.choice(["2", "20", "100"])),
        "--tol": lambda: str(rng.choice(["1e-6", "1e-10"])),
        "--missing": lambda: "drop",
        "--offset": lambda: "exposed",
        "--exposure": lambda: "exposed",
        "--event": lambda: "seen",
        "--save": lambda: str(folder / "model"),
        "--out": lambda: str(folder / "coef.csv"),
    }
    suits = {
        "--link": likelihood in _SUITED_LINKS,
        "--exposure": likelihood in ("poisson", "negative-binomial") and "--offset" not in arguments,
        "--event": likelihood == "weibull",
        "--offset": "--formula" in arguments and likelihood not in ("categorical",),
    }
    for option, value in options.items():
        if suits.get(option, True) and rng.random() < 0.12:
            arguments += [option, value()]
    if "--exposure" in arguments and "--offset" in arguments:
        at = arguments.index("--offset")
        del arguments[at : at + 2]
    for used, option in (("exposed", "--exposure"), ("seen", "--event")):
        if option in arguments and "--target" in arguments:
            at = arguments.index(used) - 1
            if arguments[at] == "--drop":
                del arguments[at : at + 2]
    return arguments if rng.random() < 0.9 else [*arguments, "--exp"]


def random_command(rng: np.random.Generator, folder: Path) -> list[str]:
    """Arguments of any command: two thirds of them sound, the others of any kind."""
    if rng.random() < 0.68:
        return suited_fit(rng, folder)
    kind = rng.random()
    if kind < 0.85:
        return random_fit(rng, folder)
    if kind < 0.95:
        path, _ = random_file(rng, folder)
        return [
            "predict",
            str(folder / "model"),
            str(path),
            "--out",
            str(folder / rng.choice(["p.csv", "p.parquet", "p"])),
        ]
    arguments = ["explain", str(rng.choice(_LIKELIHOODS))]
    for option, values in (
        ("--link", _LINKS),
        ("--dispersion", ["1", "0", "-1", "nan", "x"]),
        ("--trials", ["3", "0"]),
    ):
        if rng.random() < 0.3:
            arguments += [option, str(rng.choice(values))]
    return arguments


def run(arguments: list[str]) -> tuple[int, str, str]:
    """Run the command line in this process; a traceback counts as exit code 70."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["raphson", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(bool(stopped.code))
    except BaseException:
        code = 70
        err.write(traceback.format_exc())
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


def check_command(seed: int, folder: Path) -> int:
    """Run one random command line; returns its exit code."""
    rng = np.random.default_rng(seed)
    arguments = random_command(rng, folder)
    code, out, err = run(arguments)
    assert code in (0, 1, 2), f"exit {code} of {arguments}: {err[-600:]}"
    assert "Traceback" not in err, f"{arguments}: {err[-600:]}"
    if arguments[0] == "fit":
        # levels of the table may have these names: what counts are lines of numbers
        found = [line for line in out.splitlines() if _BAD.search(line) and len(_NUMBER.findall(line)) >= 2]
        assert not found, f"{arguments}: {found[:3]}"
    if code:
        assert err.strip(), f"{arguments}: exit {code} without a word"
    return code


def test_some_random_command_lines(tmp_path: Path) -> None:
    for seed in range(FEW):
        check_command(seed, tmp_path)


@pytest.mark.nightly
def test_many_random_command_lines(tmp_path: Path) -> None:
    failures, codes = [], []
    for seed in range(CASES):
        try:
            codes.append(check_command(seed, tmp_path))
        except AssertionError as error:
            failures.append(f"seed {seed}: {error}")
    assert not failures, f"{len(failures)} of {CASES}: " + "\n".join(failures[:20])
    # a fuzzer of refusals would find no wrong number
    assert codes.count(0) + codes.count(1) >= CASES // 2
