"""How often each count occurs, and how often the model expects it: what a rootogram shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raphson._errors import InputError
from raphson.likelihoods import COUNT, Likelihood, TargetDistribution

if TYPE_CHECKING:
    import pandas as pd


def are_counts(likelihood: Likelihood, predicted: TargetDistribution) -> bool:
    """Return whether targets are single counts without a known total.

    Args:
        likelihood: That of the targets.
        predicted: ``likelihood.distribution(f, y)``.

    Returns:
        Whether they are.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> f, y = torch.zeros(200, 1).double(), torch.tensor([0.0, 0.0, 0.0, 4.0]).repeat(50)
        >>> predicted = rp.Poisson().distribution(f, y)
        >>> are_counts(rp.Poisson(), predicted)
        True
    """
    return likelihood.support is COUNT and predicted.mass(0) is not None


def count_frequencies(
    likelihood: Likelihood,
    predicted: TargetDistribution,
    weights: NDArray[np.float64] | None = None,
    *,
    largest: int | None = None,
) -> pd.DataFrame:
    """Return observed and expected frequencies of the counts 0, 1, 2, ...

    Args:
        likelihood: That of the counts.
        predicted: ``likelihood.distribution(f, y)``.
        weights: ``(N,)`` example weights; None means 1 each.
        largest: The last count with a row of its own; None for the largest observed one, at most 100.

    Returns:
        A frame indexed by the count, with columns ``observed`` and ``expected``: weighted sums over rows and responses.

    Raises:
        InputError: The targets are no single counts, or ``largest`` is no count.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> f, y = torch.zeros(200, 1).double(), torch.tensor([0.0, 0.0, 0.0, 4.0]).repeat(50)
        >>> predicted = rp.Poisson().distribution(f, y)
        >>> count_frequencies(rp.Poisson(), predicted, None)["observed"].tolist()
        [150.0, 0.0, 0.0, 0.0, 50.0]
    """
    import pandas as pd

    if not are_counts(likelihood, predicted):
        raise InputError(
            f"A rootogram is of counts (Poisson, NegativeBinomial); {type(likelihood).__name__} has none. For classes "
            "look at calibration."
        )
    values = predicted.observed
    each = np.ones(values.shape) if weights is None else np.broadcast_to(weights[:, None], values.shape)
    if largest is not None and not (isinstance(largest, int) and largest >= 0):
        raise InputError(f"largest is {largest}, but the last count must be a whole number of at least 0.")
    last = int(min(values.max(), 100)) if largest is None else largest
    counts = np.arange(last + 1)
    observed = [float(each[values == k].sum()) for k in counts]
    expected = [float((each * np.asarray(predicted.mass(k))).sum()) for k in range(last + 1)]
    return pd.DataFrame({"observed": observed, "expected": expected}, index=pd.Index(counts, name="count"))
