"""Predictions with their uncertainty, and what single examples do to a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raphson._errors import InputError
from raphson.plot._axes import BLUE, COLORS, ORANGE, check_level, needs, new_axes, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def bands(
    post: Any, x: Any, *, level: float = 0.95, data: Any = None, names: Any = None, ax: Axes | None = None
) -> Axes:
    """Draw the predicted mean over one input with the interval of a new target, or of a class probability.

    Over two inputs a map: of classes the probability of the likeliest one, with the borders between them; of other
    targets the standard deviation of a new one.

    Args:
        post: Anything whose ``predict(x)`` has ``mean``, ``variance`` and ``interval(level)``: a Laplace posterior.
        x: Inputs ``(N, 1)``, ``(N,)`` or ``(N, 2)`` in any order; of two columns a grid, say.
        level: Coverage of the interval.
        data: A pair ``(x, y)`` to draw as points.
        names: A name for each response or class.
        ax: Axes to draw on.

    Returns:
        The axes.

    Raises:
        InputError: The inputs have more than two columns, or the level is none.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> post = rp.laplace(torch.nn.Linear(1, 1), rp.Gaussian(), (x, 2 * x), structure="dense")
        >>> rp.plot.bands(post, x, data=(x, 2 * x)).get_title()
        'Mean and 95% interval'
    """
    check_level(level)
    line = numbers(x)
    if line.ndim > 2 or line.ndim == 2 and line.shape[1] not in {1, 2}:
        raise InputError(
            f"x has shape {line.shape}, but bands are drawn over one input, (N, 1), and a map over two, (N, 2)."
        )
    found = needs(post, "predict", "a posterior, such as rp.laplace(...)")(x)
    if line.ndim == 2 and line.shape[1] == 2:
        return _map(found, line, data, new_axes(ax))
    lower, upper = needs(found, "interval", "a posterior whose predictions have intervals")(level)
    order = np.argsort(line.ravel())
    at = line.ravel()[order]
    mean, lower, upper = (numbers(part).reshape(len(at), -1)[order] for part in (found.mean, lower, upper))
    ax = new_axes(ax)
    if data is not None:
        ax.plot(numbers(data[0]).ravel(), numbers(data[1]).ravel(), ".", color="black", markersize=3, alpha=0.5)
    for i in range(mean.shape[1]):
        color = COLORS[i % len(COLORS)]
        name = None if names is None and mean.shape[1] == 1 else str(i if names is None else names[i])
        ax.fill_between(at, lower[:, i], upper[:, i], color=color, alpha=0.2, linewidth=0)
        ax.plot(at, mean[:, i], color=color, label=name)
    if mean.shape[1] > 1 or names is not None:
        ax.legend(frameon=False)
    ax.set(xlabel="x", title=f"Mean and {100 * level:g}% interval")
    return ax


def _map(found: Any, x: Any, data: Any, ax: Axes) -> Axes:
    """Draw over two inputs ``(N, 2)`` how sure the decision for a class is, or how uncertain a target."""
    if len(x) < 3 or np.linalg.matrix_rank(x - x.mean(0)) < 2:
        raise InputError("A map needs three rows of x or more that do not lie on a line: pass a grid.")
    mean = numbers(found.mean).reshape(len(x), -1)
    variance = numbers(found.variance).reshape(len(x), -1)
    if mean.shape[1] == 1 and mean.min() >= 0 and np.allclose(variance, mean * (1 - mean), atol=1e-6):
        mean = np.hstack([1 - mean, mean])
    classes = mean.shape[1] > 1 and mean.min() >= 0 and np.allclose(mean.sum(1), 1, atol=1e-5)
    if not classes and mean.shape[1] > 1:
        raise InputError(f"The target has {mean.shape[1]} responses, but a map shows one: draw each over one input.")
    height = mean.max(1) if classes else np.sqrt(variance[:, 0])
    levels = np.linspace(1 / mean.shape[1], 1, 11) if classes else 11
    drawn = ax.tricontourf(x[:, 0], x[:, 1], height, levels=levels, cmap="viridis")
    ax.figure.colorbar(drawn, ax=ax, label="probability" if classes else "standard deviation", format="%.3g")
    if classes:
        for k in range(mean.shape[1] if mean.shape[1] > 2 else 1):  # two classes share their border
            lead = mean[:, k] - np.delete(mean, k, 1).max(1)
            if lead.min() < 0 < lead.max():
                ax.tricontour(x[:, 0], x[:, 1], lead, levels=[0.0], colors="white", linewidths=1)
    if data is not None:
        points, y = numbers(data[0]), numbers(data[1]).ravel()
        for k, label in enumerate(np.unique(y)) if classes else [(0, None)]:
            own = points if label is None else points[y == label]
            color, name = (COLORS[k % len(COLORS)], f"{label:g}") if label is not None else ("black", None)
            ax.plot(own[:, 0], own[:, 1], ".", color=color, markersize=8, markeredgecolor="white", label=name)
        if classes:
            ax.legend(frameon=True, title="class")
    title = "Probability of the likeliest class" if classes else "Standard deviation of a new target"
    ax.set(xlabel="x[0]", ylabel="x[1]", title=title)
    return ax


def influence(found: Any, *, named: int = 5, ax: Axes | None = None) -> Axes:
    """Draw Cook's distance of each example, the largest ones by name.

    Args:
        found: What ``rp.influence`` returns: anything with ``rows`` and ``cook``.
        named: How many examples are named.
        ax: Axes to draw on.

    Returns:
        The axes.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> post = rp.laplace(torch.nn.Linear(1, 1), rp.Gaussian(), (x, 2 * x), structure="dense")
        >>> rp.plot.influence(rp.influence(post, range(20))).get_ylabel()
        "Cook's distance"
    """
    what = "what rp.influence(posterior, rows) returns"
    rows, cook = numbers(needs(found, "rows", what)), numbers(needs(found, "cook", what))
    ax = new_axes(ax)
    ax.vlines(rows, 0, cook, color=BLUE, linewidth=1)
    for i in np.argsort(cook)[::-1][:named]:
        ax.annotate(f"{rows[i]:g}", (rows[i], cook[i]), color=ORANGE, ha="center", va="bottom", fontsize=8)
    ax.set_ylim(bottom=0)
    ax.set(xlabel="row", ylabel="Cook's distance", title="Influence of single rows")
    return ax
