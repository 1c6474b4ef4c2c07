"""Laplace posteriors of a digits network beside laplace-torch: time, memory, and how calibrated the probabilities are.

    python benchmarks/laplace.py --peer PYTHON     # an interpreter with laplace-torch 0.3 and curvlinops 3.0.1
    python benchmarks/laplace.py --calibration --images DIR    # digits, and the 10,000 test images of MNIST

Each measurement is a process of its own with one thread, whose peak memory is read before and after; seconds are of the
processor, which load changes little. The network is trained once and shared. Without --peer only raphson is measured.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from itertools import pairwise
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
    torch.set_num_threads(1)
    net = network()
    net.load_state_dict(torch.load(file))
    net.eval()
    x, y = digits()
    data, new, labels = (x[:TRAINING], y[:TRAINING]), x[TRAINING:], y[TRAINING:]
    (structure, subset), (peer_structure, peer_subset) = TASKS[task]
    found: dict[str, float] = {}

    def timed(name: str, run: Any) -> Any:
        before, start = _peak(), time.process_time()
        result = run()
        found[f"{name}_s"], found[f"{name}_mb"] = time.process_time() - start, _peak() - before
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


def calibration(images: Path | None, repeats: int) -> list[dict[str, Any]]:
    """Return how good the probabilities of plain nets and of their posteriors are, inside and outside the data.

    Nets are trained as scikit-learn's MLPClassifier trains by default: Adam at 1e-3, batches of 200, 200 epochs, no
    early stopping, and its weight decay of 1e-4, which is 1e-4 / N of the average loss. The prior precisions, one a
    layer, are tuned on held-out rows. Figures are averages over ``repeats`` divisions of the rows.
    """
    sets = {"digits": (*digits(), (128, 64), 1100, 337)}
    if images is not None and images.exists():
        sets["mnist"] = (*mnist(images), (100,), 6000, 2000)
    return [row for name, parts in sets.items() for row in _of_set(name, *parts, repeats)]


def _of_set(
    name: str, x: Tensor, y: Tensor, hidden: tuple[int, ...], training: int, held_out: int, repeats: int
) -> list[dict[str, Any]]:
    import raphson as rp

    found: dict[str, list[dict[str, float]]] = {}
    for repeat in range(repeats):
        order = torch.from_numpy(np.random.default_rng(repeat).permutation(len(x)))
        parts = torch.split(order, [training, held_out, len(x) - training - held_out])
        train, tune, test = ((x[rows], y[rows]) for rows in parts)
        net = classifier(train, hidden, repeat)
        side = math.isqrt(x.shape[1])
        squares = test[0].view(-1, side, side)
        outside = {
            "quarter": squares.transpose(1, 2).flip(2).flatten(1),
            "half": squares.flip(1, 2).flatten(1),
            "mirrored": squares.flip(2).flatten(1),
        }
        inputs = [test[0], *outside.values()]
        predictions = {"plain": [net(t).detach().double().softmax(1) for t in inputs]}
        for structure in ("diagonal", "ekfac", "kfac"):
            post = rp.laplace(net, rp.Categorical(), train, structure=structure)
            post = post.tune_prior(by="validation", per="layer", data=tune)
            predictions[structure] = [post.predict(t).mean.double() for t in inputs]
        for posterior, (inner, *outer) in predictions.items():
            figures = quality(inner, test[1])
            for kind, p in zip(outside, outer, strict=True):
                figures[f"auroc_{kind}"] = auroc(inner, p)
                figures[f"entropy_{kind}"] = float(-(p * p.clamp_min(1e-12).log()).sum(1).mean())
            found.setdefault(posterior, []).append(figures)
    rows = []
    for posterior, all_figures in found.items():
        means = {key: float(np.mean([figures[key] for figures in all_figures])) for key in all_figures[0]}
        rows.append({"data": name, "posterior": posterior, "repeats": repeats, **means})
        print(f"{name:7} {posterior:9}" + "  ".join(f"{k} {v:.4f}" for k, v in means.items()), flush=True)
    return rows


def classifier(data: tuple[Tensor, Tensor], hidden: tuple[int, ...], seed: int) -> nn.Sequential:
    """Return a trained net."""
    torch.manual_seed(seed)
    x, y = data
    sizes = (x.shape[1], *hidden)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(sizes[-1], 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-4 / len(x))
    for _ in range(200):
        for rows in torch.randperm(len(x)).split(200):
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def mnist(folder: Path) -> tuple[Tensor, Tensor]:
    """Return the 10,000 test images of MNIST and their labels."""
    with gzip.open(folder / "mnist-t10k-images-idx3-ubyte.gz") as file:
        x = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)
    with gzip.open(folder / "mnist-t10k-labels-idx1-ubyte.gz") as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8)
    return torch.from_numpy(x / 255).float(), torch.from_numpy(y.copy()).long()


def main() -> None:
    """Run and write ``results/laplace.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="interpreter that has laplace-torch")
    parser.add_argument("--limit", type=int, default=300, help="seconds for one measurement")
    parser.add_argument("--only", nargs="*", default=list(TASKS))
    parser.add_argument("--calibration", action="store_true", help="only how calibrated probabilities are")
    parser.add_argument("--images", type=Path, default=HERE.parent.parent / "shared" / "data" / "images")
    parser.add_argument("--repeats", type=int, default=5, help="divisions of the rows, each with a net of its own")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    target = HERE / "results" / "laplace.json"
    target.parent.mkdir(exist_ok=True)
    results = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    if options.calibration:
        torch.set_num_threads(1)
        results["calibration"] = calibration(options.images, options.repeats)
        target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
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
    measured = {(row["task"], row["library"]) for row in rows}
    before = [row for row in results.get("turns", []) if (row["task"], row["library"]) not in measured]
    results["turns"] = before + rows
    target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
