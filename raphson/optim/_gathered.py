"""What the batches of one step add up to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.network import Factors, Measured, TrainingPass


class Gathered:
    """Loss, gradient and curvature of one batch or several, each with its share of the weight.

    Args:
        reduction: Whether the loss is a mean or a sum over examples.
    """

    def __init__(self, reduction: str) -> None:
        self._mean = reduction == "mean"
        self._passes: list[TrainingPass] = []
        self._losses: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._measured: list[Measured | None] = []

    def with_pass(self, made: TrainingPass, gradient: Tensor, measured: Measured | None) -> Self:
        """Return a copy with one more batch: where a later error ends the step, nothing has been added."""
        copy = type(self)("mean" if self._mean else "sum")
        copy._passes = [*self._passes, made]
        copy._losses = [*self._losses, made.loss]
        copy._gradients = [*self._gradients, gradient]
        copy._measured = [*self._measured, measured]
        return copy

    def release(self) -> None:
        """Forget the graphs: they are made again where they are needed."""
        for made in self._passes:
            made.release()

    @property
    def released(self) -> bool:
        """Whether the graph of a batch has to be made again."""
        return any(made.released for made in self._passes)

    @property
    def loss(self) -> Tensor:
        """The loss."""
        return self._total(self._losses)

    @property
    def gradient(self) -> Tensor:
        """The gradient, ``(P,)``."""
        return self._total(self._gradients)

    @property
    def measured(self) -> Measured | None:
        """The curvature; None where it was not asked for."""
        found = [one for one in self._measured if one is not None]
        if not found or len(found) == 1 == len(self._measured):
            return found[0] if found else None
        blocks = zip(*(one.factors for one in found), strict=True)
        moments = zip(*(one.moments for one in found), strict=True)
        return Measured(
            [self._factors(block) for block in blocks],
            self._total([one.diagonal for one in found]),
            [self._total(list(block)) for block in moments],
        )

    @property
    def targets(self) -> float:
        """The number of targets whose losses are added up: those of one example for a mean, of all for a sum."""
        first = self._passes[0]
        own = first.batch.y.shape[first.f.ndim - 1 :].numel()
        return own * (1.0 if self._mean else sum(made.total_weight for made in self._passes))

    def curvature(
        self, directions: Sequence[Tensor], last: Callable[[TrainingPass, Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return products of directions with the Gauss-Newton matrix between them, ``(k, k)``.

        Args:
            directions: The directions, ``(P,)`` each.
            last: Returns the Jacobian of a pass times the last one; None for the general way.

        Returns:
            The products.
        """
        return self._total([made.curvature(directions, last) for made in self._passes])

    def product(self, v: Tensor) -> Tensor:
        """Return the Gauss-Newton matrix times a vector, both ``(P,)``."""
        return self._total([made.product(v) for made in self._passes])

    def bounded(self, v: Tensor, most: float, halvings: int) -> tuple[float, float]:
        """Return the share of a step that changes no output Hessian by more than a factor, and ``v^T G v``."""
        found = [made.bounded(v, most, halvings) for made in self._passes]
        return min(share for share, _ in found), float(self._total([curved for _, curved in found]))

    def loss_now(self) -> Tensor:
        """Return the loss at the present parameters."""
        return self._total([made.loss_now() for made in self._passes])

    def given_again(self, now: float) -> float:
        """Return the loss that the same batches have at the present parameters if they are given again.

        Args:
            now: The loss there with the weights that they had (``loss_now``). Closures may make others of the outputs.

        Returns:
            The loss; nan where no batch can be made there.
        """
        try:
            found = [made.given_again() for made in self._passes]
        except InputError:  # the next step says why, before it changes anything
            return math.nan
        if all(one is None for one in found):
            return now
        pairs = [
            (float(made.loss_now()), made.total_weight) if one is None else (float(one[0]), one[1])
            for one, made in zip(found, self._passes, strict=True)
        ]
        if not self._mean:
            return sum(loss for loss, _ in pairs)
        total = sum(weight for _, weight in pairs)
        return sum(loss * weight for loss, weight in pairs) / total if total > 0 else math.nan

    def _factors(self, block: Sequence[Factors]) -> Factors:
        """Return factors of several batches as those of one: the scale of the loss is in the outputs' side only."""
        left, right = [one.left for one in block], [one.right for one in block]
        if block[0].flipped:
            return Factors(self._average(left), self._total(right), True)
        return Factors(self._total(left), self._average(right), False)

    def _total(self, values: list[Tensor]) -> Tensor:
        return self._average(values) if self._mean else torch.stack(values).sum(0)

    def _average(self, values: list[Tensor]) -> Tensor:
        if len(values) == 1:
            return values[0]
        weights = [made.total_weight for made in self._passes]
        total = torch.zeros_like(values[0])
        for w, v in zip(weights, values, strict=True):
            total.add_(v, alpha=w / sum(weights))
        return total
