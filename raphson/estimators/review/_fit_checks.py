"""Checks of the optimum: converged, finite, determined by the columns, curved, from enough rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raphson.diagnose import diagnose
from raphson.report import Check, Verdict
from raphson.solve import Status

Array = NDArray[np.float64]

LARGEST_HESSIAN = 1000
"""Coefficients up to which a report forms the Hessian and all of its eigenvalues."""

_GOOD_CONDITION, _BAD_CONDITION = 1e4, 1e10
"""Condition numbers of a Hessian of standardized columns, squares of those of the columns: from about 30 to 100 for the
latter dependencies are called strong (Belsley, Kuh and Welsch 1980, section 3.2); 1e10 leaves six digits."""

_ROWS_PER_COEFFICIENT = 10

_ACCURATE = 0.01
"""Distance from the optimum, in standard errors, that does not matter beside the sampling error."""

_REMEDIES = {
    Status.MAX_ITERATIONS: "raise max_iter, or look at separation and collinearity below.",
    Status.STALLED: "look at the separation and collinearity below and at extreme values in the columns.",
    Status.DIVERGING: "use penalty='jeffreys' or l2=, or take out what separates the targets.",
    Status.NOT_FINITE: "look for extreme values in the columns, offsets and targets.",
}


def fit_checks(
    model: Any, spectrum: tuple[Array, Array, list[str]] | None, only_penalized: str | None
) -> Iterator[Check]:
    """Yield the checks of the optimum of a fitted estimator.

    The spectrum is eigenvalues, ascending, eigenvectors and names of the Hessian, None where it was not formed;
    ``only_penalized`` says which coefficients only a penalty keeps finite; None for none.
    """
    yield _convergence(model.solution_)
    yield _finite(model, only_penalized)
    yield _collinear(model)
    if spectrum is not None:
        yield _curvature(*spectrum)
        yield _convex(model)
        yield _error_bound(model.solution_)
    count = model.n_rows_ if model._fractional else model.n_obs_  # fractions are no numbers of rows
    share = count / max(model.df_model_, 1)
    finding = f"{count:.10g} observations for {model.df_model_} free coefficients: {share:.3g} for each."
    if share >= _ROWS_PER_COEFFICIENT:
        yield Check("Rows per coefficient", Verdict.PASS, finding)
    else:
        remedy = (
            "estimates are biased away from zero and intervals too short with so few; use penalty='jeffreys', profile "
            "intervals, fewer columns or a ridge penalty."
        )
        yield Check("Rows per coefficient", Verdict.LOOK, finding, remedy)


def _convergence(solution: Any) -> Check:
    finding = (
        f"{solution.status.sentence} Largest entry of the gradient {solution.gradient_norm:.1e} after "
        f"{solution.iterations} iterations ({solution.method})."
    )
    if solution.status.converged:
        return Check("Convergence", Verdict.PASS, finding)
    return Check("Convergence", Verdict.PROBLEM, finding, _REMEDIES.get(solution.status, ""))


def _finite(model: Any, only_penalized: str | None) -> Check:
    name = "Finite estimates"
    if model.separation_ is not None:
        return Check(name, Verdict.PROBLEM, *_parted(model.separation_.sentence()))
    if only_penalized is not None:
        return Check(name, Verdict.LOOK, *_parted(only_penalized))
    return Check(name, Verdict.PASS, "No combination of columns separates the targets: every estimate is finite.")


def _collinear(model: Any) -> Check:
    found = [] if model.collinearity_ is None else model.collinearity_.sentences()
    if not found:
        return Check("Collinearity", Verdict.PASS, "No column is a linear combination of others.")
    return Check("Collinearity", Verdict.PROBLEM, *_parted(" ".join(found)))


def _curvature(values: Array, vectors: Array, names: list[str]) -> Check:
    name = "Curvature and condition"
    size = np.abs(values).max(initial=0.0)
    # what the data cannot tell apart is named above; it is zero here
    known = np.abs(values) > 1e-13 * len(values) * size
    if not known.any():
        return Check(name, Verdict.PROBLEM, "The Hessian is zero.", "look at the columns: none moves the likelihood.")
    least, most = values[known][0], values[-1]
    vector = vectors[:, known][:, 0]
    heavy = [names[i] for i in np.argsort(-np.abs(vector))[:3] if abs(vector[i]) > 0.2]
    if least < 0:
        finding = (
            f"The Hessian has the negative eigenvalue {least:.3g}, along {', '.join(heavy)}: this is no minimum of "
            "the loss."
        )
        return Check(name, Verdict.PROBLEM, finding, "simplify the model; do not use these estimates.")
    condition = most / least
    finding = (
        f"All {int(known.sum())} eigenvalues of the Hessian of standardized columns that the data determine are "
        f"positive, from {least:.3g} to {most:.3g}: condition number {condition:.3g}."
    )
    if condition < _GOOD_CONDITION:
        return Check(name, Verdict.PASS, finding)
    verdict = Verdict.LOOK if condition < _BAD_CONDITION else Verdict.PROBLEM
    remedy = f"the data say least about {', '.join(heavy)} together; leave out or combine columns that say the same."
    return Check(name, verdict, finding, remedy)


def _convex(model: Any) -> Check:
    found = diagnose(model)
    everywhere = "" if found.everywhere is None else f" {found.everywhere.sentence}"
    finding = f"At the fit the objective is {found.convex}. {found.guarantee}{everywhere}"
    if found.convex in ("strongly convex", "convex"):
        return Check("Convexity certificate", Verdict.PASS, finding)
    verdict = Verdict.PROBLEM if found.convex == "not convex" else Verdict.LOOK
    return Check("Convexity certificate", verdict, finding, "look at the condition and what the data determine, above.")


def _error_bound(solution: Any) -> Check:
    name = "Error certificate"
    bound = solution.error_bound
    if not bound.certified:
        return Check(name, Verdict.LOOK, f"Not certified. {bound.sentence}", "judge by the gradient and the condition.")
    if bound.largest <= _ACCURATE:
        return Check(name, Verdict.PASS, bound.sentence)
    return Check(name, Verdict.LOOK, bound.sentence, "lower tol for coefficients closer to the optimum.")


def _parted(text: str) -> tuple[str, str]:
    """Return a text without what it says after "Remedy:", and that, each remedy once."""
    first, *rest = text.split("Remedy: ")
    finding, remedies = [first.strip()], []
    for part in rest:
        remedy, _, after = part.partition(". ")
        remedies.append(remedy.rstrip("."))
        if after.strip():
            finding.append(after.strip())
    return " ".join(finding), "; ".join(dict.fromkeys(remedies)) + ("." if remedies else "")
