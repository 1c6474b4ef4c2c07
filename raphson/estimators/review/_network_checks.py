"""Checks of a trained network with its posterior: training, priors, what the rows determine, curvature, coverage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raphson.report import Check, Verdict

Array = NDArray[np.float64]

COVERAGE_LEVELS = (0.5, 0.8, 0.95)

_OPTIMISM = 1 / 3
"""Determined parameters for each row from which a network is looked at: by AIC's argument the log density of the rows
that it was trained on is then larger by so much a row than that of others."""

_LOOK, _PROBLEM = 0.05, 0.001
"""P-values of the number of rows inside an interval, as for the other residual checks."""

_LARGE_GAP = 0.05
"""Difference of the share of rows inside an interval from its level that matters."""


def network_checks(
    model: Any, layers: Any, spectrum: Array | None, whole: Array | None, densities: tuple[float, float] | None
) -> Iterator[Check]:
    """Yield the checks of a trained network.

    The table of its prior has a row for each group, with what the rows determine. Ascending eigenvalues are those of
    the posterior precision in units of the prior's, and of the Hessian of loss and prior at the mean in units of that
    precision; None where not formed. Mean log densities are of the training rows and of each as if left out.
    """
    yield _training(model)
    yield _determined(model, layers, densities)
    yield _priors(layers, model.prior_range)
    if spectrum is not None:
        yield _curvature(spectrum, whole)


def _training(model: Any) -> Check:
    name, bounds, n = "Training", model.bounds_, model.n_rows_
    change = abs(bounds[-1] - bounds[-2]) / n if len(bounds) > 1 else math.inf
    finding = f"Bound on the log evidence {bounds[-1]:.6g} after {len(bounds)} rounds"
    finding += f", changed by {change:.1e} a row in the last one." if len(bounds) > 1 else "."
    if model.converged_:
        return Check(name, Verdict.PASS, f"{finding} Two rounds in a row changed it by less than tol = {model.tol:g}.")
    if max(bounds) > bounds[-1]:
        finding += f" It was largest after round {bounds.index(max(bounds)) + 1}, {max(bounds):.6g}."
        if bounds[-1] < max(bounds) - n:
            return Check(name, Verdict.LOOK, finding, "use fewer hidden units, or structure='dense'.")
    remedy = f"raise max_iter = {model.max_iter}; predictions change little where the bound does."
    return Check(name, Verdict.LOOK, finding, remedy)


def _determined(model: Any, layers: Any, densities: tuple[float, float] | None) -> Check:
    name = "Determined parameters"
    total, determined = int(layers["parameters"].sum()), float(layers["determined"].sum())
    share = determined / max(model.n_rows_, 1)
    finding = (
        f"The data determine {determined:.1f} of {total} parameters (effective dimension), {share:.2g} for each row, "
        "the prior the others."
    )
    if densities is not None:
        inside, without = densities
        finding += f" Mean log density of the rows {inside:.4g}, of each as if left out {without:.4g}."
    if share < _OPTIMISM:
        return Check(name, Verdict.PASS, finding)
    remedy = "use fewer hidden units or more rows, and judge by rows that were not trained on, model.score(X, y)."
    return Check(name, Verdict.LOOK, finding, remedy)


def _priors(layers: Any, limits: tuple[float, float]) -> Check:
    name = "Prior precisions"
    values = layers["prior_precision"]
    names = [" of ".join(str(part) for part in reversed(label)) for label in layers.index]
    off = [name for name, value in zip(names, values, strict=True) if value >= limits[1]]
    free = [name for name, value in zip(names, values, strict=True) if value <= limits[0]]
    finding = f"By evidence, from {values.min():.3g} to {values.max():.3g}."
    weights_off = [label for label in off if "weight" in label]
    if weights_off:
        finding += f" The weights of {', '.join(weights_off)} are switched off: outputs do not depend on the columns."
        remedy = "a constant may be all that the columns say; otherwise try another random_state or likelihood."
        return Check(name, Verdict.LOOK, finding, remedy)
    if free:
        finding += f" Those of {', '.join(free)} are at their lower limit {limits[0]:g}, so they are not shrunk."
        return Check(name, Verdict.LOOK, finding, "look for extreme values in columns and targets.")
    return Check(name, Verdict.PASS, finding)


def _curvature(values: Array, whole: Array | None) -> Check:
    name = "Curvature spectrum"
    above = int((values > 2).sum())
    finding = (
        f"Of {len(values)} eigenvalues of the posterior precision in units of the prior's, {above} are above 2: along "
        f"these directions the data say more than the prior. They go from {values[0]:.3g} to {values[-1]:.3g}: "
        f"condition number {values[-1] / values[0]:.3g}."
    )
    if whole is not None:
        negative = int((whole < 0).sum())
        finding += (
            f" The Hessian of the loss and its prior at the mean is between {whole[0]:.3g} and {whole[-1]:.3g} times "
            f"that precision, which is of Gauss-Newton's kind; it is negative along {negative} directions"
            f"{', where the loss is no bowl and the posterior only nearly Gaussian' if negative else ''}."
        )
    # 1 is the prior alone: less would be negative curvature, which a Gauss-Newton matrix does not have
    if values[0] > 1 - 1e-12 * len(values) * values[-1]:
        return Check(name, Verdict.PASS, finding)
    return Check(name, Verdict.PROBLEM, finding, "the precision is not that of a posterior: report this as a defect.")


def coverage(residuals: Any, level: float) -> dict[float, tuple[int, int]]:
    """Return by level the numbers of targets inside their central predictive intervals, and of all targets.

    A target is inside where its quantile residual is within the normal interval; ``level`` is one more level.
    """
    from scipy import stats

    values = residuals.to_numpy().ravel()
    values = values[np.isfinite(values)]
    inside = {p: np.abs(values) <= stats.norm.ppf(0.5 + p / 2) for p in sorted({*COVERAGE_LEVELS, level})}
    return {p: (int(rows.sum()), len(values)) for p, rows in inside.items()}


def coverage_check(found: dict[float, tuple[int, int]]) -> Check:
    """Return whether intervals hold as many targets as they say."""
    from scipy import stats

    name, worst, gap = "Coverage of predictive intervals", 1.0, 0.0
    parts = []
    for level, (inside, total) in found.items():
        p_value = float(stats.binomtest(inside, total, level).pvalue) if total else 1.0
        share = inside / max(total, 1)
        parts.append(f"{100 * share:.3g}% in those of {100 * level:g}%")
        worst, gap = min(worst, p_value * len(found)), max(gap, abs(share - level))
    p_value = min(1.0, worst)
    finding = f"Of {total} targets, each predicted as if left out, {', '.join(parts)}: p = {p_value:.3g}."
    if p_value >= _LOOK:
        return Check(name, Verdict.PASS, finding)
    verdict = Verdict.PROBLEM if p_value < _PROBLEM and gap > _LARGE_GAP else Verdict.LOOK
    remedy = (
        "try a likelihood whose scale depends on the columns (HeteroscedasticGaussian), or heavier tails (StudentT)."
    )
    return Check(name, verdict, finding, remedy)
