"""Coefficients that grow without bound, for any likelihood: seen at the last step of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raphson.estimators._names import listed
from raphson.estimators.fit._fitted import Fitted
from raphson.estimators.input._rows import Rows
from raphson.estimators.separation._remedy import remedy
from raphson.estimators.separation._separation import Separation, find_separation
from raphson.likelihoods import UNIT_INTERVAL, Likelihood

_FAR = 10.0
"""So many more of its last steps a fit must be able to take without loss, for its optimum to be called infinite."""

_SHARE = 0.1
"""Coefficients that move by this share of the one that moves most are named."""


@dataclass(frozen=True)
class Divergence:
    """Coefficients without a finite estimate.

    Attributes:
        names: ``(output, column)`` of those that grow, the fastest first.
        move: By how much the last step changed an output, at a gradient below the tolerance.
    """

    names: tuple[tuple[str, str], ...]
    move: float

    def sentence(self) -> str:
        """Return what was seen, the likely cause and the remedy."""
        named = listed([f"{column} of {output}" for output, column in self.names])
        return (
            f"There is no finite optimum: at a gradient below the tolerance a Newton step still changes the outputs by "
            f"{self.move:.2g}, and the coefficients of {named} grow without bound. Likely causes: a column separates "
            "the targets (in a group they are all zero, or all at one end), or a parameter runs to the edge of its "
            f"range (no dispersion is left to estimate). Remedy: {remedy('unknown')}."
        )


def find_divergence(fitted: Fitted, labels: Sequence[tuple[str, str]]) -> Divergence | None:
    """Return the coefficients that grow without bound, where the value keeps falling along the last step.

    Args:
        fitted: A fit whose last step still moves the outputs.
        labels: Names of its coefficients.

    Returns:
        What diverges, or None if the optimum is finite.
    """
    solution, objective = fitted.solution, fitted.objective
    step = solution.last_step
    if step is None:
        return None
    beyond = objective.value(solution.theta + _FAR * step)
    if not beyond <= solution.value + 1e-12 * (1.0 + abs(solution.value)):
        return None
    size = fitted.standardized(step).abs()
    order = size.argsort(descending=True)
    names = tuple(labels[i] for i in order.tolist() if size[i] >= _SHARE * size.max())
    return Divergence(names, fitted.largest_move(step))


def separates(
    rows: Rows, likelihood: Likelihood, names: Sequence[str], intercept: bool, direction: Any
) -> tuple[bool, Separation | None]:
    """Look for what separates answers of yes and no, where the target is one.

    Args:
        rows: The rows.
        likelihood: The likelihood, of one output to which every column contributes.
        names: Names of the columns.
        intercept: Whether there is an intercept.
        direction: ``(1, D')`` along which the fit may diverge, or None.

    Returns:
        Whether the target is of that kind, and the separation.
    """
    y = rows.y.reshape(-1)
    if likelihood.support is not UNIT_INTERVAL or not bool(((y == 0) | (y == 1)).all()):
        return False, None
    candidate = None if direction is None else torch.cat([torch.zeros_like(direction), direction])
    texts = ["0", "1"]
    found = find_separation(rows.x, y.long(), 2, rows.weights, names, texts, intercept, candidate=candidate)
    return True, found
