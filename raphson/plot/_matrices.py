"""A symmetric matrix as a picture, and its eigenvalues."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raphson._errors import InputError
from raphson.plot._axes import BLUE, GRAY, ORANGE, Array, needs, new_axes, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LARGEST_PICTURE = 3000
"""Parameters of a matrix that is formed to be drawn: 72 MB."""

_READABLE = 40
"""Labels of single parameters that can be read beside a picture."""

_LETTER, _HEIGHT, _LONGEST = 4.2, 280.0, 16
"""Points: width of a letter of that size, and height of the picture; and letters of a name beside it."""

_SKEW = 1e-4
"""Difference of two entries that should be equal, over the largest entry: rounding in single precision stays below."""

_OPERATOR = "an operator, such as rp.hessian(objective) or rp.kfac(objective)"


def hessian(op: Any, *, labels: Sequence[Any] | None = None, scaled: bool = True, ax: Axes | None = None) -> Axes:
    r"""Draw a Hessian, or any symmetric operator, as a heat map with lines between its blocks.

    Args:
        op: A symmetric operator ``(P, P)``, tensor or array.
        labels: Names of the parameters, texts or pairs ``(class, column)``; None for the operator's own. Blocks are
            those of equal classes, or of equal text before a bracket (``"0.weight[1, 2]"``).
        scaled: Divide by the roots of the absolute diagonal, :math:`H_{ij} / \sqrt{|H_{ii} H_{jj}|}`, so that
            the units of the columns do not decide what is seen; False draws the entries.
        ax: Axes to draw on.

    Returns:
        The axes.

    Raises:
        InputError: It is no square matrix, or too large to draw.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> matrix = rp.Dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), labels=("a", "b"))
        >>> rp.plot.hessian(matrix).get_title()
        'Hessian, 2 parameters'
    """
    matrix = _dense(op)
    p = len(matrix)
    if scaled:
        root = np.sqrt(np.abs(np.diagonal(matrix)))
        root = np.where(root > 0, root, 1.0)
        matrix = matrix / np.outer(root, root)
    ax = new_axes(ax, 6.4, 5.4)
    # scaled entries of a semi-definite matrix are at most 1; a few larger ones must not make the others pale
    limit = max(1.0, float(np.quantile(np.abs(matrix), 0.95))) if scaled else float(np.abs(matrix).max()) or 1.0
    picture = ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    bar = ax.figure.colorbar(picture, ax=ax, shrink=0.8)
    bar.set_label("entry / root of the diagonal's" if scaled else "entry")
    ax.spines[:].set_visible(True)
    names = list(getattr(op, "labels", None) or ()) if labels is None else list(labels)
    if len(names) not in {0, p}:
        raise InputError(f"There are {len(names)} labels for {p} parameters: give one for each.")
    groups = [(key, len(list(members))) for key, members in itertools.groupby(map(_block, names))]
    _draw_blocks(ax, groups, p)
    if names and p <= _READABLE:
        ax.set_xticks(range(p), [_within(name) for name in names], rotation=90, fontsize=7)
        ax.set_yticks(range(p), [_within(name) for name in names], fontsize=7)
    ax.set_title(f"Hessian, {p} parameters")
    return ax


def _draw_blocks(ax: Axes, groups: list[tuple[str, int]], p: int) -> None:
    if not 1 < len(groups) < p:
        return
    ends = np.cumsum([size for _, size in groups])
    for end in ends[:-1]:
        ax.axhline(end - 0.5, color="black", linewidth=0.8)
        ax.axvline(end - 0.5, color="black", linewidth=0.8)
    if len(groups) <= _READABLE:
        # along its block where every name has room, else level, its middle cut
        along = all(len(name) * _LETTER <= _HEIGHT * size / p for name, size in groups)
        for (name, size), end in zip(groups, ends, strict=True):
            ax.annotate(
                name if along or len(name) <= _LONGEST else f"{name[:9]}\u2026{name[9 - _LONGEST + 1 :]}",
                (1.0, end - 0.5 - size / 2),
                xycoords=("axes fraction", "data"),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                rotation=270 if along else 0,
                fontsize=7 if along else min(7.0, 0.9 * _HEIGHT / len(groups)),
                annotation_clip=False,
            )


def spectrum(op: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the eigenvalues of a symmetric operator, largest first, or a spectral density with its error.

    Sizes are on a logarithmic axis; negative eigenvalues and those that rounding hides are marked.

    Args:
        op: A symmetric operator ``(P, P)``, tensor or array; or what ``rp.spectral_density`` returns.
        ax: Axes to draw on.

    Returns:
        The axes.

    Raises:
        InputError: It is no square matrix, or too large for all of its eigenvalues.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> rp.plot.spectrum(torch.diag(torch.tensor([4.0, 1.0]))).get_title()
        'Spectrum; condition number 4'
    """  # noqa: DOC502
    ax = new_axes(ax)
    if hasattr(op, "density"):
        grid, density = numbers(op.grid), numbers(op.density)
        ax.plot(grid, density, color=BLUE)
        error = np.broadcast_to(numbers(op.error), density.shape)
        ax.fill_between(grid, np.maximum(density - error, 0), density + error, color=BLUE, alpha=0.25, linewidth=0)
        ax.set(xlabel="eigenvalue", ylabel="density", title="Spectral density")
        return ax
    values = np.sort(np.linalg.eigvalsh(_dense(op)))[::-1]
    size = np.abs(values)
    rounding = len(values) * np.finfo(np.float64).eps * size.max(initial=0.0)
    order = np.arange(1, len(values) + 1)
    kinds = (
        ("positive", values > rounding, BLUE, "o"),
        ("negative", values < -rounding, ORANGE, "v"),
        ("zero up to rounding", size <= rounding, GRAY, "x"),
    )
    for name, chosen, color, marker in kinds:
        if chosen.any():
            shown = np.maximum(size[chosen], rounding if rounding > 0 else 1.0)
            ax.plot(order[chosen], shown, marker, color=color, markersize=4, label=f"{name} ({int(chosen.sum())})")
    ax.set_yscale("log")
    smallest = float(size.min())
    condition = f"{size.max() / smallest:.3g}" if smallest > rounding else "infinite, or hidden by rounding"
    ax.set(xlabel="eigenvalue, largest first", ylabel="size", title=f"Spectrum; condition number {condition}")
    ax.legend(frameon=False)
    return ax


