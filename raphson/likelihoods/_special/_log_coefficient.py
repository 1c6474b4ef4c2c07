r"""The logarithm of a multinomial coefficient, which a likelihood of counts evaluates at every row."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from raphson.linalg import widest_float

# from 64 on the first term left out of the series, n^-7 / 1680, is below 2e-16
_TABLE = 64


def log_coefficient(counts: Tensor) -> Tensor:
    r"""Return :math:`\log n! - \sum_k \log y_k!` with :math:`n = \sum_k y_k`, of counts ``(K, ...)``.

    It is in float64 where the device has it.

    With :math:`\log y! = y \log y - y + \rho(y)` it is
    :math:`n \log n - \sum_k y_k \log y_k + \rho(n) - \sum_k \rho(y_k)`, the first two as
    :math:`-\sum_k y_k \log(y_k / n)`: the terms that grow like :math:`n \log n` are gone before they are rounded. It is
    minus infinity, the logarithm of no way at all, where a count is negative or not whole.
    """
    counts = counts.to(widest_float(counts.device))
    total = counts.sum(0, keepdim=True)
    possible = ((counts >= 0) & (counts == counts.floor())).all(0) & (total[0] < math.inf)
    share = torch.where(counts > 0, counts / total, 1.0)
    rest = _remainder(torch.cat((total, counts)))
    ways = rest[0] - torch.addcmul(rest[1:], counts, share.log()).sum(0)
    return torch.where(possible, ways, -math.inf)


@lru_cache
def _table(device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # whoever asks first, others may differentiate
        # once, and in float64, so that each device has all digits
        whole = torch.arange(_TABLE, dtype=torch.float64, device="cpu")
        rest: Tensor = torch.lgamma(whole + 1) - torch.special.xlogy(whole, whole) + whole
        return rest.to(device, dtype)


def _remainder(n: Tensor) -> Tensor:
    r"""Return :math:`\rho(n) = \log n! - n \log n + n`: by table and Stirling's series, faster than by lgamma."""
    # nan becomes 0, and what is not whole is rounded: the caller knows both
    index = n.nan_to_num().clamp(0, _TABLE - 1).long()
    inverse = n.clamp(min=_TABLE).reciprocal()
    square = inverse.square()
    series = inverse * (1 / 12 + square * (-1 / 360 + square / 1260))
    large = torch.sub(series, (inverse / (2 * math.pi)).log(), alpha=0.5)
    return torch.where(n < _TABLE, _table(n.device, n.dtype).index_select(0, index.reshape(-1)).reshape(n.shape), large)
