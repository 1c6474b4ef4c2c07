"""A likelihood in units in which its scale is about one: derivatives in a tiny or huge scale then do not overflow.

Units are powers of two, so that a change of them rounds nothing.
"""

from __future__ import annotations

import math
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

Model = TypeVar("Model")


class InUnits(NamedTuple, Generic[Model]):
    """The same model of ``2^target y``.

    Attributes:
        likelihood: Its likelihood.
        f: Its outputs, ``(..., C)``.
        target: By which power of two targets are multiplied, ``(..., M)``.
        gradient: By which power of two its derivatives are to be multiplied to be those in the outputs as they were,
            ``(..., C)``.
    """

    likelihood: Model
    f: Tensor
    target: Tensor
    gradient: Tensor


def unit_exponent(log_scale: Tensor) -> Tensor:
    """Return the power of two by which targets of a scale are multiplied.

    It is zero where the scale is far from overflow (what a Hessian in a variance is made of is a number where scales
    are within the sixth part of all exponents), and where it is beyond all numbers, so that units are of no use.
    """
    limits = torch.finfo(log_scale.dtype)
    exponent = (log_scale / -math.log(2)).round().nan_to_num(0.0)
    span = math.log2(limits.max)
    return exponent * ((exponent.abs() > span / 8) & (exponent.abs() < span))


def add_exponent(log_scale: Tensor, exponent: Tensor, multiple: float = 1.0) -> Tensor:
    """Return ``log_scale + multiple exponent log 2``, with the digits of the sum where the two cancel."""
    scaled = multiple * exponent
    return log_scale + scaled * _LOG_TWO_HIGH + scaled * _LOG_TWO_LOW


_LOG_TWO_HIGH, _LOG_TWO_LOW = 355 / 512, -2.12194440054690583e-4
"""Log 2 to nine bits, whose product with an exponent is exact even in single precision, and the rest (Cody, Waite)."""


def times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """Return ``2^exponent x``, in two steps: the power itself may be no number."""
    half = (exponent / 2).round()
    return x * torch.exp2(half) * torch.exp2(exponent - half)
