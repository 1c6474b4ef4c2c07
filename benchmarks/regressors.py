"""Train regressors with a mean and a scale by K-FAC beside Adam with beta-NLL: test errors over splits of UCI tables.

Run ``python benchmarks/regressors.py --tables DIR`` (``--help`` lists the options) with one thread. K-FAC has the
settings that the page on training gives; they were chosen on rows held out of the training rows of the splits 10 to 19.
Each rate of Adam is run, and the comparison is with the rate and the number of steps whose test error is least, which
favors it.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from training import Method, Problem, adam, heteroscedastic, read_table, train

import raphson as rp

SETTINGS = {"mean_log_scale": (1.0, 1e-3), "natural": (0.0, 1e-3)}
"""Power of the variance and weight decay of K-FAC, by parametrization; steps are whole, as no batch has noise."""

RATES = 0.01, 0.03, 0.1


def methods(problem: Problem, steps: Sequence[int], others: Sequence[int]) -> Iterator[tuple[Method, float, int]]:
    """Yield methods with a rate and a number of steps."""
    beta, decay = SETTINGS[problem.name.split(", ")[1]]

    def penalized(model: nn.Module, problem: Problem, lr: float) -> torch.optim.Optimizer:
        return rp.optim.KFAC(model, problem.likelihood, lr=lr, weight_decay=decay)

    def plain(model: nn.Module, problem: Problem, lr: float) -> torch.optim.Optimizer:
        return rp.optim.KFAC(model, problem.likelihood, lr=lr)

    for budget in steps:
        yield Method("K-FAC, its page's settings", [], penalized, True, beta, constant=True), 1.0, budget
        yield Method("K-FAC, defaults", [], plain, True), 1.0, budget
    for budget, rate in itertools.product(others, RATES):
        yield Method("Adam, beta-NLL", [], adam, beta=0.5), rate, budget


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True, help="folder with UCI tables as for uci.py")
    parser.add_argument("--names", nargs="+", default=["concrete", "energy"])
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, nargs="+", default=[60, 250], help="of K-FAC")
    parser.add_argument("--others", type=int, nargs="+", default=[250, 1000], help="of Adam")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "regressors.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    for name, split in itertools.product(options.names, range(options.splits)):
        for problem in heteroscedastic(name, *read_table(options.tables / name, split)):
            chosen = methods(problem, options.steps, options.others)
            for (method, rate, budget), seed in itertools.product(chosen, range(options.seeds)):
                key = {"problem": problem.name, "split": split, "seed": seed, "method": method.name}
                key |= {"rate": rate, "budget": budget}
                if any(key.items() <= row.items() for row in rows):
                    continue
                run = train(problem, method, rate, budget, seed)
                values = {"loss": run.losses[-1], "test_loss": run.test_loss, "rmse": run.test_measure}
                rows.append({**key, **values, "seconds": run.seconds[-1]})
        file.write_text(json.dumps(rows).replace("}, {", "},\n{"))
        print(name, split, flush=True)
    from _tables import regressors_table

    print("\n".join(regressors_table(rows)))


if __name__ == "__main__":
    main()
