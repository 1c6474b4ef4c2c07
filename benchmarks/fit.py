"""Time multinomial fits side by side with the peers, on the same objective, checked by an independent gradient.

Run ``python benchmarks/fit.py`` (``--help`` lists the options); ``benchmarks/README.md`` says how to read the table.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import sklearn
import torch
from _end_to_end import end_to_end
from _grid import SLOWEST, limited, paired
from _grid import run as run_grid
from _problems import Problem, problems
from _tables import end_to_end_table, fits_table
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from raphson import MultinomialLogisticRegression

L2, TOL = 1e-5, 1e-6
SLOW_CELL, CLEAR = 1.0, 4.0  # seconds of a cell of the grid; ratio of two first fits that turns would not change
SLOW = 60.0  # a peer whose warm-up takes longer is timed once
CHOLESKY_COEFFICIENTS = 2_500  # newton-cholesky forms and factorizes a matrix of this many rows and more


def gradient_norm(problem: Problem, coef: np.ndarray, intercept: np.ndarray, l2: float) -> float:
    """Return the infinity norm of the gradient of the mean objective, in float64, by NumPy alone."""
    x, y, n = problem.x, problem.y, len(problem.y)
    k = coef.shape[0]
    residual_sum = np.zeros(k)
    product = np.zeros_like(coef)
    for rows in np.array_split(np.arange(n), max(1, n * k // 4_000_000)):
        f = np.asarray(x[rows] @ coef.T) + intercept
        p = np.exp(f - f.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(rows)), y[rows]] -= 1.0
        residual_sum += p.sum(0)
        product += np.asarray((x[rows].T @ p).T)
    penalized = product / n + l2 * (coef - coef.mean(0))
    return float(max(np.abs(residual_sum / n).max(), np.abs(penalized).max()))


def full(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients and intercepts of all classes; scikit-learn gives one row for two classes."""
    coef, intercept = np.asarray(model.coef_), np.asarray(model.intercept_)
    if coef.shape[0] == 1:  # the difference of two, shared equally
        coef, intercept = (
            np.concatenate([-coef / 2, coef / 2]),
            np.concatenate([-intercept / 2, intercept / 2]),
        )
    return coef, intercept


def contestants(problem: Problem, l2: float = L2) -> dict[str, Callable[[], Any]]:
    """Return the solvers that are tried on a problem, by name; each returns a fitted model."""
    n, k = len(problem.y), int(problem.y.max()) + 1
    # for two classes scikit-learn penalizes the difference b of the two by b^2 / 2, the sum-to-zero form by b^2 / 4
    c = (1.0 if k > 2 else 2.0) / (l2 * n)
    found = {"raphson": lambda: MultinomialLogisticRegression(l2=l2, tol=TOL, reference=None).fit(problem.x, problem.y)}
    names = ["newton-cg", "lbfgs"]
    if (problem.x.shape[1] + 1) * k <= CHOLESKY_COEFFICIENTS:
        names.append("newton-cholesky")
    for name in names:
        found[name] = lambda s=name: LogisticRegression(C=c, tol=TOL, solver=s, max_iter=20_000).fit(
            problem.x, problem.y
        )
    return found


def glum(problem: Problem, l2: float) -> dict[str, Callable[[], Any]]:
    """Return glum's logistic regression, where it is installed and has the same objective: two classes.

    It forms the Hessian of all columns, so that wide tables are left out.
    """
    try:
        from glum import GeneralizedLinearRegressor
    except ImportError:
        return {}
    if problem.y.max() > 1 or problem.x.shape[1] > CHOLESKY_COEFFICIENTS:
        return {}

    def fit() -> Any:
        # half of the squared difference b of two classes is the sum-to-zero form's squared norm
        model = GeneralizedLinearRegressor(
            family="binomial", alpha=l2 / 2, l1_ratio=0.0, gradient_tol=TOL, max_iter=1_000
        ).fit(problem.x, problem.y.astype(float))
        model.coef_, model.intercept_ = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
        return model

    return {"glum": fit}


