"""Steps of L-BFGS in compiled code: of a small fit the calls around an evaluation take longer than all arithmetic."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from raphson import _native
from raphson.linear._compiled import PAIRS
from raphson.linear._hessian import Evaluation
from raphson.linear._objective import LinearObjective


class State(Protocol):
    """Where a step starts from."""

    @property
    def value(self) -> float:
        """The objective."""

    @property
    def gradient(self) -> Tensor:
        """Its gradient, ``(p,)``."""

    @property
    def norm(self) -> float:
        """The gradient's norm."""


Passed = list[tuple[float, float]]
"""Values and gradient norms of points that steps led through."""

_AT_ONCE, _MOST = 3e5, 8
"""Nanoseconds of steps that are made in one call, and how many at most: the calls around one take some 20 us, and what
they lead to is judged after them only."""


class CompiledStepper:
    """Makes steps as ``solve.PairsStepper`` does, in one compiled call one or, where they are short, several.

    Args:
        evaluator: Evaluates the objective.
        diagonal: About that of the Hessian, up to a factor, ``(p,)``.
        means: Those of columns that are not centered, ``(D',)``, zero for the intercept that comes first; or None.
        length: Inverse Hessians that the first step is, from the gradient, None for a step of length one; later ones
            are scaled by the last pair.
        most: Steps in one call.
    """

    def __init__(
        self, evaluator: _native.Evaluator, diagonal: Tensor, means: Tensor | None, length: float | None, most: int = 1
    ) -> None:
        pairs = _native.Pairs(diagonal.shape[0], PAIRS, diagonal.dtype, scaled=True, scale=length or 0.0)
        self._descent = _native.Descent(evaluator, diagonal, means, pairs, most=most)

    @classmethod
    def of(
        cls, objective: LinearObjective, diagonal: Tensor, means: Tensor | None, length: float | None
    ) -> CompiledStepper | None:
        """Return what makes steps for an objective, None where compiled code does not know it or is not faster."""
        family = objective.compiled
        if family is None or not objective.has_compiled_steps:
            return None
        most = max(1, min(_MOST, int(_AT_ONCE / objective.cost.step)))
        return cls(family.evaluator, diagonal, means, length, most)

    @property
    def number(self) -> int:
        """Number of pairs."""
        return self._descent.number

    def clear(self) -> None:
        """Forget the pairs."""
        self._descent.clear()

    def step(
        self, theta: Tensor, at: State, length: float, lowest: float, growth: float, tol: float
    ) -> tuple[Tensor, Evaluation, int, float, Passed] | None:
        """Take steps: see ``solve.Stepper``."""
        return reached(self._descent.step(theta, at.value, at.gradient, length, lowest, growth=growth, tol=tol))


def reached(found: _native.Stepped) -> tuple[Tensor, Evaluation, int, float, Passed] | None:
    """Return what a solver wants to know of steps."""
    if not found.path:
        return None
    *passed, (value, norm, _) = found.path
    at = Evaluation(value, found.gradient, norm, None)
    trials = int(sum(step[2] for step in found.path))
    return found.theta, at, trials, found.length, [(step[0], step[1]) for step in passed]
