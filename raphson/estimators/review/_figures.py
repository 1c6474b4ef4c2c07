"""The figures of a report, drawn on figures of their own: no state of matplotlib's is touched."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from raphson import plot
from raphson._errors import RaphsonError
from raphson.report import Figure

_POINTS = 300
"""Rows up to which a scatter is kept as lines and points; more are a picture of fixed size."""

_MOST_COEFFICIENTS = 60
_MOST_COLUMNS = 6


def figures(model: Any, summary: Any, matrix: Any, labels: Any, generator: Any) -> Iterator[Figure]:
    """Yield the figures of a fitted estimator, its summary and its Hessian, an array with labels, if that is there."""
    table = summary.to_frame()
    shown = table.iloc[:, 0].notna()
    if 0 < len(table) <= _MOST_COEFFICIENTS and shown.any():
        yield single(
            "Coefficients",
            f"Forest plot of {len(table)} coefficients with {100 * summary.level:g}% intervals; the numbers are those "
            "of the table above.",
            (6.4, 1.2 + 0.24 * len(table)),
            partial(plot.coefficients, summary),
        )
    solution = model.solution_
    if solution.history:
        first, last = solution.history[0], solution.history[-1]
        yield drawn(
            "Convergence",
            f"Largest entry of the gradient, from {first.gradient_norm:.1e} to {last.gradient_norm:.1e} in "
            f"{solution.iterations} iterations, and the objective above its best value, both on logarithmic axes.",
            (1, 2, 6.4, 2.9),
            lambda axes: plot.convergence(solution, axes=axes),
        )
    if matrix is not None:
        yield single(
            "Hessian",
            f"Heat map of the {len(matrix)} by {len(matrix)} Hessian of standardized columns, each entry over the "
            "roots of its two diagonal entries; lines part the blocks of classes or outputs.",
            (6.4, 5.4),
            partial(plot.hessian, matrix, labels=labels),
        )
        yield single(
            "Spectrum",
            "Eigenvalues of that Hessian, largest first, on a logarithmic axis; the checks have the ends in numbers.",
            (6.4, 3.6),
            partial(plot.spectrum, matrix),
        )
    if model.has_rows():
        yield from row_figures(model, generator)


def row_figures(model: Any, generator: Any) -> Iterator[Figure]:
    """Yield the figures of a model's training rows: residuals, and counts or classes against what is expected."""
    rows = model.fitted_rows()
    columns = rows.names[:_MOST_COLUMNS]
    panels = 3 + len(columns)
    count = -(-panels // 2)
    yield drawn(
        "Quantile residuals",
        "QQ plot and worm plot of quantile residuals with 95% bands of order statistics, and residuals against the "
        f"predicted mean and against {', '.join(map(str, columns)) or 'no column'}, with means in bins; without a "
        "pattern where the model holds.",
        (count, 2, 6.4, 2.6 * count),
        lambda axes: plot.residuals(model, columns=columns, generator=generator, axes=axes[:panels]),
        used=panels,
        kind="svg" if len(rows.means) <= _POINTS else "png",
    )
    k = max(2, rows.means.shape[1])
    singles = (
        (
            model.has_counts(),
            "Rootogram",
            "Square roots of observed frequencies of counts, hanging from those that the fit expects: bars end at the "
            "zero line where the two agree.",
            (6.4, 3.6),
            plot.rootogram,
        ),
        (
            model.has_classes(),
            "Calibration",
            "Shares of each class among rows of similar predicted probability, with 95% intervals; on the diagonal "
            "where probabilities are right.",
            (5.2, 5.0),
            plot.calibration,
        ),
        (
            model.has_classes(),
            "Confusion",
            "Weighted numbers of rows by class, in lines, and most probable class, in columns.",
            (min(2.2 + 0.5 * k, 8.2), min(1.8 + 0.5 * k, 7.8)),
            plot.confusion,
        ),
    )
    for wanted, title, description, size, draw in singles:
        if wanted:
            yield single(title, description, size, partial(draw, model))


def single(title: str, description: str, size: tuple[float, float], draw: Callable[..., Any]) -> Figure:
    """Return the figure of a function that takes one ``ax``."""
    return drawn(title, description, (1, 1, *size), lambda axes: draw(ax=axes[0]))


def drawn(
    title: str,
    description: str,
    size: tuple[int, int, float, float],
    draw: Callable[[Any], Any],
    used: int | None = None,
    kind: str = "svg",
) -> Figure:
    """Return a figure of rows and columns of axes, ``size`` with its width and height, of which some are used."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError as error:
        raise RaphsonError(
            "A page has figures, which need matplotlib, pip install 'raphson[plot]'. A .md or .json report has none."
        ) from error
    rows, columns, width, height = size
    with matplotlib.rc_context({"svg.hashsalt": "raphson", "font.size": 9}):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.subplots(rows, columns, squeeze=False).ravel()
        for unused in axes[used:] if used is not None else ():
            unused.remove()
        draw(axes)
        image = io.BytesIO()
        canvas.savefig(image, format=kind, metadata={"Date": None} if kind == "svg" else None, dpi=130)
    return Figure(title, image.getvalue(), "svg+xml" if kind == "svg" else kind, description)


def network_figures(model: Any, matrix: Any, labels: Any, generator: Any) -> Iterator[Figure]:
    """Yield the figures of a trained network and its precision in units of the prior's, if that was formed."""
    bounds = model.bounds_
    yield single(
        "Training",
        f"Bound on the log evidence after each of {len(bounds)} rounds, from {bounds[0]:.6g} to {bounds[-1]:.6g}.",
        (6.4, 3.2),
        partial(plot.training, model),
    )
    if matrix is not None:
        yield single(
            "Posterior precision",
            f"Heat map of the {len(matrix)} by {len(matrix)} posterior precision, each entry over the roots of its two "
            "diagonal entries; lines part the tensors of the network.",
            (6.4, 5.4),
            lambda ax: plot.hessian(matrix, labels=labels, ax=ax).set_title(
                f"Posterior precision, {len(matrix)} parameters"
            ),
        )
        yield single(
            "Spectrum",
            "Eigenvalues of the posterior precision in units of the prior's, largest first, on a logarithmic axis; at "
            "1 the data say nothing beside the prior.",
            (6.4, 3.6),
            partial(plot.spectrum, matrix),
        )
    if not model.has_rows():
        return
    if not model.has_classes():
        yield single(
            "Coverage",
            "Share of the targets inside the central predictive interval of each level, less the level, with the band "
            "that holds 95% of such shares where the intervals are right.",
            (6.4, 3.4),
            partial(plot.coverage, model, generator=generator),
        )
    yield from row_figures(model, generator)
