"""Train networks with K-FAC beside tuned first-order methods and preconditioned ones: loss by step and by second.

Run ``python benchmarks/training.py`` (``--help`` lists the options). Every opponent's learning rate is chosen on the
first seed by the loss at the end of a budget, for the shortest one from a grid (``methods``) and for each longer one
from the last choice and its neighbors in the grid; it falls linearly to zero within each budget. So does the factor of
K-FAC's steps, whose settings are the defaults. A method whose package is not installed is left out;
``requirements-training.txt`` names them. Runs are added to those in the file of results, so that problems, methods and
budgets can be run one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn

import raphson as rp

POINTS = 25
"""Evaluations in a run."""


@dataclass
class Problem:
    """A network to train: its likelihood, data in training and test rows, and the size of mini-batches."""

    name: str
    make: Callable[[], nn.Module]
    likelihood: rp.Likelihood
    x: Tensor
    y: Tensor
    test: tuple[Tensor, Tensor] | None
    batch: int
    measure: Callable[[Tensor, Tensor], float] | None = None

    def loss(self, model: nn.Module, test: bool = False) -> float:
        """Return the mean negative log-likelihood of the training or the test rows."""
        if test and self.test is None:
            return float("nan")
        x, y = self.test if test and self.test is not None else (self.x, self.y)
        with torch.no_grad():
            return float(self.likelihood.nll(model(x), y).mean())


def autoencoder(d: int, sizes: Sequence[int] = (250, 50, 30)) -> nn.Module:
    """Return the deep autoencoder D-250-50-30-50-250-D with tanh."""
    widths = [d, *sizes, *sizes[-2::-1], d]
    parts = [part for a, b in zip(widths, widths[1:], strict=False) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*parts[:-1])


def mlp(*widths: int) -> nn.Module:
    """Return a network with tanh between its layers."""
    parts = [part for a, b in zip(widths, widths[1:], strict=False) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*parts[:-1])


def problems(images: Path | None, folders: Path | None = None) -> Iterator[Problem]:
    """Yield the problems; MNIST's and those of UCI tables only where the files are."""
    digits, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(digits / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    small = dict(batch=280)
    yield Problem(
        "digits autoencoder, Bernoulli",
        lambda: autoencoder(64),
        rp.Bernoulli(),
        x[train],
        x[train],
        (x[test], x[test]),
        **small,
    )
    yield Problem(
        "digits autoencoder, Gaussian",
        lambda: autoencoder(64),
        rp.Gaussian(0.2),
        x[train],
        x[train],
        (x[test], x[test]),
        **small,
    )
    yield Problem(
        "digits classifier", lambda: mlp(64, 128, 64, 10), rp.Categorical(), x[train], y[train], (x[test], y[test]), 140
    )
    table, target = load_diabetes(return_X_y=True)
    tables = {"diabetes": (table, target, np.arange(350), np.arange(350, len(table)))}
    tables |= {name: read_table(folders / name) for name in ("concrete", "energy") if folders is not None}
    for name, rows in tables.items():
        yield from heteroscedastic(name, *rows)
    if images is not None:
        raw = gzip.decompress((images / "mnist-t10k-images-idx3-ubyte.gz").read_bytes())
        pixels = torch.from_numpy(np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 784).astype(np.float32) / 255)
        for what, likelihood in (("Bernoulli", rp.Bernoulli()), ("Gaussian", rp.Gaussian(0.2))):
            yield Problem(f"MNIST autoencoder, {what}", lambda: autoencoder(784), likelihood, pixels, pixels, None, 500)


def read_table(folder: Path, split: int = 0) -> tuple[Any, Any, Any, Any]:
    """Return a UCI table with a published split: inputs, target, training and test rows."""
    table = np.loadtxt(folder / "data.txt")
    names = "features", "target", f"train_{split}", f"test_{split}"
    index = [np.loadtxt(folder / f"index_{name}.txt").astype(int) for name in names]
    return table[:, index[0]], table[:, index[1]].reshape(-1), index[2], index[3]


def heteroscedastic(name: str, x: Any, y: Any, train: Any, test: Any) -> Iterator[Problem]:
    """Yield regressors with a mean and a scale for each row; all columns in units of their deviation."""
    u = torch.tensor((x - x[train].mean(0)) / x[train].std(0), dtype=torch.float32)
    v = torch.tensor((y - y[train].mean()) / y[train].std(), dtype=torch.float32)[:, None]
    for parametrization in ("natural", "mean_log_scale"):
        likelihood = rp.HeteroscedasticGaussian(parametrization)

        def rmse(f: Tensor, y: Tensor, likelihood: rp.Likelihood = likelihood) -> float:
            f = f.detach()
            return float((likelihood.mean(f) - y).square().mean().sqrt())

        def made(natural: bool = parametrization == "natural") -> nn.Module:
            net = mlp(u.shape[1], 50, 2)
            return Natural(net) if natural else net

        split = u[train], v[train], (u[test], v[test])
        yield Problem(f"{name}, {parametrization}", made, likelihood, *split, len(train), rmse)


