"""The grid of table shapes, 60 x 5 to 50000 x 7000: multinomial fits beside the peers, as ratios and a heat map."""

from __future__ import annotations

import itertools
import json
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from _problems import Problem
from _tables import SHORT, grid_summary

ROWS, COLUMNS, CLASSES = (60, 500, 5_000, 50_000), (5, 50, 300, 2_000, 7_000), (2, 3, 10, 50)
PENALTIES, TARGETS, STORAGE = (1e-6, 1e-3, 1.0), ("separable", "noisy"), ("dense", "sparse")
LARGEST = 10**9  # bytes of a table
SLOWEST = 30.0  # seconds of the best peer
DENSITY = 0.05
RANDOM_BITS = 0.7  # of a separable table: the others are those of the row's class

Race = Callable[[Problem, float, int], dict[str, dict[str, Any]]]


class Cell(NamedTuple):
    """One shape with its penalty."""

    n: int
    d: int
    k: int
    l2: float
    target: str
    storage: str

    @property
    def name(self) -> str:
        """Its name, of words to select it by."""
        return f"{self.n}x{self.d} K={self.k} l2={self.l2:g} {self.target} {self.storage}"


def cells(words: list[str] | None = None) -> Iterator[Cell]:
    """Yield the cells whose table fits and whose name holds all of some words."""
    for n, d, k, l2, target, storage in itertools.product(ROWS, COLUMNS, CLASSES, PENALTIES, TARGETS, STORAGE):
        cell = Cell(n, d, k, l2, target, storage)
        entries = n * d * (DENSITY if storage == "sparse" else 1.0)
        if 8 * entries <= LARGEST and all(word in cell.name.split() for word in words or ()):
            yield cell


