r"""The Poisson likelihood, by the log or another link: counts, with exposure as an offset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from raphson.likelihoods._command import Command
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._parameters import total
from raphson.likelihoods._special._binet import HALF_LOG_TWO_PI, binet
from raphson.likelihoods._support import COUNT, Support
from raphson.likelihoods._target_distribution import TargetDistribution, Univariate, to_array
from raphson.likelihoods._targets import columns, like_outputs, log_mean_count, start_rows
from raphson.likelihoods.composed import _mean_link
from raphson.linalg import Diagonal

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition


@dataclass(frozen=True, eq=False)
class Poisson(Likelihood):
    r"""Independent Poisson counts with the logarithm of the mean as output.

    .. math::
        \ell(f, y) = \sum_m e^{f_m} - y_m f_m + \log y_m!, \qquad
        \nabla\ell = e^f - y, \qquad \nabla^2\ell = \operatorname{diag}(e^f),

    convex in ``f``. An exposure (time at risk, population) enters as an offset: its logarithm is added to ``f``.
    Counts of any size keep their digits: ``nll`` is evaluated as half of the deviance plus a constant of ``y``.

    With another link the output is the mean (``identity``) or its root (``sqrt``), a positive number.

    Shapes: outputs ``(..., M)``; targets ``(..., M)``, or ``(...,)`` where ``M = 1``.

    Args:
        link: ``"log"``, ``"identity"`` or ``"sqrt"``: what the output is of the mean.

    Raises:
        InputError: The link is none of them.

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

    link: str = "log"

    link_names = ("log", "identity", "sqrt")
    concave = True
    partition = "exponential"
    support = COUNT
    commands = (Command("poisson"),)

    def __post_init__(self) -> None:
        _mean_link.check_link(self)
        if self.link != "log":
            _mean_link.use_link(self, Poisson(), concave=True)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return each link."""
        return tuple(cls(link) for link in cls.link_names)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The logarithm of the mean of each response, or what the link makes of it."""
        return (_mean_link.mean_name(self.link),)

    @property
    def domains(self) -> tuple[Support, ...]:
        """Where the outputs must lie."""
        return (_mean_link.mean_domain(self),)

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the negative log-likelihood summed over responses, ``(...,)``."""
        return _value(f, like_outputs(f, y), f.exp())

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the mean minus the count, ``(..., M)``."""
        return f.exp() - like_outputs(f, y)

    def hessian(self, f: Tensor, y: Tensor) -> Diagonal:
        """Return the means, a batched diagonal ``(..., M, M)``."""
        return self.fisher(f)

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Diagonal:
        """Return the means, a batched diagonal ``(..., M, M)``, which equals the observed Hessian."""
        return Diagonal(f.exp())

    def statistic(self, y: Tensor, n_outputs: int) -> Tensor:
        r"""Return the counts, ``(..., M)`` in float64; :math:`A(f) - t^\top f` is ``nll`` less :math:`\log y!`."""
        return columns(y, n_outputs).double()

    def log_partition(self, f: Tensor, *, hessian: bool = True) -> Derivatives:
        r"""Return :math:`\sum_m e^{f_m}`, the means and their diagonal."""
        rate = f.exp()
        return Derivatives(rate.sum(-1), rate, Diagonal(rate) if hessian else None)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw counts, ``(..., M)``, in the element type of ``f``."""
        return torch.poisson(f.detach().exp(), generator=generator)

    def mean(self, f: Tensor) -> Tensor:
        """Return the means, ``(..., M)``."""
        return f.exp()

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return Poisson distributions, ``(..., M)``."""
        from scipy import stats

        value = to_array(like_outputs(f, y))
        return Univariate(stats.poisson(to_array(self.mean(f))), value, stats.poisson(value))

    def variance(self, f: Tensor) -> Tensor:
        """Return the variances, which are the means."""
        return f.exp()

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the logarithm of the mean count, ``(M,)``; of half a count in all where there is none."""
        return log_mean_count(start_rows(y, n_outputs), weights)

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian from one exponential."""
        y, rate = like_outputs(f, y), f.exp()
        return Derivatives(_value(f, y, rate), rate - y, None if hessian is None else Diagonal(rate))

    def power_curvature(self, f: Tensor, y: Tensor, power: float) -> Tensor:
        """Return ``power * ((power - 1) * mean + count)``."""
        count = like_outputs(f, y)
        return count if power == 1 else power * ((power - 1) * f.exp() + count)

    def definition(self) -> Definition:
        """Return the formulas in the output."""
        from raphson.likelihoods.formulas import GLM_BOOK, Convexity, Definition, positive, real, sympy

        y = real("y")
        mu = positive("mu")
        eta, mean = _mean_link.mean_formula(self.link, mu)
        made = Definition(
            likelihood=self,
            outputs=(eta,),
            targets=(y,),
            nll=mu - y * (eta if self.link == "log" else sympy.log(mu)) + sympy.loggamma(y + 1),
            abbreviations=(mean,),
            moments={y: mu},
            example=((0.4,), 3.0),
            convexity=Convexity(
                "Strictly convex everywhere; the Hessian does not depend on y, so observed and expected agree.",
                sympy.true,
            ),
            source=GLM_BOOK + "chapter 6.",
        )
        return _mean_link.at_link(made, self.link)


def _value(f: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    some = y > 0
    count = torch.where(some, y, 1.0)
    log_count = count.log()
    d = f - log_count
    value = count * (torch.expm1(d) - d) + (0.5 * log_count + HALF_LOG_TWO_PI + binet(count))
    return total(torch.where(some, value, rate), f)
