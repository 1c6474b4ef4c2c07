r"""Gamma functions and logarithms where the plain formula cancels: Binet's function and what is left of a logarithm.

.. math::
    \log\Gamma(x) = (x - \tfrac12) \log x - x + \tfrac12 \log 2\pi + \mu(x).

A likelihood whose shape grows without bound has differences of :math:`\log\Gamma`, :math:`\psi` and
:math:`\psi'` that lose all of their digits; the same differences of :math:`\mu` and its derivatives lose none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

# B_2n / (2n (2n - 1)), the coefficients of x^(1 - 2n) in mu(x) (NIST DLMF 5.11.1). From 16 on, six terms leave a
# relative error below 1e-15 in mu and below 3e-14 in its second derivative.
_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
_FROM = 16.0
_TOGETHER = 1024
"""Numbers up to which all steps of a recurrence are taken in one call: beyond, its arrays leave the cache."""
_FIRST = tuple((1 - 2 * n) * c for n, c in enumerate(_SERIES, 1))
_SECOND = tuple((2 * n - 1) * 2 * n * c for n, c in enumerate(_SERIES, 1))


def binet(x: Tensor) -> Tensor:
    r"""Return Binet's function :math:`\mu(x)` for ``x > 0``, elementwise; zero at infinity."""
    low = x.clamp(max=_FROM)
    direct = torch.lgamma(low) - (low - 0.5) * low.log() + low - HALF_LOG_TWO_PI
    inverse = x.clamp(min=_FROM).reciprocal()
    return torch.where(x < _FROM, direct, inverse * horner(inverse.square(), _SERIES))


def binet_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return :math:`x \mu'(x)` and :math:`x^2 \mu''(x)` for ``x > 0``, elementwise; zero at infinity."""
    low = x.clamp(max=_FROM)
    first = low * (torch.digamma(low) - low.log()) + 0.5
    second = low.square() * _trigamma(low) - low - 0.5
    far_first, far_second = _far(x.clamp(min=_FROM).reciprocal())
    small = x < _FROM
    return torch.where(small, first, far_first), torch.where(small, second, far_second)


def _far(inverse: Tensor) -> tuple[Tensor, Tensor]:
    square = inverse.square()
    return inverse * horner(square, _FIRST), inverse * horner(square, _SECOND)


def _trigamma(x: Tensor) -> Tensor:
    # by the recurrence: torch.polygamma(1, x) is right to 5e-10 only, its zeta function takes ten times as long
    steps = int(_FROM)
    inverse = (x + steps).reciprocal()
    total = inverse + inverse.square() * (0.5 + _far(inverse)[1])
    if x.numel() <= _TOGETHER:
        every = torch.arange(steps, dtype=x.dtype, device=x.device).view(-1, *[1] * x.ndim)
        sum_of_squares: Tensor = (x + every).square().reciprocal().flip(0).sum(0)
        return total + sum_of_squares
    for i in range(steps - 1, -1, -1):
        total = total + (x + i).square().reciprocal()
    return total


def log_remainder(u: Tensor, complement: Tensor) -> Tensor:
    r"""Return :math:`(-\log(1 - u) - u) / u^2`, elementwise; a half at zero. It has full relative accuracy.

    ``complement`` is ``1 - u``, by a formula that keeps its digits where ``u`` is near 1.
    """
    # -log(1 - u) = 2 artanh(w) with w = u / (2 - u); below 0.1 five terms leave 1e-15
    near = u.abs() < 0.1
    v = torch.where(near, u, 0.0)
    w = v / (2 - v)
    series = 0.5 * (1 + w) + w * (1 + w).square() * horner(w.square(), (1 / 6, 1 / 10, 1 / 14, 1 / 18, 1 / 22))
    far = torch.where(near, 1.0, u)
    return torch.where(near, series, -(torch.where(near, 0.5, complement).log() + far) / far.square())


def horner(z: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Return the polynomial with these coefficients, two or more, the constant first."""
    total = coefficients[-1] * z + coefficients[-2]
    for c in coefficients[-3::-1]:
        total = total * z + c
    return total
