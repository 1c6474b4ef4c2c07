"""Time generalized linear models side by side with the peers, same likelihood, checked by an independent gradient.

Run ``python benchmarks/glm.py`` (``--help`` lists the options); ``benchmarks/README.md`` says how to read the table.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import glum
import numpy as np
import statsmodels
from _glm_problems import TOL, Answer, Problem, Run, problems
from _tables import glm_table
from fit import SLOW, machine, turn

OURS = "raphson"


def race(problem: Problem, repeats: int) -> dict[str, dict[str, Any]]:
    """Time every contestant, interleaved, after a warm-up that also checks the answer.

    Args:
        problem: The problem.
        repeats: Turns of each.

    Returns:
        For ``"fit"`` and ``"with errors"`` a row per contestant: seconds, gradient, whether it is credited, and how far
        its standard errors are from raphson's.
    """
    runners = {("fit", name): run for name, run in problem.fits.items()}
    runners |= {("with errors", name): run for name, run in problem.errors.items()}
    results: dict[tuple[str, str], dict[str, Any]] = {}
    answers: dict[tuple[str, str], Answer] = {}
    for key, run in runners.items():
        results[key], answers[key] = _warm_up(problem, run)
    for repeat in range(repeats):
        for key, run in runners.items():
            result = results[key]
            if "failed" not in result and not (repeat and result["warmup"] > SLOW):
                result["times"] += turn(run)
    ours = answers["with errors", OURS].get("errors")
    out: dict[str, dict[str, Any]] = {"fit": {}, "with errors": {}}
    for (kind, name), result in results.items():
        result["seconds"] = float(np.median(result["times"])) if result["times"] else result["warmup"]
        result["credited"] = "failed" not in result and result["gradient"] <= TOL
        errors = answers[kind, name].get("errors")
        if errors is not None and ours is not None and errors.shape == ours.shape:
            result["errors differ"] = float(np.abs(errors / ours - 1).max())
        out[kind][name] = result
    return out


def _warm_up(problem: Problem, run: Run) -> tuple[dict[str, Any], Answer]:
    start = time.perf_counter()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            answer = run()
        except Exception as refused:  # noqa: BLE001 - what a peer raises is its result
            return {
                "warmup": time.perf_counter() - start,
                "failed": str(refused)[:200],
                "times": [],
                "gradient": np.nan,
            }, {}
        seconds = time.perf_counter() - start
        gradient = float(np.abs(problem.gradient(answer)).max())
    return {"warmup": seconds, "gradient": gradient, "times": []}, answer


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", default=["10000x10", "100000x20", "1000000x20"], metavar="NxD")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="words; keep the problems whose name holds one")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/glm.json"))
    arguments = parser.parse_args()
    sizes = [tuple(int(number) for number in size.split("x")) for size in arguments.sizes]
    results = {}
    for problem in problems(sizes, arguments.only):
        print(f"... {problem.name}", flush=True)
        repeats = arguments.repeats if problem.n_rows < 500_000 else min(arguments.repeats, 3)
        results[problem.name] = race(problem, repeats)
    facts = machine() | {"statsmodels": statsmodels.__version__, "glum": glum.__version__}
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print("\n".join(glm_table(results)))
    for name, result in results.items():
        for peer, row in result["with errors"].items():
            if peer != OURS and row["credited"] and row.get("errors differ", 0.0) > 1e-3:
                print(f"standard errors, {name}: {peer} differ by up to {row['errors differ']:.1e}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": facts, "tolerance": TOL, "results": results}
    arguments.json.write_text(json.dumps(report, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
