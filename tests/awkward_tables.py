"""What tables of people have in them: copied rows, constant columns, zeros."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray


def spoil(x: NDArray[np.float64], kinds: Collection[str], rng: np.random.Generator, constant: float = 0.2) -> None:
    """Copy half of the rows, make a share of the columns constant, or most entries zero, as ``kinds`` say."""
    if "copied rows" in kinds:
        x[rng.integers(len(x), size=len(x) // 2)] = x[0]
    if "constant columns" in kinds:
        x[:, rng.random(x.shape[1]) < constant] = 2.0
    if "sparse" in kinds:
        x[rng.random(x.shape) < 0.6] = 0.0
