r"""How :math:`\log\Gamma` grows over half a step, which is the normalizing constant of Student's t.

.. math::
    q(h) = \log\Gamma(h + \tfrac12) - \log\Gamma(h) - \tfrac12 \log h
    \sim -\frac{1}{8h} + \frac{1}{192h^3} - \frac{1}{640h^5} + \dots

The terms grow like :math:`h \log h` and their difference falls like :math:`1 / h`. From 16 on the series is used,
:math:`c_n h^{-n}` for odd n with :math:`c_n = (2^{-n} - 2) B_{n+1} / (n (n + 1))` (NIST DLMF 5.11.8); below, the series
at :math:`h + 12` and :math:`\Gamma(x + 1) = x\,\Gamma(x)` twelve times, whose terms all have one sign.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raphson.likelihoods._special._binet import horner

_SERIES = (-1 / 8, 1 / 192, -1 / 640, 17 / 14336, -31 / 18432, 691 / 180224, -5461 / 425984)
_POWERS = tuple(range(1, 2 * len(_SERIES), 2))
_FIRST = tuple(-n * c for n, c in zip(_POWERS, _SERIES, strict=True))
_SECOND = tuple(n * n * c for n, c in zip(_POWERS, _SERIES, strict=True))
_EXCESS = (0.0, *(-n * (n + 1) * c for n, c in zip(_POWERS[1:], _SERIES[1:], strict=True)))
_STEPS = 12
FROM = 16.0


_TOGETHER = 1024
"""Numbers up to which all steps are taken in one call: beyond, its arrays leave the cache."""


def _steps(low: Tensor) -> Tensor:
    return low + torch.arange(_STEPS, dtype=low.dtype, device=low.device).view(-1, *[1] * low.ndim)


def half_step(h: Tensor) -> Tensor:
    r"""Return :math:`q(h)` for ``h > 0``, elementwise."""
    low = h.clamp(max=FROM)
    if h.numel() <= _TOGETHER:
        growth = (1 + 0.5 / _steps(low)).prod(0)
    else:
        growth = 1 + 0.5 / low
        for k in range(1, _STEPS):
            growth = growth * (1 + 0.5 / (low + k))
    z = torch.where(h < FROM, low + _STEPS, h)
    series = _series(z, _SERIES)
    return torch.where(h < FROM, series + 0.5 * (z / low).log() - growth.log(), series)


def half_step_derivatives(h: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the first and second derivative of :math:`q` in :math:`\log h` for ``h > 0``, elementwise."""
    low = h.clamp(max=FROM)
    if h.numel() <= _TOGETHER:
        steps = _steps(low)
        before, after = steps.reciprocal(), (steps + 0.5).reciprocal()
        change = 0.5 * before * after
        first, second = change.sum(0), (change * (before + after)).sum(0)
    else:
        first, second = torch.zeros_like(low), torch.zeros_like(low)
        for k in range(_STEPS):
            before, after = (low + k).reciprocal(), (low + (k + 0.5)).reciprocal()
            change = 0.5 * before * after
            first, second = first + change, torch.addcmul(second, change, before + after)
    small = h < FROM
    z = torch.where(small, low + _STEPS, h)
    far_first, far_second = _series(z, _FIRST), _series(z, _SECOND)
    ratio = low / z
    near_first = low * first + ratio * (far_first + 0.5)
    near_second = near_first + ratio.square() * (far_second - far_first - 0.5) - low.square() * second
    return torch.where(small, near_first - 0.5, far_first), torch.where(small, near_second, far_second)


def half_step_excess(h: Tensor) -> Tensor:
    """Return the first derivative less the second, less the first term of that series, ``1 / (4 h)``; from 16 on."""
    return _series(h.clamp(min=FROM), _EXCESS)


def _series(h: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    inverse = h.reciprocal()
    return horner(inverse.square(), coefficients) * inverse
