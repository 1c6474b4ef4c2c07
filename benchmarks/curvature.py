"""Time network curvature side by side with curvlinops and BackPACK, in units of one mini-batch gradient.

Run ``python benchmarks/curvature.py`` (``--help`` lists the options); a peer that is not installed is left out.
``benchmarks/README.md`` says how to read the table.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _tables import curvature_table
from torch import Tensor, nn

import raphson as rp

PEERS = ("curvlinops", "backpack")
Run = Callable[[], Any]


@dataclass
class Problem:
    """A network in evaluation mode with one batch; ``sequential``: BackPACK can extend it."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    classes: int
    sequential: bool

    def loss(self, f: Tensor) -> Tensor:
        """Return the mean cross-entropy over all positions."""
        return F.cross_entropy(f.reshape(-1, self.classes), self.y.reshape(-1))


class Block(nn.Module):
    """A transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.pack, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations ``(N, T, width)``."""
        q, k, v = self.pack(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.mix(mixed)
        return x + self.down(F.gelu(self.up(self.after(x))))


class Transformer(nn.Module):
    """Four layers of width 128 over a vocabulary of 1000."""

    def __init__(self, vocabulary: int = 1000, width: int = 128, length: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, T, vocabulary)``."""
        return self.out(self.norm(self.blocks(self.embedding(x) + self.position)))


class Residual(nn.Module):
    """Two convolutions with BatchNorm around a shortcut."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b))
        self.second = nn.Sequential(nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b))
        self.short = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature maps."""
        return F.relu(self.second(F.relu(self.first(x))) + self.short(x))


def problems(only: Sequence[str] | None) -> list[Problem]:
    """Return the networks whose name holds one of the words."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    cnn = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 10)),
    )
    resnet = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )
    for part in resnet.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)

    def made(name: str, model: nn.Module, x: Tensor, classes: int, sequential: bool = False) -> Problem:
        positions = x.shape if not x.is_floating_point() else x.shape[:1]
        return Problem(name, model.eval(), x, torch.randint(0, classes, positions), classes, sequential)

    found = [
        made("MLP 784-256-128-10, batch 512", mlp, torch.randn(512, 784), 10, True),
        made("CNN 3x32x32, two convolutions, batch 128", cnn, torch.randn(128, 3, 32, 32), 10, True),
        made("ResNet 3x32x32, eval BatchNorm, batch 32", resnet, torch.randn(32, 3, 32, 32), 10),
        made("transformer 4x128, length 64, batch 8", Transformer(), torch.randint(0, 1000, (8, 64)), 1000),
    ]
    return [p for p in found if not only or any(word in p.name for word in only)]


def raphson_runs(problem: Problem) -> dict[str, Run]:
    """Return what raphson computes, by quantity."""
    objective = rp.Objective(problem.model, rp.Categorical(), (problem.x, problem.y))
    p = objective.n_parameters
    v, block = torch.randn(p), torch.randn(p, 8)
    ggn, hessian = rp.ggn(objective), rp.hessian(objective)
    generator = torch.Generator().manual_seed(0)
    known = rp.Objective(problem.model, rp.Categorical(), (problem.x, problem.y), params=known_layers(problem.model))
    if caches_jacobian(problem):
        ggn @ torch.randn(p, problem.classes)  # from here on the Jacobian is cached
    found: dict[str, Run] = {
        "GGN product, 1 vector": lambda: ggn @ v,
        "GGN product, 8 vectors": lambda: ggn @ block,
        "GGN product, 1 vector, from scratch": lambda: rp.ggn(objective) @ v,
        "GGN product, 8 vectors, from scratch": lambda: rp.ggn(objective) @ block,
        "Hessian product, 1 vector": lambda: hessian @ v,
        "Hessian product, 8 vectors": lambda: hessian @ block,
    }
    factorized = {"": known} | ({", norms too": objective} if known.n_parameters < p else {})
    for more, of in factorized.items():
        found[f"K-FAC, sampled{more}"] = partial(rp.kfac, of, "mc", generator=generator)
        if problem.x.is_floating_point():
            found[f"K-FAC, exact{more}"] = partial(rp.kfac, of)
    if problem.x.is_floating_point():
        found["GGN diagonal, exact"] = lambda: rp.ggn(objective, "diagonal").diagonal()
    if problem.sequential and problem.x.ndim == 2:
        found["KFRA"] = lambda: rp.kfac(objective, "recursive")
    return found


def caches_jacobian(problem: Problem) -> bool:
    """Whether products have the Jacobian of the batch to go by: not where an example has many outputs."""
    return problem.y.ndim == 1


