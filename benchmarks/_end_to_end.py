"""The whole command on a large table: process start, imports, reading, coding, fit and printed table, each apart.

Beside it pandas and scikit-learn do the same without standard errors, on the same objective: the log-likelihood without
a penalty. Every contestant runs in a process of its own, whose stages are timed by the clock and by the processor; its
peak memory is what it takes beyond what the imports left, in units of the coded table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROWS = 1_000_000
REGIONS = ("north", "south", "east", "west", "center", "islands", "coast", "mountains")
PARTIES = ("left", "center", "right")
N_NUMBERS = 10
TABLE_BYTES = 8 * (N_NUMBERS + len(REGIONS) - 1)
"""Of a coded row, in float64."""

_CLOCK = """
import gc, json, resource, sys, time
stages = {}

def used():
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), spent.ru_utime + spent.ru_stime

def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) * 1024

def stage(name, run):
    start = used()
    result = run()
    stages[name] = [after - before for before, after in zip(start, used())]
    return result

def imports():
    global held
    gc.disable()  # as the command does; the other contestant gains as much
    IMPORTS
    gc.freeze()
    gc.enable()
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    held = memory("VmRSS")

stage("import", imports)
WORK
stages["peak bytes"] = memory("VmHWM") - held
sys.stdout.flush()
print("\\n" + json.dumps([stages, answer]))
"""

_RAPHSON_IMPORTS = """global rp, MultinomialLogisticRegression, pd, render
    import raphson.cli._fit
    import pandas as pd, pyarrow.csv, pyarrow.parquet, raphson as rp
    from raphson import MultinomialLogisticRegression
    from raphson.cli._render import render"""

_RAPHSON = """
frame = stage("read", lambda: rp.read_table(sys.argv[1]))
def code():
    design = rp.Design.fit(frame, "party")
    return design, design.training(frame)
design, data = stage("code", code)
del frame
x = pd.DataFrame(data.x, columns=list(data.names), copy=False)
model = MultinomialLogisticRegression()
stage("fit", lambda: model.fit(x, data.y))
stage("table", lambda: render(model.summary(), list(design.notes), "party = {}"))
answer = [model.coef_.tolist(), list(model.classes_)]
"""

_SKLEARN_IMPORTS = """global pd, np, LogisticRegression
    import numpy as np, pandas as pd, pyarrow.csv, pyarrow.parquet, torch
    from sklearn.linear_model import LogisticRegression"""

_SKLEARN = """
frame = stage("read", lambda: getattr(pd, "read_" + sys.argv[1].rpartition(".")[2])(sys.argv[1]))
def code():
    x = pd.get_dummies(frame.drop(columns="party"), drop_first=True, dtype=float).astype(float)
    scale = x.std(ddof=0)
    return (x - x.mean()) / scale, scale, frame["party"]
x, scale, y = stage("code", code)
del frame
model = LogisticRegression(C=np.inf, tol=1e-6, max_iter=20000)
stage("fit", lambda: model.fit(x, y))
def table():
    coefficients = pd.DataFrame(model.coef_ / scale.to_numpy(), model.classes_, x.columns)
    print(coefficients.T.to_string())
    return coefficients
answer = [stage("table", table).to_numpy().tolist(), list(model.classes_)]
"""


def write_table(folder: Path) -> tuple[Path, Path]:
    """Write the table as Parquet and CSV: eight measurements, two counts, a text of eight levels, three parties."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, N_NUMBERS))
    x[:, 8], x[:, 9] = rng.integers(0, 90, ROWS), rng.poisson(3, ROWS)
    region = rng.integers(0, len(REGIONS), ROWS)
    slopes = rng.standard_normal((N_NUMBERS, 3)) * 0.4 / np.array([1.0] * 8 + [30.0, 3.0])[:, None]
    f = x @ slopes + (rng.standard_normal((len(REGIONS), 3)) * 0.5)[region]
    party = (f + rng.gumbel(size=f.shape)).argmax(1)
    columns: dict[str, Any] = {f"x{j}": x[:, j] for j in range(8)}
    columns |= {"age": x[:, 8].astype(int), "children": x[:, 9].astype(int)}
    for name, codes, levels in (("region", region, REGIONS), ("party", party, PARTIES)):
        columns[name] = pa.DictionaryArray.from_arrays(codes.astype(np.int32), list(levels)).cast(pa.string())
    table = pa.table(columns)
    parquet, csv = folder / "table.parquet", folder / "table.csv"
    pyarrow.parquet.write_table(table, parquet)
    pyarrow.csv.write_csv(table, csv)
    return parquet, csv


def end_to_end(repeats: int) -> dict[str, Any]:
    """Return seconds by the clock and by the processor of each stage, medians, by file and contestant."""
    programs = {
        "raphson": _CLOCK.replace("IMPORTS", _RAPHSON_IMPORTS).replace("WORK", _RAPHSON),
        "pandas + scikit-learn": _CLOCK.replace("IMPORTS", _SKLEARN_IMPORTS).replace("WORK", _SKLEARN),
    }
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in write_table(Path(folder)):
            runs: dict[str, list[Any]] = {name: [] for name in programs}
            commands = []
            for program in programs.values():  # not counted: modules are compiled
                _run([sys.executable, "-c", program, str(file)])
            for _ in range(repeats):
                for name, program in programs.items():
                    runs[name].append(_run([sys.executable, "-c", program, str(file)]))
                start = time.perf_counter()
                command = [sys.executable, "-m", "raphson", "fit", str(file), "--target", "party"]
                subprocess.run(command, check=True, capture_output=True, env=_environment())
                commands.append(time.perf_counter() - start)
            kind = file.suffix[1:]
            results[kind] = {name: _medians([stages for stages, _ in of]) for name, of in runs.items()}
            results[kind]["raphson fit, the whole process, s"] = float(np.median(commands))
            results[kind]["largest difference of a coefficient"] = _difference(*(of[0][1] for of in runs.values()))
    return results


def _run(command: list[str]) -> list[Any]:
    """Return what a program prints last, with the time of a bare interpreter beside its stages."""
    start = time.perf_counter()
    subprocess.run([command[0], "-c", "pass"], check=True)
    bare = time.perf_counter() - start
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=_environment()).stdout
    stages, answer = json.loads(printed.splitlines()[-1])
    return [{"start": [bare, bare], **stages}, answer]


def _environment() -> dict[str, str]:
    """Return the environment in which modules are compiled once, as those of an installed package are."""
    kept = Path(tempfile.gettempdir()) / f"raphson-benchmark-{os.getuid()}"
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPYCACHEPREFIX": str(kept)}


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in runs[0]:
        value = np.median([run[name] for run in runs], axis=0)
        if name == "peak bytes":
            found["peak memory, tables"] = float(value) / (TABLE_BYTES * ROWS)
        else:
            found[name] = {"s": float(value[0]), "processor s": float(value[1])}
    return found


def _difference(ours: list[Any], theirs: list[Any]) -> float:
    """Return the largest difference between two tables of coefficients ``(K, D)``, each made to sum to zero."""
    (a, classes), (b, same) = ours, theirs
    assert classes == same
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs((a - a.mean(0)) - (b - b.mean(0))).max())
