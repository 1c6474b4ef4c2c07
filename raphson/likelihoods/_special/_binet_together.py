r"""Binet's function with its derivatives, all from one recurrence."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from raphson.likelihoods._special._tracked import can_look, tracked

_STEPS = 8
_FROM = 16.0

_MODERATE = 64.0
"""Numbers up to this size keep 14 digits by the recurrence: where all are, nothing is done twice and chosen from."""

# B_2n / (2n (2n - 1)), the coefficients of x^(1 - 2n) (NIST DLMF 5.11.1); from 8 on the next term is below 1e-16
_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
_FIRST = tuple((1 - 2 * n) * c for n, c in enumerate(_SERIES, 1))
_SECOND = tuple((2 * n - 1) * 2 * n * c for n, c in enumerate(_SERIES, 1))

# x (x + 1) ... (x + 7) = u (u + 6) (u + 10) (u + 12) with u = x (x + 7), and its derivatives in u
_PRODUCT = (0.0, 720.0, 252.0, 28.0, 1.0)
_PRODUCT_FIRST = (720.0, 504.0, 84.0, 4.0)
_PRODUCT_SECOND = (504.0, 168.0, 12.0)


def binet_together(x: Tensor, *, second: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Return :math:`\mu(x)`, :math:`x\mu'(x)` and, if wanted, :math:`x^2\mu''(x)` for ``x > 0``, elementwise.

    From 16 on by the asymptotic series; below, :math:`\Gamma(x) = \Gamma(x + 8) / (x (x + 1) \dots (x + 7))` and its
    logarithmic derivatives share the eight factors, several times faster than the library's logarithmic gamma, digamma
    and trigamma functions, the last of which has nine digits only. The square of x must not underflow.
    """
    free = not tracked(x)
    moderate = can_look(x) and float(x.max()) <= _MODERATE
    low = x if moderate else x.clamp(max=_FROM)
    small = None if moderate else x < _FROM
    u = low * (low + (_STEPS - 1))
    # the logarithmic derivative of the product is (2 x + 7) times that in u
    middle, product = 2 * low + (_STEPS - 1), _polynomial(u, _PRODUCT, free)
    inverse = product.reciprocal()
    in_u = _polynomial(u, _PRODUCT_FIRST, free) * inverse
    z = low + _STEPS if small is None else torch.where(small, low + _STEPS, x)
    inverse_z = z.reciprocal()
    square = inverse_z.square()
    value, far_first = (_polynomial(square, c, free) * inverse_z for c in (_SERIES, _FIRST))
    log_ratio = (z / low).log()
    # (z - 1/2) log z - (x - 1/2) log x - log of the product: its large parts together
    near = (low - 0.5) * log_ratio + (z.square().square().square() * inverse).log() + (value - _STEPS)
    near_first = low * (log_ratio + inverse_z * (far_first - 0.5) - middle * in_u) + 0.5
    near_second = far_second = None
    if second:
        far_second = _polynomial(square, _SECOND, free) * inverse_z
        bent = in_u.square() - _polynomial(u, _PRODUCT_SECOND, free) * inverse
        sum_of_squares = middle.square() * bent - 2 * in_u
        near_second = low.square() * (sum_of_squares + inverse_z + square * (far_second + 0.5)) - low - 0.5
    if small is None:
        return near, near_first, near_second
    return (
        torch.where(small, near, value),
        torch.where(small, near_first, far_first),
        None if near_second is None or far_second is None else torch.where(small, near_second, far_second),
    )


def _polynomial(z: Tensor, coefficients: tuple[float, ...], free: bool) -> Tensor:
    """Return the polynomial, in place where nothing keeps track of it: fresh memory costs more than arithmetic."""
    total = coefficients[-1] * z + coefficients[-2]
    if free and z.is_cpu:
        for c in coefficients[-3::-1]:
            torch.addcmul(_constant(c), total, z, out=total)
        return total
    for c in coefficients[-3::-1]:
        total = total * z + c
    return total


@functools.lru_cache(maxsize=64)
def _constant(c: float) -> Tensor:
    return torch.tensor(c, dtype=torch.float64)
