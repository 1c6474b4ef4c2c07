"""Class probabilities against what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raphson._errors import InputError
from raphson.plot._axes import COLORS, GRAY, Array, check_level, needs, new_axes, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CLASSES = len(COLORS)


def calibration(model: Any, *, bins: int = 10, level: float = 0.95, ax: Axes | None = None) -> Axes:
    """Draw how often each class occurs among rows to which the fit gives it about the same probability.

    Rows are put in bins of equal weight by predicted probability, one class after another. The bars are Jeffreys
    intervals of the share in a bin: where they miss the diagonal, probabilities are not calibrated.

    Args:
        model: A fitted estimator of classes, labels or levels.
        bins: Number of bins.
        level: Coverage of the intervals.
        ax: Axes to draw on.

    Returns:
        The axes.

    Raises:
        InputError: The model has no classes, or an argument cannot be used.

    Examples:
        >>> import numpy as np
        >>> import raphson as rp
        >>> x, y = np.linspace(-1, 1, 40)[:, None], np.tile(["a", "b", "b", "a", "c"], 8)
        >>> model = rp.MultinomialLogisticRegression().fit(x, y)
        >>> rp.plot.calibration(model, bins=5).get_xlabel()
        'predicted probability'
    """
    from scipy import stats

    check_level(level)
    if not (isinstance(bins, int) and bins >= 1):
        raise InputError(f"bins is {bins}, but there must be a whole number of at least 1.")
    observed, means, weights, names, fitted = _classes(model)
    ax = new_axes(ax, 5.2, 5.0)
    ax.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle="--")
    # the second of two classes says all there is
    largest = 0.0
    shown = [1] if len(names) == 2 else range(min(len(names), _MOST_CLASSES))
    for i in shown:
        order = np.argsort(fitted[:, i], kind="stable")
        share = np.cumsum(weights[order]) / weights.sum()
        parts = [order[(share > k / bins) & (share <= (k + 1) / bins + 1e-12)] for k in range(bins)]
        parts = [part for part in parts if len(part)]
        total = np.array([weights[part].sum() for part in parts])
        hits = np.array([weights[part] @ observed[part, i] for part in parts])
        x = np.array([np.average(means[part, i], weights=weights[part]) for part in parts])
        low, high = (stats.beta.ppf(q, hits + 0.5, total - hits + 0.5) for q in (0.5 - level / 2, 0.5 + level / 2))
        color = COLORS[i % len(COLORS)]
        ax.vlines(x, low, high, color=color, linewidth=1.5, alpha=0.7)
        ax.plot(x, hits / total, "o-", color=color, markersize=4, linewidth=0.8, label=names[i])
        largest = max(largest, float(x.max(initial=0.0)), float(high.max(initial=0.0)))
    # of many classes all probabilities are small
    end = 1.0 if largest > 0.5 else 1.1 * largest
    ax.set(xlim=(-0.02 * end, 1.02 * end), ylim=(-0.02 * end, 1.02 * end))
    ax.set(xlabel="predicted probability", ylabel="share of rows")
    some = "" if len(names) <= _MOST_CLASSES else f", first {_MOST_CLASSES} of {len(names)} classes"
    ax.set_title(f"Calibration, {100 * level:g}% intervals{some}")
    ax.legend(frameon=False)
    return ax


def confusion(model: Any, *, ax: Axes | None = None) -> Axes:
    """Draw which class the fit finds most probable for the rows of each class, as shares of the class.

    Args:
        model: A fitted estimator of classes, labels or levels.
        ax: Axes to draw on.

    Returns:
        The axes.

    Examples:
        >>> import numpy as np
        >>> import raphson as rp
        >>> x, y = np.linspace(-1, 1, 40)[:, None], np.tile(["a", "b", "b", "a", "c"], 8)
        >>> model = rp.MultinomialLogisticRegression().fit(x, y)
        >>> rp.plot.confusion(model).get_title()
        '40.0% correct'
    """
    observed, means, weights, names, _ = _classes(model)
    k = len(names)
    counts = np.zeros((k, k))
    np.add.at(counts, (observed.argmax(1), means.argmax(1)), weights)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1e-300)
    ax = new_axes(ax, min(1.8 + 0.55 * k, 9.0), min(1.4 + 0.55 * k, 8.6))
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ax.spines[:].set_visible(False)
    if k <= 20:
        for (i, j), value in np.ndenumerate(share):
            color = "white" if value > 0.5 else "black"
            ax.text(j, i, f"{counts[i, j]:.6g}", ha="center", va="center", color=color, fontsize=8)
    size = 10 if k <= 12 else 6
    ax.set_xticks(range(k), names, rotation=45, ha="right", fontsize=size)
    ax.set_yticks(range(k), names, fontsize=size)
    correct = np.trace(counts) / counts.sum()
    ax.set(xlabel="most probable", ylabel="class", title=f"{100 * correct:.1f}% correct")
    return ax


def _classes(model: Any) -> tuple[Array, Array, Array, list[str], Array]:
    rows = needs(model, "fitted_rows", "a fitted estimator of classes")()
    observed, means, weights = numbers(rows.observed), numbers(rows.means), numbers(rows.weights)
    names, fitted = [str(name) for name in rows.means.columns], numbers(rows.fitted)
    if not np.isin(observed[np.isfinite(observed)], (0.0, 1.0)).all() or ((means < 0) | (means > 1)).any():
        raise InputError("Calibration and confusion are of classes; this model has none: see rp.plot.residuals.")
    if means.shape[1] == 1:
        observed, means, fitted = (np.c_[1 - part, part] for part in (observed, means, fitted))
        names = ["0", "1"]
    known = np.isfinite(observed).all(1)
    return observed[known], means[known], weights[known], names, fitted[known]
