"""Data sets of the fitting benchmark: shipped by dependencies, read from a folder when present, or made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

TABLES = ("letter", "pendigits", "satimage", "segment", "yeast", "cardiotocography")


class Problem(NamedTuple):
    """A classification problem.

    Attributes:
        name: Its name.
        x: ``(N, D)`` standardized columns, or CSR.
        y: ``(N,)`` integers 0 .. K - 1.
    """

    name: str
    x: Any
    y: np.ndarray


def problems(folder: Path | None, only: list[str] | None = None) -> Iterator[Problem]:
    """Yield the problems in order of size, made one at a time so that only one is in memory.

    Args:
        folder: Folder of CSV tables with the label in the last column, or None.
        only: Names to keep; None for all.

    Yields:
        The problems.
    """
    makers: dict[str, Callable[[], tuple[Any, np.ndarray]]] = {
        "wine": lambda: _sklearn("load_wine"),
        "breast_cancer": lambda: _sklearn("load_breast_cancer"),
        "anes96": _anes96,
        "digits": lambda: _sklearn("load_digits"),
    }
    for table in TABLES:
        if folder is not None and (folder / f"{table}.csv").exists():
            makers[table] = lambda path=folder / f"{table}.csv": _table(path)
    makers |= {
        "made 2000x64 K=100": lambda: _made(2_000, 64, 100),
        "made 100000x50 K=5": lambda: _made(100_000, 50, 5, correlated=True),
        "made 1000000x20 K=3": lambda: _made(1_000_000, 20, 3),
        "made 20000x50000 sparse K=20": lambda: _sparse(20_000, 50_000, 20, 0.002),
    }
    for name, make in makers.items():
        if only is None or any(word in name for word in only):
            x, y = make()
            yield Problem(name, x if sp.issparse(x) else _standardized(x), np.unique(y, return_inverse=True)[1])


def _standardized(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    x = x[:, x.std(0) > 0]
    return np.ascontiguousarray((x - x.mean(0)) / x.std(0))


def _sklearn(loader: str) -> tuple[np.ndarray, np.ndarray]:
    import sklearn.datasets

    return getattr(sklearn.datasets, loader)(return_X_y=True)


def _anes96() -> tuple[np.ndarray, np.ndarray]:
    import statsmodels.api as sm

    data = sm.datasets.anes96.load_pandas()
    return data.exog[["logpopul", "selfLR", "age", "educ", "income"]].to_numpy(), data.endog.to_numpy()


def _table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import pandas as pd

    frame = pd.read_csv(path)
    return frame.iloc[:, :-1].to_numpy(dtype=float), frame.iloc[:, -1].to_numpy()


def _made(n: int, d: int, k: int, *, correlated: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d))
    if correlated:
        x = x @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)))
        x /= x.std(0)
    f = x @ rng.normal(size=(d, k)) * (2.0 / np.sqrt(d))
    return x, _draw(f, rng)


def _sparse(n: int, d: int, k: int, density: float) -> tuple[Any, np.ndarray]:
    rng = np.random.default_rng(0)
    x = sp.random(n, d, density=density, format="csr", random_state=rng, data_rvs=lambda m: rng.exponential(size=m))
    f = x @ rng.normal(size=(d, k))
    return x, _draw(np.asarray(f), rng)


def _draw(f: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    for rows in np.array_split(np.arange(len(f)), max(1, len(f) // 100_000)):
        f[rows] += rng.gumbel(size=f[rows].shape)
    return f.argmax(1)
