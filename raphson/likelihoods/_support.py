"""Where targets and parameters may lie, as data of a likelihood's class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Support:
    """A set of numbers: a description for messages and an elementwise test.

    Args:
        description: Completes "each value must be ...".
        contains: Boolean marks of the members of a tensor, in its shape; False for nan.
    """

    description: str
    contains: Callable[[Tensor], Tensor]


def _whole(y: Tensor) -> Tensor:
    return torch.isfinite(y) & (y >= 0) & (y == y.floor()) if y.is_floating_point() else y >= 0


REAL = Support("a finite number", torch.isfinite)
POSITIVE = Support("a positive finite number", lambda y: (y > 0) & torch.isfinite(y))
NEGATIVE = Support("a negative finite number", lambda y: (y < 0) & torch.isfinite(y))
NONNEGATIVE = Support("a non-negative finite number", lambda y: (y >= 0) & torch.isfinite(y))
UNIT_INTERVAL = Support("a number from 0 to 1", lambda y: (y >= 0) & (y <= 1))
OPEN_UNIT_INTERVAL = Support("a number strictly between 0 and 1", lambda y: (y > 0) & (y < 1))
COUNT = Support("a whole number, 0 or more", _whole)
