"""A fit: its coefficients with intervals, and how the solver got there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raphson._errors import InputError
from raphson.plot._axes import BLUE, COLORS, GRAY, checked_axes, needs, new_axes, new_grid, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_LINES = 200
"""Coefficients of one forest plot."""


def coefficients(
    model: Any, *, level: float = 0.95, intercepts: bool = True, ax: Axes | None = None, **options: Any
) -> Axes:
    """Draw coefficients with confidence intervals, class by class: a forest plot.

    Args:
        model: A fitted estimator, or its ``summary()``.
        level: Coverage of the intervals.
        intercepts: Whether intercepts are drawn, too.
        ax: Axes to draw on.
        **options: Those of ``summary``: ``kind``, ``groups``, ``exp`` for ratios.

    Returns:
        The axes; a coefficient that the data do not determine is named and has no mark.

    Raises:
        InputError: There are too many coefficients for one picture, or there is nothing to draw.

    Examples:
        >>> import numpy as np
        >>> import raphson as rp
        >>> x, y = np.linspace(-1, 1, 40)[:, None], np.tile([0, 1, 1, 2, 0, 3, 1, 2], 5)
        >>> model = rp.VectorGLM(rp.Poisson()).fit(x, y)
        >>> rp.plot.coefficients(model, intercepts=False).get_title()
        'Coefficients'
    """
    summary = model
    if not hasattr(model, "to_frame"):
        summary = needs(model, "summary", "a fitted estimator or its summary")(level=level, **options)
    table = summary.to_frame()
    if not intercepts:
        table = table[[str(feature) != "(intercept)" for _, feature in table.index]]
    if not 0 < len(table) <= _MOST_LINES:
        raise InputError(
            f"There are {len(table)} coefficients, and a forest plot has room for 1 to {_MOST_LINES}: name the "
            "columns that are to be drawn, coefficients(model, columns=[...])."
        )
    center, lower, upper = (numbers(table[name].to_numpy(dtype=float, na_value=np.nan)) for name in _columns(table))
    place = np.arange(len(table))[::-1]
    ax = new_axes(ax, 6.4, 1.2 + 0.26 * len(table))
    ratios = str(table.columns[0]).startswith("exp")
    ax.axvline(1.0 if ratios else 0.0, color=GRAY, linewidth=1, linestyle="--")
    outputs = [str(output) for output, _ in table.index]
    colors = {output: COLORS[i % len(COLORS)] for i, output in enumerate(dict.fromkeys(outputs))}
    for output, color in colors.items():
        chosen = np.array([name == output for name in outputs])
        ax.hlines(place[chosen], lower[chosen], upper[chosen], color=color, linewidth=2)
        ax.plot(center[chosen], place[chosen], "o", color=color, markersize=5, label=output)
    several = len(colors) > 1
    names = [f"{output}: {feature}" if several and output else str(feature) for output, feature in table.index]
    missing = np.isnan(center)
    names = [f"{name} (not estimable)" if gone else name for name, gone in zip(names, missing, strict=True)]
    ax.set_yticks(place, names, fontsize=8)
    ax.set_ylim(-0.7, len(table) - 0.3)
    if ratios and np.nanmin(lower) > 0:
        ax.set_xscale("log")
    ax.grid(axis="x", alpha=0.3)
    ax.set(xlabel=f"{table.columns[0]}, {100 * level:g}% interval", title="Coefficients")
    return ax


def _columns(table: Any) -> tuple[str, str, str]:
    return str(table.columns[0]), "lower", "upper"


def convergence(solution: Any, *, against: Literal["iteration", "seconds"] = "iteration", axes: Any = None) -> Any:
    """Draw the gradient norm, and how far the objective lies above the best value seen, by iteration or time.

    Args:
        solution: A ``Solution``, a fitted estimator, or a dictionary of such by name, drawn together.
        against: What is on the horizontal axis.
        axes: Two axes to draw on.

    Returns:
        The two axes.

    Raises:
        InputError: A solution has no history, as that of a saved model, or ``against`` is neither of the two.

    Examples:
        >>> import numpy as np
        >>> import raphson as rp
        >>> x, y = np.linspace(-1, 1, 40)[:, None], np.tile([0, 1, 1, 2, 0, 3, 1, 2], 5)
        >>> model = rp.VectorGLM(rp.Poisson()).fit(x, y)
        >>> [ax.get_title() for ax in rp.plot.convergence(model)]
        ['Largest entry of the gradient', 'Objective above the best value']
    """
    if against not in ("iteration", "seconds"):
        raise InputError(f"against is {against!r}; choose 'iteration' or 'seconds'.")
    several = solution if isinstance(solution, Mapping) else {"": solution}
    found = {name: getattr(value, "solution_", value) for name, value in several.items()}
    histories = {
        str(name): needs(value, "history", "a Solution, or a fitted estimator") for name, value in found.items()
    }
    for name, history in histories.items():
        if not history:
            raise InputError(
                f"The solution {name + ' ' if name else ''}has no history to draw: a saved model keeps none."
            )
    axes = new_grid(1, 2, 9, 3.6)[0] if axes is None else checked_axes(axes, 2)
    best = min(step.value for history in histories.values() for step in history)
    for i, (name, history) in enumerate(histories.items()):
        x = [getattr(step, against) for step in history]
        color = COLORS[i % len(COLORS)] if name else BLUE
        norms = np.array([step.gradient_norm for step in history])
        excess = np.array([step.value for step in history]) - best
        axes[0].plot(x, np.where(norms > 0, norms, np.nan), ".-", color=color, label=name)
        axes[1].plot(x, np.where(excess > 0, excess, np.nan), ".-", color=color, label=name)
    for ax, title in zip(axes, ("Largest entry of the gradient", "Objective above the best value"), strict=True):
        new_axes(ax)
        ax.set_yscale("log")
        ax.xaxis.get_major_locator().set_params(integer=against == "iteration")
        ax.set(xlabel=against, title=title)
        ax.grid(alpha=0.3)
    if len(histories) > 1:
        axes[0].legend(frameon=False)
    return axes
