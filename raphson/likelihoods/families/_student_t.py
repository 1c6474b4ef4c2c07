r"""Student's t likelihood: location, scale and, fixed or learned, the degrees of freedom."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._interleave import block_entries, interleaved
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._pairs import check_columns, check_number, start_rows, total, weighted_mean
from raphson.likelihoods._special._binet import HALF_LOG_TWO_PI, log_remainder
from raphson.likelihoods._special._half_step import FROM, half_step, half_step_derivatives, half_step_excess
from raphson.likelihoods._special._sampling import log_gamma_variate
from raphson.likelihoods._targets import like_outputs
from raphson.linalg import Diagonal, EqualBlocks, EqualBlocksMatrix, LinearOperator, SymmetricOperator


class _Model(NamedTuple):
    location: Tensor
    log_scale: Tensor
    df: Tensor  # (..., M), or a scalar where it is fixed


class _Residual(NamedTuple):
    """The standardized residual ``r`` and how a weight of ``1 / (1 + r^2 / df)`` splits 1."""

    r: Tensor
    t: Tensor  # r^2 / df
    kept: Tensor  # 1 / (1 + t), near 1 for a residual of the usual size
    lost: Tensor  # t / (1 + t), near 1 for an outlier


@dataclass(frozen=True, eq=False)
class StudentT(Likelihood):
    r"""Independent Student t responses with location, log scale and, unless it is fixed, log degrees of freedom.

    With :math:`r = (y - \mu) / \sigma`, :math:`\sigma = e^\omega` and :math:`\nu` degrees of freedom,

    .. math::
        \ell = \omega + \frac{\nu + 1}{2} \log\left(1 + \frac{r^2}{\nu}\right)
        + \log\Gamma\left(\frac{\nu}{2}\right) - \log\Gamma\left(\frac{\nu + 1}{2}\right)
        + \tfrac12 \log(\nu\pi).

    An outlier counts by its weight :math:`1 / (1 + r^2 / \nu)`: the gradient in the location stays bounded,
    and the observed Hessian is negative there where :math:`r^2 > \nu`. Hence the loss is not convex. Scale and
    degrees of freedom are not the standard deviation, which is :math:`\sigma\sqrt{\nu / (\nu - 2)}` and needs
    :math:`\nu > 2`.

    The Fisher information per response in :math:`(\mu, \omega, \log\nu)` is

    .. math::
        \begin{pmatrix}
        \frac{\nu + 1}{(\nu + 3)\sigma^2} & 0 & 0 \\
        0 & \frac{2\nu}{\nu + 3} & \frac{-2\nu}{(\nu + 1)(\nu + 3)} \\
        0 & \frac{-2\nu}{(\nu + 1)(\nu + 3)} & \frac{\nu^2}{4} \left[\psi'\left(\frac{\nu}{2}\right)
        - \psi'\left(\frac{\nu + 1}{2}\right)\right] - \frac{\nu(\nu + 5)}{2(\nu + 1)(\nu + 3)}
        \end{pmatrix}.

    Its last element falls like :math:`7 / (2\nu^2)`: data say little about many degrees of freedom.

    Shapes: outputs ``(..., k M)`` with k = 3 parameters of a response side by side, or 2 with ``df`` fixed;
    targets ``(..., M)``, or ``(...,)`` where ``M = 1``.

    Args:
        df: Degrees of freedom, a positive number, or None to have them as an output.

    Raises:
        InputError: ``df`` is not a positive finite number.

    References:
        K. L. Lange, R. J. A. Little and J. M. G. Taylor (1989), Robust statistical modeling using the t
        distribution, J. Amer. Statist. Assoc. 84, 881-896, with the information matrix in appendix B.

    Examples:
        With one degree of freedom it is the Cauchy distribution, of density 1 / pi at its center.

        >>> import math, torch
        >>> from raphson.likelihoods import StudentT
        >>> f, y = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0.0])
        >>> bool((StudentT(df=1.0).nll(f, y) - math.log(math.pi)).abs() < 1e-14)
        True
        >>> StudentT(df=1.0).fisher(f).to_dense()
        tensor([[[0.5000, 0.0000],
                 [0.0000, 0.5000]]], dtype=torch.float64)
    """

    df: float | None = None

    def __post_init__(self) -> None:
        check_number("df", self.df)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Location and log scale of each response, and the log of the degrees of freedom unless fixed."""
        return ("location", "log_scale", "log_df") if self.df is None else ("location", "log_scale")

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the negative log-likelihood summed over responses, ``(...,)``.

        Args:
            f: Outputs ``(..., k M)``.
            y: Responses.

        Returns:
            One value per row.
        """
        model = self._model(f)
        return total(_value(model, _residual(model, y)), f)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the gradient, ``(..., k M)``.

        Args:
            f: Outputs ``(..., k M)``.
            y: Responses.

        Returns:
            The gradient.
        """
        model = self._model(f)
        return self._gradient(model, _residual(model, y))

    def hessian(self, f: Tensor, y: Tensor) -> EqualBlocks:
        """Return the observed Hessian, one k x k block per response.

        Args:
            f: Outputs ``(..., k M)``.
            y: Responses.

        Returns:
            Batched operator ``(..., k M, k M)``.
        """
        model = self._model(f)
        return self._observed(model, _residual(model, y))

    def fisher(self, f: Tensor, y: Tensor | None = None) -> SymmetricOperator:
        """Return the Fisher information: diagonal with ``df`` fixed, one 3 x 3 block per response otherwise.

        Args:
            f: Outputs ``(..., k M)``.
            y: Not used.

        Returns:
            Batched operator ``(..., k M, k M)``.
        """
        return self._expected(self._model(f))

    def fisher_factor(self, f: Tensor, y: Tensor | None = None) -> LinearOperator:
        """Return the lower triangular factor of each block of the Fisher information.

        Args:
            f: Outputs ``(..., k M)``.
            y: Not used.

        Returns:
            Batched operator ``(..., k M, k M)``.
        """
        model = self._model(f)
        location, scale = (x.sqrt() for x in _information(model))
        if self.df is not None:
            return Diagonal(interleaved(location, scale))
        cross, log_df = _information_of_df(model.df)
        off = cross / scale
        zero = torch.zeros_like(off)
        corner = (log_df - off.square()).clamp_min(0).sqrt()
        return EqualBlocksMatrix(block_entries(((location, zero, zero), (zero, scale, zero), (zero, off, corner))))

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian from one evaluation of the weights.

        Args:
            f: Outputs ``(..., k M)``.
            y: Responses.
            hessian: ``"observed"``, ``"expected"`` or None for no Hessian.

        Returns:
            The three, each as its own method gives it.
        """
        model = self._model(f)
        residual = _residual(model, y)
        curvature: SymmetricOperator | None = None
        if hessian is not None:
            curvature = self._observed(model, residual) if hessian == "observed" else self._expected(model)
        return Derivatives(total(_value(model, residual), f), self._gradient(model, residual), curvature)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw responses, ``(..., M)``: a normal variate over the root of a chi-square one.

        Args:
            f: Outputs ``(..., k M)``.
            generator: Source of randomness, on the device of ``f``.

        Returns:
            The responses, finite: beyond the largest number they are that number.
        """
        location, log_scale, df = self._model(f.detach())
        half = (0.5 * df).expand_as(location).contiguous()
        stretch = (0.5 * (half.log() - log_gamma_variate(half, generator)) + log_scale).exp()
        normal = torch.empty_like(half).normal_(generator=generator)
        return torch.nan_to_num(location + stretch * normal)

    def mean(self, f: Tensor) -> Tensor:
        """Return the location, ``(..., M)``; infinite up to one degree of freedom, where there is no mean."""
        model = self._model(f)
        return torch.where(model.df > 1, model.location, torch.inf)

    def variance(self, f: Tensor) -> Tensor:
        """Return the variance, ``(..., M)``: infinite up to df = 2, nan up to df = 1, where there is no mean."""
        _, log_scale, df = self._model(f)
        finite = (2 * log_scale).exp() * df / (df - 2)
        return torch.where(df > 2, finite, torch.where(df > 1, torch.inf, torch.nan).to(finite))

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise for the first row outside the support.

        Args:
            y: Responses ``(..., M)``, or ``(...,)`` where ``M = 1``.
            n_outputs: ``k M``.

        Raises:
            InputError: A response is not finite, or the shapes do not match.
        """  # noqa: DOC502
        check_columns(y, n_outputs, len(self.parameters), self.support)

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the median, the log of the scaled median absolute deviation, and 4 to 30 degrees of freedom.

        Args:
            y: Responses ``(N, M)``, or ``(N,)`` where ``M = 1``.
            n_outputs: ``k M``.
            weights: ``(N,)`` example weights; None means 1 each.

        Returns:
            Outputs ``(k M,)``; where more than half of the targets are equal the scale is that of all of them.
        """
        rows = start_rows(y, n_outputs, len(self.parameters))
        location = _weighted_median(rows, weights)
        deviation = rows - location
        variance = weighted_mean(deviation.square(), weights)
        # of a normal distribution, the median absolute deviation is 0.6745 standard deviations
        scale = _weighted_median(deviation.abs(), weights) / 0.6745
        scale = torch.where(scale > 0, scale, variance.sqrt())
        scale = torch.where(scale > 0, scale, 1e-3 * location.abs().clamp_min(1.0))
        if self.df is not None:
            return interleaved(location, scale.log())
        # the excess kurtosis of t is 6 / (df - 4)
        kurtosis = weighted_mean(deviation.pow(4), weights) / variance.square().clamp_min(1e-300) - 3
        df = (4 + 6 / kurtosis.clamp_min(0.2)).clamp(max=30.0)
        return interleaved(location, scale.log(), df.log())

    def _model(self, f: Tensor) -> _Model:
        k = len(self.parameters)
        if f.shape[-1] % k:
            raise InputError(f"The model has {f.shape[-1]} outputs, but {k} are needed per response.")
        location, log_scale, *rest = f.view(*f.shape[:-1], f.shape[-1] // k, k).unbind(-1)
        if self.df is not None:
            return _Model(location, log_scale, f.new_full((), self.df))
        # far beyond any difference from the normal distribution, and no square overflows
        limit = 0.45 * math.log(torch.finfo(f.dtype).max)
        return _Model(location, log_scale, rest[0].clamp(-limit, limit).exp())

    def _gradient(self, model: _Model, residual: _Residual) -> Tensor:
        df, (r, _, kept, lost) = model.df, residual
        location = -(1 + 1 / df) * kept * r * (-model.log_scale).exp()
        scale = 1 - (df + 1) * lost
        if self.df is not None:
            return interleaved(location, scale)
        rest = 0.5 * (df * lost.square() * log_remainder(lost, kept) - lost)
        return interleaved(location, scale, rest - half_step_derivatives(0.5 * df)[0])

    def _observed(self, model: _Model, residual: _Residual) -> EqualBlocks:
        df, (r, _, kept, lost) = model.df, residual
        precision = (-model.log_scale).exp()
        weight = (1 + 1 / df) * kept
        a = weight * (kept - lost) * precision.square()
        b = 2 * weight * kept * r * precision
        c = 2 * (df + 1) * lost * kept
        if self.df is not None:
            return EqualBlocks(block_entries(((a, b), (b, c))))
        d = -r * precision * kept * (lost - kept / df)
        e = lost * (kept - df * lost)
        bend = half_step_derivatives(0.5 * df)[1]
        g = 0.5 * (df * lost.square() * log_remainder(lost, kept) + e) - bend
        return EqualBlocks(block_entries(((a, b, d), (b, c, e), (d, e, g))))

    def _expected(self, model: _Model) -> SymmetricOperator:
        location, scale = _information(model)
        if self.df is not None:
            return Diagonal(interleaved(location, scale))
        cross, log_df = _information_of_df(model.df)
        zero = torch.zeros_like(cross)
        return EqualBlocks(block_entries(((location, zero, zero), (zero, scale, cross), (zero, cross, log_df))))


def _residual(model: _Model, y: Tensor) -> _Residual:
    r = (like_outputs(model.location, y) - model.location) * (-model.log_scale).exp()
    t = r.square() / model.df
    kept = 1 / (1 + t)
    return _Residual(r, t, kept, t * kept)


def _value(model: _Model, residual: _Residual) -> Tensor:
    constant = HALF_LOG_TWO_PI - half_step(0.5 * model.df)
    return 0.5 * (model.df + 1) * residual.t.log1p() + model.log_scale + constant


def _information(model: _Model) -> tuple[Tensor, Tensor]:
    """Return the information on location and log scale, which are uncorrelated, ``(..., M)`` each."""
    _, log_scale, df = model
    scale = (2 * df / (df + 3)).expand_as(log_scale)
    return (df + 1) / (df + 3) * (-2 * log_scale).exp(), scale


def _information_of_df(df: Tensor) -> tuple[Tensor, Tensor]:
    """Return the information on the log of the degrees of freedom: with the log scale, and its own."""
    product = 2 * (df + 1) * (df + 3)
    slope, bend = half_step_derivatives(0.5 * df)
    few = slope - bend + (3 - df) / product
    # slope - bend starts with 1 / (2 df), which cancels against the other term: taken together in closed form
    many = half_step_excess(0.5 * df) + (7 + 3 / df) / product
    return -2 / (df + 1) * (df / (df + 3)), torch.where(0.5 * df < FROM, few, many)


def _weighted_median(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Return the lower median of each column, ``(M,)``."""
    if weights is None:
        return rows.median(0).values
    values, order = rows.sort(0)
    below = weights.to(rows)[order].cumsum(0)
    return values.gather(0, (below < 0.5 * below[-1]).sum(0, keepdim=True)).squeeze(0)
