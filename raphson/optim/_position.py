"""The parameters of what is trained: moved by steps, or only for a look at the loss."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg import all_finite
from raphson.network import TrainedModel
from raphson.optim._groups import GroupValues


class Position:
    """Where the parameters are.

    Args:
        trained: What is trained.
    """

    def __init__(self, trained: TrainedModel) -> None:
        self._trained = trained

    def checked(self, step: Tensor) -> Tensor:
        """Return a step ``(P,)``; ``InputError`` where it is not finite."""
        if not all_finite(step):
            parts = self._trained.space.unflatten(step)
            bad = next(name for name, part in parts.items() if not all_finite(part))
            raise InputError(
                f"The step in parameter '{bad}' is not finite, while loss and gradient are: its damped curvature "
                "cannot be inverted in this floating-point type. No parameter was changed. Use more damping, or a "
                "wider type."
            )
        return step

    def move(self, step: Tensor) -> None:
        """Add a step ``(P,)`` to the parameters."""
        torch._foreach_add_(list(self._trained.tensors.values()), self._parts(step))

    @contextmanager
    def moved(self, step: Tensor, times: float = 1.0) -> Generator[None, None, None]:
        """Add a step ``(P,)`` a number of times, and put the parameters back bit for bit afterwards.

        Graphs that were made before do not see what is written through ``.data``, and stay right.

        Yields:
            Nothing.
        """
        tensors = [p.data for p in self._trained.tensors.values()]
        here = [p.clone() for p in tensors]
        torch._foreach_add_(tensors, self._parts(step), alpha=times)
        try:
            yield
        finally:
            torch._foreach_copy_(tensors, here)

    def penalty(self, values: GroupValues) -> float:
        """Return half the weight decays times the squared parameters."""
        if values.common("weight_decay") == 0.0:
            return 0.0
        theta = self._trained.space.vector()
        return 0.5 * float(torch.dot(theta, values.times("weight_decay", theta)))

    def _parts(self, step: Tensor) -> list[Tensor]:
        parts = self._trained.space.unflatten(step)
        return [parts[name] for name in self._trained.tensors]
