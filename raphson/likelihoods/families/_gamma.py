r"""The gamma likelihood with a log link: positive responses of constant coefficient of variation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raphson.likelihoods import _pairs
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._special._binet import HALF_LOG_TWO_PI, binet, binet_derivatives
from raphson.likelihoods._support import POSITIVE
from raphson.likelihoods._targets import like_outputs
from raphson.linalg import Diagonal, SymmetricOperator


class _Parts(NamedTuple):
    f: Tensor  # all outputs
    log_y: Tensor
    d: Tensor  # log(y / mean)
    excess: Tensor  # y / mean - 1
    log_shape: Tensor
    shape: Tensor


@dataclass(frozen=True, eq=False)
class Gamma(Likelihood):
    r"""Independent gamma responses with the logarithms of the mean and of the shape as outputs.

    With mean :math:`\mu = e^{f_1}` and shape :math:`k = e^{f_2}`, variance :math:`\mu^2 / k`, one response has

    .. math::
        \ell = k \left(\frac{y}{\mu} - \log\frac{y}{\mu}\right) - k \log k + \log\Gamma(k) + \log y, \qquad
        \nabla\ell = \begin{pmatrix} -k\,(y/\mu - 1) \\
            k\,(y/\mu - 1 - \log(y/\mu) - \log k + \psi(k)) \end{pmatrix},

    .. math::
        I = \begin{pmatrix} k & 0 \\ 0 & k^2 \psi'(k) - k \end{pmatrix}.

    With ``dispersion`` a number :math:`\phi = 1/k` the shape is fixed and the mean is the only output: then
    :math:`\ell` is convex in ``f``. With both it is not: where ``y`` is far from the mean the observed
    Hessian is indefinite. Shapes up to 1e8 and beyond keep their digits, by Binet's function.

    Shapes: outputs ``(..., 2 M)``, mean and shape of response 0, then of response 1, or ``(..., M)`` with
    ``dispersion``; targets ``(..., M)``, or ``(...,)`` where ``M = 1``, in the units of the mean.

    Args:
        dispersion: ``phi``, the squared coefficient of variation; None makes the shape an output.

    Raises:
        InputError: ``dispersion`` is not positive and finite.

    References:
        P. McCullagh and J. A. Nelder (1989), Generalized Linear Models, 2nd ed., chapter 8.

    Examples:
        At ``y`` equal to the mean the gradient in the mean is 0; an exponential response has shape 1.

        >>> import torch
        >>> from raphson.likelihoods import Gamma
        >>> f, y = torch.zeros(1, 1), torch.tensor([[3.0]])
        >>> Gamma(dispersion=1.0).nll(f, y)
        tensor([3.])
        >>> Gamma(dispersion=0.5).gradient(f, y)
        tensor([[-4.]])
        >>> Gamma().fisher(torch.zeros(1, 2)).diagonal()
        tensor([[1.0000, 0.6449]])
    """

    dispersion: float | None = None

    support = POSITIVE

    def __post_init__(self) -> None:
        _pairs.check_number("dispersion", self.dispersion)
        object.__setattr__(self, "concave", self.dispersion is not None)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The logarithms of the mean and, unless ``dispersion`` is given, of the shape of each response."""
        return ("log_mean", "log_shape") if self.dispersion is None else ("log_mean",)

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the negative log-likelihood summed over responses, ``(...,)``.

        Args:
            f: Outputs ``(..., C)``.
            y: Positive responses.

        Returns:
            One value per row.
        """
        return self._value(self._parts(f, y))

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the gradient, ``(..., C)``.

        Args:
            f: Outputs ``(..., C)``.
            y: Positive responses.

        Returns:
            The gradient.
        """
        p = self._parts(f, y)
        return self._gradient(p, binet_derivatives(p.shape)[0])

    def hessian(self, f: Tensor, y: Tensor) -> SymmetricOperator:
        """Return the observed Hessian, a batched operator ``(..., C, C)`` of blocks ``2 x 2`` or diagonal.

        Args:
            f: Outputs ``(..., C)``.
            y: Positive responses.

        Returns:
            The operator.
        """
        p = self._parts(f, y)
        return self._hessian(p, *binet_derivatives(p.shape))

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Diagonal:
        r"""Return the expected information :math:`k` and :math:`k^2 \psi'(k) - k`, a batched diagonal.

        Args:
            f: Outputs ``(..., C)``.
            y: Not used.

        Returns:
            The operator ``(..., C, C)``: mean and shape are orthogonal.
        """
        log_mean, log_shape = self._split(f)
        shape = log_shape.exp()
        return self._fisher(log_mean, shape, binet_derivatives(shape)[1])

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw responses, ``(..., M)``, in the element type of ``f``.

        Args:
            f: Outputs ``(..., C)``.
            generator: Source of randomness, on the device of ``f``.

        Returns:
            The responses.
        """
        log_mean, log_shape = self._split(f.detach())
        shape = log_shape.exp().expand_as(log_mean)
        y = torch._standard_gamma(shape, generator=generator) * (log_mean - log_shape).exp()
        return y.clamp(min=torch.finfo(f.dtype).tiny)

    def mean(self, f: Tensor) -> Tensor:
        """Return the means, ``(..., M)``."""
        return self._split(f)[0].exp()

    def variance(self, f: Tensor) -> Tensor:
        """Return the variances, mean squared over shape, ``(..., M)``."""
        log_mean, log_shape = self._split(f)
        return (2 * log_mean - log_shape).exp()

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise for the first row outside the support.

        Args:
            y: Responses ``(..., M)``, or ``(...,)`` where ``M = 1``.
            n_outputs: Number of outputs ``C``.

        Raises:
            InputError: A response is not positive and finite, or their number does not match the outputs.
        """  # noqa: DOC502
        _pairs.check_columns(y, n_outputs, len(self.parameters), self.support)

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the logarithms of the mean and of Minka's approximation of the shape's estimate, ``(C,)``.

        Args:
            y: Responses.
            n_outputs: ``C``.
            weights: ``(N,)`` example weights; None means 1 each.

        Returns:
            The outputs; constant responses give a shape of 1e8.
        """
        rows = _pairs.start_rows(y, n_outputs, len(self.parameters))
        mean = _pairs.weighted_mean(rows, weights)
        log_shape = _minka(mean.log() - _pairs.weighted_mean(rows.log(), weights))
        return _pairs.join(mean.log(), log_shape, self.dispersion is not None)

    def second_given(self, first: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the logarithm of Minka's approximation of the shape's estimate, ``(M,)``."""
        d = like_outputs(first, y).log() - first
        return _minka(_pairs.weighted_mean(torch.expm1(d) - d, weights))

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian from one evaluation of the parts they share.

        Args:
            f: Outputs ``(..., C)``.
            y: Positive responses.
            hessian: ``"observed"``, ``"expected"`` or None for no Hessian.

        Returns:
            The three, each as its own method gives it.
        """
        p = self._parts(f, y, _pairs.constant)
        # a fixed shape has no derivatives, and computing them takes longer than the rest
        slope, bend = binet_derivatives(p.shape) if self.dispersion is None else (p.shape, p.shape)
        curvature: SymmetricOperator | None = None
        if hessian is not None:
            curvature = self._hessian(p, slope, bend) if hessian == "observed" else self._fisher(p.d, p.shape, bend)
        return Derivatives(self._value(p), self._gradient(p, slope), curvature)

    def _split(self, f: Tensor) -> tuple[Tensor, Tensor]:
        return _pairs.split(f, None if self.dispersion is None else -math.log(self.dispersion))

    def _parts(self, f: Tensor, y: Tensor, simplify: Callable[[Tensor], Tensor] = lambda shape: shape) -> _Parts:
        log_mean, log_shape = self._split(f)
        log_shape = simplify(log_shape)
        log_y = like_outputs(log_mean, y).log()
        d = log_y - log_mean
        return _Parts(f, log_y, d, torch.expm1(d), log_shape, log_shape.exp())

    def _value(self, p: _Parts) -> Tensor:
        of_shape = binet(p.shape) - 0.5 * p.log_shape + HALF_LOG_TWO_PI
        return _pairs.total(p.shape * (p.excess - p.d) + (p.log_y + of_shape), p.f)

    def _gradient(self, p: _Parts, slope: Tensor) -> Tensor:
        mean = -p.shape * p.excess
        if self.dispersion is not None:
            return mean
        return _pairs.join(mean, p.shape * (p.excess - p.d) + (slope - 0.5), fixed=False)

    def _hessian(self, p: _Parts, slope: Tensor, bend: Tensor) -> SymmetricOperator:
        mean = p.shape * p.d.exp()
        if self.dispersion is not None:
            return Diagonal(mean)
        return _pairs.blocks(mean, -p.shape * p.excess, p.shape * (p.excess - p.d) + (slope + bend))

    def _fisher(self, like: Tensor, shape: Tensor, bend: Tensor) -> Diagonal:
        fixed = self.dispersion is not None
        return _pairs.uncorrelated(shape.expand_as(like), (0.5 + bend).expand_as(like), fixed)


def _minka(s: Tensor) -> Tensor:
    """Return the logarithm of the shape at which its log exceeds its digamma function by about ``s``."""
    s = s.clamp(min=0.5e-8)
    return ((3 - s + ((s - 3).square() + 24 * s).sqrt()) / (12 * s)).log()
