"""Checks of the model against the targets: distribution, dispersion, zeros, calibration, and each column."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from raphson._errors import InputError
from raphson.report import Check, Verdict

_LOOK, _PROBLEM = 0.05, 0.001
"""P-values below which a check is worth a look, and a problem if what it found is large as well."""

_SIMULATED = 0.02
"""The second of tests by simulation: the smallest p-value of 100 simulated sets is 0.0198, of 250 it is 0.008."""

_LARGE_DISTANCE = 0.05
"""Of distribution functions: quantile residuals are then outside 1.96 up to twice as often as they should be."""

_LARGE_RATIO = 1.2
"""Of dispersions: standard errors are then ten percent too short."""

_LARGE_SHARE = 0.02
"""Of the variance of quantile residuals that a column still explains."""

_MOST_COLUMNS = 200
"""The first so many columns are tested."""

_MANY_ROWS = 20_000
"""From so many rows on, tests by simulation take 100 sets in place of 250."""

_BINS, _ROWS_IN_BIN = 10, 10

_FREE_ROWS = 20
"""Rows for each coefficient below which a test by simulation is no more than worth a look: the fit follows its own
rows, and simulated sets are not fitted again. 2000 counts of a true Poisson model with 200 columns have 0.86 of the
dispersion and 0.93 of the zeros, p = 0.008 both."""


def residual_checks(model: Any, generator: Any) -> Iterator[Check]:
    """Yield the checks that the likelihood has of a fitted estimator against its training rows, if they are at hand."""
    if not model.has_rows():
        finding = "The training rows are not part of a saved model, so the model was not compared with its targets."
        yield Check("Residuals", Verdict.LOOK, finding, "fit again to look at residuals.")
        return
    residuals = model.residuals("quantile", generator)
    yield _distribution(residuals.to_numpy().ravel())
    settings = {"simulations": 250 if len(residuals) < _MANY_ROWS else 100, "generator": generator}
    tests = []
    if model.has_classes():
        tests.append(_tried("Calibration", lambda: _calibration(model.calibration_test(**settings))))
    else:
        tests.append(_tried("Dispersion", lambda: _dispersion(model.dispersion_test(**settings))))
    if model.has_counts():
        tests.append(_tried("Zeros", lambda: _zeros(model.zero_inflation_test(**settings))))
    # a network has each row predicted as if it were left out, and no number of free coefficients
    few = len(residuals) < _FREE_ROWS * getattr(model, "df_model_", 0)
    yield from (_with_few_rows(test) if few else test for test in tests)
    yield _columns(residuals, model.fitted_rows())


def _tried(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except InputError as error:
        return Check(name, Verdict.LOOK, f"Not looked at. {error}", "judge by the quantile residuals.")


def _with_few_rows(check: Check) -> Check:
    """Return a check that says no more than its few rows for each coefficient can."""
    if check.verdict is not Verdict.PROBLEM:
        return check
    finding = f"{check.finding} There are fewer than {_FREE_ROWS} rows for each coefficient, and the fit follows them."
    return Check(check.name, Verdict.LOOK, finding, check.remedy)


def _verdict(p_value: float, large: bool, problem: float = _PROBLEM) -> Verdict:
    if p_value >= _LOOK:
        return Verdict.PASS
    return Verdict.PROBLEM if p_value < problem and large else Verdict.LOOK


def _distribution(values: Any) -> Check:
    from scipy import stats

    known = values[np.isfinite(values)]
    found = stats.kstest(known, "norm")
    verdict = _verdict(found.pvalue, found.statistic > _LARGE_DISTANCE)
    finding = (
        f"Largest distance of the distribution of {len(known)} quantile residuals from the standard normal one "
        f"{found.statistic:.3g}, p = {found.pvalue:.3g} (Kolmogorov-Smirnov); mean {known.mean():.3g}, standard "
        f"deviation {known.std():.3g}."
    )
    remedy = "" if verdict is Verdict.PASS else "look at the QQ and worm plots; try another likelihood or link."
    return Check("Distribution of the targets", verdict, finding, remedy)


def _dispersion(test: Any) -> Check:
    verdict = _verdict(test.p_value, max(test.ratio, 1 / max(test.ratio, 1e-300)) > _LARGE_RATIO, _SIMULATED)
    remedy = ""
    if verdict is not Verdict.PASS:
        more = test.ratio > 1
        remedy = (
            "the targets vary more than the model says, so standard errors are too short: use a likelihood with a "
            "dispersion (NegativeBinomial for counts), or kind='sandwich'."
            if more
            else "the targets vary less than the model says: standard errors are too long; look for dependent rows."
        )
    return Check("Dispersion", verdict, f"{test}.", remedy)


def _zeros(test: Any) -> Check:
    verdict = _verdict(test.p_value, True, _SIMULATED)
    remedy = "" if verdict is Verdict.PASS else "look at the rootogram; a dispersion explains many zeros, too."
    return Check("Zeros", verdict, f"{test}.", remedy)


def _calibration(test: Any) -> Check:
    # closer than simulated sets is what fitting does
    verdict = Verdict.PASS if test.ratio < 1 else _verdict(test.p_value, True, _SIMULATED)
    remedy = "" if verdict is Verdict.PASS else "look at the calibration plot; columns may act in curves or together."
    return Check("Calibration", verdict, f"{test}.", remedy)


def _columns(residuals: Any, rows: Any) -> Check:
    from scipy import stats

    values = residuals.to_numpy()
    tested, found = 0, []
    for name in rows.names[:_MOST_COLUMNS]:
        x = rows.column(name).to_numpy()
        order = np.argsort(x, kind="stable")
        parts = np.array_split(order, min(_BINS, len(order) // _ROWS_IN_BIN) or 1)
        # rows of equal values stay together
        edges = np.unique(x[[part[0] for part in parts]])
        place = np.searchsorted(edges, x, side="right")
        groups = [g[np.isfinite(g)] for g in (values[place == k].ravel() for k in np.unique(place))]
        groups = [g for g in groups if len(g) >= _ROWS_IN_BIN]
        if len(groups) < 2:
            continue
        tested += 1
        p_value = float(stats.f_oneway(*groups).pvalue)
        everything = np.concatenate(groups)
        between = sum(len(g) * (g.mean() - everything.mean()) ** 2 for g in groups)
        found.append((p_value, between / max(((everything - everything.mean()) ** 2).sum(), 1e-300), str(name)))
    name = "Residuals against each column"
    if not tested:
        return Check(name, Verdict.PASS, "There are too few rows, or no columns, to look for patterns.")
    # Bonferroni: the smallest of as many p-values
    adjusted = sorted((min(1.0, p * tested), share, column) for p, share, column in found)
    p_value, share, column = adjusted[0]
    finding = (
        f"The strongest pattern of means among {tested} columns is with {column}, which explains {100 * share:.2g} "
        f"percent of the variance of the quantile residuals: p = {p_value:.3g}, corrected for the number of columns."
    )
    verdict = _verdict(p_value, share > _LARGE_SHARE)
    if verdict is Verdict.PASS:
        return Check(name, verdict, finding)
    bent = [column for p, _, column in adjusted if p < _LOOK][:5]
    return Check(name, verdict, finding, f"let {', '.join(bent)} act in a curve: a square, or a spline in a formula.")