def known_layers(model: nn.Module) -> list[str]:
    """Return the names of the parameters that the peers' K-FAC has blocks of: linear layers and convolutions."""
    return [
        f"{name}.{kind}" if name else kind
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d)
        for kind, _ in part.named_parameters()
    ]


def curvlinops_runs(problem: Problem) -> dict[str, Run]:
    """Return what curvlinops computes."""
    import curvlinops as cl

    flat = Flattened(problem.model, problem.classes)
    params = [p for p in flat.parameters() if p.requires_grad]
    loss, data = nn.CrossEntropyLoss(), [(problem.x, problem.y.reshape(-1))]
    p = sum(t.numel() for t in params)
    v, block = torch.randn(p), torch.randn(p, 8)
    kinds = {"num_data": problem.x.shape[0], "check_deterministic": False}
    ggn = cl.GGNLinearOperator(flat, loss, params, data, **kinds)
    again = partial(cl.GGNLinearOperator, flat, loss, params, data, **kinds)
    hessian = cl.HessianLinearOperator(flat, loss, params, data, **kinds)

    def kfac(kind: str) -> Any:
        weights = [flat.get_parameter(name) for name in known_layers(flat)]
        operator = cl.KFACLinearOperator(flat, loss, weights, data, fisher_type=kind, **kinds)
        operator.compute_kronecker_factors()
        return operator

    found: dict[str, Run] = {
        "GGN product, 1 vector": lambda: ggn @ v,
        "GGN product, 8 vectors": lambda: ggn @ block,
        "GGN product, 1 vector, from scratch": lambda: again() @ v,
        "GGN product, 8 vectors, from scratch": lambda: again() @ block,
        "Hessian product, 1 vector": lambda: hessian @ v,
        "Hessian product, 8 vectors": lambda: hessian @ block,
        "K-FAC, sampled": lambda: kfac(cl.FisherType.MC),
    }
    if problem.x.is_floating_point():
        found["K-FAC, exact"] = lambda: kfac(cl.FisherType.TYPE2)
    return found


class Flattened(nn.Module):
    """A model with its positions as rows, which is what curvlinops and BackPACK expect of a cross-entropy."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N T, C)``."""
        return self.model(x).reshape(-1, self.classes)


def backpack_runs(problem: Problem) -> dict[str, Run]:
    """Return what BackPACK computes, of networks that it can extend."""
    if not problem.sequential:
        return {}
    import backpack
    from backpack import extensions

    model, loss = backpack.extend(copy.deepcopy(problem.model)), backpack.extend(nn.CrossEntropyLoss())

    def run(extension: Any, attribute: str) -> Run:
        def compute() -> Any:
            model.zero_grad()
            with backpack.backpack(extension):
                loss(model(problem.x), problem.y).backward()
            return (
                torch.cat([getattr(p, attribute).reshape(-1) for p in model.parameters()])
                if (attribute.startswith("diag"))
                else None
            )

        return compute

    found = {
        "K-FAC, sampled": run(extensions.KFAC(), "kfac"),
        "K-FAC, exact": run(extensions.KFLR(), "kflr"),
        "GGN diagonal, exact": run(extensions.DiagGGNExact(), "diag_ggn_exact"),
    }
    if problem.x.ndim == 2:
        found["KFRA"] = run(extensions.KFRA(), "kfra")
    return found


