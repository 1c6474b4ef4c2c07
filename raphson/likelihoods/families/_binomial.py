r"""The binomial likelihood: successes and failures per row, by the logit or another link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._command import Command
from raphson.likelihoods._likelihood import Derivatives
from raphson.likelihoods._links import softplus
from raphson.likelihoods._parameters import total
from raphson.likelihoods._special._binary_links import Tails
from raphson.likelihoods._special._log_coefficient import log_coefficient
from raphson.likelihoods._support import COUNT
from raphson.likelihoods._target_distribution import TargetDistribution, Univariate, to_array
from raphson.likelihoods._targets import columns, like_outputs, refuse_outside, start_rows
from raphson.likelihoods.composed._binary_family import BinaryFamily
from raphson.linalg import Diagonal, in_float64

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition


@dataclass(frozen=True, eq=False)
class Binomial(BinaryFamily):
    r"""Successes among independent trials, with the logit of the success probability as output.

    With s successes and u failures in n = s + u trials and :math:`\sigma = 1 / (1 + e^{-f})`,

    .. math::
        \ell(f, y) = s \log(1 + e^{-f}) + u \log(1 + e^f) - \log\binom{n}{s}, \qquad
        \ell' = u\,\sigma - s\,(1 - \sigma), \qquad \ell'' = n\,\sigma (1 - \sigma),

    convex in ``f``. The observed Hessian depends on the target through the number of trials only. Other links are
    those of ``Bernoulli``: ``probit``, ``cloglog``, ``loglog``, ``cauchit``, ``log``, ``identity``.

    Shapes: without ``trials``, outputs ``(..., 1)`` and targets ``(..., 2)``: successes and failures of each row.
    With a fixed number of trials, outputs ``(..., M)`` and targets ``(..., M)``, successes, or ``(...,)`` where
    ``M = 1``.

    ``mean`` is the success probability and ``variance`` that of the observed share of successes. Without
    ``trials`` the model alone does not say how many there are: ``sample`` draws, and ``variance`` and
    ``fisher(f)`` describe, a single trial; ``fisher(f, y)`` counts the trials of each row.

    Args:
        trials: Number of trials of every target, or None if targets have their own.
        link: What the output is of the success probability.

    Raises:
        InputError: ``trials`` is not a positive whole number, or there is no such link.

    References:
        P. McCullagh and J. A. Nelder (1989), Generalized Linear Models, 2nd ed., chapter 4.

    Examples:
        At logit 0, three successes of four have probability 4 / 16.

        >>> import torch
        >>> from raphson.likelihoods import Binomial
        >>> f, y = torch.zeros(1, 1), torch.tensor([[3, 1]])
        >>> Binomial().nll(f, y).neg().exp()
        tensor([0.2500])
        >>> Binomial().gradient(f, y), Binomial().hessian(f, y).diagonal()
        (tensor([[-1.]]), tensor([[1.]]))
        >>> torch.equal(Binomial(trials=4).nll(f, torch.tensor([3])), Binomial().nll(f, y))
        True
    """

    trials: int | None = None
    link: str = "logit"

    concave = True
    support = COUNT
    commands = (Command("binomial", target="successes", count="trials"),)

    def __post_init__(self) -> None:
        n = self.trials
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise InputError(f"trials is {n!r}, but it must be a positive whole number, or None.")
        object.__setattr__(self, "concave", self._link.concave)
        if n is not None and self.link == "logit":
            object.__setattr__(self, "partition", "logistic")
            object.__setattr__(self, "partition_multiple", float(n))

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return trials that are part of the target, a fixed number of them, and each other link."""
        others = cls.link_names[1:]
        return cls(), cls(7), *(cls(link=link) for link in others), cls(7, others[0])

    @property
    def hessian_bound(self) -> float | None:
        """A quarter of the number of trials where that is fixed, of logits."""
        return None if self.trials is None or self.link != "logit" else 0.25 * self.trials

    def n_outputs(self, y: Tensor) -> int:
        """Return 1 for rows of successes and failures, the number of columns of successes otherwise."""
        return 1 if self.trials is None or y.ndim < 2 else y.shape[-1]

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Diagonal:
        """Return a batched diagonal; without ``y``, the information of ``trials`` trials, or of one."""
        n = self._each() if y is None else sum(self._parts(f, y))
        return Diagonal(n * self._link.tails(f).information)

    def statistic(self, y: Tensor, n_outputs: int) -> Tensor | None:
        """Return the successes, ``(..., M)`` in float64, of logits with a fixed number of trials, or None."""
        return None if self.trials is None or self.link != "logit" else columns(y, n_outputs).double()

    @property
    def self_concordance(self) -> float | None:
        """1 for logits: numbers of trials multiply second and third derivatives alike."""
        return 1.0 if self.link == "logit" else None

    def log_partition(self, f: Tensor, *, hessian: bool = True) -> Derivatives:
        r"""Return :math:`n \sum_m \log(1 + e^{f_m})`, :math:`n\sigma` and :math:`n\sigma(1 - \sigma)`.

        Raises:
            NotImplementedError: The number of trials is not fixed: it is part of the targets.
        """
        if self.trials is None:
            raise NotImplementedError("Binomial without trials is not an exponential family in its outputs alone.")
        p, n = torch.sigmoid(f), self.trials
        curvature = Diagonal(n * (p * torch.sigmoid(-f))) if hessian else None
        return Derivatives(n * softplus(f).sum(-1), n * p, curvature)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw successes ``(..., M)``, or without ``trials`` success and failure of a single one, ``(..., 2)``."""
        p = self.mean(f.detach())
        successes = torch.binomial(torch.full_like(p, self._each()), p, generator=generator)
        return successes if self.trials is not None else torch.cat((successes, 1 - successes), -1)

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return binomial distributions of successes, ``(..., M)``, in units of their share."""
        from scipy import stats

        successes, failures = self._parts(f, y)
        total = successes + failures
        n = total.long().cpu().numpy()
        laws = [stats.binom(n, to_array(p)) for p in (self.mean(f), successes / total.clamp(min=1))]
        return Univariate(laws[0], to_array(successes), laws[1], to_array(total))

    def variance(self, f: Tensor) -> Tensor:
        """Return the variance of the share of successes in the fixed number of trials, or in one, ``(..., M)``."""
        return self._link.tails(f).variance / self._each()

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise ``InputError`` for the first count that is negative, not whole or above the number of trials."""
        if self.trials is not None:
            y = columns(y, n_outputs)
            outside = ~COUNT.contains(y) | (y > self.trials)
            refuse_outside(outside, y, f"a whole number of successes from 0 to {self.trials}")
            return
        if n_outputs != 1 or y.ndim == 0 or y.shape[-1] != 2:
            raise InputError(
                f"The targets have shape {tuple(y.shape)} for {n_outputs} outputs, but Binomial without trials has "
                "one output and targets (N, 2), successes and failures: give those, or Binomial(trials=n)."
            )
        refuse_outside(~COUNT.contains(y), y, f"{COUNT.description} (successes in position 0, failures in 1)")

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the output of the share of successes, half a trial of each kind added."""
        if self.trials is None:
            rows = in_float64(y).reshape(-1, 2)
            counts = torch.stack((rows[:, :1], rows[:, 1:]))
        else:
            rows = start_rows(y, n_outputs)
            counts = torch.stack((rows, self.trials - rows))
        weighted = counts if weights is None else counts * weights.reshape(-1, 1).to(counts)
        successes, failures = (weighted.sum(1) + 0.5).unbind(0)
        return self._output_at(successes, failures)

    def definition(self) -> Definition:
        """Return the formulas in the output, for n trials."""
        from raphson.likelihoods import formulas as fm
        from raphson.likelihoods.formulas import positive, real, sympy

        def successes_of_trials(y: Tensor) -> Sequence[float]:
            successes, failures = y.tolist()
            return successes, successes + failures

        y = real("y")
        n, p, d = positive("n p d")
        eta, pieces = self._link.formula(p, d)
        given = -y * eta - n * sympy.log(1 - p)
        if self.link != "logit":
            given = -y * sympy.log(p) - (n - y) * sympy.log(1 - p)
        fixed, gamma = self.trials, sympy.loggamma
        log_coefficient = gamma(n + 1) - gamma(y + 1) - gamma(n - y + 1)
        made = fm.Definition(
            likelihood=self,
            outputs=(eta,),
            targets=(y,) if fixed is not None else (y, n),
            nll=given - log_coefficient,
            abbreviations=pieces,
            expect=lambda entry: fm.mean_by_moments(entry, {y: n * p}, {y}),
            constants={} if fixed is None else {n: float(fixed)},
            given_target=True,
            read=successes_of_trials if fixed is None else fm.one_number,
            example=(
                (float(self._link.quantile(torch.tensor(0.6))),),
                [3.0, 2.0] if fixed is None else min(3.0, float(fixed)),
            ),
            convexity=fm.STRICTLY_CONVEX,
            source=fm.GLM_BOOK + "section 4.4.",
            target_words="y successes in n trials" + ("; given as (successes, failures)" if fixed is None else ""),
        )
        return self._at_link(made)

    def _each(self) -> int:
        return 1 if self.trials is None else self.trials

    def _parts(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.trials is not None:
            successes = like_outputs(f, y)
            return successes, self.trials - successes
        if y.shape != (*f.shape[:-1], 2) or f.shape[-1] != 1:
            raise InputError(
                f"The targets have shape {tuple(y.shape)} and the outputs {tuple(f.shape)}, but Binomial without "
                "trials needs one output per row, (..., 1), and its successes and failures, (..., 2)."
            )
        return y[..., :1].to(f.dtype), y[..., 1:].to(f.dtype)

    def _value(self, f: Tensor, tails: Tails, positive: Tensor, negative: Tensor) -> Tensor:
        """Return ``nll``; infinite where a target is not in the support, to which there is no way at all."""
        ways = log_coefficient(torch.stack((positive, negative))).to(f.dtype)
        return total(tails.value(positive, negative) - ways, f)
