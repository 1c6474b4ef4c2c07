"""Products with the curvature of a network's objective: a sum over batches, each linearized once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from raphson.data import Batch
from raphson.linalg import Implicit
from raphson.network._objective import Objective

CACHE_BYTES = 2**29
"""What is kept between products takes less than this, in bytes (512 MiB), the graph of a single batch aside."""

_TURNED = 2**16
"""Entries of each vector that are turned from columns into rows at a time, which stay in the cache meanwhile."""


class Local(Protocol):
    """The curvature of one batch.

    Attributes:
        nbytes: Memory that is held between products, graphs aside.
    """

    nbytes: int

    def products(self, rows: Tensor) -> Tensor:
        """Return the products with ``k`` vectors in rows, ``(k, P)``."""


Linearize = Callable[[Objective, Batch, int, int], Local]


class NetworkProducts:
    """The sum over batches of local curvatures, plus the penalty.

    One batch stays linearized between products, and so do several whose graphs are small enough; otherwise each is
    linearized anew, and all vectors of a block are applied to it.

    Args:
        objective: The objective.
        linearize: From a batch, its number and the bytes that it may keep beside its graph to its curvature.
    """

    def __init__(self, objective: Objective, linearize: Linearize) -> None:
        self._objective, self._linearize = objective, linearize
        self._versions = objective.model.versions()
        self._cached: list[Local] | None = None

    def operator(self) -> Implicit:
        """Return the symmetric operator ``(P, P)``."""
        space = self._objective.space
        labels = space.labels()
        return Implicit(self.mv, space.numel, space.dtype, space.device, matmat=self.mm, labels=labels)

    def mv(self, v: Tensor) -> Tensor:
        """Return the product with ``v``, both ``(P,)``."""
        return self._rows(v.unsqueeze(0)).squeeze(0)

    def mm(self, v: Tensor) -> Tensor:
        """Return the product with the columns of ``v``, both ``(P, k)``."""
        return self._rows(as_rows(v)).mT

    def _rows(self, rows: Tensor) -> Tensor:
        objective = self._objective
        objective.space.check_length(rows.shape[-1])
        objective.model.check_unchanged(self._versions)
        total: Tensor | None = None
        for local in self._locals():
            part = local.products(rows)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total.add_(rows, alpha=objective.l2) if objective.l2 else total

    def _locals(self) -> Iterator[Local]:
        if self._cached is not None:
            yield from self._cached
            return
        objective, cached, size = self._objective, [], 0
        single = objective.n_batches == 1
        keep, spare = single, CACHE_BYTES
        for index, batch in enumerate(objective.batches()):
            if index == 0 and not single:
                size = self._measure(batch)
                keep = size * objective.n_batches <= CACHE_BYTES
                spare = CACHE_BYTES // objective.n_batches - size if keep else CACHE_BYTES
            local = self._linearize(objective, batch, index, spare)
            if keep:
                cached.append(local)
            yield local
            del local
        self._cached = cached or None

    def _measure(self, batch: Batch) -> int:
        """Return the bytes that are held for a batch, parameters aside."""
        own = {tensor.untyped_storage().data_ptr() for tensor in self._objective.model.everything.values()}
        seen: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            # the graph is thrown away; with its own outputs inside, it would never be freed
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            local = self._linearize(self._objective, batch, 0, 0)
        return local.nbytes + sum(size for pointer, size in seen.items() if pointer not in own)


def as_rows(v: Tensor) -> Tensor:
    """Return the columns of ``(P, k)`` as rows in memory, ``(k, P)``."""
    rows = v.new_empty(v.shape[1], v.shape[0])
    for start in range(0, v.shape[0], _TURNED):
        rows[:, start : start + _TURNED] = v[start : start + _TURNED].mT
    return rows