def counts(problem: Problem) -> dict[str, float]:
    """Return the multiply-adds of each quantity in units of a forward pass, from the layers' shapes.

    F is a forward pass, W the weight gradients, D the backward pass to layer outputs (everything but the weight
    gradients and the first layer's input), A and B the input and output factors, halved by symmetry; patches of a
    convolution go by shifts. A gradient is F + D + W, and of the C columns of a categorical one is 0. A cached
    Jacobian has one multiplication for each of its entries, or as its layer for each vector where it stores factors.
    """
    from raphson.network.curvature.factors._patch_syrk import PatchSyrk, n_shifts
    from raphson.network.curvature.factors._recorded_batches import recorded_batches
    from raphson.network.layers._convolution import Convolution
    from raphson.network.layers._feed_forward import find_feed_forward
    from raphson.network.layers._layer_calls import Linear, Matmul
    from raphson.network.layers._layer_jacobian import factors_are_faster

    objective = rp.Objective(problem.model, rp.Categorical(), (problem.x, problem.y))
    n = problem.x.shape[0]
    recorded = next(recorded_batches(objective))
    n_part = recorded.record.output.shape[0]
    calls = [call for call in recorded.record.calls if isinstance(call, Matmul)]
    f = d = a = b = w = cached = 0.0
    for number, call in enumerate(calls):
        groups, o, i = call.weight_shape
        positions = call.positions * call.inner * n / n_part
        f, w = f + positions * groups * o * i, w + positions * groups * o * i
        d += positions * groups * o * i if number else 0.0
        shifts = isinstance(call, Convolution) and PatchSyrk.suits(call)
        a += positions * (n_shifts(call.kernel) * call.x.shape[1] ** 2 if shifts else 0.5 * groups * i * i)
        b += 0.5 * positions * groups * o * o
        each = call.positions // n_part
        factors = isinstance(call, Linear) and factors_are_faster(call, each, problem.classes, objective.space)
        cached += positions * o * (i + problem.classes) if factors else n * problem.classes * groups * o * i
    c = problem.classes - 1
    product = 2 * (cached if caches_jacobian(problem) else d + w)
    # a graph of the backward pass is made where there is no closed form, and convolutions do nothing in it
    start = f if find_feed_forward(problem.model) or objective.traits.convolution else f + d + w
    shared = any(call.positions * call.inner > n_part for call in calls)
    found = {
        "gradient": f + d + w,
        "GGN product, 1 vector": product,
        "GGN product, 8 vectors": 8 * product,
        "GGN product, 1 vector, from scratch": start + 2 * (d + w),
        "GGN product, 8 vectors, from scratch": start + 16 * (d + w),
        "Hessian product, 1 vector": 2 * (w + 2 * d),
        "Hessian product, 8 vectors": 16 * (w + 2 * d),
        "K-FAC, sampled": f + a + d + b,
        "K-FAC, exact": f + a + c * (d + b),
        "GGN diagonal, exact": f + c * d + (c * w if shared else w),
        "KFRA": f + a + b,
    }
    return {name: count / f for name, count in found.items()}


def race(problem: Problem, repeats: int) -> dict[str, Any]:
    """Time all contestants of every quantity in turns, after a warm-up, and compare what can be compared."""
    params = list(problem.model.parameters())
    runs = {"raphson": raphson_runs(problem)}
    for peer, make in (("curvlinops", curvlinops_runs), ("backpack", backpack_runs)):
        if importlib.util.find_spec(peer) is not None:
            runs[peer] = make(problem)

    def gradient() -> Any:
        return torch.autograd.grad(problem.loss(problem.model(problem.x)), params)

    results: dict[str, Any] = {"counts": counts(problem), "quantities": {}}
    for quantity in runs["raphson"]:
        contestants: dict[str, Run] = {"gradient": gradient}
        contestants |= {who: of[quantity] for who, of in runs.items() if quantity in of}
        times: dict[str, list[float]] = {}
        for who, run in contestants.items():
            try:
                run()
                times[who] = []
            except Exception as refused:  # noqa: BLE001 - what a peer raises is its result
                results.setdefault("refused", {})[f"{who}: {quantity}"] = str(refused)[:200]
        for _ in range(repeats):
            for who in times:
                times[who].append(min(_turn(contestants[who])))
        results["quantities"][quantity] = {who: float(np.median(t)) for who, t in times.items()}
    results["agree"] = agreement(problem, runs)
    return results


def _turn(run: Run) -> list[float]:
    """Time a few runs in a row, the first not counted: threads of the one before are still spinning."""
    times: list[float] = []
    while len(times) < 3 and sum(times) < 2.0:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times[1:] or times


def agreement(problem: Problem, runs: dict[str, dict[str, Run]]) -> dict[str, float]:
    """Return the relative differences of deterministic quantities from the peers'."""
    found: dict[str, float] = {}
    objective = rp.Objective(problem.model, rp.Categorical(), (problem.x, problem.y))
    v = torch.randn(objective.n_parameters, generator=torch.Generator().manual_seed(1))
    if "curvlinops" in runs:
        import curvlinops as cl

        flat = Flattened(problem.model, problem.classes)
        data = [(problem.x, problem.y.reshape(-1))]
        arguments = (flat, nn.CrossEntropyLoss(), list(flat.parameters()), data)
        kinds = {"num_data": problem.x.shape[0], "check_deterministic": False}
        for name, ours, theirs in (
            ("GGN product", rp.ggn(objective), cl.GGNLinearOperator),
            ("Hessian product", rp.hessian(objective), cl.HessianLinearOperator),
        ):
            try:
                found[f"curvlinops {name}"] = _relative(ours @ v, theirs(*arguments, **kinds) @ v)
            except Exception as refused:  # noqa: BLE001 - what a peer raises is its result
                found[f"curvlinops {name} ({str(refused)[:60]})"] = float("nan")
        if problem.sequential:
            operator = cl.KFACLinearOperator(*arguments, fisher_type=cl.FisherType.TYPE2, **kinds)
            ours = rp.kfac(objective, bias="separate") @ v
            found["curvlinops K-FAC, exact"] = _relative(ours, operator @ v)
    if "GGN diagonal, exact" in runs.get("backpack", {}):
        ours = rp.ggn(objective, "diagonal").diagonal()
        found["backpack GGN diagonal"] = _relative(ours, runs["backpack"]["GGN diagonal, exact"]())
    return found


