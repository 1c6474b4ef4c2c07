"""Where targets and parameters may lie, as data of a likelihood's class."""

from __future__ import annotations

import math
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


# named functions, because lambdas cannot be pickled


def _positive(y: Tensor) -> Tensor:
    return (y > 0) & torch.isfinite(y)


def _negative(y: Tensor) -> Tensor:
    return (y < 0) & torch.isfinite(y)


def _nonnegative(y: Tensor) -> Tensor:
    return (y >= 0) & torch.isfinite(y)


def _closed_unit(y: Tensor) -> Tensor:
    return (y >= 0) & (y <= 1)


def _open_unit(y: Tensor) -> Tensor:
    return (y > 0) & (y < 1)


def _whole(y: Tensor) -> Tensor:
    return (y >= 0) & (y < math.inf) & (y == y.floor()) if y.is_floating_point() else y >= 0


REAL = Support("a finite number", torch.isfinite)
POSITIVE = Support("a positive finite number", _positive)
NEGATIVE = Support("a negative finite number", _negative)
NONNEGATIVE = Support("a non-negative finite number", _nonnegative)
UNIT_INTERVAL = Support("a number from 0 to 1", _closed_unit)
OPEN_UNIT_INTERVAL = Support("a number strictly between 0 and 1", _open_unit)
COUNT = Support("a whole number, 0 or more", _whole)