def _dense(op: Any) -> Array:
    op = numbers(op) if isinstance(op, list | tuple) else op
    shape = tuple(np.shape(op) if not hasattr(op, "shape") else op.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise InputError(f"This has shape {shape}, but a picture of curvature needs a square matrix: pass {_OPERATOR}.")
    if shape[0] > _LARGEST_PICTURE:
        raise InputError(
            f"A matrix of {shape[0]} parameters is not formed to be drawn (at most {_LARGEST_PICTURE}): draw a part of "
            "it (params= of the objective), or its spectral density, rp.plot.spectrum(rp.spectral_density(op))."
        )
    matrix = numbers(needs(op, "to_dense", _OPERATOR)() if hasattr(op, "to_dense") else op)
    if not np.isfinite(matrix).all():
        i, j = np.argwhere(~np.isfinite(matrix))[0]
        raise InputError(f"Entry ({i}, {j}) of the matrix is {matrix[i, j]:g}, so it cannot be drawn.")
    skew = np.abs(matrix - matrix.T)
    if skew.max() > _SKEW * np.abs(matrix).max():
        i, j = np.unravel_index(int(skew.argmax()), skew.shape)
        raise InputError(
            f"Entries ({i}, {j}) and ({j}, {i}) of the matrix are {matrix[i, j]:g} and {matrix[j, i]:g}, but a picture "
            "of curvature is of a symmetric matrix: pass (A + A.T) / 2, if that is what is meant."
        )
    return matrix


def _block(label: Any) -> str:
    if isinstance(label, tuple):
        return str(label[0])
    name = str(label)
    # "income of class b" is how labels of linear models read as texts
    return name.rpartition(" of ")[2] if " of " in name else name.partition("[")[0]


def _within(label: Any) -> str:
    if isinstance(label, tuple):
        return str(label[1])
    return str(label).rpartition(" of ")[0] or str(label)
