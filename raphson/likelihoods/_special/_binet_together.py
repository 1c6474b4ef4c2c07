r"""Binet's function with its derivatives, all from one recurrence."""

from __future__ import annotations

import torch
from torch import Tensor

from raphson.likelihoods._special._tracked import tracked

_STEPS = 8
_FROM = 16.0
# B_2n / (2n (2n - 1)), the coefficients of x^(1 - 2n) (NIST DLMF 5.11.1); from 8 on the next term is below 1e-16
_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
_FIRST = tuple((1 - 2 * n) * c for n, c in enumerate(_SERIES, 1))
_SECOND = tuple((2 * n - 1) * 2 * n * c for n, c in enumerate(_SERIES, 1))


def binet_together(x: Tensor, *, second: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Return :math:`\mu(x)`, :math:`x\mu'(x)` and, if wanted, :math:`x^2\mu''(x)` for ``x > 0``, elementwise.

    From 16 on by the asymptotic series; below, :math:`\Gamma(x) = \Gamma(x + 8) / (x (x + 1) \dots (x + 7))` and its
    logarithmic derivatives share one pass over the eight factors, several times faster than the library's
    logarithmic gamma, digamma and trigamma functions, the last of which has nine digits only. The square of x must not
    underflow.
    """
    # in place where nothing keeps track: fresh memory costs more than the arithmetic
    mul, add = (Tensor.mul, Tensor.add) if tracked(x) else (Tensor.mul_, Tensor.add_)

    def horner(z: Tensor, coefficients: tuple[float, ...]) -> Tensor:
        total = add(coefficients[-1] * z, coefficients[-2])
        for c in coefficients[-3::-1]:
            total = add(mul(total, z), c)
        return total

    low = x.clamp(max=_FROM)
    # the factors in pairs: (x + k) (x + 7 - k) = u + k (7 - k) with u = x (x + 7), and their sum is 2 x + 7
    middle = 2 * low + (_STEPS - 1)
    pair = low * (low + (_STEPS - 1))
    product, inverse = pair.clone(), pair.reciprocal()
    inverses, squares = inverse.clone(), inverse.square()
    for k in range(1, _STEPS // 2):
        factor = pair + k * (_STEPS - 1 - k)
        product, inverse = mul(product, factor), factor.reciprocal()
        inverses = add(inverses, inverse)
        if second:
            squares = add(squares, mul(inverse, inverse))
    sum_of_inverses = middle * inverses
    small = x < _FROM
    z = torch.where(small, low + _STEPS, x)
    inverse = z.reciprocal()
    square = inverse.square()
    value, far_first = mul(horner(square, _SERIES), inverse), mul(horner(square, _FIRST), inverse)
    log_z, log_low = z.log(), low.log()
    near = (z - 0.5) * log_z - (low - 0.5) * log_low - product.log() + (value - _STEPS)
    near_first = low * (log_z - log_low + inverse * (far_first - 0.5) - sum_of_inverses) + 0.5
    if not second:
        return torch.where(small, near, value), torch.where(small, near_first, far_first), None
    sum_of_squares = middle.square() * squares - 2 * inverses
    far_second = mul(horner(square, _SECOND), inverse)
    near_second = low.square() * (sum_of_squares + inverse + square * (far_second + 0.5)) - low - 0.5
    return (
        torch.where(small, near, value),
        torch.where(small, near_first, far_first),
        torch.where(small, near_second, far_second),
    )
