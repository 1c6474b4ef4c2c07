r"""The distribution of targets that a likelihood predicts, beside the targets seen: what residuals are made of.

Distribution functions are SciPy's. Everything is float64 NumPy arrays on the processor: nothing here is differentiated.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raphson._errors import InputError

Array = NDArray[np.float64]


class TailProbabilities(NamedTuple):
    """Probabilities that the model gives to what is below and above a target; the rest is at it, or censored.

    Each of the two is precise where it is close to zero. For a continuous target they sum to one.

    Attributes:
        below: ``P(Y < y)``.
        above: ``P(Y > y)``, of the same shape.
    """

    below: Array
    above: Array


class TargetDistribution(abc.ABC):
    """The predicted distribution of each target, and the target seen, in the units of ``Likelihood.mean``."""

    @property
    @abc.abstractmethod
    def observed(self) -> Array:
        """Targets in the units and the shape of ``mean``: shares of successes, one-hot labels; nan where censored."""

    @property
    @abc.abstractmethod
    def mean(self) -> Array:
        """Predicted means, ``(..., M)``."""

    @property
    @abc.abstractmethod
    def variance(self) -> Array:
        """Predicted variances of ``observed``, ``(..., M)``."""

    @abc.abstractmethod
    def tails(self) -> TailProbabilities:
        """Return the tail probabilities of each target, given those before it where there are several."""

    @abc.abstractmethod
    def deviance(self) -> Array:
        """Return twice the log-likelihood that the best mean of each target would gain, the other parameters kept."""

    @property
    def direction(self) -> Array:
        """Signs of the deviance residuals: whether the best mean is above the predicted one; 1 where it is neither."""
        return np.ones(())

    def mass(self, count: int) -> Array | None:
        """Return the probability of a count for each target, or None where targets are no single counts.

        Args:
            count: The count.

        Returns:
            In the shape of the means, or None.
        """
        return None

    @abc.abstractmethod
    def simulate(self, generator: np.random.Generator) -> Self:
        """Return the same distribution beside targets drawn from it.

        Args:
            generator: Source of randomness.

        Raises:
            InputError: How targets are censored is not known.
        """  # noqa: DOC502


@dataclass(frozen=True, eq=False)
class Univariate(TargetDistribution):
    """Independent targets of one dimension, each with a distribution of SciPy's.

    Args:
        law: SciPy's frozen distribution, of parameters that broadcast with ``value``.
        value: Targets, ``(..., M)``.
        saturated: The law of the same family whose mean (location, scale) suits each target best.
        total: What a target is divided by to be in the units of the mean: trials of a binomial count.
        event: 0 where the target is only known to be larger than ``value``, else 1; None for all 1.
    """

    law: Any
    value: Array
    saturated: Any
    total: Array | float = 1.0
    event: Array | None = None

    @property
    def observed(self) -> Array:
        """The targets over ``total``; nan where censored."""
        seen = _ratio(self.value, self.total)
        return seen if self.event is None else np.where(self.event > 0, seen, np.nan)

    @property
    def mean(self) -> Array:
        """Means of the law over ``total``."""
        return np.broadcast_to(_ratio(self.law.mean(), self.total), self.value.shape)

    @property
    def variance(self) -> Array:
        """Variances of the law over the square of ``total``."""
        return np.broadcast_to(_ratio(self.law.var(), np.square(self.total)), self.value.shape)

    def tails(self) -> TailProbabilities:
        """Return the distribution function on either side; nothing is above a censored time."""
        discrete = hasattr(self.law.dist, "pmf")
        below = self.law.cdf(self.value - 1 if discrete else self.value)
        above = self.law.sf(self.value)
        return TailProbabilities(below, above if self.event is None else np.where(self.event > 0, above, 0.0))

    def deviance(self) -> Array:
        """Return the unit deviances; of a censored time, whose best scale is infinite, twice the cumulative hazard."""
        with np.errstate(divide="ignore"):
            gained = 2 * (_log_density(self.saturated, self.value) - _log_density(self.law, self.value))
            if self.event is not None:
                gained = np.where(self.event > 0, gained, -2 * self.law.logsf(self.value))
        # the target is not quite the best mean of every family (of a beta distribution it is not)
        return np.asarray(np.abs(gained))

    @property
    def direction(self) -> Array:
        """1 or -1; 1 for a censored time."""
        above = np.sign(np.subtract(self.saturated.mean(), self.law.mean()))
        if not np.isfinite(above).all():
            above = np.sign(self.value - self.law.median())
        return above if self.event is None else np.where(self.event > 0, above, 1.0)

    def mass(self, count: int) -> Array | None:
        """Return the law's, unless a target is a share of a total."""
        if np.ndim(self.total) or not hasattr(self.law.dist, "pmf"):
            return None
        return np.asarray(self.law.pmf(count))

    def simulate(self, generator: np.random.Generator) -> Univariate:
        """Draw from SciPy's distribution."""
        if self.event is not None and not self.event.all():
            raise InputError(
                "Targets cannot be simulated from this model: some times are censored, and the model does not say when "
                "those of others would have been. Quantile residuals take censoring into account."
            )
        return replace(self, value=np.asarray(self.law.rvs(self.value.shape, generator), dtype=np.float64))


