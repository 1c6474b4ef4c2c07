"""An objective around a point, and a function beside its linear map at a point."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raphson import network
from raphson._errors import InputError
from raphson.plot._axes import BLUE, GRAY, ORANGE, Array, checked_axes, needs, new_axes, new_grid, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def landscape(
    obj: network.Objective, directions: Any, *, radius: float = 1.0, points: int = 25, ax: Axes | None = None
) -> Axes:
    r"""Draw an objective along one direction, or over a plane, with its second-order model at the parameters.

    The model is :math:`L(\theta) + g^\top d + \tfrac12 d^\top H d`: a bowl where the Hessian is positive definite in
    the directions, a saddle where it is not.

    Args:
        obj: The objective; the parameters of the model are where they are, and stay there.
        directions: One direction ``(P,)``, or two ``(2, P)``, of length as given.
        radius: How far to go each way, in lengths of the directions.
        points: Points along each direction.
        ax: Axes to draw on.

    Returns:
        The axes.

    Raises:
        InputError: The directions have the wrong shape or are not finite, ``radius`` is not positive, or ``points`` is
            too small.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> params = {"a": torch.zeros(1).double(), "b": torch.zeros(1).double()}
        >>> one = torch.ones(1, 1).double()
        >>> objective = rp.Objective(lambda p, x: p["a"] * p["b"] * x, rp.Gaussian(), (one, one), params=params)
        >>> rp.plot.landscape(objective, torch.eye(2), points=5).get_title()
        'Curvatures -1 and 1: a saddle; dashed: second order'
    """
    center = needs(obj, "space", "an objective, rp.Objective(model, likelihood, data)").vector()
    lines = _as_rows(directions, center)
    if lines.ndim != 2 or lines.shape[0] not in {1, 2} or lines.shape[1] != len(center):
        raise InputError(
            f"directions has shape {tuple(np.shape(directions))}, but it must be one direction ({len(center)},) or two "
            f"of them (2, {len(center)}), P = {len(center)} being the number of parameters."
        )
    _check_grid(radius, points)
    if not bool(lines.isfinite().all()):
        raise InputError("A direction holds NaN or infinity, so that there is nothing to draw along it.")
    steps = np.linspace(-radius, radius, points)
    value, gradient = obj.value_and_gradient()
    products = network.hessian(obj).mm(lines.T)
    slope, bend = numbers(lines @ gradient), numbers(lines @ products)
    ax = new_axes(ax)

    def values(at: Array) -> Array:
        moved = (center + center.new_tensor(a) @ lines for a in at)
        return np.array([float(obj.value(theta)) for theta in moved])

    if len(lines) == 1:
        ax.plot(steps, values(steps[:, None]), color=BLUE, label="objective")
        model = float(value) + slope[0] * steps + 0.5 * bend[0, 0] * steps**2
        ax.plot(steps, model, "--", color=ORANGE, label=f"second order, curvature {bend[0, 0]:.3g}")
        ax.plot([0], [float(value)], "o", color="black")
        ax.set(xlabel="step along the direction", ylabel="objective")
        ax.legend(frameon=False)
        return ax
    a, b = np.meshgrid(steps, steps)
    plane = np.stack([a.ravel(), b.ravel()], 1)
    seen = values(plane).reshape(a.shape)
    filled = ax.contourf(a, b, seen, levels=20, cmap="viridis")
    ax.figure.colorbar(filled, ax=ax, label="objective")
    model = float(value) + plane @ slope + 0.5 * np.einsum("ni,ij,nj->n", plane, bend, plane)
    ax.contour(
        a, b, model.reshape(a.shape), levels=list(filled.levels)[::3], colors="white", linewidths=0.8, linestyles="--"
    )
    ax.plot([0], [0], "o", color="white", markeredgecolor="black")
    low, high = np.linalg.eigvalsh(bend)
    ax.set(xlabel="first direction", ylabel="second direction")
    rounding = 100 * torch.finfo(center.dtype).eps * float(np.abs(bend).max())
    ax.set_title(
        f"Curvatures {low:.3g} and {high:.3g}: {_shape(low, high, rounding)}; dashed: second order", fontsize=10
    )
    return ax


def _shape(low: float, high: float, rounding: float) -> str:
    """Return what two curvatures make; one that rounding hides has no sign."""
    if abs(low) <= rounding and abs(high) <= rounding:
        return "flat"
    if low < -rounding:
        return "a saddle" if high > rounding else ("a ridge" if high >= -rounding else "a hill")
    return "a bowl" if low > rounding else "a valley"


def _check_grid(radius: float, points: int) -> None:
    if not (isinstance(points, int) and points >= 3):
        raise InputError(f"points is {points}, but a curve needs a whole number of at least 3.")
    if not 0 < radius < np.inf:
        raise InputError(f"radius is {radius:g}, but it must be positive and finite.")


def _as_rows(directions: Any, like: Any) -> Any:
    given = like.new_tensor(numbers(directions))
    return given[None] if given.ndim == 1 else given


def local_linear(f: Callable[..., Any], x: Any, *, radius: float = 1.0, points: int = 15, axes: Any = None) -> Any:
    """Draw a function around a point beside the linear map that its Jacobian is there.

    One input: the outputs as curves with their tangents. Two inputs and two outputs: a grid of inputs, and where the
    function and its linear map take it; the arrows are the Jacobian's columns.

    Args:
        f: A module, or a function of rows: tensors ``(N, D)`` to ``(N, C)``; D = 1, or D = C = 2.
        x: The point, ``(D,)`` tensor or array.
        radius: How far around it.
        points: Points along each input.
        axes: Axes to draw on: one for one input, two for two.

    Returns:
        The axes.

    Raises:
        InputError: The function has other numbers of inputs or outputs, or is none, or an argument cannot be used.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> axes = rp.plot.local_linear(lambda rows: rows**2, torch.tensor([1.0, 2.0]))
        >>> axes[1].get_title()
        'Outputs; determinant 8'
    """
    _check_grid(radius, points)
    if not callable(f):
        raise InputError(f"{type(f).__name__} cannot be drawn here: pass a module or a function of rows (N, D).")
    point = (x.detach() if isinstance(x, torch.Tensor) else torch.as_tensor(numbers(x))).reshape(-1)
    # only the inputs are differentiated; a model has parameters
    parameters = {"none": point.new_zeros(1)}
    jacobian = numbers(network.input_jacobian(lambda _, rows: f(rows), point[None], parameters))
    jacobian = jacobian.reshape(-1, len(point))

    def call(rows: Array) -> Array:
        return numbers(f(point.new_tensor(rows)))

    here, value = numbers(point), call(numbers(point)[None])[0]
    if len(point) == 1:
        ax = new_axes(axes)
        t = np.linspace(here[0] - radius, here[0] + radius, 10 * points)
        ax.plot(t, call(t[:, None]).reshape(len(t), -1), color=BLUE)
        ax.plot(t, value.reshape(-1) + np.outer(t - here[0], jacobian[:, 0]), "--", color=ORANGE)
        ax.plot(np.full(value.size, here[0]), value.reshape(-1), "o", color="black")
        ax.set(xlabel="input", ylabel="output", title="Function (solid) and its linear map (dashed)")
        return ax
    if jacobian.shape != (2, 2):
        raise InputError(
            f"The Jacobian at this point has shape {jacobian.shape}, but only functions of one input, or from two "
            "inputs to two outputs, are drawn: fix the other inputs, or pick outputs."
        )
    axes = new_grid(1, 2, 9, 4.4)[0] if axes is None else checked_axes(axes, 2)
    line = np.linspace(-radius, radius, points)
    a, b = np.meshgrid(line, line)
    grid = np.stack([a, b], -1)
    exact = call((here + grid).reshape(-1, 2)).reshape(grid.shape)
    linear = value + grid @ jacobian.T
    _grid(axes[0], here + grid, GRAY, "-", "inputs")
    _grid(axes[1], exact, BLUE, "-", "function")
    _grid(axes[1], linear, ORANGE, "--", "linear map")
    for i, color in enumerate(("#9b2c2c", "#276749")):
        unit = np.eye(2)[i] * radius / 2
        for ax, start, arrow in ((axes[0], here, unit), (axes[1], value, jacobian @ unit)):
            ax.annotate("", start + arrow, start, arrowprops={"arrowstyle": "->", "color": color, "linewidth": 2})
    for ax in axes:
        new_axes(ax)
        ax.set_aspect("equal", adjustable="datalim")
    axes[0].set_title("Inputs")
    axes[1].set_title(f"Outputs; determinant {np.linalg.det(jacobian):.3g}")
    axes[1].legend(frameon=False)
    return axes


def _grid(ax: Axes, points: Array, color: str, style: str, name: str) -> None:
    for lines in (points, points.swapaxes(0, 1)):
        for i, line in enumerate(lines):
            named = name if lines is points and i == 0 else None
            ax.plot(line[:, 0], line[:, 1], style, color=color, linewidth=0.8, label=named)
