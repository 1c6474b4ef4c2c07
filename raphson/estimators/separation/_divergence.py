"""Coefficients that grow without bound, for any likelihood: seen at the last step of a fit."""

from __future__ import annotations

from dataclasses import dataclass

from raphson.estimators._names import listed
from raphson.estimators.fit._fitted import Fitted
from raphson.estimators.fit._start import span
from raphson.estimators.input._rows import Rows
from raphson.estimators.separation._remedy import REMEDIES
from raphson.likelihoods import COUNT, Beta, Likelihood, NegativeBinomial, StudentT

_FAR = 10.0
"""So many more of its last steps a fit must be able to take without loss, for its optimum to be called infinite."""

_SHARE = 0.1
"""Coefficients that move by this share of the one that moves most are named."""


_NO_SPREAD = (
    "the targets are fitted exactly and show no spread about their means: leave out the columns that determine them "
    "(as many as there are rows always do)"
)

_EXACT, _NEARLY = 1e-12, 1e-4
"""Share of the largest target by which all may miss their means: of a fit that converged, and of one that did not."""

_FEW = 64
"""Rows that are looked at first: most fits miss one of them."""

_ROUNDED = 2.0**-52
"""Share of a target that is its rounding."""

_EDGES: tuple[tuple[type[Likelihood], str, str], ...] = (
    (NegativeBinomial, "log_dispersion", "the counts show no overdispersion: use Poisson"),
    (StudentT, "log_df", "the tails are no heavier than a Gaussian's: use HeteroscedasticGaussian"),
    (Beta, "log_precision", _NO_SPREAD),
)
"""Parameters whose edge is a simpler model, by the beginning of their output's name, with what to say there."""


@dataclass(frozen=True)
class Divergence:
    """Coefficients without a finite estimate.

    Attributes:
        names: ``(output, column)`` of those that grow, the fastest first.
        move: By how much the last step changed an output, at a gradient below the tolerance.
        edge: What it means that one of them is at the edge of its range; empty where it is not known to.
        unbounded: Whether the likelihood grows without bound with them, not only the coefficients.
    """

    names: tuple[tuple[str, str], ...]
    move: float
    edge: str = ""
    unbounded: bool = False

    def sentence(self) -> str:
        """Return what was seen, the likely cause and the remedy."""
        named = listed([f"{column} of {output}" for output, column in self.names])
        if self.edge:
            return f"There is no finite optimum: {self.edge}. The coefficients of {named} grow without bound."
        return (
            f"There is no finite optimum: at a gradient below the tolerance a Newton step still changes the outputs by "
            f"{self.move:.2g}, and the coefficients of {named} grow without bound. Likely causes: a column separates "
            "the targets (in a group they are all zero, or all at one end), or a parameter runs to the edge of its "
            f"range (no dispersion is left to estimate). Remedy: {REMEDIES['unknown']}."
        )


def falls_on(fitted: Fitted) -> bool:
    """Return whether the value of a fit's objective keeps falling along the solver's last step, or stays the same."""
    solution = fitted.solution
    if solution.last_step is None:
        return False
    beyond = fitted.objective.reduced.value(solution.theta + _FAR * solution.last_step)
    return beyond <= solution.value + 1e-12 * (1.0 + abs(solution.value))


def find_no_spread(fitted: Fitted, rows: Rows) -> Divergence | None:
    """Return the parameters of scale that have nothing to estimate where targets are fitted exactly, or None."""
    likelihood, objective = fitted.objective.likelihood, fitted.objective
    k, y = len(likelihood.parameters), rows.y
    if k < 2 or y.shape[0] != objective.n_rows or not y.is_floating_point() or likelihood.support is COUNT:
        return None
    times = y[:, 0] if y.ndim == 2 and getattr(likelihood, "censored", False) else y
    exact = _EXACT if fitted.solution.converged else _NEARLY
    # as many columns as rows fit every target, though the solver stopped short of that; a ridge does not keep the scale
    # from it, and a gradient that grows says so
    grows = fitted.solution.gradient_norm > fitted.solution.history[0].gradient_norm
    saturated = not fitted.solution.converged and objective.n_rows <= objective.design.n_columns
    saturated = saturated and (grows or not objective.l2)
    distance, rounding = span(likelihood, times), _ROUNDED * times.abs().amax()
    f = objective.predictors(fitted.solution.theta).mT
    for rows_seen in (slice(0, _FEW), slice(None)):
        outputs, some = f[rows_seen], times[rows_seen]
        try:  # up to one degree of freedom Student's t has no mean
            mean = outputs[:, ::k] if isinstance(likelihood, StudentT) else likelihood.mean(outputs)
        except NotImplementedError:
            return None
        if mean.shape[0] != some.shape[0] or mean.numel() != some.numel():
            return None
        misses = (mean.reshape(some.shape) - some).abs()
        if not saturated and not bool((misses <= exact * distance + rounding).all()):
            return None
    labels = fitted.layout.labels
    seconds = tuple(name for i, name in enumerate(fitted.layout.outputs) if i % k)
    return Divergence(tuple(label for label in labels if label[0] in seconds), 0.0, _NO_SPREAD, True)


def find_divergence(fitted: Fitted) -> Divergence | None:
    """Return the coefficients that grow without bound, where the value keeps falling along the last step, or None."""
    solution, objective = fitted.solution, fitted.objective
    step = solution.last_step
    if step is None or not falls_on(fitted):
        return None
    size = fitted.standardized(step).abs()
    order = size.argsort(descending=True)
    names = tuple(fitted.layout.labels[i] for i in order.tolist() if size[i] >= _SHARE * size.max())
    edge = ""
    for family, parameter, meaning in _EDGES:
        if isinstance(objective.likelihood, family) and any(output.startswith(parameter) for output, _ in names):
            edge = meaning
    return Divergence(names, fitted.largest_move(step), edge)