def race_cell(
    problem: Problem, l2: float, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, Any]]:
    """Time a cell of the grid: every contestant once to check its answer, then those near the best peer in turns.

    A peer is stopped once it has taken twice as long as the best one before it. Turns are left out where the first
    fits differ by more than ``CLEAR``, which no noise turns around.
    """
    runners = contestants(problem, l2) | glum(problem, l2)
    results: dict[str, dict[str, Any]] = {}
    best = SLOWEST
    for name, call in runners.items():
        allowed = 4 * SLOWEST if name == "raphson" else min(SLOWEST, 1.0 + 2 * best)
        start = clock()
        model = limited(call, allowed)
        seconds = clock() - start
        gradient = np.inf if model is None else gradient_norm(problem, *full(model), l2)
        results[name] = {"seconds": seconds, "gradient": gradient, "credited": bool(gradient <= TOL)}
        if name != "raphson" and results[name]["credited"]:
            best = min(best, seconds)
    ours = results["raphson"]["seconds"]
    near = [n for n, r in results.items() if n != "raphson" and r["credited"] and r["seconds"] < 3 * best]
    if max(ours, best) > SLOW_CELL and not 1 / CLEAR < best / ours < CLEAR:
        return results
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, times in paired({name: runners[name] for name in ["raphson", *near]}, repeats, clock).items():
            results[name]["seconds"] = float(np.median(times))
    return results


def race(problem: Problem, repeats: int) -> dict[str, dict[str, float]]:
    """Time every contestant, interleaved, after a warm-up that also checks the answer."""
    runners = contestants(problem)
    results: dict[str, dict[str, Any]] = {}
    for name, run in runners.items():
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = run()
        seconds = time.perf_counter() - start
        results[name] = {"warmup": seconds, "gradient": gradient_norm(problem, *full(model), L2), "times": []}
    for repeat in range(repeats):
        for name, run in runners.items():
            if repeat and results[name]["warmup"] > SLOW:
                continue
            results[name]["times"] += turn(run)
    for result in results.values():
        result["seconds"] = float(np.median(result["times"]))
        result["credited"] = result["gradient"] <= TOL
    return results


