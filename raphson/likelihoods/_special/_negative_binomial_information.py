r"""The expected information of the negative binomial dispersion, by quadrature.

With :math:`r = 1/\alpha` and :math:`s = \alpha\mu / (1 + \alpha\mu)` Fisher's series for the information in
:math:`\log\alpha` has positive terms, and an integral as its sum:

.. math::
    I_\alpha = r^2 \sum_{j \ge 2} \frac{s^j}{j} B(r, j)
             = r^2 \int_0^1 (1 - t)^{r - 1} \frac{-\log(1 - s t) - s t}{t}\,dt
             = r \int_0^\infty e^{-r y} \frac{d}{dy}\left[\frac{-\log(1 - s t) - s t}{t}\right] dy,
             \qquad t = 1 - e^{-y}.

The last integrand is analytic in the strip :math:`|\mathrm{Im}\,y| < \pi`, falls like :math:`e^{-r y}` and, beyond
:math:`\log(\alpha\mu)`, like :math:`e^{-y}`: a Gauss-Legendre rule up to where it is below 1e-10 converges
geometrically.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raphson.linalg import in_float64, is_near

_NODES = 40
_REACH = 21.0
_TOGETHER = 1024
"""Counts up to which all nodes are taken in one call: of one count that is a twelfth of the time, of these a third."""
_RULE = tuple(
    (0.5 * (node + 1), 0.5 * weight)
    for node, weight in zip(*(v.tolist() for v in np.polynomial.legendre.leggauss(_NODES)), strict=True)
)


def dispersion_information(log_mean: Tensor, log_dispersion: Tensor) -> Tensor:
    r"""Return the expected information in :math:`\log\alpha` of one count, elementwise.

    The relative error of the 40 nodes is below 1e-8 for dispersions up to 2 and means up to 1000, below 1e-5
    elsewhere: where the dispersion times the mean exceeds e^21 the integrand is flat up to its fall, which has 40
    nodes of its own. The work is in float64 whatever the element type; the memory is a few
    arrays of the size of the result.

    References:
        R. A. Fisher (1941), The negative binomial distribution, Ann. Eugenics 11, 182-187 (the series).
    """
    f, g = in_float64(log_mean), in_float64(log_dispersion)
    x = f + g
    s = torch.sigmoid(x)
    # y in units of 1 / max(r, 1), in which the weight falls at the rate min(r, 1)
    rate = (-g.clamp(min=0)).exp()
    up = torch.where(x > _REACH, 0.0, x.clamp(min=0))
    end = torch.minimum(_REACH / rate, _REACH + up)
    hazard, decay = -rate * end, -g.clamp(max=0).exp() * end
    if x.numel() <= _TOGETHER and is_near(x):  # elsewhere the rule would be copied there
        nodes, weights = torch.tensor(_RULE, dtype=x.dtype, device=x.device).view(_NODES, 2, *[1] * x.ndim).unbind(1)
        total = (weights * _integrand(x, s, hazard, decay, nodes)).sum(0)
    else:
        total = torch.zeros_like(x)
        for node, weight in _RULE:
            total.add_(_integrand(x, s, hazard, decay, node), alpha=weight)
    total.mul_(end * rate)
    far = (x > _REACH) & (rate < 1)
    if torch.func.debug_unwrap(x) is x and (not is_near(x) or bool(far.any())):
        total += torch.where(far, _plateau(x, rate), 0.0)
    return (total * s).to(log_mean)


def _integrand(x: Tensor, s: Tensor, hazard: Tensor, decay: Tensor, node: float | Tensor) -> Tensor:
    """Return the weight times the derivative at a node, or at all of them, which come first then."""
    # in place: at a hundred thousand counts fresh memory for each step costs more than the arithmetic
    y = decay * node
    fall = y.exp()
    # the derivative is s (sigmoid(x - y) - s e^-y h(z)) with h(z) = (-log(1 - z) - z) / z^2 = 1/2 + z/3 + z^2/4
    # + ...: below 1e-5 along its tangent
    z = (1 - fall).mul_(s)
    change = y.add_(x).sigmoid_()
    safe = z.clamp(1e-5, 1 - 1e-15)
    less = z.sub_(safe).mul_(1 / 3).addcdiv_(torch.log1p(-safe).add_(safe), safe.square_(), value=-1)
    return change.addcmul_(less.mul_(s), fall, value=-1).mul_((hazard * node).exp_())


def _plateau(x: Tensor, rate: Tensor) -> Tensor:
    """Return the integral from where the derivative is the sigmoid of ``x - y``: 1 at first, then a step at ``x``."""
    start = (x - _REACH).clamp(min=_REACH)
    total = (-rate * _REACH).exp() * -torch.expm1(rate * (_REACH - start))
    width = x + _REACH - start
    for node, weight in _RULE:
        y = start + width * node
        total = total + weight * width * rate * torch.sigmoid(x - y) * (-rate * y).exp()
    return total
