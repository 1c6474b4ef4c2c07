"""Files and options that cannot be used: exit code 2 and one sentence; numbers of any size are themselves."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import raphson as rp


def write(folder: Path, y: list[object], header: str = "x,y", encoding: str = "utf-8") -> Path:
    x = np.random.default_rng(0).normal(size=len(y))
    text = header + "\n" + "".join(f"{a},{b}\n" for a, b in zip(x, y, strict=True))
    (folder / "d.csv").write_bytes(text.encode(encoding))
    return folder / "d.csv"


CLASSES = [["a", "b", "b", "a", "c"][i * i % 5] for i in range(60)]


@pytest.mark.parametrize(
    "options",
    [
        ["--target", ""], ["--target", "y", "--weights", ""], ["--target", "y", "--offset", ""], ["--formula", ""],
        ["--target", "y", "--groups", ""], ["--target", "y", "--drop", ""], ["--target", "y", "--reference", ""],
        ["--target", "y", "--levels", ""], ["--target", "y", "--likelihood", ""], ["--formula", "y ~ C(x, 3)"],
        ["--target", "y", "--max-iter", "9" * 30], ["--target", "x", "--likelihood", "binomial", "--trials", "9" * 30],
        ["--target", "y", "--max-iter", "9" * 5000], ["--target", "y", "--l2", "nan"], ["--target", "y", "--l2", "inf"],
        ["--target", "y", "--tol", "nan"], ["--target", "y", "--tol", "-1"], ["--target", "y", "--level", "nan"],
        ["--target", "y", "--missing", " "], ["--target", "y", "--save", "/dev/null/m"],
        ["--formula", "y ~ x + I(x * ('`' < str(__import__('os').system('touch /nowhere')) + '`'))"],
    ],
)  # fmt: skip
def test_options_that_cannot_be(cli, tmp_path: Path, options: list[str]) -> None:
    ran = cli("fit", write(tmp_path, CLASSES), *options)
    assert ran.code == 2 and ran.out == "" and ran.err != "" and "Traceback" not in ran.err


@pytest.mark.parametrize(("header", "encoding"), [("größe,y", "latin-1"), ("x,y", "utf-16"), ("größe,y", "utf-16")])
def test_other_encodings(cli, tmp_path: Path, header: str, encoding: str) -> None:
    ran = cli("fit", write(tmp_path, CLASSES, header, encoding), "--target", "y")
    assert ran.code == 2 and "UTF-8" in ran.err and ran.err.count("\n") == 1


def test_files_that_are_no_tables(cli, tmp_path: Path) -> None:
    write(tmp_path, CLASSES)
    os.mkfifo(tmp_path / "fifo")
    pd.read_csv(tmp_path / "d.csv").to_parquet(tmp_path / "d.parquet")
    whole = (tmp_path / "d.parquet").read_bytes()
    draw = np.random.default_rng(0)
    for name in ("fifo", "/dev/zero", "", ".", *range(20)):
        file = tmp_path / str(name)
        if isinstance(name, int):
            data = np.frombuffer(whole, dtype=np.uint8).copy()
            data[draw.integers(0, len(data), 20)] = draw.integers(0, 256, 20)
            file = tmp_path / "damaged.parquet"
            file.write_bytes(data.tobytes())
        ran = cli("fit", file, "--target", "y")
        assert ran.code in ((0, 1, 2) if isinstance(name, int) else (2,)) and "Traceback" not in ran.err
        assert ran.code != 2 or ran.err.count("\n") == 1


def test_a_full_disk_behind_stdout(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from raphson.cli import main; main()", "fit", str(write(tmp_path, CLASSES))]
    with open("/dev/full", "w") as full:
        ran = subprocess.run([*command, "--target", "y"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and "No space left" in ran.stderr


@pytest.mark.parametrize("base", [2**53, 2**62, 2**63, 2**64 - 4])
@pytest.mark.parametrize("missing", [False, True])
def test_classes_keep_their_exact_labels(cli, tmp_path: Path, base: int, missing: bool) -> None:
    labels = [base + 1, base + 2, base + 3]
    y = [labels[i * i % 5 % 3] for i in range(60)]
    file = write(tmp_path, ["" if missing and i == 7 else value for i, value in enumerate(y)])
    assert cli("fit", file, "--target", "y", "--likelihood", "categorical", "--save", tmp_path / "m", "-q").code == 0
    assert rp.load(tmp_path / "m").model.classes_.tolist() == sorted(set(y))
    assert cli("predict", tmp_path / "m", file, "--out", tmp_path / "p.csv").code == 0
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == "predicted," + ",".join(f"probability[{label}]" for label in sorted(set(y)))
    assert {line.split(",")[0] for line in lines[1:]} <= {str(label) for label in labels}


@pytest.mark.parametrize("values", [[2**64 + 1, 2**64 + 2, 7], [-(2**63) - 1, 2**63, 1], ["1e200", "3e200", "2"]])
def test_numbers_beyond_exactness_are_no_classes(cli, tmp_path: Path, values: list[object]) -> None:
    file = write(tmp_path, ["5", *(values[i % 3] for i in range(59))])
    ran = cli("fit", file, "--target", "y", "--likelihood", "categorical")
    assert ran.code == 2 and "column 'y', data row 2: " in ran.err and "too large to be a class" in ran.err
    if "1e200" in values:
        ran = cli("fit", file, "--target", "y")
        assert ran.code == 2 and "column 'y', data row 2: 1e+200 is too large to compute with" in ran.err
    ran = cli("fit", file, "--target", "y", "--likelihood", "poisson")
    assert "-9223372036854775808" not in ran.out + ran.err and "Traceback" not in ran.err


def test_numbers_beyond_exactness_are_no_groups(cli, tmp_path: Path) -> None:
    rows = [f"{i % 7},{i % 2},{10**20 + i // 10}" for i in range(60)]
    (tmp_path / "d.csv").write_text("\n".join(["x,y,id", *rows]))
    ran = cli("fit", tmp_path / "d.csv", "--formula", "y ~ x", "--groups", "id")
    assert ran.code == 2 and "column 'id', data row 1: 1e+20 is too large to be a level or a group" in ran.err


def test_python_tables_keep_large_numbers() -> None:
    for values in ([2.0**63, 1.0, 2.0**70, 1e200], [2**63, 2**63 + 1, 2**64 - 1, 0]):
        frame = pd.DataFrame({"x": [1.0, 2, 3, 4], "y": values, "g": values})
        data = rp.Design.fit(frame, "y", groups="g").training(frame)
        assert data.y is not None and data.groups is not None
        assert data.y.tolist() == values and data.groups.tolist() == values


def test_no_header_and_no_signed_model_runs_code(cli, tmp_path: Path) -> None:
    mark = tmp_path / "P"
    attack = f"I(z * ('`' < str(__import__('os').system('touch {mark}')) + '`'))"
    x, z = np.random.default_rng(0).normal(size=(2, 60))
    frame = pd.DataFrame({"x": x, f"z` + {attack} + `x": z, "y": CLASSES})
    frame.to_csv(tmp_path / "d.csv", index=False)
    assert cli("fit", tmp_path / "d.csv", "--formula", "y ~ .", "--save", tmp_path / "m", "-q").code == 0
    assert cli("predict", tmp_path / "m", tmp_path / "d.csv", "--out", tmp_path / "p.csv").code == 0
    content = json.loads((tmp_path / "m" / "model.json").read_text())
    content["design"]["coding"]["formula"] += f" + {attack}"
    del content["sha256"]
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (tmp_path / "m" / "model.json").write_text(json.dumps(content))
    ran = cli("predict", tmp_path / "m", tmp_path / "d.csv", "--out", tmp_path / "q.csv")
    assert ran.code == 2 and ran.err.count("\n") == 1
    assert not mark.exists() and not (tmp_path / "q.csv").exists()


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (["--formula", "y ~ x", "--likelihood", "poisson"], "data row 4 is -3"),
        (["--formula", "y ~ x", "--likelihood", "beta"], "data row 1 is 1"),
        (["--formula", "y ~ x", "--likelihood", "gamma", "--formula", "log_shape=~ z"], "data row 4 is -3"),
        (["--target", "y", "--likelihood", "poisson", "--model", "mlp:2"], "data row 4 is -3"),
        (["--formula", "y ~ x", "--likelihood", "poisson", "--offset", "o"], "10000 in data row 3"),
    ],
)
def test_targets_are_named_by_their_row_in_the_file(cli, tmp_path: Path, options: list[str], place: str) -> None:
    bad = -3 if "--offset" not in options else 1
    (tmp_path / "d.csv").write_text(f"y,x,z,o\n1,0.5,1,0\n2,,2,0\n1,0.3,3,1e4\n{bad},1.2,2,0\n2,0.1,1,0\n1,0.7,4,0\n")
    ran = cli("fit", tmp_path / "d.csv", *options)
    assert ran.code == 2 and place in ran.err
