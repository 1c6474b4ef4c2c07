r"""Output curvature averaged over a posterior of the outputs, :math:`\mathrm{E}\,H(f_n + \varepsilon_n)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from raphson.likelihoods import Likelihood, Wrapper
from raphson.linalg import Dense, LinearOperator, Matrix, SymmetricOperator


@dataclass(frozen=True, eq=False)
class ExpectedCurvature(Wrapper):
    """A likelihood whose expected information is averaged over points around the outputs of each example.

    Targets are rows of numbers: first that of the base, then the points' offsets from the outputs, ``(S C)``.

    Args:
        base: The likelihood.
        points: ``S``.
        shape: Of a target of the base.
        dtype: Of its targets.
    """

    base: Likelihood
    points: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def around(cls, base: Likelihood, y: Tensor, cloud: Tensor) -> tuple[Self, Tensor]:
        """Return the likelihood, and its targets for those of the base and offsets ``(S, N, C)``."""
        flat = cloud.movedim(0, 1).flatten(1)
        packed = torch.cat([y.reshape(len(y), -1).to(flat.dtype), flat], 1)
        return cls(base, len(cloud), tuple(y.shape[1:]), y.dtype), packed

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Accept all: targets were checked before offsets were put beside them."""

    def _parts(self, y: Tensor, c: int) -> tuple[Tensor, Tensor]:
        """Return targets of the base, ``(n, ...)``, and offsets, ``(S, n, C)``."""
        offsets = y[:, y.shape[1] - self.points * c :].reshape(len(y), self.points, c)
        own = y[:, : y.shape[1] - self.points * c].to(self.dtype).reshape(len(y), *self.shape)
        return own, offsets.movedim(1, 0)

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the base's value at the outputs themselves."""
        return self.base.nll(f, self._parts(y, f.shape[-1])[0])

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the base's gradient at the outputs themselves."""
        return self.base.gradient(f, self._parts(y, f.shape[-1])[0])

    def weight(self, y: Tensor) -> Tensor | None:
        """Return none: weights of rows are given apart."""
        return None

    def _average(self, f: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        own, offsets = self._parts(y, f.shape[-1])
        around = f + offsets
        return self.base.fisher(around, own.expand(self.points, *own.shape)).to_dense().mean(0)

    def hessian(self, f: Tensor, y: Tensor) -> SymmetricOperator:
        """Return the average of the expected information, as ``fisher``."""
        return Dense(self._average(f, y))

    def fisher(self, f: Tensor, y: Tensor | None = None) -> SymmetricOperator:
        """Return the average over the points of the base's expected information."""
        return Dense(self._average(f, y))

    def fisher_factor(self, f: Tensor, y: Tensor | None = None) -> LinearOperator:
        """Return a root of the average, from its eigenvalues: it is singular where that of the base is."""
        values, vectors = torch.linalg.eigh(self._average(f, y))
        return Matrix(vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2))
