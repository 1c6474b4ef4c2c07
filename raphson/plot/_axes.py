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
    """Return the axes given, or those of a new figure of a size in inches, with light lines; others are refused."""
    if ax is None:
        ax = new_grid(1, 1, width, height)[0, 0]
    if not hasattr(ax, "spines"):
        raise InputError(f"ax is a {type(ax).__name__}; pass matplotlib axes, those of plt.subplots() for one.")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def new_grid(rows: int, columns: int, width: float, height: float) -> NDArray[Any]:
    """Return the axes of a new figure of a size in inches, ``(rows, columns)``; it needs matplotlib."""
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise RaphsonError("Figures need matplotlib, which is not installed: pip install 'raphson[plot]'.") from error
    _, axes = pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    found: NDArray[Any] = axes
    return found


def checked_axes(axes: Any, count: int) -> NDArray[Any]:
    """Return axes in any arrangement as an array ``(count,)``; ``InputError`` where they are more or fewer."""
    given = np.asarray(axes, dtype=object).ravel()
    if len(given) != count:
        raise InputError(
            f"This figure has {count} panels, and {len(given)} axes were passed: pass {count}, or leave axes out."
        )
    return np.array([new_axes(ax) for ax in given], dtype=object)


def check_level(level: float) -> None:
    """Raise ``InputError`` for a coverage that does not lie between 0 and 1."""
    if not 0 < level < 1:
        raise InputError(f"level is {level:g}, but a coverage lies between 0 and 1, such as 0.95.")


def numbers(values: Any) -> Array:
    """Return a tensor, frame or sequence as a float64 array; ``InputError`` where it does not consist of numbers."""
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
    """Return an attribute, or an ``InputError`` that says what should have been passed, with its article."""
    try:
        return getattr(thing, name)
    except AttributeError:
        raise InputError(f"{type(thing).__name__} cannot be drawn here: pass {what}.") from None
