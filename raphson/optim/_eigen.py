r"""Blocks in the eigenbasis of their factors, with second moments of the gradients there (EKFAC).

With eigenvectors :math:`Q_L, Q_R` of the averaged factors the damped solve is exact in that basis:
:math:`Q_L [(Q_L^T V Q_R) / (s + \lambda)] Q_R^T`, where s is the running average of the squared per-example gradients
in it (George et al. 2018). With a new basis s starts from the eigenvalues of the Kronecker product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raphson.network import Factors, KroneckerBlock
from raphson.optim._blocks import State, block_row, trace


class EigenState:
    """The averages of both factors, their eigenvectors, and second moments along pairs of these."""

    def __init__(self, block: KroneckerBlock) -> None:
        self.block = block
        self._factors: Factors | None = None
        self._vectors: Factors | None = None
        self._moments: Tensor | None = None
        self._damping = 0.0

    @property
    def basis(self) -> Factors | None:
        """The eigenvectors; None before there are any."""
        return self._vectors

    def trace(self) -> float:  # noqa: D102
        assert self._factors is not None
        return float((trace(self._factors.left) * trace(self._factors.right)).sum())

    def update(self, factors: Factors, moments: Tensor | None, keep: float) -> None:  # noqa: D102
        if self._factors is None:
            self._factors = factors
        else:
            self._factors.left.lerp_(factors.left, 1.0 - keep)
            self._factors.right.lerp_(factors.right, 1.0 - keep)
        if moments is not None and self._moments is not None:
            self._moments.lerp_(moments, 1.0 - keep)

    def refresh(self, damping: float, due: bool) -> None:  # noqa: D102
        self._damping = damping
        if not due and self._vectors is not None:
            return
        assert self._factors is not None
        (values_left, left), (values_right, right) = (_eigh(t) for t in self._factors[:2])
        self._vectors = Factors(left, right, self.block.flipped)
        self._moments = values_left.unsqueeze(2) * values_right.unsqueeze(1)

    def solve(self, values: Tensor) -> Tensor:  # noqa: D102
        assert self._vectors is not None and self._moments is not None
        left, right = self._vectors[:2]
        turned = _right(_left(left.mT if left.ndim == 3 else left, values), right)
        scaled = turned / (self._moments + self._damping)
        return _right(_left(left, scaled), right.mT if right.ndim == 3 else right)

    def state(self) -> State:  # noqa: D102
        found: State = {}
        for what, pair in (("factor", self._factors), ("vectors", self._vectors)):
            if pair is not None:
                found |= {f"left_{what}": pair.left, f"right_{what}": pair.right}
        return found if self._moments is None else {**found, "moments": self._moments}

    def load(self, state: State) -> None:  # noqa: D102
        flipped = self.block.flipped
        if "left_factor" in state:
            self._factors = Factors(state["left_factor"], state["right_factor"], flipped)
        if "left_vectors" in state:
            self._vectors = Factors(state["left_vectors"], state["right_vectors"], flipped)
            self._moments = state["moments"]

    def report(self) -> tuple[str, int, str, int]:  # noqa: D102
        return block_row(self.block, self._factors, "Kronecker eigenbasis", self.state())


def _eigh(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues ``(G, n)`` and vectors ``(G, n, n)``; of a diagonal ``(G, n)`` itself and ones."""
    if t.ndim == 2:
        return t, torch.ones_like(t)
    values, vectors = torch.linalg.eigh(t)
    return values.clamp_min(0.0), vectors


def _left(q: Tensor, values: Tensor) -> Tensor:
    return q @ values if q.ndim == 3 else values


def _right(values: Tensor, q: Tensor) -> Tensor:
    return values @ q if q.ndim == 3 else values
