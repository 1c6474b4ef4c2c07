"""Axes to draw on, colors that are told apart in print and by color-blind readers, numbers from tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raphson._errors import InputError, RaphsonError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

BLUE, ORANGE, GRAY, GREEN = "#2b6cb0", "#c05621", "#718096", "#2f855a"
"""Data; what stands out; references; second series. Each has a contrast of at least 3 to white and to near-black."""

COLORS = (BLUE, ORANGE, GREEN, "#805ad5", "#b83280", "#b7791f", "#0f766e", GRAY)


def new_axes(ax: Axes | None, width: float = 6.0, height: float = 4.0) -> Axes:
    """Return the axes given, or those of a new figure, with light lines.

    Args:
        ax: Axes, or None.
        width: Of a new figure, in inches.
        height: Of a new figure, in inches.

    Returns:
        The axes.

    Raises:
        InputError: ``ax`` is something else.
    """
    if ax is None:
        ax = new_grid(1, 1, width, height)[0, 0]
    if not hasattr(ax, "spines"):
        raise InputError(f"ax is a {type(ax).__name__}; pass matplotlib axes, those of plt.subplots() for one.")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def new_grid(rows: int, columns: int, width: float, height: float) -> NDArray[Any]:
    """Return the axes of a new figure, ``(rows, columns)``.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        width: In inches.
        height: In inches.

    Returns:
        The axes.

    Raises:
        RaphsonError: Matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise RaphsonError("Figures need matplotlib, which is not installed: pip install 'raphson[plot]'.") from error
    _, axes = pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    found: NDArray[Any] = axes
    return found


def checked_axes(axes: Any, count: int) -> NDArray[Any]:
    """Return axes that were passed for several panels as an array, or say how many there must be.

    Args:
        axes: One or several, in any arrangement.
        count: Number of panels.

    Returns:
        The axes, ``(count,)``.

    Raises:
        InputError: There are more or fewer.
    """
    given = np.asarray(axes, dtype=object).ravel()
    if len(given) != count:
        raise InputError(
            f"This figure has {count} panels, and {len(given)} axes were passed: pass {count}, or leave axes out."
        )
    return np.array([new_axes(ax) for ax in given], dtype=object)


def check_level(level: float) -> None:
    """Refuse a coverage that is none.

    Args:
        level: Coverage of intervals.

    Raises:
        InputError: It does not lie between 0 and 1.
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level:g}, but a coverage lies between 0 and 1, such as 0.95.")


def numbers(values: Any) -> Array:
    """Return a tensor, frame or sequence as a float64 array.

    Args:
        values: What to read.

    Returns:
        The array.

    Raises:
        InputError: It does not consist of numbers in rows of equal length.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if hasattr(values, "double") else values
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"A {type(values).__name__} was passed where numbers are drawn: pass an array or tensor of numbers."
        ) from None


def needs(thing: Any, name: str, what: str) -> Any:
    """Return an attribute, or say in one sentence what was expected.

    Args:
        thing: What was passed.
        name: The attribute.
        what: What should have been passed, with its article.

    Returns:
        The attribute.

    Raises:
        InputError: There is none of that name.
    """
    try:
        return getattr(thing, name)
    except AttributeError:
        raise InputError(f"{type(thing).__name__} cannot be drawn here: pass {what}.") from None
