"""Averages of iterates: less noise than the last one, for evaluation."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_SHARE = 8.0
"""With t steps taken the average goes back about t / 9 of them: short while the loss falls, long when noise rules."""


class IterateAverage:
    r"""The polynomial-decay average of Shamir and Zhang (2013), :math:`\bar\theta_t`.

    .. math:: \bar\theta_t = (1 - w_t)\, \bar\theta_{t-1} + w_t\, \theta_t, \qquad w_t = \frac{1 + \eta}{t + \eta}

    with :math:`\eta = 8`: its memory grows with the number of steps, so that no horizon has to be given.

    Args:
        tensors: The parameters.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self.values: list[Tensor] | None = None
        self.count = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the present parameters into the average."""
        self.count += 1
        if self.values is None:
            self.values = [p.detach().clone() for p in self._tensors]
            return
        weight = (1.0 + _SHARE) / (self.count + _SHARE)
        torch._foreach_lerp_(self.values, [p.detach() for p in self._tensors], weight)

    @contextmanager
    def swapped(self) -> Generator[None, None, None]:
        """Put the averages in the place of the parameters, and these back afterwards.

        Yields:
            Nothing.
        """
        if self.values is None:
            yield
            return
        own = [p.detach().clone() for p in self._tensors]
        with torch.no_grad():
            torch._foreach_copy_(self._tensors, self.values)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._tensors, own)


def averaged_gradient(before: Tensor | None, gradient: Tensor, keep: float) -> Tensor:
    """Return the running average of gradients, which starts with the first one, as torch's SGD with momentum does."""
    return gradient if before is None or keep == 0 else torch.lerp(gradient, before, keep)
