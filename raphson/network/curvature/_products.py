"""Products with the curvature of a network's objective: a sum over batches, each linearized once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.data import Batch
from raphson.linalg import Implicit, is_near
from raphson.network._objective import Objective
from raphson.network._tensor_memory import Written, block_of

CACHE_BYTES = 2**29
"""What is cached between products takes less than this, in bytes (512 MiB), the graph of a single batch aside."""

_TURNED = 2**16
"""Entries of each vector that are turned from columns into rows at a time, which stay in the cache meanwhile."""


class BatchProducts(NamedTuple):
    """The curvature of one batch.

    Attributes:
        products: From ``k`` vectors in rows, ``(k, P)``, to the products with them.
        nbytes: Memory that is held between products, graphs aside.
    """

    products: Callable[[Tensor], Tensor]
    nbytes: int = 0


Linearize = Callable[[Batch, int, float], BatchProducts]
"""From a batch, its number and the bytes that it may hold beside its graph to its curvature."""


class NetworkProducts:
    """The sum over batches of their curvatures, plus the penalty.

    One batch stays linearized between products, and so do several whose graphs are small enough; otherwise each is
    linearized anew, and all vectors of a block are applied to it.

    Args:
        objective: The objective.
        linearize: Gives the curvature of a batch.
        keep_all: Whether all batches stay linearized, however large they are.
    """

    def __init__(self, objective: Objective, linearize: Linearize, *, keep_all: bool = False) -> None:
        objective.check_products()
        self._objective, self._linearize, self._keep_all = objective, linearize, keep_all
        self._versions = objective.model.versions()
        self._cached: list[BatchProducts] | None = None
        self._data: Written | None = None
        self._finite = False  # until a product was

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
        for batch in self._batches():
            part = batch.products(rows)
            total = part if total is None else total.add_(part)
        assert total is not None
        if not self._finite:
            self._finite = not is_near(total) or bool(torch.isfinite(total).all())
            if not self._finite and bool(torch.isfinite(rows).all()):
                objective.value_and_gradient()  # names the parameter
                raise InputError(
                    "The product is not finite, although the vector, every loss and the gradient are: the second "
                    "derivative of the model, or a number in between, is infinite at its parameters."
                )
        return total.add_(rows, alpha=objective.l2) if objective.l2 else total

    def _batches(self) -> Iterator[BatchProducts]:
        if self._cached is not None:
            assert self._data is not None
            refuse_written(self._data, "the data")
            yield from self._cached
            return
        objective, cached, tensors = self._objective, [], list[Tensor]()
        count, spare = objective.n_batches, float(CACHE_BYTES)
        keep = count == 1 or self._keep_all
        for index, batch in enumerate(objective.batches()):
            if index == 0 and not keep:
                size = self._measure(batch)
                keep = size * count <= CACHE_BYTES
                spare = CACHE_BYTES // count - size if keep else spare
            made = self._linearize(batch, index, math.inf if self._keep_all else spare)
            if keep:
                cached.append(made)
                tensors += batch.tensors()
            yield made
            del made
        self._cached, self._data = cached or None, Written(tensors)

    def _measure(self, batch: Batch) -> int:
        """Return the bytes that are held for a batch, parameters aside."""
        if self._objective.model.checkpointed:
            return CACHE_BYTES + 1  # keeps what it makes behind these hooks
        own = {block_of(tensor)[0] for tensor in self._objective.model.everything.values()}
        seen: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            place, size = block_of(tensor)
            seen[place] = size
            # the graph is thrown away; with its own outputs inside, it would never be freed
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            made = self._linearize(batch, 0, 0)
        return made.nbytes + sum(size for pointer, size in seen.items() if pointer not in own)


def refuse_written(data: Written, what: str) -> None:
    """Raise ``InputError`` where inputs or targets that an operator keeps have been changed in place."""
    if data.since():
        raise InputError(
            f"A tensor of {what} was changed in place after this operator was made, which describes them as they were. "
            "Make a new operator, or write into a copy."
        )


def as_rows(v: Tensor) -> Tensor:
    """Return the columns of ``(P, k)`` as rows in memory, ``(k, P)``."""
    rows = v.new_empty(v.shape[1], v.shape[0])
    for start in range(0, v.shape[0], _TURNED):
        rows[:, start : start + _TURNED] = v[start : start + _TURNED].mT
    return rows
