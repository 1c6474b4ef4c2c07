"""The figures of a report of a network."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from raphson import plot
from raphson.estimators.review._figures import row_figures, single
from raphson.report import Figure


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
