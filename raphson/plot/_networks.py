"""Training of a network with its posterior, and how many targets its intervals hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raphson._errors import InputError
from raphson.plot._axes import BLUE, GRAY, ORANGE, needs, new_axes, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEVELS = np.linspace(0.02, 0.98, 49)


def training(model: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the bound on the log evidence after each round of training.

    Args:
        model: A fitted ``BayesianMLP``.
        ax: Axes to draw on.

    Returns:
        The axes.

    Examples:
        >>> import numpy as np
        >>> import raphson as rp
        >>> x = np.linspace(-2, 2, 60)[:, None]
        >>> net = rp.BayesianMLP(rp.Gaussian(), hidden=(10,), max_iter=5).fit(x, np.sin(2 * x[:, 0]))
        >>> rp.plot.training(net).get_ylabel()
        'bound on the log evidence'
    """
    bounds = numbers(needs(model, "bounds_", "a fitted BayesianMLP"))
    rounds = np.arange(1, len(bounds) + 1)
    ax = new_axes(ax)
    ax.plot(rounds, bounds, "o-", color=BLUE, markersize=4)
    best = int(np.argmax(bounds))
    ax.plot(rounds[best], bounds[best], "o", color=ORANGE, markersize=7, label=f"largest, {bounds[best]:.6g}")
    ax.locator_params(axis="x", integer=True)
    ax.legend(frameon=False)
    ax.set(xlabel="round", ylabel="bound on the log evidence", title="Training")
    return ax


def coverage(model: Any, *, level: float = 0.95, generator: Any = 0, ax: Axes | None = None) -> Axes:
    """Draw the share of targets inside the central predictive interval of each level, less the level.

    A target is inside where its quantile residual lies within the normal interval of that level. The band holds 95
    percent of such shares at each level where the predicted distributions are right.

    Args:
        model: A fitted estimator.
        level: That of the band.
        generator: Source of the draws of quantile residuals, or a seed.
        ax: Axes to draw on.

    Returns:
        The axes.

    Raises:
        InputError: There is no target to look at.

    Examples:
        >>> import numpy as np
        >>> import raphson as rp
        >>> x, y = np.linspace(-1, 1, 40)[:, None], np.tile([0, 1, 1, 2, 0, 3, 1, 2], 5)
        >>> rp.plot.coverage(rp.VectorGLM(rp.Poisson()).fit(x, y)).get_title()
        'Coverage of 40 predictive intervals'
    """
    from scipy import stats

    values = numbers(needs(model, "residuals", "a fitted estimator")("quantile", generator)).ravel()
    values = np.sort(np.abs(values[np.isfinite(values)]))
    n = len(values)
    if not n:
        raise InputError("There is no target whose residual is known, so there is no coverage to draw.")
    share = np.searchsorted(values, stats.norm.ppf(0.5 + _LEVELS / 2), side="right") / n
    low, high = (stats.binom.ppf(q, n, _LEVELS) / n for q in (0.5 - level / 2, 0.5 + level / 2))
    ax = new_axes(ax)
    ax.fill_between(_LEVELS, low - _LEVELS, high - _LEVELS, color=GRAY, alpha=0.3, linewidth=0)
    ax.axhline(0, color=ORANGE, linewidth=1)
    ax.plot(_LEVELS, share - _LEVELS, ".-", color=BLUE, markersize=4)
    ax.set(xlabel="level", ylabel="share inside less level", title=f"Coverage of {n} predictive intervals")
    return ax
