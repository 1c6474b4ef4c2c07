r"""The Gaussian likelihood with mean and scale as outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._definiteness import Definiteness
from raphson.likelihoods._interleave import block_entries, interleaved
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._pairs import start_rows, weighted_mean
from raphson.likelihoods._support import Support
from raphson.likelihoods._targets import like_outputs, output_columns, refuse_outside
from raphson.likelihoods.families._gaussian_parametrizations import PARAMETRIZATIONS, Entries, Moments, Parametrization
from raphson.linalg import Diagonal, EqualBlocks, EqualBlocksMatrix, LinearOperator, SymmetricOperator

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class HeteroscedasticGaussian(Likelihood):
    r"""Independent Gaussian responses, each with two outputs: its mean :math:`\mu` and a form of its scale :math:`s`.

    .. math::
        \ell(f, y) = \sum_m \log s_m + \tfrac12 r_m^2 + \tfrac12 \log 2\pi, \qquad r_m = \frac{y_m - \mu_m}{s_m}

    In mean and scale, one response has

    .. math::
        \nabla\ell = \begin{pmatrix} -r/s \\ (1 - r^2)/s \end{pmatrix}, \qquad
        \nabla^2\ell = \frac1{s^2} \begin{pmatrix} 1 & 2r \\ 2r & 3r^2 - 1 \end{pmatrix}, \qquad
        \mathrm{E}\,\nabla^2\ell = \frac1{s^2} \begin{pmatrix} 1 & 0 \\ 0 & 2 \end{pmatrix},

    and the other parametrizations follow by the chain rule. The observed Hessian of an example is ``M`` blocks of
    ``2 x 2``, and so is its average over examples (``average_hessian``): no axis of either counts examples.

    ==================== =============================================== ==========================================
    parametrization      outputs                                         observed Hessian
    ==================== =============================================== ==========================================
    mean_scale           :math:`\mu,\ s`                                 indefinite
    mean_log_scale       :math:`\mu,\ \log s`                            indefinite, singular at :math:`r = 0`
    mean_variance        :math:`\mu,\ s^2`                               indefinite
    mean_log_variance    :math:`\mu,\ \log s^2`                          indefinite, singular at :math:`r = 0`
    mean_precision       :math:`\mu,\ s^{-2}`                            positive definite where :math:`r^2 < 1/2`
    mean_softplus_scale  :math:`\mu,\ \theta` with                       indefinite
                         :math:`s = \log(1 + e^\theta)`
    natural              :math:`\mu/s^2,\ -1/(2s^2)`                     positive definite: the loss is convex
    ==================== =============================================== ==========================================

    The Fisher information is positive definite in all of them, and diagonal in all but the last: mean and scale are
    orthogonal parameters. ``definiteness`` says this as data, ``definiteness_at`` counts it in a sample.

    Shapes: outputs ``(..., 2 M)``, the two of response 0 first; targets ``(..., M)``, or ``(...,)`` where ``M = 1``.

    Args:
        parametrization: One of the names above.

    Raises:
        InputError: The parametrization is none of them.

    References:
        D. A. Nix and A. S. Weigend (1994), Estimating the mean and variance of the target probability distribution.
        O. E. Barndorff-Nielsen (1978), Information and Exponential Families, for the natural parameters.
        D. R. Cox and N. Reid (1987), Parameter orthogonality and approximate conditional inference, JRSS B 49.

    Examples:
        At the mean with scale 2 the observed Hessian in mean and scale is ``diag(1, -1) / 4``: a saddle.

        >>> import torch
        >>> from raphson.likelihoods import HeteroscedasticGaussian
        >>> lik, f, y = HeteroscedasticGaussian("mean_scale"), torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0]])
        >>> lik.hessian(f, y).to_dense()
        tensor([[[ 0.2500,  0.0000],
                 [ 0.0000, -0.2500]]])
        >>> lik.fisher(f).to_dense()
        tensor([[[0.2500, 0.0000],
                 [0.0000, 0.5000]]])
        >>> lik.definiteness.observed
        'indefinite'
    """

    parametrization: str = "mean_log_scale"

    def __post_init__(self) -> None:
        if self.parametrization not in PARAMETRIZATIONS:
            raise InputError(
                f"parametrization is {self.parametrization!r}, but it must be one of {', '.join(PARAMETRIZATIONS)}."
            )
        object.__setattr__(self, "concave", self.definiteness.observed == "positive definite")

    @property
    def _form(self) -> Parametrization:
        return PARAMETRIZATIONS[self.parametrization]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The two outputs of a response."""
        return self._form.names

    @property
    def domains(self) -> tuple[Support, ...]:
        """Where the two outputs must lie."""
        return self._form.domains

    @property
    def definiteness(self) -> Definiteness:
        """What observed and expected Hessians are for every output and target, as data and in words."""
        return self._form.definiteness

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the negative log-likelihood summed over responses, ``(...,)``; infinite outside the domain.

        Args:
            f: Outputs ``(..., 2 M)``.
            y: Responses.

        Returns:
            One value per row.
        """
        _, at, r = self._parts(f, y)
        return _value(at, r)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the gradient, ``(..., 2 M)``.

        Args:
            f: Outputs ``(..., 2 M)``.
            y: Responses.

        Returns:
            The gradient.
        """
        second, at, r = self._parts(f, y)
        return interleaved(*self._form.gradient(second, at, r))

    def hessian(self, f: Tensor, y: Tensor) -> EqualBlocks:
        """Return the observed Hessian, ``M`` blocks of ``2 x 2`` per row.

        Args:
            f: Outputs ``(..., 2 M)``.
            y: Responses; in natural parameters they do not matter.

        Returns:
            The operator ``(..., 2 M, 2 M)``, indefinite in most parametrizations.
        """
        second, at, r = self._parts(f, y)
        return _blocks(self._form.observed(second, at, r))

    def fisher(self, f: Tensor, y: Tensor | None = None) -> SymmetricOperator:
        """Return the expected Hessian: ``Diagonal``, or ``EqualBlocks`` in natural parameters.

        Args:
            f: Outputs ``(..., 2 M)``.
            y: Not used.

        Returns:
            The operator ``(..., 2 M, 2 M)``.
        """
        second, at = self._moments(f)
        return _operator(self._form.expected(second, at))

    def fisher_factor(self, f: Tensor, y: Tensor | None = None) -> LinearOperator:
        """Return the Cholesky factor of ``fisher(f)``, in closed form.

        Args:
            f: Outputs ``(..., 2 M)``.
            y: Not used.

        Returns:
            ``Diagonal``, or lower triangular blocks in natural parameters.
        """
        second, at = self._moments(f)
        root = self._form.root(second, at)
        return Diagonal(interleaved(root.first, root.second)) if root.cross is None else _lower_blocks(root)

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian from one pass over moments and residuals.

        Args:
            f: Outputs ``(..., 2 M)``.
            y: Responses.
            hessian: ``"observed"``, ``"expected"`` or None for no Hessian.

        Returns:
            The three, each as its own method gives it.
        """
        second, at, r = self._parts(f, y)
        curvature: SymmetricOperator | None = None
        if hessian == "observed":
            curvature = _blocks(self._form.observed(second, at, r))
        elif hessian is not None:
            curvature = _operator(self._form.expected(second, at))
        return Derivatives(_value(at, r), interleaved(*self._form.gradient(second, at, r)), curvature)

    def statistic(self, y: Tensor, n_outputs: int) -> Tensor | None:
        r"""Return :math:`(y, y^2)` per response in natural parameters, else None.

        Also None where a sum of squares about zero would lose more than a third of the digits against one about the
        mean, that is where the mean of these targets is over 300 times their standard deviation.
        """
        if self.parametrization != "natural":
            return None
        response = output_columns(y, n_outputs // 2).double()
        rows = response.reshape(-1, response.shape[-1])
        if bool((rows.mean(0).square() > 1e5 * rows.var(0, correction=0)).any()):
            return None
        return interleaved(response, response.square())

    def log_partition(self, f: Tensor, *, hessian: bool = True) -> Derivatives:
        r"""Return :math:`A = \sum_m \frac{\mu^2}{2 s^2} + \log s + \frac12 \log 2\pi` with its gradient and Hessian.

        Args:
            f: Natural parameters ``(..., 2 M)``.
            hessian: Whether the Hessian is wanted.

        Returns:
            The value ``(...,)``, the means of ``(y, y^2)`` and their covariance.

        Raises:
            NotImplementedError: In another parametrization.
        """
        if self.parametrization != "natural":
            raise NotImplementedError(f"The Gaussian is not an exponential family in '{self.parametrization}' outputs.")
        second, at = self._moments(f)
        means = interleaved(at.mean, at.mean.square() - 0.5 / second)
        curvature = _operator(self._form.expected(second, at)) if hessian else None
        return Derivatives(_value(at, at.mean * at.inverse_scale), means, curvature)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw responses, ``(..., M)``.

        Args:
            f: Outputs ``(..., 2 M)``.
            generator: Source of randomness, on the device of ``f``.

        Returns:
            The responses.
        """
        at = self._moments(f.detach())[1]
        return torch.empty_like(at.mean).normal_(generator=generator).div_(at.inverse_scale).add_(at.mean)

    def mean(self, f: Tensor) -> Tensor:
        """Return the means of the responses, ``(..., M)``."""
        return self._moments(f)[1].mean

    def variance(self, f: Tensor) -> Tensor:
        """Return the variances of the responses, ``(..., M)``."""
        return self._moments(f)[1].inverse_scale.square().reciprocal()

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the outputs of the weighted mean and standard deviation, the optimum for all targets alike.

        Args:
            y: Responses.
            n_outputs: ``C = 2 M``.
            weights: ``(N,)`` example weights; None means 1 each.

        Returns:
            ``(C,)`` in float64; constant responses, which have no optimum, get a scale of their own size, or 1.
        """
        rows = start_rows(y, n_outputs, 2)
        mean = weighted_mean(rows, weights)
        return interleaved(*self._form.outputs(mean, _safe_scale(rows - mean, mean, weights)))

    def second_given(self, first: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor | None:
        """Return the output of the root mean square residual ``(M,)``, the optimum; None in natural parameters."""
        if self.parametrization == "natural":
            return None
        residual = like_outputs(first, y) - first
        return self._form.outputs(first, _safe_scale(residual, first.abs().amax(0), weights))[1]

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise for the first row outside the support.

        Args:
            y: Responses ``(..., M)``, or ``(...,)`` where ``M = 1``.
            n_outputs: Number of outputs ``2 M``.

        Raises:
            InputError: A response is not finite, or there are not two outputs per response.
        """
        if n_outputs % 2:
            raise InputError(_odd(n_outputs))
        response = output_columns(y, n_outputs // 2)
        refuse_outside(~self.support.contains(response), response, self.support.description)

    def _moments(self, f: Tensor) -> tuple[Tensor, Moments]:
        if f.shape[-1] % 2:
            raise InputError(_odd(f.shape[-1]))
        second = f[..., 1::2]
        return second, self._form.moments(f[..., ::2], second)

    def _parts(self, f: Tensor, y: Tensor) -> tuple[Tensor, Moments, Tensor]:
        # the second outputs, the moments and the standardized residuals
        second, at = self._moments(f)
        return second, at, (like_outputs(at.mean, y) - at.mean) * at.inverse_scale


def _safe_scale(residual: Tensor, size: Tensor, weights: Tensor | None) -> Tensor:
    """Return the root mean square ``(M,)`` of residuals ``(N, M)``; where they vanish, the size of the mean, or 1."""
    scale = weighted_mean(residual.square(), weights).sqrt()
    return torch.where(scale > 1e-12 * size.abs(), scale, torch.where(size == 0, 1.0, size.abs()))


def _odd(n_outputs: int) -> str:
    return (
        f"The model has {n_outputs} outputs, but a Gaussian with mean and scale needs two per response: "
        "give an even number, the two of the first response first."
    )


def _value(at: Moments, r: Tensor) -> Tensor:
    value = (at.log_scale + 0.5 * (r * r) + _HALF_LOG_2PI).sum(-1)
    # outside the domain logarithms and roots are nan, or the log scale is -inf
    return torch.nan_to_num(value, nan=math.inf, posinf=math.inf, neginf=math.inf)


def _blocks(entries: Entries) -> EqualBlocks:
    first, cross, second = entries
    cross = torch.zeros_like(first) if cross is None else cross
    return EqualBlocks(block_entries([[first, cross], [cross, second]]))


def _lower_blocks(entries: Entries) -> EqualBlocksMatrix:
    first, cross, second = entries
    zero = torch.zeros_like(first)
    return EqualBlocksMatrix(block_entries([[first, zero], [zero if cross is None else cross, second]]))


def _operator(entries: Entries) -> SymmetricOperator:
    return Diagonal(interleaved(entries.first, entries.second)) if entries.cross is None else _blocks(entries)