@dataclass(frozen=True, eq=False)
class ClassLabels(TargetDistribution):
    """One label in K classes, whose order is that of their numbers.

    Args:
        log_p: Logarithms of the class probabilities, ``(..., K)``.
        label: Labels from 0 to K - 1, ``(...,)``; -1 for a row that does not count.
    """

    log_p: Array
    label: NDArray[np.int64]

    @property
    def observed(self) -> Array:
        """One-hot labels, ``(..., K)``."""
        seen = (np.arange(self.log_p.shape[-1]) == self.label[..., None]).astype(np.float64)
        return np.asarray(np.where(self.label[..., None] < 0, np.nan, seen))

    @property
    def mean(self) -> Array:
        """Class probabilities, ``(..., K)``."""
        return np.asarray(np.exp(self.log_p))

    @property
    def variance(self) -> Array:
        """``p (1 - p)``, ``(..., K)``."""
        p = self.mean
        return p * (1 - p)

    def tails(self) -> TailProbabilities:
        """Return the probabilities of the classes before and after the label, ``(...,)``."""
        p, place = self.mean, np.arange(self.log_p.shape[-1])
        label = self.label[..., None]
        below, above = (p * (place < label)).sum(-1), (p * (place > label)).sum(-1)
        known = self.label >= 0
        return TailProbabilities(np.where(known, below, np.nan), np.where(known, above, np.nan))

    def deviance(self) -> Array:
        """Return ``-2 log p`` of the label, ``(...,)``."""
        at = np.take_along_axis(self.log_p, np.maximum(self.label, 0)[..., None], -1)[..., 0]
        return np.where(self.label >= 0, -2 * at, np.nan)

    def simulate(self, generator: np.random.Generator) -> ClassLabels:
        """Draw labels: how many cumulative probabilities a uniform number exceeds."""
        steps = np.cumsum(self.mean, -1)[..., :-1]
        drawn = (generator.random(self.label.shape)[..., None] > steps).sum(-1)
        return replace(self, label=np.where(self.label >= 0, drawn, -1))


@dataclass(frozen=True, eq=False)
class ClassCounts(TargetDistribution):
    """Counts of K classes whose total is given.

    Args:
        p: Class probabilities, ``(..., K)``.
        counts: ``(..., K)``.
    """

    p: Array
    counts: Array

    @property
    def _total(self) -> Array:
        return np.asarray(self.counts.sum(-1, keepdims=True))

    @property
    def observed(self) -> Array:
        """Shares of the classes, ``(..., K)``; nan where the total is zero."""
        return _ratio(self.counts, self._total)

    @property
    def mean(self) -> Array:
        """Class probabilities, ``(..., K)``."""
        return self.p

    @property
    def variance(self) -> Array:
        """``p (1 - p)`` over the total, ``(..., K)``."""
        return _ratio(self.p * (1 - self.p), self._total)

    def tails(self) -> TailProbabilities:
        """Return those of all classes but the last, ``(..., K - 1)``: each count is binomial given those before it."""
        from scipy import stats

        left = np.flip(np.cumsum(np.flip(self.counts, -1), -1), -1)[..., :-1]
        share = _ratio(self.p, np.flip(np.cumsum(np.flip(self.p, -1), -1), -1))[..., :-1]
        law, count = stats.binom(left, np.clip(np.nan_to_num(share), 0, 1)), self.counts[..., :-1]
        return TailProbabilities(law.cdf(count - 1), law.sf(count))

    def deviance(self) -> Array:
        """Return twice the sum of ``y log(y / (n p))``, ``(...,)``."""
        from scipy import special

        total: Array = special.rel_entr(self.counts, self._total * self.p).sum(-1)
        return 2 * total

    def simulate(self, generator: np.random.Generator) -> ClassCounts:
        """Draw counts of the same totals."""
        shares = self.p / self.p.sum(-1, keepdims=True)
        drawn = generator.multinomial(self._total[..., 0].astype(np.int64), shares)
        return replace(self, counts=drawn.astype(np.float64))


@dataclass(frozen=True, eq=False)
class JointNormal(TargetDistribution):
    r"""Targets of M dimensions that are normal together.

    Args:
        value: Targets, ``(..., M)``.
        center: Means, ``(..., M)``.
        spread: Variances, ``(..., M)``.
        whitened: ``L^T (y - mean)`` with ``L L^T`` the inverse covariance, ``(..., M)``: entry m is the standardized
            deviation of target m from its mean given the targets after it (Rosenblatt 1952).
        factor: ``L``, ``(..., M, M)``.
    """

    value: Array
    center: Array
    spread: Array
    whitened: Array
    factor: Array

    @property
    def observed(self) -> Array:
        return self.value

    @property
    def mean(self) -> Array:
        return self.center

    @property
    def variance(self) -> Array:
        return self.spread

    def tails(self) -> TailProbabilities:
        """Return those of each target given the ones after it, ``(..., M)``."""
        from scipy import special

        return TailProbabilities(special.ndtr(self.whitened), special.ndtr(-self.whitened))

    def deviance(self) -> Array:
        """Return the squared Mahalanobis distance from the mean, ``(...,)``."""
        return np.asarray(np.square(self.whitened).sum(-1))

    def simulate(self, generator: np.random.Generator) -> JointNormal:
        """Draw targets from standard normal whitened ones."""
        whitened = generator.standard_normal(self.whitened.shape)
        value = self.center + np.linalg.solve(np.swapaxes(self.factor, -1, -2), whitened[..., None])[..., 0]
        return replace(self, value=value, whitened=whitened)


def to_array(values: Tensor) -> Array:
    """Return a tensor as a float64 array."""
    found: Array = values.detach().cpu().double().numpy()
    return found


def _ratio(a: Any, b: Any) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.true_divide(a, b), dtype=np.float64)


def _log_density(law: Any, value: Array) -> Any:
    return law.logpmf(value) if hasattr(law.dist, "pmf") else law.logpdf(value)
