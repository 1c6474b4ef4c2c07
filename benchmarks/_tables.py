"""Tables of the figures in ``results/``, as the README has them; without the packages that measure them.

``python benchmarks/_tables.py`` puts them into the README, between ``<!-- table: NAME -->`` and ``<!-- end: NAME -->``.
A table whose file of figures is not there stays as it is.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean
from typing import Any

HERE = Path(__file__).parent
SHORT = 3e-3
"""Seconds: a cell of the grid in which both take less is reported apart."""

_OURS, _PEERS = "raphson", ("curvlinops", "backpack")
_KFAC = "K-FAC"


def fits_table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of the table, and the means below it."""
    lines = [
        "| data | raphson s | lbfgs | newton-cg | newton-cholesky | best peer / raphson | lbfgs / raphson |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    best_ratios, lbfgs_ratios = [], []
    for name, result in results.items():
        ours = result["raphson"]
        cells = [f"{ours['seconds']:.4f}" + ("" if ours["credited"] else f" (gradient {ours['gradient']:.0e}!)")]
        for peer in ("lbfgs", "newton-cg", "newton-cholesky"):
            if peer not in result:
                cells.append("too large")
            else:
                r = result[peer]
                cells.append(f"{r['seconds']:.4f}" + ("" if r["credited"] else f" (gradient {r['gradient']:.0e})"))
        peers = {p: r for p, r in result.items() if p != "raphson"}
        credited = [r["seconds"] for r in peers.values() if r["credited"]] or [r["seconds"] for r in peers.values()]
        best_ratios.append(min(credited) / ours["seconds"])
        lbfgs_ratios.append(result["lbfgs"]["seconds"] / ours["seconds"])
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {best_ratios[-1]:.1f} | {lbfgs_ratios[-1]:.1f} |")
    lines.append(
        f"| geometric mean | | | | | **{geometric_mean(best_ratios):.1f}** | **{geometric_mean(lbfgs_ratios):.1f}** |"
    )
    return lines


def glm_ratios(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return how many times longer the fastest credited peer takes, for fits alone and with standard errors."""
    ratios: dict[str, float] = {}
    for kind, rows in results.items():
        peers = [row["seconds"] for name, row in rows.items() if name not in (_OURS, "glum") and row["credited"]]
        if peers:
            ratios[kind] = min(peers) / rows[_OURS]["seconds"]
        if rows.get("glum", {}).get("credited"):
            ratios["glum"] = rows["glum"]["seconds"] / rows[_OURS]["seconds"]
    return ratios


def glm_table(results: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Return the lines of the table, and the means below it.

    Args:
        results: What ``race`` returned, by problem.

    Returns:
        Lines of Markdown.
    """
    lines = [
        "| data | raphson fit s | scikit-learn | glum | raphson with errors s | statsmodels | sklearn / raphson | "
        "statsmodels / raphson | glum / raphson |",
        "| " + " | ".join(["---"] * 9) + " |",
    ]
    ratios: dict[str, list[float]] = {"fit": [], "with errors": [], "glum": []}
    for name, result in results.items():
        fit, errors, found = result["fit"], result["with errors"], glm_ratios(result)
        cells = [_solver_cell(fit, _OURS), _solver_cell(fit, "scikit-learn"), _solver_cell(fit, "glum")]
        cells += [_solver_cell(errors, _OURS), _solver_cell(errors, "statsmodels")]
        for kind, values in ratios.items():
            if kind in found:
                values.append(found[kind])
            cells.append(f"{found[kind]:.1f}" if kind in found else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    means = [f"**{geometric_mean(values):.1f}**" if values else "" for values in ratios.values()]
    lines.append("| geometric mean | | | | | | " + " | ".join(means) + " |")
    both = ratios["fit"] + ratios["with errors"]
    if both:
        lines.append(
            f"\nAll comparisons with scikit-learn and statsmodels: {geometric_mean(both):.2f}, least {min(both):.2f}."
        )
    return lines


def _solver_cell(rows: dict[str, Any], who: str) -> str:
    """Return the best of a peer's solvers: the fastest credited one, or the one with the smallest gradient."""
    found = {name: row for name, row in rows.items() if name.split()[0] == who}
    if not found:
        return ""
    credited = {name: row for name, row in found.items() if row["credited"]}
    if credited:
        name, row = min(credited.items(), key=lambda item: item[1]["seconds"])
        note = ""
    else:
        name, row = min(found.items(), key=lambda item: _finite(item[1]["gradient"]))
        note = " (fails)" if "failed" in row else f" (gradient {row['gradient']:.0e})"
    return f"{row['seconds']:.4f}" + "".join(f" {word}" for word in name.split()[1:]) + note


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def curvature_table(results: dict[str, Any]) -> list[str]:
    """Return the lines of one network's table, in units of the gradient measured in turn with each quantity."""
    lines = [
        "| quantity | count | raphson | curvlinops | BackPACK | raphson / faster peer |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    gradient = results["counts"]["gradient"]
    for quantity, times in results["quantities"].items():
        unit = times["gradient"]
        cells = [f"{times[who] / unit:.2f}" if who in times else "" for who in ("raphson", *_PEERS)]
        peers = [times[who] for who in _PEERS if who in times]
        ratio = f"**{times['raphson'] / min(peers):.2f}**" if peers and "raphson" in times else ""
        count = results["counts"][quantity.removesuffix(", norms too")] / gradient
        lines.append(f"| {quantity} | {count:.2f} | " + " | ".join(cells) + f" | {ratio} |")
    return lines


def end_to_end_table(results: dict[str, Any]) -> list[str]:
    """Return the lines of the table."""
    stages = ("start", "import", "read", "code", "fit", "table")
    lines = [
        "| file | | "
        + " | ".join(f"{name} s (processor s)" for name in stages)
        + " | all but start and import s | peak |",
        "| --- " * (len(stages) + 4) + "|",
    ]
    notes: list[str] = []
    for file, result in results.items():
        for name, row in result.items():
            if isinstance(row, dict):
                cells = [f"{row[stage]['s']:.2f} ({row[stage]['processor s']:.2f})" for stage in stages]
                beyond = sum(row[stage]["s"] for stage in stages[2:])
                lines.append(
                    f"| {file} | {name} | {' | '.join(cells)} | {beyond:.2f} | {row['peak memory, tables']:.1f} |"
                )
        notes += [f"{file}, {name}: {value:.3g}" for name, value in result.items() if not isinstance(value, dict)]
    return [*lines, "", *_as_items(notes)]


def grid_summary(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return the geometric means, all and for wide tables, and the cells below 1; short ones are apart."""
    rated = {name: r for name, r in found.items() if "ratio" in r}
    lines = []
    for title, chosen in (
        ("all", [r for r in rated.values() if not r["short"]]),
        ("more columns than rows", [r for r in rated.values() if not r["short"] and r["d"] > r["n"]]),
        (f"both under {1e3 * SHORT:g} ms", [r for r in rated.values() if r["short"]]),
    ):
        if chosen:
            ratios = [r["ratio"] for r in chosen]
            mean = geometric_mean(ratios)
            lines.append(f"{title}: {len(ratios)} cells, geometric mean {mean:.2f}, least {min(ratios):.2f}")
    slow = sorted((r["ratio"], name) for name, r in rated.items() if r["ratio"] < 1.0 and not r["short"])
    return [*lines, *(f"below 1: {name} {ratio:.2f} ({rated[name]['peer']})" for ratio, name in slow)]


def updates_table(results: dict[str, dict[str, float]]) -> list[str]:
    """Return the time of gradient and Hessian over that of one symmetric rank-k update, by precision."""
    names = list(results)
    lines = ["| | " + " | ".join(name.partition(" (")[0] for name in names) + " |", "| --- " * (len(names) + 1) + "|"]
    for kind in ("float32", "float64"):
        cells = [f"{results[name][f'{kind} ratio']:.2f}" if f"{kind} ratio" in results[name] else "" for name in names]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


def training_table(runs: list[dict[str, Any]]) -> list[str]:
    """Return the training loss at the end of each budget and its seconds, and when K-FAC was there, of one problem."""
    budgets = sorted({run["budget"] for run in runs})
    own = [run for run in runs if run["method"] == _KFAC]
    lines = [
        "| | " + " | ".join(f"{b} steps | s" for b in budgets) + " | K-FAC there: share of steps, of seconds |",
        "| --- " * (2 * len(budgets) + 2) + "|",
    ]
    for method in dict.fromkeys(run["method"] for run in sorted(runs, key=lambda run: run["method"] != _KFAC)):
        by_budget = {run["budget"]: run for run in runs if run["method"] == method and run["seed"] == 0}
        cells = []
        for budget in budgets:
            run = by_budget.get(budget)
            cells += ["", ""] if run is None else [f"{run['losses'][-1]:.2f}", f"{run['seconds'][-1]:.1f}"]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {_reached(method, by_budget, own)} |")
    return lines


def _reached(method: str, by_budget: dict[int, dict[str, Any]], own: list[dict[str, Any]]) -> str:
    """Return when K-FAC had the loss that a method ends with, of its largest budget that K-FAC reaches."""
    if method == _KFAC:
        return ""
    for budget in sorted(by_budget, reverse=True):
        run = by_budget[budget]
        at = [
            (steps, seconds)
            for r in own
            for steps, seconds, loss in zip(r["steps"], r["seconds"], r["losses"], strict=True)
            if loss <= run["losses"][-1]
        ]
        if at:
            steps, seconds = min(k for k, _ in at), min(s for _, s in at)
            return f"{steps / budget:.2f}, {seconds / run['seconds'][-1]:.2f} (of {budget})"
    return "not reached"


def regressors_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return losses and test errors of regressors, and how much worse K-FAC's are than the least that Adam reaches.

    Adam has the rate that is best on the test rows, of each number of steps; the comparison is with the best of these.
    """
    lines = ["| | training loss | test loss, median | RMSE | worse than Adam by | s |", "| --- " * 6 + "|"]
    for problem in dict.fromkeys(row["problem"] for row in rows):
        runs: dict[tuple[str, int, float], list[dict[str, Any]]] = {}
        for row in (row for row in rows if row["problem"] == problem):
            runs.setdefault((row["method"], row["budget"], row["rate"]), []).append(row)
        best: dict[tuple[str, int], tuple[str, int, float]] = {}
        for key in runs:
            other = best.get(key[:2])
            if other is None or _error(runs[key]) < _error(runs[other]):
                best[key[:2]] = key
        adam = min((runs[key] for key in best.values() if key[0].startswith("Adam")), key=_error)
        for method, budget, rate in sorted(best.values(), key=lambda key: not key[0].startswith(_KFAC)):
            own, found = method.startswith(_KFAC), runs[method, budget, rate]
            name = f"{method}, {budget}" if own else f"{method}, {rate:g}, {budget}"
            lines.append(_regressor_line(problem, name, found, adam if own else None))
    return lines


def _regressor_line(problem: str, name: str, found: list[dict[str, Any]], other: list[dict[str, Any]] | None) -> str:
    """Return a line; the standard error is over splits, of the mean over seeds, as runs on the same rows are alike."""
    rmse = _by_split(found)
    worse = ""
    if other is not None:
        against = _by_split(other)
        differences = [rmse[split] - against[split] for split in rmse]
        worse = f"{statistics.mean(differences):.3f} ({statistics.stdev(differences) / len(rmse) ** 0.5:.3f})"
    cells = [
        f"{statistics.mean(r['loss'] for r in found):.2f}",
        f"{statistics.median(r['test_loss'] for r in found):.2f}",
        f"{_error(found):.3f}",
        worse,
        f"{statistics.median(r['seconds'] for r in found):.2f}",
    ]
    return f"| {problem.replace('_', ' ')}: {name} | " + " | ".join(cells) + " |"


def _error(rows: list[dict[str, Any]]) -> float:
    return statistics.mean(_by_split(rows).values())


def _by_split(rows: list[dict[str, Any]]) -> dict[int, float]:
    splits = dict.fromkeys(row["split"] for row in rows)
    return {split: statistics.mean(row["rmse"] for row in rows if row["split"] == split) for split in splits}


def uci_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return mean test log-likelihoods with standard errors and processor seconds of a fit, by method and table."""
    tables = list(dict.fromkeys(row["data"] for row in rows))
    lines = ["| method | " + " | ".join(tables) + " |", "| --- " * (len(tables) + 1) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        found = {row["data"]: row for row in rows if row["method"] == method}
        cells = []
        for name in tables:
            row = found.get(name)
            error = "" if row is None or row["loglik_se"] is None else f" ({row['loglik_se']:.3f})"
            cells.append("" if row is None else f"{row['loglik_mean']:.3f}{error}, {row['seconds_per_fit']:.1f} s")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def laplace_table(rows: list[dict[str, Any]]) -> list[str] | None:
    """Return seconds and memory of posteriors beside laplace-torch's, by task; None where one of the two is missing."""
    found = {(row["task"], row["library"]): row for row in rows}
    libraries = sorted({row["library"] for row in rows}, key=lambda name: name != _OURS)
    if len(libraries) < 2:
        return None
    stages = ("fit", "tune", "predict")
    lines = [
        f"| posterior | {' | '.join(f'{who} fit, tuning, prediction' for who in libraries)} | ratios |",
        "| --- | --- | --- | --- |",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        pair = [found.get((task, who), {}) for who in libraries]
        cells = [_stages_cell(row, stages) for row in pair]
        both = [s for s in stages if all(f"{s}_s" in row for row in pair)]
        ratios = ", ".join(f"{pair[0][f'{s}_s'] / pair[1][f'{s}_s']:.2g}" for s in both)
        lines.append(f"| {task} | {' | '.join(cells)} | {ratios} |")
    return lines


def _stages_cell(row: dict[str, Any], stages: tuple[str, ...]) -> str:
    seconds = ", ".join(f"{row[f'{stage}_s']:.3f}" for stage in stages if f"{stage}_s" in row)
    memory = ", ".join(f"{row[f'{stage}_mb']:.0f}" for stage in stages if f"{stage}_mb" in row)
    return f"{seconds} s; {memory} MB" if seconds else str(row.get("trouble", ""))


def calibration_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return how calibrated probabilities are with and without a posterior."""
    names = [key for key in rows[0] if key not in ("data", "posterior", "repeats")]
    lines = ["| data | posterior | " + " | ".join(names) + " |", "| --- " * (len(names) + 2) + "|"]
    for row in rows:
        lines.append(f"| {row['data']} | {row['posterior']} | " + " | ".join(f"{row[k]:.3g}" for k in names) + " |")
    return lines


def _networks(found: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, results in found["networks"].items():
        lines += [*([""] if lines else []), f"{name}:", "", *curvature_table(results)]
    return lines


def _as_items(lines: list[str]) -> list[str]:
    return [f"- {line}" for line in lines]


TABLES: dict[str, tuple[str, Callable[[Any], list[str] | None]]] = {
    "fits": ("fit.json", lambda found: fits_table(found["fits"])),
    "updates": ("fit.json", lambda found: updates_table(found["updates"])),
    "end to end": ("fit_end_to_end.json", lambda found: end_to_end_table(found["end to end"])),
    "grid": ("grid.json", lambda found: _as_items(grid_summary(found))),
    "glm": ("glm.json", lambda found: glm_table(found["results"])),
    "curvature": ("curvature.json", _networks),
    "training": ("training.json", lambda found: training_table(found["digits autoencoder, Bernoulli"])),
    "regressors": ("regressors.json", regressors_table),
    "uci": ("uci.json", uci_table),
    "laplace": ("laplace.json", lambda found: laplace_table(found.get("turns", []))),
    "calibration": (
        "laplace.json",
        lambda found: calibration_table(found["calibration"]) if "calibration" in found else None,
    ),
}
"""By the name between the marks of the README: the file of figures, and what draws them (None where it has none)."""


def drawn(name: str, folder: Path = HERE / "results") -> str | None:
    """Return a table as text, or None where its figures are not there."""
    file, draw = TABLES[name]
    if not (folder / file).exists():
        return None
    lines = draw(json.loads((folder / file).read_text(encoding="utf-8")))
    return None if lines is None else "\n".join(lines)


def parts(text: str) -> dict[str, str]:
    """Return what stands between the marks of each table."""
    return dict(re.findall(r"<!-- table: ([\w ]+) -->\n\n(.*?)\n\n<!-- end: \1 -->", text, re.DOTALL))


def redrawn(text: str, folder: Path = HERE / "results") -> str:
    """Return the README with every table drawn whose figures are there."""
    for name, old in parts(text).items():
        new = drawn(name, folder)
        if new is not None:
            mark = f"<!-- table: {name} -->\n\n"
            text = text.replace(mark + old, mark + new)
    return text


if __name__ == "__main__":
    readme = HERE / "README.md"
    readme.write_text(redrawn(readme.read_text(encoding="utf-8")), encoding="utf-8")
