r"""The inverse Gaussian likelihood by the log or another link: positive responses with a heavy right tail."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from raphson.likelihoods import _parameters
from raphson.likelihoods._command import Command
from raphson.likelihoods._special._binet import HALF_LOG_TWO_PI
from raphson.likelihoods._support import POSITIVE
from raphson.likelihoods._target_distribution import TargetDistribution, Univariate, to_array
from raphson.likelihoods._targets import like_outputs, start_rows, weighted_mean
from raphson.likelihoods.composed import _mean_link
from raphson.likelihoods.composed._mean_family import MeanFamily
from raphson.linalg import Diagonal, SymmetricOperator

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition


class _Parts(NamedTuple):
    f: Tensor  # all outputs
    log_y: Tensor
    log_shape: Tensor | float
    ratio: Tensor  # shape / mean, times y / mean where that is above 1
    excess: Tensor  # y / mean - 1, over y / mean where that is above 1
    squared: Tensor  # shape (y - mean)^2 / (mean^2 y), a chi-square variable on one degree of freedom


@dataclass(frozen=True, eq=False)
class InverseGaussian(MeanFamily[_Parts]):
    r"""Independent inverse Gaussian responses with the logarithms of the mean and of the shape as outputs.

    With mean :math:`\mu = e^{f_1}` and shape :math:`\lambda = e^{f_2}`, variance :math:`\mu^3 / \lambda`, and
    :math:`q = \lambda (y - \mu)^2 / (\mu^2 y)`, one response has

    .. math::
        \ell = \tfrac12 q + \tfrac12 \log\frac{2 \pi y^3}{\lambda}, \qquad
        \nabla\ell = \begin{pmatrix} -\frac{\lambda}{\mu} (\frac{y}{\mu} - 1) \\ \frac12 (q - 1) \end{pmatrix},

    .. math::
        \nabla^2\ell = \begin{pmatrix} \frac{\lambda}{\mu} (2 \frac{y}{\mu} - 1) & -\frac{\lambda}{\mu}
            (\frac{y}{\mu} - 1) \\ \cdot & \frac12 q \end{pmatrix}, \qquad
        I = \begin{pmatrix} \lambda / \mu & 0 \\ 0 & \frac12 \end{pmatrix}.

    With ``dispersion`` a number :math:`\phi = 1/\lambda` the shape is fixed and the mean is the only output.
    Neither is convex in ``f``: the Hessian in the log mean is negative where :math:`y < \mu / 2`.

    Shapes: outputs ``(..., 2 M)``, mean and shape of response 0, then of response 1, or ``(..., M)`` with
    ``dispersion``; targets ``(..., M)``, or ``(...,)`` where ``M = 1``, in the units of the mean and the shape.

    Args:
        dispersion: ``phi``, in the inverse of the units of the response; None makes the shape an output.

        link: ``"log"``, ``"inverse_squared"``, ``"inverse"`` or ``"identity"``: what the first output is of the mean.

    Raises:
        InputError: ``dispersion`` is not positive and finite, or there is no such link.

    References:
        P. McCullagh and J. A. Nelder (1989), Generalized Linear Models, 2nd ed., table 2.1.
        J. R. Michael, W. R. Schucany and R. W. Haas (1976), Generating random variates using transformations with
        multiple roots, Am. Stat. 30, 88-90 (``sample``).

    Examples:
        >>> import torch
        >>> from raphson.likelihoods import InverseGaussian
        >>> f, y = torch.zeros(1, 2), torch.tensor([[2.0]])
        >>> InverseGaussian().gradient(f, y)
        tensor([[-1.0000, -0.2500]])
        >>> InverseGaussian().hessian(f, y).to_dense()
        tensor([[[ 3.0000, -1.0000],
                 [-1.0000,  0.2500]]])
    """

    link_names = ("log", "inverse_squared", "inverse", "identity")
    support = POSITIVE
    concave_links = ("inverse_squared", "inverse")
    commands = (Command("inverse-gaussian"),)

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Diagonal:
        r"""Return :math:`\lambda / \mu` and one half, a batched diagonal: mean and shape are orthogonal."""
        log_mean, log_shape = self._split(f)
        return self._information((log_shape - log_mean).exp())

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw responses, ``(..., M)``."""
        log_mean, log_shape = self._split(f.detach())
        normal = torch.empty_like(log_mean).normal_(generator=generator)
        a = 0.5 * (log_mean - log_shape).exp() * normal.square()
        # the smaller root of the chi-square's quadratic, over the mean; the two roots have product 1
        low = 1 / (1 + a + (a * (a + 2)).sqrt())
        first = torch.empty_like(low).uniform_(generator=generator) * (1 + low) <= 1
        return torch.where(first, low, 1 / low) * log_mean.exp()

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return inverse Gaussian distributions, ``(..., M)``; the deviance keeps the shape."""
        from scipy import stats

        log_mean, log_shape = self._split(f)
        value, shape = to_array(like_outputs(log_mean, y)), to_array(log_shape.exp())
        laws = [stats.invgauss(mean / shape, scale=shape) for mean in (to_array(log_mean.exp()), value)]
        return Univariate(laws[0], value, laws[1])

    def variance(self, f: Tensor) -> Tensor:
        """Return the variances, mean cubed over shape, ``(..., M)``."""
        log_mean, log_shape = self._split(f)
        return (3 * log_mean - log_shape).exp()

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        r"""Return the logarithms of the estimates, the mean and :math:`1/\lambda = \overline{1/y} - 1/\bar{y}`.

        Constant responses give a shape of 1e8 means.
        """
        rows = start_rows(y, n_outputs, len(self.parameters))
        mean = weighted_mean(rows, weights)
        spread = (weighted_mean(mean / rows, weights) - 1).clamp(min=1e-8)
        return _parameters.join(mean.log(), (mean / spread).log(), self.dispersion is not None)

    def second_given(self, first: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        r"""Return the log of the shape's estimate ``(M,)``, :math:`1/\lambda = \overline{(y - \mu)^2 / (\mu^2 y)}`."""
        y, mean = like_outputs(first, y), first.exp()
        spread = weighted_mean((y / mean - 1).square() / y, weights)
        return -spread.clamp(min=1e-8 / float(mean.max())).log()

    def _parts(self, f: Tensor, y: Tensor, *, once: bool = False) -> _Parts:
        log_shape: Tensor | float
        if self.dispersion is not None:
            log_mean, log_shape = f, -math.log(self.dispersion)
        else:
            log_mean, log_shape = self._split(f)
        log_y = like_outputs(log_mean, y).log()
        # with a = |log(y / mean)| all is made of 1 - e^-a and of exponentials that overflow only where the result does
        d, log_ratio = log_y - log_mean, log_shape - log_mean
        a = d.abs()
        rest = torch.expm1(-a)
        ratio = (log_ratio + d.clamp(min=0.0)).exp()
        squared = _parameters.product(rest.square(), (log_ratio + a).exp())
        return _Parts(f, log_y, log_shape, ratio, torch.copysign(rest, d), squared)

    def _value(self, p: _Parts) -> Tensor:
        value = torch.add(0.5 * (p.squared - p.log_shape) + HALF_LOG_TWO_PI, p.log_y, alpha=1.5)
        return _parameters.total(value, p.f)

    def _gradient(self, p: _Parts) -> Tensor:
        mean = -_parameters.product(p.excess, p.ratio)
        return mean if self.dispersion is not None else _parameters.interleaved(mean, 0.5 * p.squared - 0.5)

    def _observed(self, p: _Parts) -> SymmetricOperator:
        mean = p.ratio * (1 + p.excess + p.excess.clamp(max=0.0))
        if self.dispersion is not None:
            return Diagonal(mean)
        return _parameters.blocks(mean, -_parameters.product(p.excess, p.ratio), 0.5 * p.squared)

    def _expected(self, p: _Parts) -> Diagonal:
        return self.fisher(p.f)

    def power_curvature(self, f: Tensor, y: Tensor, power: float) -> Tensor:
        """Return it from the two exponentials that are left when the chain rule's others have canceled."""
        p = self._parts(f, y)
        if power == 1:
            return p.ratio * (1 + p.excess + torch.where(p.excess > 0, p.excess, 2 * p.excess))
        log_mean = f if self.dispersion is not None else self._split(f)[0]
        first, second = power * (2 * power + 1), -power * (power + 1)
        log_ratio = p.log_shape - log_mean
        ratio = second * log_ratio.exp() if second else torch.zeros_like(log_ratio)
        return ratio + first * (log_ratio - log_mean + p.log_y).exp() if first else ratio

    def _information(self, ratio: Tensor) -> Diagonal:
        if self.dispersion is not None:
            return Diagonal(ratio)
        return _parameters.uncorrelated(ratio, ratio.new_full((), 0.5))

    def definition(self) -> Definition:
        """Return the formulas, with the shape as an output or the dispersion as a constant."""
        from raphson.likelihoods import formulas as fm
        from raphson.likelihoods.formulas import exponential, factored, positive, real, sympy

        y, lam, d, m, phi = positive("y lambda d mu phi")
        s = real("s")
        eta, mean = _mean_link.mean_formula(self.link, m)
        known = self.dispersion is not None
        scale = 1 / phi if known else lam
        width = sympy.log(2 * sympy.pi * phi * y**3) if known else sympy.log(2 * sympy.pi * y**3) - s
        rates = {m: 2 * scale * (m - y) / m**3} | ({} if known else {s: d})
        deviance = fm.Abbreviation(d, scale * (y - m) ** 2 / (m**2 * y), rates)
        of_mean = fm.Convexity("Convex where 2y ≥ μ. The Fisher information is positive everywhere.", 2 * y >= m)
        of_both = fm.Convexity(
            "Convex in s for a fixed mean, and in the log mean where 2y ≥ μ, but not in both: the determinant is "
            "negative wherever y differs from the mean. The Fisher information is positive definite everywhere.",
            sympy.Eq(y, m),
        )
        made = fm.Definition(
            likelihood=self,
            outputs=(eta,) if known else (eta, s),
            targets=(y,),
            nll=sympy.expand(d / 2 + width / 2, log=False),
            abbreviations=(mean, deviance) if known else (mean, exponential(lam, s), deviance),
            moments={y: m, d: sympy.Integer(1)},
            constants={} if self.dispersion is None else {phi: self.dispersion},
            example=((0.4,) if known else (0.4, 0.3), 1.3),
            convexity=of_mean if known else of_both,
            source=fm.GLM_BOOK + "table 2.1." if known else "V. Seshadri (1999), The Inverse Gaussian Distribution.",
            arrange=factored,
            target_words=f"a positive number with mean μ and variance {'φ μ³' if known else 'μ³/λ'}",
        )
        return _mean_link.at_link(made, self.link)
