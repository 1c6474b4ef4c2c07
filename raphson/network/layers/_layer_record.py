r"""What a forward pass leaves behind: the layer calls, and the way backward to their output gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg import widest_float
from raphson.network.autodiff._batched_vjp import Visit
from raphson.network.layers._layer_calls import LayerCall, Lookup
from raphson.network.layers._parameter_view import NoLayout, PositionLayout

Consumer = Callable[[Mapping[int, Tensor]], None]
"""Takes output gradients by the numbers of the layer calls."""


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """The layer calls of one forward pass of a batch.

    Attributes:
        output: ``f``, ``(N, ..., C)``, with its graph.
        calls: The recorded calls that lead to the output, in order.
        unrecognized: Names of parameters that are used outside recognized layers, at least once.
        backward: From output gradients ``(k, N, ..., C)`` to those of the calls, ``(k, *shape)``, which it hands over
            with their numbers; it may write over them afterwards.
        at_output: The call whose outputs are the model's, row by row in the same order, so that its output gradients
            are what ``backward`` is given; None where no call is seen to be.
    """

    output: Tensor
    calls: tuple[LayerCall, ...]
    unrecognized: frozenset[str]
    backward: Callable[[Tensor, Visit], None]
    at_output: int | None = None

    def gradients(self, u: Tensor) -> list[Tensor]:
        """Return the output gradients of the calls, ``(k, *shape)``, for those of the output, ``(k, N, ..., C)``."""
        found: dict[int, Tensor] = {}

        def store(number: int, g: Tensor) -> None:
            found[number] = g.clone() if len(u) > 1 else g  # of one gradient nothing is overwritten

        if self.calls:
            self.backward(u, store)
        return [found[i] for i in range(len(self.calls))]

    def deliver(self, u: Tensor, jobs: Sequence[tuple[Sequence[int], Consumer]]) -> None:
        """Hand the output gradients of the calls to those who wait for them, as soon as they are there.

        From gradients with respect to the output ``(k, N, ..., C)`` each job takes those of the calls numbered,
        ``(k, *shape)`` by number; it must not change or store them.
        """
        waiting: list[tuple[set[int], dict[int, Tensor], Consumer]] = [
            (set(numbers), {}, take) for numbers, take in jobs
        ]

        def visit(number: int, g: Tensor) -> None:
            for numbers, found, take in waiting:
                if number in numbers:
                    found[number] = g if len(numbers) == 1 else g.clone()
                    if len(found) == len(numbers):
                        take(found)
                        found.clear()

        if self.calls:
            self.backward(u, visit)

    def layouts(self, later: bool = False) -> list[PositionLayout]:
        """Return for each call which positions belong to which example.

        Where the shape leaves it open (two axes as long as the batch, examples folded into another axis) two backward
        passes decide: with a weight for each example's outputs, the gradient at each of its positions is multiplied.

        Args:
            later: Whether a call whose positions cannot be split is refused only where that is asked for.

        Returns:
            The layouts.

        Raises:
            InputError: A layer's positions cannot be split into examples.
        """
        n, found = self.output.shape[0], []
        for i, call in enumerate(self.calls):
            candidates = self._split(i, sure=False)
            if not candidates:
                why = (
                    f"The layer with parameter '{call.name}' has an output of shape {tuple(call.shape)}, in which the "
                    f"{n} examples of the batch cannot be told apart. Keep the examples on the first axis."
                )
                if not later:
                    raise InputError(why)
                candidates = [NoLayout(1, n, 1, why)]
            found.append(candidates[0])
        return found

    def shared(self) -> set[int]:
        """Return the calls that all examples have in common, as positions that are looked up once and broadcast.

        Seen where there are several examples. Tables with as many positions as examples are asked by their gradients.
        """
        if self.output.shape[0] == 1:
            return set()
        return {i for i, call in enumerate(self.calls) if not self._split(i, sure=isinstance(call, Lookup))}

    def _split(self, i: int, sure: bool) -> list[PositionLayout]:
        """Return how positions of a call can be split; ``sure`` looks where there are as many as examples, too."""
        call, n = self.calls[i], self.output.shape[0]
        candidates = _candidates(call.lead, n)
        if len(candidates) > 1 or (sure and candidates and call.positions == n):
            weights, plain, weighted = self._weighted
            return [c for c in candidates if _weighted_by(c.per_position(weights), plain[i], weighted[i])]
        return candidates

    @cached_property
    def _weighted(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Weights of the examples, and gradients at all positions of each call without and with them."""
        # from 1 to 2, those of neighbors far apart (the golden ratio's multiples)
        f = self.output
        golden = torch.arange(f.shape[0], dtype=widest_float(f.device), device=f.device) * 0.6180339887498949
        weights = 1 + golden.frac().to(f.dtype)
        return weights, self._mixed(torch.ones_like(weights)), self._mixed(weights)

    def touched(self, weights: Tensor) -> list[Tensor]:
        """Return for each call which positions ``(M,)`` outputs with a weight other than zero depend on."""
        return [(rows != 0).any(1) for rows in self._mixed(weights)]

    def _mixed(self, weights: Tensor) -> list[Tensor]:
        """Return the gradients of a mixture of all outputs, with weights, at all positions of each call, ``(M, d)``."""
        f = self.output
        count = torch.arange(1, f.numel() + 1, dtype=widest_float(f.device), device=f.device)
        mixed = count.cos().to(f.dtype).view(f.shape)
        u = mixed * weights.reshape(*weights.shape, *(1,) * (f.ndim - weights.ndim))
        gradients = self.gradients(u.unsqueeze(0))
        return [call.rows(g)[0].flatten(1) for call, g in zip(self.calls, gradients, strict=True)]


def _weighted_by(weights: Tensor, plain: Tensor, weighted: Tensor) -> bool:
    """Whether rows ``(M, d)`` are others times weights ``(M,)``, as far as weights of different examples differ."""
    if not len(plain):
        return True
    gap, size = (weighted - weights[:, None] * plain).norm(dim=1), weighted.norm(dim=1)
    # what rounding leaves of a zero is a multiple of nothing
    return bool((gap <= max(1e-3, 10 * torch.finfo(gap.dtype).eps) * (size + 0.01 * size.amax())).all())


def _candidates(lead: tuple[int, ...], n: int) -> list[PositionLayout]:
    """Return the ways in which positions may be split into examples, the likely one first."""
    total = torch.Size(lead).numel()
    if n == 1:
        return [PositionLayout(1, 1, total)]
    found = [
        PositionLayout(torch.Size(lead[:i]).numel(), n, torch.Size(lead[i + 1 :]).numel())
        for i, length in enumerate(lead)
        if length == n
    ]
    if lead and lead[0] % n == 0 and lead[0] != n:
        # examples folded into the first axis, outside or inside of what is folded with them
        found += [PositionLayout(1, n, total // n), PositionLayout(lead[0] // n, n, total // lead[0])]
    return found[:1] if total == n else found
