"""Laplace posteriors of a digits network beside laplace-torch: time, memory, and how calibrated the probabilities are.

    python benchmarks/laplace.py --peer PYTHON     # an interpreter with laplace-torch 0.3 and curvlinops 3.0.1

Each measurement is a process of its own, whose peak memory is read before and after; the network is trained once and
shared. Without --peer only raphson is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

HERE = Path(__file__).parent
TASKS = {  # structure and subset of raphson; of laplace-torch
    "kfac, all": (("kfac", "all"), ("kron", "all")),
    "diagonal, all": (("diagonal", "all"), ("diag", "all")),
    "kfac, last layer": (("kfac", "last_layer"), ("kron", "last_layer")),
    "dense, last layer": (("dense", "last_layer"), ("full", "last_layer")),
}
TRAINING = 1400


def network() -> nn.Sequential:
    """Return the network, 64-128-64-10."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def digits() -> tuple[Tensor, Tensor]:
    """Return images and labels."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return torch.from_numpy(x[order] / 16).float(), torch.from_numpy(y[order])


def trained() -> nn.Sequential:
    """Return the network after 100 epochs of Adam, overconfident as usual."""
    torch.manual_seed(0)
    x, y = digits()
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(100):
        for rows in torch.randperm(TRAINING).split(100):
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def measure(library: str, task: str, file: str) -> dict[str, float]:
    """Return seconds and megabytes of a fit, its tuning and predictions, and how good these are."""
    net = network()
    net.load_state_dict(torch.load(file))
    net.eval()
    x, y = digits()
    data, new, labels = (x[:TRAINING], y[:TRAINING]), x[TRAINING:], y[TRAINING:]
    (structure, subset), (peer_structure, peer_subset) = TASKS[task]
    found: dict[str, float] = {}

    def timed(name: str, run: Any) -> Any:
        before, start = _peak(), time.perf_counter()
        result = run()
        found[f"{name}_s"], found[f"{name}_mb"] = time.perf_counter() - start, _peak() - before
        return result

    if library == "raphson":
        import raphson as rp

        rp.laplace(net, rp.Categorical(), (x[:50], y[:50]), structure=structure, subset=subset).predict(new[:2]).mean  # noqa: B018
        post = timed("fit", lambda: rp.laplace(net, rp.Categorical(), data, structure=structure, subset=subset))
        post = timed("tune", lambda: post.tune_prior())
        p = timed("predict", lambda: post.predict(new, link="probit").mean)
    else:
        sys.path.remove(str(HERE))  # this file has the peer's name
        from laplace import Laplace
        from torch.utils.data import DataLoader, TensorDataset

        def loader(rows: int) -> Any:
            return DataLoader(TensorDataset(x[:rows], y[:rows]), batch_size=100)

        def made() -> Any:
            return Laplace(net, "classification", subset_of_weights=peer_subset, hessian_structure=peer_structure)

        warm = made()
        warm.fit(loader(50))
        warm(new[:2], link_approx="probit")
        post = made()
        timed("fit", lambda: post.fit(loader(TRAINING)))
        timed("tune", lambda: post.optimize_prior_precision(method="marglik"))
        p = timed("predict", lambda: post(new, link_approx="probit"))
    return found | quality(p.detach().double(), labels)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def quality(p: Tensor, y: Tensor) -> dict[str, float]:
    """Return accuracy, negative log-likelihood and calibration error (15 bins of confidence)."""
    confidence, guess = p.max(1)
    right = (guess == y).double()
    bins = (confidence * 15).long().clamp(max=14)
    gaps = [(right[bins == b] - confidence[bins == b]).sum().abs() for b in range(15)]
    nll = -p.gather(1, y[:, None]).clamp_min(1e-12).log().mean()
    return {"accuracy": float(right.mean()), "nll": float(nll), "ece": float(torch.stack(gaps).sum() / len(y))}


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Return how often an image of another kind has the larger entropy."""
    entropy = [-(p * p.clamp_min(1e-12).log()).sum(1) for p in (inside, outside)]
    ranks = torch.cat(entropy).argsort().argsort().double() + 1
    m, n = len(outside), len(inside)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (m * n))


def calibration(net: nn.Module) -> list[dict[str, Any]]:
    """Return how good the probabilities of the plain net and of posteriors are, inside and outside the data."""
    import raphson as rp

    x, y = digits()
    new, labels = x[TRAINING:], y[TRAINING:]
    outside = new.view(-1, 8, 8).transpose(1, 2).flip(2).reshape(-1, 64)  # turned by a quarter
    rows: list[dict[str, Any]] = []
    plain = [net(t).detach().double().softmax(1) for t in (new, outside)]
    for name, probabilities in (("plain", plain), *((s, None) for s in ("diagonal", "ekfac", "kfac"))):
        if probabilities is None:
            post = rp.laplace(net, rp.Categorical(), (x[:TRAINING], y[:TRAINING]), structure=name).tune_prior(
                per="layer"
            )
            probabilities = [post.predict(t).mean.double() for t in (new, outside)]
        entropy = -(probabilities[1] * probabilities[1].clamp_min(1e-12).log()).sum(1).mean()
        rows.append({
            "posterior": name,
            **quality(probabilities[0], labels),
            "auroc_turned": auroc(*probabilities),
            "entropy_turned": float(entropy),
        })
        print("  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{v:9}" for k, v in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    """Run and write ``results/laplace.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="interpreter that has laplace-torch")
    parser.add_argument("--limit", type=int, default=300, help="seconds for one measurement")
    parser.add_argument("--only", nargs="*", default=list(TASKS))
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    net, rows = trained(), []
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "net.pt")
        torch.save(net.state_dict(), file)
        for task in options.only:
            for library, python in (("raphson", sys.executable), ("laplace-torch", options.peer)):
                if python is None:
                    continue
                command = [python, __file__, "--measure", library, task, file]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit, check=False)
                    found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
                    trouble = "" if found else (done.stderr.strip().splitlines() or ["killed"])[-1]
                except subprocess.TimeoutExpired:
                    found, trouble = {}, f"no result within {options.limit} s"
                rows.append({"task": task, "library": library, **found, **({"trouble": trouble} if trouble else {})})
                figures = "  ".join(f"{k} {v:.3g}" for k, v in found.items() if math.isfinite(v))
                print(f"{task:18} {library:14} {figures}{trouble}", flush=True)
    target = HERE / "results" / "laplace.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"turns": rows, "calibration": calibration(net)}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
