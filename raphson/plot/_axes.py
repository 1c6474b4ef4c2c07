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
    """
    if ax is None:
        ax = new_grid(1, 1, width, height)[0, 0]
    assert ax is not None
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


def numbers(values: Any) -> Array:
    """Return a tensor, frame or sequence as a float64 array.

    Args:
        values: What to read.

    Returns:
        The array.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if hasattr(values, "double") else values
    return np.asarray(values, dtype=np.float64)


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