def turn(run: Callable[[], Any]) -> list[float]:
    """Time one contestant's turn: a few runs in a row, the first not counted.

    The thread pools of the libraries go on spinning for a while after their last call, so that the first run after
    another library's is slowed by the other's threads: a pause lets them fall asleep. A user who fits with one library
    does not meet this.
    """
    times: list[float] = []
    time.sleep(0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while (sum(times) < 0.3 and len(times) < 20) or (len(times) < 2 and times[0] < 5.0):
            times.append(_seconds(run))
    return times[1:] or times


def errors_race(problem: Problem, repeats: int) -> dict[str, Any]:
    """Time unpenalized fits with standard errors against statsmodels' MNLogit."""
    import statsmodels.api as sm

    x = np.asarray(problem.x)

    def ours() -> np.ndarray:
        model = MultinomialLogisticRegression().fit(x, problem.y)
        return model.standard_errors().to_numpy(dtype=float, na_value=np.nan)

    def theirs() -> np.ndarray:
        fitted = sm.MNLogit(problem.y, sm.add_constant(x)).fit(disp=0, maxiter=100, method="newton")
        return np.asarray(fitted.bse).T.ravel()

    out: dict[str, Any] = {}
    for name, run in (("raphson", ours), ("statsmodels", theirs)):
        times, errors = [], None
        for _ in range(repeats + 1):
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    errors = run()
                except Exception as refused:  # noqa: BLE001 - what a peer raises is its result
                    out[name] = {"seconds": time.perf_counter() - start, "refused": str(refused)[:200]}
                    break
            times.append(time.perf_counter() - start)
        else:
            out[name] = {"seconds": float(np.median(times[1:])), "finite": bool(np.isfinite(errors).all())}
            out[name]["errors"] = errors
    if all("errors" in o for o in out.values()):
        a, b = (out[n].pop("errors") for n in ("raphson", "statsmodels"))
        out["agree"] = bool(out["statsmodels"]["finite"] and np.allclose(a, b, rtol=1e-4))
    for o in out.values():
        if isinstance(o, dict):
            o.pop("errors", None)
    return out


def hessian_against_update(problem: Problem, repeats: int) -> dict[str, float]:
    """Time gradient + dense Hessian against one symmetric rank-N update of the same shape and precision."""
    from scipy.linalg.blas import dsyrk, ssyrk

    from raphson.data import DenseDesign
    from raphson.likelihoods import Categorical
    from raphson.linear import LinearObjective, OutputMap

    n, d = problem.x.shape
    k = int(problem.y.max()) + 1
    out: dict[str, float] = {}
    for dtype, syrk in ((torch.float32, ssyrk), (torch.float64, dsyrk)):
        design = DenseDesign(torch.from_numpy(problem.x))
        output_map = OutputMap.relative(k, k - 1, design.n_columns, design.intercept)
        objective = LinearObjective(design, Categorical(), torch.from_numpy(problem.y), output_map, l2=L2)
        objective = objective.with_curvature(dtype)
        theta = torch.zeros(objective.n_parameters, dtype=torch.float64)
        z = np.asfortranarray(np.zeros((n, objective.n_parameters), dtype=str(dtype).removeprefix("torch.")))
        z += 0.5
        # the two thread pools spin against each other, so each is timed in a row of its own
        ours = _median(repeats, _hessian, objective, theta)
        theirs = _median(repeats, syrk, 1.0, z, None, None, 1)
        name = str(dtype).removeprefix("torch.")
        out[f"{name} ms"], out[f"{name} update ms"] = 1e3 * ours, 1e3 * theirs
        out[f"{name} ratio"] = ours / theirs
    return out


def _hessian(objective: Any, theta: torch.Tensor) -> torch.Tensor:
    return objective.evaluate(theta).hessian.to_dense()


def _median(repeats: int, run: Callable[..., Any], *arguments: Any) -> float:
    """Return the median seconds of a call, the first two not counted, after a pause for other threads to sleep."""
    time.sleep(0.3)
    return float(np.median([_seconds(lambda: run(*arguments)) for _ in range(repeats + 2)][2:]))


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


_SCALING = """
import json, time
import numpy as np
from raphson import MultinomialLogisticRegression
rng = np.random.default_rng(0)
x = rng.normal(size=(1_000_000, 20))
f = x @ rng.normal(size=(20, 3))
f += rng.gumbel(size=f.shape)
y = f.argmax(1)
del f
def fit(n):
    start = time.perf_counter()
    MultinomialLogisticRegression(l2=1e-5, tol=1e-6).fit(x[:n], y[:n])
    return time.perf_counter() - start
fit(20_000)
def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) / 1024
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")  # forget the peak that making the data left (Linux)
before = memory("VmRSS")
fit(1_000_000)
after = memory("VmHWM")
times = [[fit(n) for n in (100_000, 1_000_000)] for _ in range(5)]
small, large = np.median(times, axis=0)
print(json.dumps({"peak MB beside the data": after - before, "100000 rows s": small, "1000000 rows s": large}))
"""

_STARTUP = """
import sys, time
import torch
start = time.perf_counter()
import raphson
from raphson import MultinomialLogisticRegression
print(time.perf_counter() - start)
"""

_IRIS = """
import time
import numpy as np
from sklearn.datasets import load_iris
from raphson import MultinomialLogisticRegression
x, y = load_iris(return_X_y=True)
times = []
for _ in range(30):
    start = time.perf_counter()
    MultinomialLogisticRegression(l2=1e-3).fit(x, y)
    times.append(time.perf_counter() - start)
print(np.median(times[5:]))
"""


def whole_process() -> dict[str, float]:
    """Measure what needs a process of its own: memory, growth with rows, start-up, a small fit."""

    def run(code: str) -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout

    facts: dict[str, float] = json.loads(run(_SCALING))
    light = _STARTUP.replace("from raphson import MultinomialLogisticRegression\n", "")
    facts["import raphson, beside torch, s"] = min(float(run(light)) for _ in range(3))
    facts["with the estimator (scikit-learn, SciPy) s"] = min(float(run(_STARTUP)) for _ in range(3))
    facts["iris fit ms"] = 1e3 * float(run(_IRIS))
    return facts


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tables", type=Path, default=Path("../shared/data/classification"), help="folder of CSV tables"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="words; keep the data sets whose name holds one")
    parser.add_argument("--no-errors", action="store_true", help="leave out the comparison of standard errors")
    parser.add_argument("--end-to-end", action="store_true", help="only the whole command, on 10^6 rows of a file")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/fit.json"))
    parser.add_argument("--grid", action="store_true", help="the grid of shapes instead; --only: words its cells have")
    parser.add_argument("--sample", type=int, help="of the grid so many cells, drawn at random")
    parser.add_argument("--again", type=float, help="of the grid only cells whose recorded ratio is below this")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread, and its processor's time: for machines that others use too"
    )
    arguments = parser.parse_args()
    if arguments.cpu_time:
        torch.set_num_threads(1)
        threadpool_limits(1)
    if arguments.end_to_end:
        whole = end_to_end(arguments.repeats)
        print("\n".join(end_to_end_table(whole)))
        target = arguments.json.with_stem(f"{arguments.json.stem}_end_to_end")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps({"machine": machine(), "end to end": whole}, indent=1))
        return
    if arguments.grid:
        print(", ".join(f"{key} {value}" for key, value in machine().items()))
        clock = time.thread_time if arguments.cpu_time else time.perf_counter
        race_with_clock = functools.partial(race_cell, clock=clock)
        target = arguments.json.with_name("grid.json")
        run_grid(race_with_clock, arguments.only, arguments.repeats, target, arguments.sample, arguments.again)
        return
    folder = arguments.tables if arguments.tables.exists() else None
    results, errors, updates = {}, {}, {}
    for problem in problems(folder, arguments.only):
        shape = f"{problem.name} ({problem.x.shape[0]}x{problem.x.shape[1]}, K={problem.y.max() + 1})"
        print(f"... {shape}", flush=True)
        repeats = arguments.repeats if problem.x.shape[0] < 500_000 else min(arguments.repeats, 3)
        results[shape] = race(problem, repeats)
        dense = not sp.issparse(problem.x)
        if dense and problem.x.shape[0] >= 5_000 and not arguments.no_errors:
            errors[shape] = errors_race(problem, min(repeats, 3))
        k = int(problem.y.max())
        if dense and problem.x.shape[0] * k * (problem.x.shape[1] + 1) <= 5e7 and problem.x.shape[0] > 5_000:
            updates[shape] = hessian_against_update(problem, repeats)
    facts = machine()
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print("\n".join(fits_table(results)))
    for shape, outcome in errors.items():
        ours, theirs = outcome["raphson"], outcome["statsmodels"]
        verdict = (
            ours.get("refused", "finite") + " | " + theirs.get("refused", "finite" if theirs.get("finite") else "nan")
        )
        print(
            f"standard errors, {shape}: raphson {ours['seconds']:.3f} s, statsmodels {theirs['seconds']:.3f} s, "
            f"ratio {theirs['seconds'] / ours['seconds']:.1f}; {verdict}; agree: {outcome.get('agree')}"
        )
    for shape, row in updates.items():
        print(f"gradient + Hessian / rank-N update, {shape}: " + ", ".join(f"{k} {v:.2f}" for k, v in row.items()))
    processes = whole_process()
    for key, value in processes.items():
        print(f"{key}: {value:.4g}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": facts, "fits": results, "errors": errors, "updates": updates, "processes": processes}
    arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
