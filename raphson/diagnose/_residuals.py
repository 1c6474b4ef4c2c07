r"""Residuals of any likelihood: how far each target is from what the model predicts for it."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from raphson._errors import InputError
from raphson.likelihoods import TargetDistribution

ResidualKind = Literal["response", "pearson", "deviance", "quantile"]
Randomness = torch.Generator | int

_LARGEST = 37.5
"""Quantile residuals stay within this, where normal probabilities in float64 end (4e-308)."""


def residuals(
    predicted: TargetDistribution, kind: ResidualKind = "quantile", generator: Randomness = 0
) -> NDArray[np.float64]:
    r"""Return the residuals of targets.

    * ``"response"``: target less mean, :math:`y - \mu`, in the units of the mean.
    * ``"pearson"``: that over the standard deviation, :math:`(y - \mu) / \sqrt{V}`.
    * ``"deviance"``: the root of the unit deviance with the sign of :math:`y - \mu`, where the unit deviance is twice
      the log-likelihood that the best mean for this target alone would gain, other parameters kept. Of a label it is
      :math:`\sqrt{-2 \log p_y}`, of several joint targets one for the row; both positive.
    * ``"quantile"``: :math:`\Phi^{-1}(u)` with ``u`` drawn uniformly from :math:`[P(Y < y), P(Y \le y)]`: a continuous
      target needs no draw. Above a censored time, ``u`` is drawn from :math:`[P(Y < y), 1]`. Under the model they are
      independent and standard normal, whatever the likelihood, but for the estimation of the coefficients. Several
      joint targets are taken one after another, each given others (Rosenblatt 1952); K counts make K - 1 of them.

    Args:
        predicted: ``likelihood.distribution(f, y)``.
        kind: As above.
        generator: Source of the draws of quantile residuals, or a seed: the same one gives the same residuals.

    Returns:
        ``(N,)`` or ``(N, M)``; nan for a row that does not count and, but for quantile and deviance residuals, for
        a censored time.

    Raises:
        InputError: The kind is unknown, or the variance is not finite.

    References:
        Dunn and Smyth (1996), Randomized quantile residuals, J. Comput. Graph. Statist. 5, 236-244. Rosenblatt (1952),
        Remarks on a multivariate transformation, Ann. Math. Statist. 23, 470-472. McCullagh and Nelder (1989),
        Generalized Linear Models, 2nd ed., section 2.4.

    Examples:
        A standard deviation above the mean of a normal distribution.

        >>> import torch
        >>> from raphson import Gaussian
        >>> predicted = Gaussian(scale=2.0).distribution(torch.tensor([[1.0]]), torch.tensor([3.0]))
        >>> [round(residuals(predicted, kind).item(), 9) for kind in ("response", "deviance", "quantile")]
        [2.0, 1.0, 1.0]
    """
    if kind not in get_args(ResidualKind):
        raise InputError(f"Unknown kind {kind!r} of residuals; choose {', '.join(map(repr, get_args(ResidualKind)))}.")
    if kind == "quantile":
        return _quantile(predicted, numpy_generator(generator))
    if kind == "deviance":
        return np.asarray(predicted.direction * np.sqrt(predicted.deviance()))
    difference = predicted.observed - predicted.mean
    return np.asarray(difference if kind == "response" else difference / standard_deviation(predicted))


def standard_deviation(predicted: TargetDistribution) -> NDArray[np.float64]:
    """Return the standard deviations of targets, shaped like the means; an infinite one is an ``InputError``."""
    variance = predicted.variance
    bad = ~np.isfinite(variance) & np.isfinite(predicted.observed)
    if bad.any():
        raise InputError(
            f"The model gives the target in row {int(np.argwhere(bad)[0][0])} no finite variance (Student's t has none "
            "up to two degrees of freedom), so there is nothing to divide by: use residuals of kind 'quantile'."
        )
    return np.asarray(np.sqrt(variance))


def numpy_generator(generator: Randomness) -> np.random.Generator:
    """Return a new generator of NumPy's, seeded by the next number of torch's or by a number; SciPy draws with it."""
    if isinstance(generator, torch.Generator):
        generator = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    if not (isinstance(generator, int | np.integer) and generator >= 0):
        raise InputError(
            f"generator is {generator!r}; pass a torch.Generator, or a seed, a whole number of at least 0."
        )
    return np.random.default_rng(generator)


def _quantile(predicted: TargetDistribution, generator: np.random.Generator) -> NDArray[np.float64]:
    from scipy import special

    below, above = predicted.tails()
    at = np.clip(1 - below - above, 0, 1)
    share = generator.random(below.shape)
    # from the nearer tail, where probabilities are precise
    lower, upper = below + share * at, above + (1 - share) * at
    with np.errstate(divide="ignore"):
        z = np.where(lower < upper, special.ndtri(lower), -special.ndtri(upper))
    return np.asarray(np.clip(z, -_LARGEST, _LARGEST))
