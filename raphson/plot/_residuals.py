"""Residuals of a fit against the normal distribution, the means and each column; counts against their expectation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raphson.plot._axes import BLUE, GRAY, ORANGE, Array, checked_axes, needs, new_axes, new_grid, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 5000
"""Points of a scatter; of more rows every so many are drawn."""

_MOST_COLUMNS = 9
"""Columns with a panel of their own, unless named."""

_ESTIMATOR = "a fitted estimator"


def residuals(model: Any, *, kind: str = "quantile", columns: Any = None, generator: Any = 0, axes: Any = None) -> Any:
    """Draw residuals: a QQ plot, a worm plot, and residuals against the predicted mean and each column.

    Quantile residuals are standard normal under the model, and unrelated to the mean and to every column. The shaded
    band holds 95 percent of each order statistic then; the worm plot (van Buuren and Fredriks 2001) is the QQ plot less
    its diagonal. The line through a scatter is the mean of the residuals in bins of equal counts.

    Args:
        model: A fitted estimator.
        kind: Kind of the residuals, as in ``model.residuals``; the first two panels are for ``"quantile"``.
        columns: Names of the columns to draw against, or one; None for the first nine.
        generator: Source of the draws of quantile residuals, or a seed.
        axes: Axes to draw on, as many as panels.

    Returns:
        The axes, one for each panel.

    Examples:
        >>> import numpy as np
        >>> import raphson as rp
        >>> x, y = np.linspace(-1, 1, 40)[:, None], np.tile([0, 1, 1, 2, 0, 3, 1, 2], 5)
        >>> model = rp.VectorGLM(rp.Poisson()).fit(x, y)
        >>> [ax.get_title() for ax in rp.plot.residuals(model)][:2]
        ['QQ', 'Worm']
    """
    table = needs(model, "residuals", _ESTIMATOR)(kind, generator)
    rows = needs(model, "fitted_rows", _ESTIMATOR)()
    columns = [columns] if isinstance(columns, str) else columns
    chosen = list(rows.names[:_MOST_COLUMNS] if columns is None else columns)
    count = 3 + len(chosen)
    if axes is None:
        width = min(3, count)
        height = -(-count // width)
        grid = new_grid(height, width, 3.4 * width, 3.0 * height).ravel()
        for unused in grid[count:]:
            unused.remove()
        axes = grid[:count]
    axes = checked_axes(axes, count)
    every = slice(None, None, -(-len(table) // _MOST_POINTS))
    values = numbers(table)
    _against_normal(axes[0], axes[1], values)
    means = numbers(rows.fitted)
    repeated = means if means.shape[1] == values.shape[1] else means.max(1, keepdims=True).repeat(values.shape[1], 1)
    name = "predicted mean" if means.shape[1] == values.shape[1] else "largest predicted probability"
    _scatter(axes[2], repeated[every], values[every], name)
    for ax, column in zip(axes[3:], chosen, strict=False):
        x = numbers(rows.column(column))[:, None]
        _scatter(ax, np.broadcast_to(x, values.shape)[every], values[every], str(column))
    axes[0].figure.suptitle(f"{kind.capitalize()} residuals")
    return axes


def _against_normal(qq: Axes, worm: Axes, values: Array) -> None:
    from scipy import stats

    z = np.sort(values[np.isfinite(values)])
    n = len(z)
    order = np.arange(1, n + 1)
    expected = stats.norm.ppf((order - 0.5) / n)
    # an order statistic of n uniforms is beta distributed
    low, high = (stats.norm.ppf(stats.beta.ppf(q, order, n + 1 - order)) for q in (0.025, 0.975))
    drawn = np.unique(np.r_[np.arange(0, n, -(-n // _MOST_POINTS)), n - 1]) if n else order[:0]
    for ax, base in ((qq, 0 * expected), (worm, expected)):
        ax.fill_between(expected[drawn], (low - base)[drawn], (high - base)[drawn], color=GRAY, alpha=0.3, linewidth=0)
        ax.plot(expected[drawn], (z - base)[drawn], ".", color=BLUE, markersize=3)
        ax.plot(expected[drawn], (expected - base)[drawn], color=ORANGE, linewidth=1)
        ax.set_xlabel("normal quantile")
    qq.set(ylabel="residual", title="QQ")
    worm.set(ylabel="residual less quantile", title="Worm")


def _scatter(ax: Axes, x: Array, values: Array, name: str) -> None:
    x, values = x.ravel(), values.ravel()
    known = np.isfinite(x) & np.isfinite(values)
    x, values = x[known], values[known]
    ax.axhline(0, color=GRAY, linewidth=1)
    ax.plot(x, values, ".", color=BLUE, markersize=3, alpha=0.5)
    if len(x) >= 40:
        order = np.argsort(x, kind="stable")
        parts = np.array_split(order, min(12, len(x) // 20))
        ax.plot([x[part].mean() for part in parts], [values[part].mean() for part in parts], color=ORANGE)
    ax.set(xlabel=name, ylabel="residual")


def rootogram(model: Any, *, largest: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw observed counts hanging from the curve of those the fit expects, as square roots (Kleiber and Zeileis 2016).

    A bar that does not reach the zero line, or goes through it, is a count that occurs less, or more, often than the
    model says.

    Args:
        model: A fitted estimator of counts.
        largest: The last count that is drawn; None for the largest observed one, at most 100.
        ax: Axes to draw on.

    Returns:
        The axes.

    Examples:
        >>> import numpy as np
        >>> import raphson as rp
        >>> x, y = np.linspace(-1, 1, 40)[:, None], np.tile([0, 1, 1, 2, 0, 3, 1, 2], 5)
        >>> model = rp.VectorGLM(rp.Poisson()).fit(x, y)
        >>> rp.plot.rootogram(model).get_xlabel()
        'count'
    """
    table = needs(model, "count_frequencies", _ESTIMATOR)(largest)
    counts = numbers(table.index)
    observed, expected = np.sqrt(numbers(table["observed"])), np.sqrt(numbers(table["expected"]))
    ax = new_axes(ax)
    ax.bar(counts, observed, bottom=expected - observed, width=0.9, color=BLUE, alpha=0.6, label="observed, hanging")
    ax.plot(counts, expected, "o-", color=ORANGE, markersize=4, label="expected")
    ax.axhline(0, color="black", linewidth=1)
    ax.set(xlabel="count", ylabel="square root of the frequency", title="Rootogram")
    ax.legend(frameon=False)
    return ax
