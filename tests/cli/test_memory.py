"""``raphson fit --memory``: the estimate is said, holds, and what does not fit is refused before it starts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raphson.cli._memory import parse_memory
from raphson.table import least_bytes

MEASURED = """
import resource, sys
sys.argv = ["raphson", *sys.argv[1:]]
from raphson.cli import main
try:
    main()
finally:
    print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def table(n: int, d: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(n, d)), columns=[f"x{j}" for j in range(d)])
    frame["text"] = np.array(["u", "v", "w", "z"])[rng.integers(0, 4, n)]
    frame["count"] = rng.poisson(np.exp(0.3 * frame["x0"]))
    frame["party"] = np.array(["a", "b", "c"])[np.digitize(frame["x1"] + rng.logistic(size=n), [-1.0, 1.0])]
    return frame


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("512 MiB", 2**29), ("800m", 8 * 10**8), ("1.5g", 15 * 10**8), ("7", 7), ("3kb", 3000)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_memory(text) == size
    assert parse_memory(None) is None


@pytest.mark.parametrize("text", ["", "2 XB", "-1GB", "0", "GB", "1e9", "inf"])
def test_what_is_no_size_is_refused(cli, text: str) -> None:
    code, _, err = cli("fit", "nowhere.csv", "--target", "y", "--memory", text)
    assert code == 2 and "--memory is a size such as 2GB" in err


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_least_of_a_table_is_less_than_its_memory(tmp_path: Path, suffix: str) -> None:
    frame, file = table(5000, 6), tmp_path / f"d.{suffix}"
    frame.to_csv(file, index=False) if suffix == "csv" else frame.to_parquet(file)
    held = int(frame.memory_usage(index=False, deep=True).sum())
    assert 0.2 * held < least_bytes(file) <= held
    assert least_bytes(tmp_path / "nowhere.csv") == 0


@pytest.mark.parametrize(
    "options", [("--target", "party", "--drop", "count"), ("--formula", "count ~ . - party", "--likelihood", "poisson")]
)
def test_the_estimate_is_above_the_peak(tmp_path: Path, options: tuple[str, ...]) -> None:
    file = tmp_path / "d.parquet"
    table(200_000, 15).to_parquet(file)
    arguments = ["fit", file, *options, "--memory", "8GB"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert not done.stderr, done.stderr
    said = re.search(r"memory: at most about ([\d.]+) (MB|GB) of 8 GB", " ".join(done.stdout.split()))
    assert said is not None, done.stdout
    most = float(said[1]) * {"MB": 1e6, "GB": 1e9}[said[2]]
    peak = int(done.stdout.split("PEAK")[1])
    assert 0.4 * most < peak < 1.01 * most


def test_what_does_not_fit_is_refused(cli, tmp_path: Path) -> None:
    file = tmp_path / "d.parquet"
    table(1000, 5).to_parquet(file)
    code, out, err = cli("fit", file, "--target", "party", "--memory", "1MB")
    assert code == 2 and not out and re.search(r"--memory 1 MB: the program with the table .* takes at least", err)
    code, _, err = cli("fit", file, "--target", "party", "--model", "mlp:3", "--memory", "8GB")
    assert code == 2 and "--memory is for linear models" in err


def test_a_fit_that_would_not_fit_is_refused_with_its_size(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raphson.cli._memory.held_now", lambda: 0)
    file = tmp_path / "d.parquet"
    table(100_000, 5).to_parquet(file)
    code, out, err = cli("fit", file, "--target", "party", "--memory", "70MB", "--formula", "party ~ .:text")
    assert code == 2 and not out
    assert re.search(r"this fit takes up to about \d+ MB \(100000 rows, \d+ columns of the matrix \(\d+", err)
