"""Bayesian networks on the UCI regression tables with their 20 published splits, and a deep ensemble beside them.

    python benchmarks/uci.py --splits 20 --only concrete energy --data DIR

Each split has its own training rows, from which all of a run is learned. Settings were chosen by the log density of a
fifth of the training rows of a split, held out: see --choose. These rows are test rows of other splits.
The log-likelihood is that of a test target in its own units. One hidden layer of 50 units for all methods. Rows of
results/uci.json of other tables and methods stay; seconds are of the processor (CPU), which load changes little.
The Bayesian networks alone take 5 minutes on 2 cores, the ensembles longer:

    python benchmarks/uci.py --methods raphson.BayesianMLP
    python benchmarks/uci.py --methods "deep ensemble of 5" --splits 5
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import raphson as rp

HERE = Path(__file__).parent
MEMBERS = 2
"""Networks that are mixed: 80 fits stay well below 5 minutes on 2 cores."""

TABLES = ("concrete", "energy", "yacht", "wine-quality-red")


def bayesian(train: tuple[Any, Any], test: tuple[Any, Any], seed: int) -> tuple[float, float]:
    """Return mean test log-likelihood and root mean square error of nets with their posteriors, mixed."""
    net = rp.BayesianMLP(rp.StudentT(5.0), hidden=(50,), members=MEMBERS, random_state=seed).fit(*train)
    return net.score(*test), float(np.sqrt(np.mean((net.predict(test[0]) - test[1]) ** 2)))


def choose(folder: Path, splits: int, only: list[str]) -> None:
    """Print the log density of held-out training rows, a fifth of those of a split, for each setting."""
    settings = [("silu", 5.0, rounds, steps) for rounds, steps in ((8, 60), (6, 100), (4, 150), (14, 40))]
    settings += [("tanh", 5.0, 8, 60), ("silu", 3.0, 8, 60), ("silu", 10.0, 8, 60)]
    for activation, df, rounds, steps in settings:
        alone, mixed = [], []
        for name in only:
            for split in range(1, splits + 1):
                (x, y), _ = read(folder / name, split)
                held_out, rest = np.split(np.random.default_rng(split).permutation(len(x)), [len(x) // 5])
                net = rp.BayesianMLP(
                    rp.StudentT(df), (50,), activation=activation, members=MEMBERS, max_iter=rounds, steps=steps
                ).fit(x[rest], y[rest])
                mixed.append(net.score(x[held_out], y[held_out]))
                net.posteriors_ = net.posteriors_[:1]
                alone.append(net.score(x[held_out], y[held_out]))
        one, all_members = (np.reshape(found, (len(only), splits)).mean(1).round(3) for found in (alone, mixed))
        print(
            f"{activation} df {df:g}, {rounds} rounds of {steps}: one {one}, {MEMBERS} mixed {all_members}", flush=True
        )


def ensemble(train: tuple[Any, Any], test: tuple[Any, Any], seed: int) -> tuple[float, float]:
    """Return the same of five nets with mean and scale, trained by Adam, mixed (Lakshminarayanan et al. 2017)."""
    (x, y), (xt, yt) = train, test
    center, unit = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1.0)
    mean, scale = y.mean(), y.std()
    inputs, targets = (torch.from_numpy(a).float() for a in ((x - center) / unit, (y - mean) / scale))
    new = torch.from_numpy((xt - center) / unit).float()
    outputs = torch.stack([member(inputs, targets, 5 * seed + i)(new).detach().double() for i in range(5)])
    lik, target = rp.HeteroscedasticGaussian(), torch.from_numpy((yt - mean) / scale)
    nll = lik.nll(outputs, target.expand(5, -1))
    density = torch.logsumexp(-nll, 0) - math.log(5) - math.log(scale)
    error = (outputs[..., 0].mean(0) - target) * scale
    return float(density.mean()), float(error.square().mean().sqrt())


def member(x: Tensor, y: Tensor, seed: int, epochs: int = 400) -> nn.Module:
    """Return one net of the ensemble: 400 epochs in batches of 100 with a falling rate, weight decay 1e-4."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(x.shape[1], 50), nn.ReLU(), nn.Linear(50, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(100):
            f = net(x[rows])
            loss = (f[:, 1] + 0.5 * ((y[rows] - f[:, 0]) * torch.exp(-f[:, 1])) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return net


METHODS = {"raphson.BayesianMLP": bayesian, "deep ensemble of 5": ensemble}


def read(folder: Path, split: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return training and test rows of a split."""
    table = np.loadtxt(folder / "data.txt")
    columns = np.loadtxt(folder / "index_features.txt").astype(int)
    target = int(np.loadtxt(folder / "index_target.txt"))

    def part(which: str) -> tuple[Any, Any]:
        rows = np.loadtxt(folder / f"index_{which}_{split}.txt").astype(int)
        return table[rows][:, columns], table[rows][:, target]

    return part("train"), part("test")


def one(job: tuple[str, Path, int]) -> tuple[float, float, float]:
    """Return log-likelihood, error and seconds of one fit, its predictions included."""
    method, folder, split = job
    torch.set_num_threads(1)
    train, test = read(folder, split)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rp.RaphsonWarning)
        loglik, error = METHODS[method](train, test, split)
    return loglik, error, time.process_time() - start


def main() -> None:
    """Run and write ``results/uci.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=list(TABLES))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data" / "regression")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--choose", action="store_true", help="only show how the settings were chosen")
    options = parser.parse_args()
    missing = [name for name in options.only if not (options.data / name / "data.txt").exists()]
    if missing:
        parser.error(f"there is no {missing[0]}/data.txt in {options.data}: give the folder of the tables as --data.")
    if options.choose:
        choose(options.data, options.splits, options.only)
        return
    found, start = [], time.perf_counter()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for name in options.only:
            for method in options.methods:
                jobs = [(method, options.data / name, split) for split in range(options.splits)]
                loglik, error, seconds = (np.array(column) for column in zip(*pool.map(one, jobs), strict=True))
                row = {
                    "data": name,
                    "method": method,
                    "splits": options.splits,
                    "loglik_mean": float(loglik.mean()),
                    "loglik_se": float(loglik.std(ddof=1) / math.sqrt(len(loglik))) if len(loglik) > 1 else None,
                    "rmse_mean": float(error.mean()),
                    "seconds_per_fit": float(seconds.mean()),
                }
                found.append(row)
                print(
                    f"{name:18} {method:20} log-likelihood {row['loglik_mean']:7.3f} (se {row['loglik_se'] or 0:.3f})  "
                    f"rmse {row['rmse_mean']:.3f}  {row['seconds_per_fit']:.2f} s a fit",
                    flush=True,
                )
    print(f"all: {time.perf_counter() - start:.0f} s")
    target = HERE / "results" / "uci.json"
    target.parent.mkdir(exist_ok=True)
    measured = {(row["data"], row["method"]) for row in found}
    before = json.loads(target.read_text(encoding="utf-8")) if target.exists() else []
    found = [row for row in before if (row["data"], row["method"]) not in measured] + found
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