def table(cell: Cell) -> Problem:
    """Make the table of a cell, every class present.

    Separable: prototypes of binary columns, each entry its class's bit or a random one; noisy: classes drawn from a
    linear model. Dense tables are standardized.
    """
    rng = np.random.default_rng(cell.n + cell.d + cell.k)
    n, d, k = cell.n, cell.d, cell.k
    sparse = cell.storage == "sparse"
    y = rng.permutation(np.arange(n) % k)
    if cell.target == "separable":
        share = 2 * DENSITY if sparse else 0.5
        bits = rng.random((k, d)) < share
        parts = []
        for rows in np.array_split(np.arange(n), max(1, n * d // 10**7)):
            drawn = rng.random((len(rows), d)) < (share / 2 if sparse else share)
            kept = rng.random((len(rows), d)) < RANDOM_BITS
            part = np.where(kept, drawn, bits[y[rows]])
            parts.append(sp.csr_matrix(part, dtype=float) if sparse else part)
        x = sp.vstack(parts).tocsr() if sparse else np.concatenate(parts).astype(float)
    else:
        counts = {
            "density": DENSITY,
            "format": "csr",
            "random_state": rng,
            "data_rvs": lambda m: rng.poisson(1.0, m) + 1.0,
        }
        x = sp.random(n, d, **counts) if sparse else rng.normal(size=(n, d))
        f = np.asarray(x @ rng.normal(size=(d, k))) / np.sqrt(d * (4 * DENSITY if sparse else 1.0))
        f += rng.gumbel(size=f.shape)
        y = np.where(np.arange(n) < k, np.arange(n) % k, f.argmax(1))
    if not sparse:
        scale = x.std(0)
        x = np.ascontiguousarray((x - x.mean(0)) / np.where(scale > 0, scale, 1.0))
    return Problem(cell.name, x, y)


def run(
    race: Race, words: list[str] | None, repeats: int, file: Path, sample: int | None = None, again: float | None = None
) -> None:
    """Time the cells, write the figures as JSON after each one, and draw them where matplotlib is installed.

    Args:
        race: Times the contestants on a table.
        words: Words that the cells' names have.
        repeats: Turns of each contestant.
        file: Where the figures go; those of other cells stay.
        sample: So many cells drawn at random; None for all.
        again: Only cells whose recorded ratio is below this; None for all.
    """
    chosen = list(cells(words))
    if sample is not None and sample < len(chosen):
        drawn = np.random.default_rng(0).choice(len(chosen), sample, replace=False)
        chosen = [chosen[i] for i in sorted(drawn)]
    found: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    problem: Problem | None = None
    before: Cell | None = None
    for cell in chosen:
        if again is not None and found.get(cell.name, {}).get("ratio", again) >= again:
            continue
        if before is None or problem is None or cell._replace(l2=0.0) != before._replace(l2=0.0):
            problem, before = table(cell), cell
        found[cell.name] = {**cell._asdict(), **_outcome(race(problem, cell.l2, repeats))}
        print(cell.name, _line(found[cell.name]), flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1))
    print("\n".join(grid_summary(found)))
    draw(found, file.with_suffix(".png"))


def _outcome(result: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return seconds by solver, the best credited peer and the ratio to it; no ratio where none is quick enough."""
    seconds = {name: r["seconds"] for name, r in result.items()}
    credited = {name: r["seconds"] for name, r in result.items() if name != "raphson" and r["credited"]}
    ours = result["raphson"]
    found: dict[str, Any] = {"seconds": seconds, "gradient": ours["gradient"], "credited": ours["credited"]}
    if credited and min(credited.values()) <= SLOWEST:
        peer = min(credited, key=credited.__getitem__)
        found |= {"peer": peer, "ratio": credited[peer] / ours["seconds"]}
        found["short"] = max(credited[peer], ours["seconds"]) < SHORT
    return found


def _line(outcome: dict[str, Any]) -> str:
    times = ", ".join(f"{name} {1e3 * s:.1f}" for name, s in outcome["seconds"].items())
    ratio = f"ratio {outcome['ratio']:.2f}" if "ratio" in outcome else "no peer in time"
    mark = "" if outcome["credited"] else f" (gradient {outcome['gradient']:.0e}!)"
    return f"{times} ms, {ratio}{mark}"


def draw(found: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw the ratios on a logarithmic scale, a panel for each penalty, target and storage."""
    try:
        from matplotlib import colors, figure
    except ImportError:
        print("No heat map: matplotlib is not installed.")
        return
    wide = [(d, k) for d in COLUMNS for k in CLASSES]
    page = figure.Figure(figsize=(22, 14), layout="constrained")
    panels = page.subplots(len(PENALTIES), len(TARGETS) * len(STORAGE), squeeze=False)
    norm, image = colors.LogNorm(0.1, 10.0), None
    for (i, l2), (j, (target, storage)) in itertools.product(
        enumerate(PENALTIES), enumerate(itertools.product(TARGETS, STORAGE))
    ):
        ratios = np.full((len(ROWS), len(wide)), np.nan)
        for a, n in enumerate(ROWS):
            for b, (d, k) in enumerate(wide):
                ratios[a, b] = found.get(Cell(n, d, k, l2, target, storage).name, {}).get("ratio", np.nan)
        axes = panels[i, j]
        image = axes.imshow(ratios, norm=norm, cmap="RdYlGn", aspect="auto")
        axes.set_title(f"l2={l2:g}, {target}, {storage}", fontsize=9)
        axes.set_xticks(range(len(wide)), [f"{d}, {k}" for d, k in wide], rotation=90, fontsize=7)
        axes.set_yticks(range(len(ROWS)), [str(n) for n in ROWS], fontsize=7)
        for a, b in np.argwhere(np.isfinite(ratios)):
            axes.text(b, a, f"{ratios[a, b]:.1f}", ha="center", va="center", fontsize=6)
    assert image is not None
    page.colorbar(image, ax=panels, label="best peer / raphson")
    page.supxlabel("columns, classes")
    page.supylabel("rows")
    page.savefig(file, dpi=120)


def limited(call: Callable[[], Any], seconds: float) -> Any:
    """Call a peer, for no longer than some seconds; None where that is not enough (Unix)."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except TimeoutError:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


def paired(
    runners: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return seconds of each contestant in turns, each after a pause in which the threads of the last fall asleep."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, call in runners.items():
            time.sleep(0.1)
            own = []
            while len(own) < 2 or (sum(own) < 0.02 and len(own) < 10):  # the first one is not counted
                start = clock()
                call()
                own.append(clock() - start)
                if own[0] > 2.0:
                    break
            times[name].append(float(np.median(own[1:] or own)))
    return times
