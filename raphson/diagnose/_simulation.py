"""Tests by simulation: is a statistic of the targets one that targets drawn from the fitted model have?

The idea is that of the R package DHARMa (F. Hartig). Coefficients are not estimated anew for each simulated set, which
makes the tests conservative where there are many coefficients for the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raphson._errors import InputError
from raphson.diagnose._residuals import Randomness, numpy_generator, standard_deviation
from raphson.likelihoods import TargetDistribution


@dataclass(frozen=True, eq=False)
class SimulationTest:
    """A statistic of the targets, and the same of sets of targets drawn from the model.

    Attributes:
        name: What the statistic is.
        statistic: That of the targets.
        simulated: Those of the simulated sets, ``(S,)``.
        p_value: Two-sided: twice the smaller share of sets on one side, the targets counted as one more set.

    Examples:
        >>> test = SimulationTest("Zeros", 6.0, np.array([2.0, 3.0, 4.0]), 0.5)
        >>> test.ratio
        2.0
    """

    name: str
    statistic: float
    simulated: NDArray[np.float64]
    p_value: float

    def __repr__(self) -> str:
        return f"<SimulationTest. {self}>"

    @property
    def ratio(self) -> float:
        """The statistic over its mean among the simulated sets; 1 where the model holds, nan where both are zero."""
        mean = float(self.simulated.mean())
        return self.statistic / mean if mean > 0 else (np.inf if self.statistic > 0 else np.nan)

    def __str__(self) -> str:
        low, high = np.quantile(self.simulated, [0.025, 0.975])
        return (
            f"{self.name}: {self.statistic:.5g}; simulated from the model {self.simulated.mean():.5g}, 95% of sets "
            f"from {low:.5g} to {high:.5g}; p = {self.p_value:.3g}"
        )


def dispersion_test(
    predicted: TargetDistribution,
    weights: NDArray[np.float64] | None = None,
    *,
    simulations: int = 250,
    generator: Randomness = 0,
) -> SimulationTest:
    """Test whether targets vary more, or less, about their means than the model says.

    The statistic is the weighted mean of squared Pearson residuals, 1 in expectation.

    Args:
        predicted: ``likelihood.distribution(f, y)``.
        weights: ``(N,)`` example weights; None means 1 each.
        simulations: Number of simulated sets.
        generator: Source of randomness, or a seed.

    Returns:
        The test; ``ratio`` above 1 is overdispersion.

    Raises:
        InputError: Targets cannot be simulated, or have no finite variance.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> f, y = torch.zeros(200, 1).double(), torch.tensor([0.0, 0.0, 0.0, 4.0]).repeat(50)
        >>> predicted = rp.Poisson().distribution(f, y)
        >>> found = dispersion_test(predicted)
        >>> found.ratio > 2, found.p_value < 0.01
        (True, True)
    """  # noqa: DOC502
    scale = standard_deviation(predicted)

    def mean_square(at: TargetDistribution) -> float:
        squares = np.square((at.observed - at.mean) / scale)
        return _average(squares.reshape(len(squares), -1), weights)

    return _test("Mean squared Pearson residual", mean_square, predicted, simulations, generator)


def zero_inflation_test(
    predicted: TargetDistribution,
    weights: NDArray[np.float64] | None = None,
    *,
    simulations: int = 250,
    generator: Randomness = 0,
) -> SimulationTest:
    """Test whether there are more, or fewer, zeros among the targets than the model says.

    Args:
        predicted: ``likelihood.distribution(f, y)``.
        weights: ``(N,)`` example weights; None means 1 each.
        simulations: Number of simulated sets.
        generator: Source of randomness, or a seed.

    Returns:
        The test; ``ratio`` above 1 is zero inflation.

    Raises:
        InputError: Targets cannot be simulated.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> f, y = torch.zeros(200, 1).double(), torch.tensor([0.0, 0.0, 0.0, 4.0]).repeat(50)
        >>> predicted = rp.Poisson().distribution(f, y)
        >>> found = zero_inflation_test(predicted)
        >>> found.statistic, found.p_value < 0.01
        (0.75, True)
    """  # noqa: DOC502

    def share(at: TargetDistribution) -> float:
        zero = (at.observed == 0).astype(np.float64)
        return _average(zero.reshape(len(zero), -1), weights)

    return _test("Share of zeros", share, predicted, simulations, generator)


def calibration_test(
    predicted: TargetDistribution,
    weights: NDArray[np.float64] | None = None,
    *,
    bins: int = 10,
    order: NDArray[np.float64] | None = None,
    simulations: int = 250,
    generator: Randomness = 0,
) -> SimulationTest:
    r"""Test whether classes occur as often as the model says among rows that it gives similar probabilities.

    The statistic is that of Hosmer and Lemeshow, :math:`\sum (O - E)^2 / V` over classes and bins of equal numbers
    of rows by predicted probability, with its distribution by simulation in place of an approximate chi-square one.

    Args:
        predicted: ``likelihood.distribution(f, y)`` of labels, levels or binary targets.
        weights: ``(N,)`` example weights; None means 1 each.
        bins: Number of bins for each class.
        order: Probabilities that rows are put into bins by, where those of the prediction depend on the targets of
            the rows themselves (leaving a row out); None for the predicted ones.
        simulations: Number of simulated sets.
        generator: Source of randomness, or a seed.

    Returns:
        The test.

    References:
        Hosmer and Lemeshow (1980), Goodness of fit tests for the multiple logistic regression model, Commun. Statist.
        A9, 1043-1069.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> f, y = torch.zeros(200, 1).double(), torch.tensor([0.0, 1.0, 1.0, 1.0]).repeat(50)
        >>> calibration_test(rp.Bernoulli().distribution(f, y)).p_value < 0.01  # one half, and three quarters happen
        True
    """
    mean = predicted.mean.reshape(len(predicted.mean), -1)
    variance = predicted.variance.reshape(mean.shape)
    each = np.ones(len(mean)) if weights is None else weights
    by = mean if order is None else order.reshape(mean.shape)
    parts = [(c, p) for c in range(mean.shape[1]) for p in np.array_split(np.argsort(by[:, c], kind="stable"), bins)]
    spread = [max(float(each[p] @ variance[p, c]), 1e-12) for c, p in parts]

    def distance(at: TargetDistribution) -> float:
        difference = np.nan_to_num(at.observed.reshape(mean.shape) - mean) * each[:, None]
        return float(sum(difference[p, c].sum() ** 2 / v for (c, p), v in zip(parts, spread, strict=True)))

    return _test("Distance of classes from their probabilities", distance, predicted, simulations, generator)


def _average(values: NDArray[np.float64], weights: NDArray[np.float64] | None) -> float:
    rows = values.mean(1)
    known = np.isfinite(rows)
    return float(np.average(rows[known], weights=None if weights is None else weights[known]))


def _test(
    name: str,
    statistic: Callable[[TargetDistribution], float],
    predicted: TargetDistribution,
    simulations: int,
    generator: Randomness,
) -> SimulationTest:
    if simulations < 20:
        raise InputError(f"simulations is {simulations}, but a p-value of 0.1 or less takes at least 20.")
    random = numpy_generator(generator)
    seen = statistic(predicted)
    simulated = np.array([statistic(predicted.simulate(random)) for _ in range(simulations)])
    # equal up to rounding counts as equal, on both sides
    slack = 1e-9 * max(abs(seen), 1e-300)
    fewer = min((simulated <= seen + slack).sum(), (simulated >= seen - slack).sum())
    return SimulationTest(name, seen, simulated, min(1.0, 2 * (1 + int(fewer)) / (1 + simulations)))
