"""How fast could these fits be at all? The matrix products and exponentials that a fit asks for, timed alone.

Run ``python benchmarks/floor.py`` (``--help`` lists the options). A fit of ``benchmarks/fit.py`` is run once while its
evaluations, dense Hessians and Hessian products are counted with their shapes; then a bare kernel of each shape is
timed: an evaluation as two matrix products and a softmax in place, a dense Hessian as one symmetric rank-N update, a
product as two matrix products in single precision. No code of the library runs in the kernels. Their sum is what the
same steps would take at the machine's ceilings with no call around them.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from _problems import problems
from fit import L2, TOL

from raphson import MultinomialLogisticRegression
from raphson.linear import LinearHessian, LinearObjective

Key = tuple[str, int, int, int]


@contextmanager
def counted(counts: Counter[Key]) -> Generator[None, None, None]:
    """Count evaluations, dense Hessians and products by rows, free outputs and columns."""
    evaluate, product = LinearObjective.evaluate, LinearHessian.mv
    dense = LinearHessian.__dict__["_dense"].func

    def count_evaluate(self: Any, *arguments: Any) -> Any:
        counts["evaluation", self.n_rows, *shape(self.output_map)] += 1
        return evaluate(self, *arguments)

    def rows(self: Any) -> int:
        return sum(block.rows.stop - block.rows.start for block, _, _ in self.parts())

    def count_product(self: Any, v: torch.Tensor) -> torch.Tensor:
        counts["product", rows(self), *shape(self.output_map)] += 1
        return product(self, v)

    def count_dense(self: Any) -> torch.Tensor:
        counts["Hessian", rows(self), *shape(self.output_map)] += 1
        return dense(self)

    LinearObjective.evaluate, LinearHessian.mv = count_evaluate, count_product
    patched = cached_property(count_dense)
    patched.__set_name__(LinearHessian, "_dense")
    LinearHessian._dense = patched
    try:
        yield
    finally:
        LinearObjective.evaluate, LinearHessian.mv = evaluate, product
        restored = cached_property(dense)
        restored.__set_name__(LinearHessian, "_dense")
        LinearHessian._dense = restored


def shape(output_map: Any) -> tuple[int, int]:
    """Return the outputs that have coefficients of their own, and the columns."""
    return output_map.basis.shape[1], output_map.n_columns


def kernel(key: Key) -> Callable[[], Any]:
    """Return the bare kernel of a kind and shape."""
    kind, n, c, d = key
    if kind == "Hessian":
        from scipy.linalg.blas import dsyrk

        z = np.asfortranarray(np.full((n, c * d), 0.5))
        return lambda: dsyrk(1.0, z, trans=1)
    dtype = torch.float64 if kind == "evaluation" else torch.float32
    x, b, f = torch.randn(d, n, dtype=dtype), torch.randn(c, d, dtype=dtype), torch.empty(c, n, dtype=dtype)

    def passes() -> torch.Tensor:
        torch.mm(b, x, out=f)
        if kind == "evaluation":
            f.exp_().div_(f.sum(0))
        return f @ x.mT

    return passes


def seconds(run: Callable[[], Any]) -> float:
    """Return the least time of a call over a tenth of a second or five calls, after one that is not counted."""
    run()
    times: list[float] = []
    while sum(times) < 0.1 or len(times) < 5:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, default=Path("../shared/data/classification"))
    parser.add_argument("--only", nargs="*", help="words; keep the data sets whose name holds one")
    arguments = parser.parse_args()
    folder = arguments.tables if arguments.tables.exists() else None
    print("| data | evaluations | dense Hessians | products | kernels ms | fit ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for problem in problems(folder, arguments.only):
        if sp.issparse(problem.x):
            continue

        def fit(x: Any = problem.x, y: Any = problem.y) -> None:
            MultinomialLogisticRegression(l2=L2, tol=TOL, reference=None).fit(x, y)

        counts: Counter[Key] = Counter()
        whole = seconds(fit)
        with counted(counts):
            fit()
        bare = sum(times * seconds(kernel(key)) for key, times in counts.items())
        kinds = [
            sum(v for (kind, *_), v in counts.items() if kind == name) for name in ("evaluation", "Hessian", "product")
        ]
        cells = [problem.name, *map(str, kinds), f"{1e3 * bare:.2f}", f"{1e3 * whole:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
