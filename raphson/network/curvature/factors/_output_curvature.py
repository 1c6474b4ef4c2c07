r"""The middle factor of :math:`J^\top M J`: a ``C x C`` matrix for every position, from the likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from raphson.data import Batch
from raphson.likelihoods import Likelihood
from raphson.linalg import DiagonalPlusLowRank, SymmetricOperator
from raphson.network._objective import Objective
from raphson.network._tensor_memory import inside_transformation

Kind = Literal["observed", "expected", "mc", "empirical"]

_CACHED = 2**22
"""Outputs of a batch up to which their curvature is cached between products; above, it is made anew in chunks."""


@dataclass(frozen=True)
class OutputCurvature:
    r"""Which matrix stands between :math:`J^\top` and :math:`J`.

    ``observed``: the Hessian of the loss in the outputs; ``expected``: its mean over targets drawn from the model, at
    the weights of the given targets; ``mc``: :math:`\frac1S \sum_s (F z_s)(F z_s)^\top` with :math:`F F^\top` the
    expected one and :math:`z` random signs, so that its mean is the expected one whatever weights, ignored targets or
    smoothing the likelihood has (a gradient at a sampled target is :math:`F z` for another such :math:`z`);
    ``empirical``: :math:`g g^\top` at the data.

    Args:
        kind: One of the four.
        samples: ``S``, for ``mc``.
        seed: Of the signs, for ``mc``: the same for every product.
    """

    kind: Kind
    samples: int = 1
    seed: int = 0

    def operator(
        self, likelihood: Likelihood, f: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> SymmetricOperator:
        """Return the matrices of a batch, ``(N, ..., C, C)``, without example weights or scale."""
        if self.kind == "observed":
            return likelihood.hessian(f, y)
        if self.kind == "expected":
            return likelihood.fisher(f, y)
        return DiagonalPlusLowRank(torch.zeros_like(f), self.factor(likelihood, f, y, generator))

    def factor(self, likelihood: Likelihood, f: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return ``U`` with ``U U^T`` the matrices, ``(N, ..., C, r)``, for all kinds but ``observed``.

        The number of columns ``r`` is 1 for ``empirical``, ``samples`` for ``mc``.
        """
        if self.kind == "empirical":
            return likelihood.gradient(f, y).unsqueeze(-1)
        root = likelihood.fisher_factor(f, y)
        if self.kind == "expected":
            return root.to_dense()
        shape = (*f.shape[:-1], root.shape[-1], self.samples)
        signs = torch.randint(0, 2, shape, generator=generator, device=f.device, dtype=torch.int8)
        return root.mm(signs.to(f.dtype).mul_(2).sub_(1)) / math.sqrt(self.samples)

    def generator(self, device: torch.device, index: int) -> torch.Generator:
        """Return the source of the random signs of a batch, which go position by position."""
        return torch.Generator(device).manual_seed(self.seed + index)

    def product(self, objective: Objective, f: Tensor, batch: Batch, index: int) -> Callable[[Tensor], Tensor]:
        """Return the product with the matrices of a batch, times example weights and scale, on ``(N, ..., C)``.

        Many outputs are treated some positions at a time: there are never more than a few arrays of their size.
        """
        likelihood = objective.likelihood
        if f.numel() <= _CACHED:
            apply = self._cached(likelihood, f, batch.y, self.generator(f.device, index))
            return lambda t: objective.scaled(apply(t), batch)
        rows, targets = f.reshape(-1, f.shape[-1]), batch.y.reshape(-1, *batch.y.shape[f.ndim - 1 :])
        width = max(1, _CACHED // 4 // f.shape[-1])

        def in_chunks(t: Tensor) -> Tensor:
            flat, parts = t.reshape(rows.shape), slice_rows(rows.shape[0], width)
            # written in place unless a transformation forbids it
            plain = not inside_transformation(t)
            out = torch.empty_like(flat) if plain else None
            pieces, generator = [], self.generator(f.device, index)
            for part in parts:
                piece = self._cached(likelihood, rows[part], targets[part], generator)(flat[part])
                if out is None:
                    pieces.append(piece)
                else:
                    out[part] = piece
            whole = torch.cat(pieces) if out is None else out
            return _scale_in_place(objective, whole.reshape(t.shape), batch, plain)

        return in_chunks

    def _cached(
        self, likelihood: Likelihood, f: Tensor, y: Tensor, generator: torch.Generator
    ) -> Callable[[Tensor], Tensor]:
        if self.kind in {"observed", "expected"}:
            return self.operator(likelihood, f, y).mv
        factor = self.factor(likelihood, f, y, generator)
        return lambda t: (factor * (factor * t.unsqueeze(-1)).sum(-2, keepdim=True)).sum(-1)


def slice_rows(n: int, width: int) -> list[slice]:
    """Return consecutive slices that cover ``n`` rows."""
    return [slice(start, min(start + width, n)) for start in range(0, n, width)]


def even_parts(n: int, most: int) -> list[tuple[int, int]]:
    """Return where parts of ``n`` begin and end that have at most so many each, about equally many."""
    count = -(-n // most)
    bounds = [n * i // count for i in range(count + 1)]
    return list(pairwise(bounds))


def _scale_in_place(objective: Objective, values: Tensor, batch: Batch, plain: bool) -> Tensor:
    if not plain:
        return objective.scaled(values, batch)
    weights = objective.position_weights(batch)
    values = values.mul_(objective.scale)
    return values if weights is None else values.mul_(weights.unsqueeze(-1))