def _relative(a: Tensor, b: Any) -> float:
    b = torch.as_tensor(b).reshape(a.shape)
    return float((a - b).norm() / b.norm())


_MEMORY = """
import torch, resource, sys
from torch import nn
import raphson as rp
torch.set_num_threads({threads})
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
def reset():
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
def now():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
def used(run):
    reset()
    before = now()
    run()
    return peak() - before
torch.manual_seed(0)
"""

_WIDE = (
    _MEMORY
    + """
n, c = 1024, 1000
model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, c))
x, y = torch.randn(n, 512), torch.randint(0, c, (n,))
params = list(model.parameters())
small = rp.Objective(nn.Linear(4, 3), rp.Categorical(), (torch.randn(8, 4), torch.randint(0, 3, (8,))))
rp.kfac(small)
gradient = used(lambda: torch.autograd.grad(nn.functional.cross_entropy(model(x), y), params))
objective = rp.Objective(model, rp.Categorical(), (x, y))
print(gradient, used(lambda: rp.kfac(objective)))
"""
)

_VOCABULARY = (
    _MEMORY
    + """
n, c = 512, 50304
model = nn.Linear(64, c, bias=False)
x, y = torch.randn(n, 64), torch.randint(0, c, (n,))
objective = rp.Objective(model, rp.Categorical(), (x, y))
operator, v = rp.ggn(objective), torch.randn(64 * c)
small = rp.Objective(nn.Linear(4, 3), rp.Categorical(), (torch.randn(8, 4), torch.randint(0, 3, (8,))))
rp.ggn(small) @ torch.randn(15)
print(n * c * 4 / 2**20, used(lambda: operator @ v))
"""
)

_LOOP = (
    _MEMORY
    + """
model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
x, y = torch.randn(128, 64), torch.randint(0, 10, (128,))
operator = rp.hessian(rp.Objective(model, rp.Categorical(), (x, y)))
v = torch.randn(operator.shape[0])
for _ in range(200):
    v = operator @ v
    v /= v.norm()
before = now()
for _ in range(1000):
    v = operator @ v
    v /= v.norm()
print(before, now())
"""
)


def memory(threads: int) -> dict[str, tuple[float, float]]:
    """Measure memory in processes of their own; pairs of megabytes, reference first (Linux)."""

    def run(code: str) -> tuple[float, float]:
        text = code.replace("{threads}", str(threads))
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", text], capture_output=True, text=True, check=True)
        first, second = (float(word) for word in done.stdout.split())
        return first, second

    return {
        "exact K-FAC with 1000 outputs: one gradient, factors (MB)": run(_WIDE),
        "GGN product with vocabulary 50304: one array of logits, the product (MB)": run(_VOCABULARY),
        "1000 Hessian products: resident before, after (MB)": run(_LOOP),
    }


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    from importlib.metadata import PackageNotFoundError, version

    for package in ("curvlinops-for-pytorch", "backpack-for-pytorch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="words; keep the networks whose name holds one")
    parser.add_argument("--no-memory", action="store_true", help="leave out what needs processes of its own")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/curvature.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {}
    for problem in problems(arguments.only):
        print(f"\n{problem.name}", flush=True)
        results[problem.name] = race(problem, arguments.repeats)
        print("\n".join(curvature_table(results[problem.name])))
        for what, difference in results[problem.name]["agree"].items():
            print(f"differs from {what}: {difference:.1e}")
        for what, why in results[problem.name].get("refused", {}).items():
            print(f"refused by {what}: {why}")
    used = {} if arguments.no_memory else memory(arguments.threads)
    for what, (reference, ours) in used.items():
        print(f"{what}: {reference:.1f}, {ours:.1f}, ratio {ours / reference:.2f}")
    facts = machine()
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"machine": facts, "networks": results, "memory": used}, indent=1))


if __name__ == "__main__":
    main()