class Natural(nn.Module):
    """Outputs that are natural parameters of a normal distribution: the second one is negative."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return the natural parameters ``(N, 2)``."""
        f = self.inner(x)
        return torch.stack([f[..., 0], -0.5 * nn.functional.softplus(f[..., 1] + 0.54)], -1)


@dataclass
class Method:
    """An optimizer with the learning rates that are tried, which fall linearly to zero unless they are constant."""

    name: str
    rates: Sequence[float]
    make: Callable[[nn.Module, Problem, float], torch.optim.Optimizer]
    curvature: bool = False
    beta: float = 0.0
    constant: bool = False


def kfac(model: nn.Module, problem: Problem, lr: float) -> torch.optim.Optimizer:
    """Return K-FAC with its defaults."""
    return rp.optim.KFAC(model, problem.likelihood, lr=lr)


def adam(model: nn.Module, problem: Problem, lr: float) -> torch.optim.Optimizer:
    """Return Adam with a learning rate."""
    return torch.optim.Adam(model.parameters(), lr)


def methods() -> Iterator[Method]:
    """Yield what is installed."""
    yield Method("K-FAC", [1.0], kfac, True)
    yield Method("K-FAC, beta-NLL", [1.0], kfac, True, beta=0.5)
    yield Method("Adam", [1e-3, 3e-3, 1e-2, 3e-2, 1e-1], adam)
    yield Method("Adam, beta-NLL", [1e-3, 3e-3, 1e-2, 3e-2, 1e-1], adam, beta=0.5)
    yield Method(
        "SGD, Nesterov",
        [1e-3, 1e-2, 1e-1, 1.0],
        lambda m, p, lr: torch.optim.SGD(m.parameters(), lr, momentum=0.9, nesterov=True),
    )
    if hasattr(torch.optim, "Muon"):
        yield Method("Muon", [1e-2, 3e-2, 1e-1, 3e-1], lambda m, p, lr: Muon(m, lr))
    if importlib.util.find_spec("pytorch_optimizer"):
        import pytorch_optimizer as other

        yield Method(
            "SOAP",
            [3e-3, 1e-2, 3e-2, 1e-1],
            lambda m, p, lr: other.SOAP(m.parameters(), lr, precondition_frequency=10, weight_decay=0.0),
        )
        yield Method(
            "Shampoo",
            [1e-2, 1e-1, 1.0],
            lambda m, p, lr: other.ScalableShampoo(
                m.parameters(), lr, start_preconditioning_step=5, preconditioning_compute_steps=20
            ),
        )


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` for matrices and Adam for the rest, as its authors say."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        matrices = [p for p in model.parameters() if p.ndim == 2]
        rest = [p for p in model.parameters() if p.ndim != 2]
        self._parts = [torch.optim.Muon(matrices, lr, weight_decay=0.0), torch.optim.Adam(rest, lr)]
        super().__init__(model.parameters(), {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step with both."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            part.step()


@dataclass
class Run:
    """Loss by step and by second; what was reached at the end."""

    method: str
    rate: float
    budget: int
    seed: int
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    test_loss: float = float("nan")
    test_measure: float | None = None


def clock() -> float:
    """Return the seconds of this thread alone where there is one, which others on the machine do not lengthen."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def train(problem: Problem, method: Method, rate: float, budget: int, seed: int) -> Run:
    """Train once, with the rate falling linearly to zero, or constant."""
    torch.manual_seed(seed)
    model, run = problem.make(), Run(method.name, rate, budget, seed)
    opt = method.make(model, problem, rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda k: 1.0 if method.constant else max(0.0, 1 - k / budget))
    generator, waiting, spent = torch.Generator().manual_seed(seed + 1), [], 0.0
    for k in range(1, budget + 1):
        if not waiting:
            waiting = list(torch.randperm(len(problem.x), generator=generator).split(problem.batch))
        rows = waiting.pop()
        x, y = problem.x[rows], problem.y[rows]
        start = clock()
        try:
            if method.curvature:
                weighted = rp.optim.beta_nll(model, problem.likelihood, x, y, method.beta)
                opt.step(*(weighted,) if method.beta else (x, y))
            else:
                opt.zero_grad()
                if method.beta:
                    f, _, weight = rp.optim.beta_nll(model, problem.likelihood, x, y, method.beta)()
                    loss = problem.likelihood.nll(f, y) * weight
                else:
                    loss = problem.likelihood.nll(model(x), y)
                loss.mean().backward()
                opt.step()
        except rp.InputError:
            break
        schedule.step()
        spent += clock() - start
        if k % max(1, budget // POINTS) == 0 or k == budget:
            average = opt.averaged() if method.curvature and k < budget else contextlib.nullcontext()
            with average:
                loss = problem.loss(model)
            run.steps.append(k)
            run.seconds.append(spent)
            run.losses.append(loss if np.isfinite(loss) else float("inf"))
    run.test_loss = problem.loss(model, test=True)
    if problem.measure is not None:
        with torch.no_grad():
            run.test_measure = problem.measure(model(problem.test[0]), problem.test[1])
    return run


def tuned(problem: Problem, method: Method, rates: Sequence[float], budget: int) -> Run:
    """Return the run, of those with some rates, with the lowest training loss at the end of a budget."""
    runs = [train(problem, method, rate, budget, 0) for rate in rates]
    return min(runs, key=lambda run: run.losses[-1] if run.losses and run.steps[-1] == budget else float("inf"))


def neighbors(rates: Sequence[float], rate: float) -> list[float]:
    """Return a rate of a grid and those next to it."""
    at = rates.index(rate)
    return list(rates[max(0, at - 1) : at + 2])


def reached(run: Run, loss: float) -> tuple[int, float] | None:
    """Return the first step, and the seconds, at which a loss was reached."""
    found = [(k, t) for k, t, value in zip(run.steps, run.seconds, run.losses, strict=True) if value <= loss]
    return found[0] if found else None


def table(runs: list[Run]) -> str:
    """Return the losses at the end of each budget, and when K-FAC was there."""
    lines = []
    for run in (run for run in runs if run.losses):
        kind = "K-FAC, beta-NLL" if "beta" in run.method else "K-FAC"
        own = [r for r in runs if r.method == kind and r.seed == run.seed]
        at = [found for r in own if (found := reached(r, run.losses[-1]))]
        note = ""
        if not run.method.startswith("K-FAC") and at:
            steps, seconds = min(k for k, _ in at), min(t for _, t in at)
            note = (
                f"K-FAC there in {steps / run.budget:.2f} of the steps, {seconds / run.seconds[-1]:.2f} of the seconds"
            )
        test = "" if np.isnan(run.test_loss) else f" test {run.test_loss:9.4f}"
        test += "" if run.test_measure is None else f" RMSE {run.test_measure:.3f}"
        lines.append(
            f"  {run.method:15s} lr {run.rate:<6g} {run.budget:5d} steps {run.seconds[-1]:7.1f} s  "
            f"loss {run.losses[-1]:9.4f} {test}  {note}"
        )
    return "\n".join(lines)


def plot(name: str, runs: list[Run], folder: Path) -> None:
    """Draw loss by step and by second."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for run in runs:
        if run.budget == max(r.budget for r in runs) and run.seed == 0:
            axes[0].plot(run.steps, run.losses, label=run.method)
            axes[1].plot(run.seconds, run.losses, label=run.method)
    for ax, what in zip(axes, ("steps", "seconds"), strict=True):
        ax.set(xlabel=what, yscale="log")
    axes[0].set(ylabel="training loss", title=name)
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(folder / f"training-{name.replace(', ', '-').replace(' ', '-')}.png")
    plt.close(figure)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder with MNIST's test images, IDX and gzip; left out if absent")
    parser.add_argument("--tables", type=Path, help="folder with UCI tables as for uci.py; left out if absent")
    parser.add_argument("--budgets", type=int, nargs="+", default=[250, 500, 1000, 2000])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="problems whose name holds one of these words")
    parser.add_argument("--methods", nargs="+", help="methods by name")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [m for m in methods() if not options.methods or m.name in options.methods]
    file = options.out / "training.json"
    everything = json.loads(file.read_text()) if file.exists() else {}
    for problem in problems(options.images, options.tables):
        if options.only and not any(word in problem.name for word in options.only):
            continue
        print(problem.name, flush=True)
        for method in (m for m in chosen if problem.measure is not None or not m.beta):
            rates = list(method.rates)
            for budget in options.budgets:
                best = tuned(problem, method, rates, budget)
                rates = neighbors(method.rates, best.rate)
                new = [best, *(train(problem, method, best.rate, budget, seed) for seed in range(1, options.seeds))]
                old = [
                    r for r in everything.get(problem.name, []) if (r["method"], r["budget"]) != (method.name, budget)
                ]
                everything[problem.name] = [*old, *map(vars, new)]
                file.write_text(json.dumps(everything, indent=None).replace("}, {", "},\n{"))
                print(table(new), flush=True)
        runs = [Run(**run) for run in everything[problem.name]]
        print(table(runs), flush=True)
        if importlib.util.find_spec("matplotlib"):
            plot(problem.name, runs, options.out)


if __name__ == "__main__":
    main()
