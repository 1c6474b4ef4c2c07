"""Steps of L-BFGS in compiled code: of a small fit the calls around an evaluation take longer than all arithmetic."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from raphson import _native
from raphson.linear._compiled import PAIRS, CompiledFamily, has_compiled_steps
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


class CompiledStepper:
    """Makes steps as ``solve.PairsStepper`` does, each in one compiled call.

    Args:
        family: The objective.
        diagonal: About that of the Hessian, up to a factor, ``(p,)``.
        means: Those of columns that are not centered, ``(D',)``, zero for the intercept that comes first; or None.
        length: Inverse Hessians that the first step is, from the gradient, None for a step of length one; later ones
            are scaled by the last pair.
    """

    def __init__(self, family: CompiledFamily, diagonal: Tensor, means: Tensor | None, length: float | None) -> None:
        pairs = _native.Pairs(diagonal.shape[0], PAIRS, diagonal.dtype, scaled=True, scale=length or 0.0)
        self._descent = _native.Descent(family.evaluator, diagonal, means, pairs)

    @classmethod
    def of(
        cls, objective: LinearObjective, diagonal: Tensor, means: Tensor | None, length: float | None
    ) -> CompiledStepper | None:
        """Return what makes steps for an objective, None where compiled code does not know it or is not faster."""
        family = objective.compiled
        if family is None or family.negative or not has_compiled_steps(objective.n_parameters):
            return None
        return cls(family, diagonal, means, length)

    @property
    def number(self) -> int:
        """Number of pairs."""
        return self._descent.number

    def clear(self) -> None:
        """Forget the pairs."""
        self._descent.clear()

    def step(
        self, theta: Tensor, at: State, length: float, lowest: float
    ) -> tuple[Tensor, Evaluation, int, float] | None:
        """Take a step: see ``solve.Stepper``."""
        found = self._descent.step(theta, at.value, at.gradient, length, lowest)
        if not found.trials:
            return None
        return found.theta, Evaluation(found.value, found.gradient, found.norm, None), found.trials, found.length
