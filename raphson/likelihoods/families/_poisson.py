r"""The Poisson likelihood with a log link: counts, with exposure as an offset."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raphson.likelihoods import _pairs
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._special._binet import HALF_LOG_TWO_PI, binet
from raphson.likelihoods._support import COUNT
from raphson.likelihoods._targets import like_outputs
from raphson.linalg import Diagonal


@dataclass(frozen=True, eq=False)
class Poisson(Likelihood):
    r"""Independent Poisson counts with the logarithm of the mean as output.

    .. math::
        \ell(f, y) = \sum_m e^{f_m} - y_m f_m + \log y_m!, \qquad
        \nabla\ell = e^f - y, \qquad \nabla^2\ell = \operatorname{diag}(e^f),

    convex in ``f``. An exposure (time at risk, population) enters as an offset: its logarithm is added to ``f``.
    Counts of any size keep their digits: ``nll`` is evaluated as half of the deviance plus a constant of ``y``.

    Shapes: outputs ``(..., M)``; targets ``(..., M)``, or ``(...,)`` where ``M = 1``.

    References:
        P. McCullagh and J. A. Nelder (1989), Generalized Linear Models, 2nd ed., chapter 6.
        C. Loader (2000), Fast and accurate computation of binomial probabilities (the deviance form).

    Examples:
        At mean 2 the gradient is 2 - y and the Hessian is 2.

        >>> import math, torch
        >>> from raphson.likelihoods import Poisson
        >>> f, y = torch.full((1, 2), math.log(2.0)), torch.tensor([[0.0, 5.0]])
        >>> Poisson().gradient(f, y)
        tensor([[ 2., -3.]])
        >>> Poisson().hessian(f, y).diagonal()
        tensor([[2., 2.]])
    """

    concave = True
    partition = "exponential"
    support = COUNT

    @property
    def parameters(self) -> tuple[str, ...]:
        """The logarithm of the mean of each response."""
        return ("log_mean",)

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the negative log-likelihood summed over responses, ``(...,)``.

        Args:
            f: Log means ``(..., M)``.
            y: Counts.

        Returns:
            One value per row.
        """
        return _value(f, like_outputs(f, y), f.exp())

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the mean minus the count, ``(..., M)``.

        Args:
            f: Log means ``(..., M)``.
            y: Counts.

        Returns:
            The gradient.
        """
        return f.exp() - like_outputs(f, y)

    def hessian(self, f: Tensor, y: Tensor) -> Diagonal:
        """Return the means, a batched diagonal ``(..., M, M)``.

        Args:
            f: Log means ``(..., M)``.
            y: Counts; they do not matter.

        Returns:
            The operator.
        """
        return self.fisher(f)

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Diagonal:
        """Return the means, a batched diagonal ``(..., M, M)``, which equals the observed Hessian.

        Args:
            f: Log means ``(..., M)``.
            y: Not used.

        Returns:
            The operator.
        """
        return Diagonal(f.exp())

    def statistic(self, y: Tensor, n_outputs: int) -> Tensor:
        r"""Return the counts, ``(..., M)`` in float64; :math:`A(f) - t^\top f` is ``nll`` less :math:`\log y!`."""
        return _pairs.columns(y, n_outputs, 1).double()

    def log_partition(self, f: Tensor, *, hessian: bool = True) -> Derivatives:
        r"""Return :math:`\sum_m e^{f_m}` with its gradient and Hessian.

        Args:
            f: Log means ``(..., M)``.
            hessian: Whether the Hessian is wanted.

        Returns:
            The value ``(...,)``, the means and their diagonal.
        """
        rate = f.exp()
        return Derivatives(rate.sum(-1), rate, Diagonal(rate) if hessian else None)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw counts, ``(..., M)``, in the element type of ``f``.

        Args:
            f: Log means ``(..., M)``.
            generator: Source of randomness, on the device of ``f``.

        Returns:
            The counts.
        """
        return torch.poisson(f.detach().exp(), generator=generator)

    def mean(self, f: Tensor) -> Tensor:
        """Return the means, ``(..., M)``."""
        return f.exp()

    def variance(self, f: Tensor) -> Tensor:
        """Return the variances, which are the means."""
        return f.exp()

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise for the first row outside the support.

        Args:
            y: Counts ``(..., M)``, or ``(...,)`` where ``M = 1``.
            n_outputs: Number of responses ``M``.

        Raises:
            InputError: A target is negative, not whole or not finite, or their number is not ``M``.
        """  # noqa: DOC502
        _pairs.check_columns(y, n_outputs, 1, self.support)

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the logarithm of the mean count, ``(M,)``; of half a count in all where there is none.

        Args:
            y: Counts.
            n_outputs: ``M``.
            weights: ``(N,)`` example weights; None means 1 each.

        Returns:
            The outputs.
        """
        return _pairs.log_mean_count(_pairs.start_rows(y, n_outputs, 1), weights)

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian from one exponential.

        Args:
            f: Log means ``(..., M)``.
            y: Counts.
            hessian: ``"observed"`` or ``"expected"``, which are equal, or None for no Hessian.

        Returns:
            The three, each as its own method gives it.
        """
        y, rate = like_outputs(f, y), f.exp()
        return Derivatives(_value(f, y, rate), rate - y, None if hessian is None else Diagonal(rate))


def _value(f: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    some = y > 0
    count = torch.where(some, y, 1.0)
    log_count = count.log()
    d = f - log_count
    value = count * (torch.expm1(d) - d) + (0.5 * log_count + HALF_LOG_TWO_PI + binet(count))
    return _pairs.total(torch.where(some, value, rate), f)
