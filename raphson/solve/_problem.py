"""What a solver needs to know of an objective, and the bookkeeping that all solvers share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from raphson.linalg import SymmetricOperator
from raphson.solve._solution import Step


class Evaluation(Protocol):
    """Objective at one point."""

    @property
    def value(self) -> float:
        """The objective."""

    @property
    def gradient(self) -> Tensor:
        """The gradient, ``(p,)``."""

    @property
    def norm(self) -> float:
        """Infinity norm of the gradient in the units of the tolerance; no finite number where the gradient is none."""

    @property
    def hessian(self) -> SymmetricOperator | None:
        """The Hessian, ``(p, p)``, if it was asked for."""


class Problem(Protocol):
    """A smooth objective of ``p`` parameters."""

    @property
    def n_parameters(self) -> int:
        """Number of parameters, p."""

    def value(self, theta: Tensor) -> float:
        """Return the objective."""

    def evaluate(self, theta: Tensor, hessian: Any = "observed") -> Evaluation:
        """Return objective, gradient and Hessian (of the kind named, or None); the Hessian need not be formed."""

    def hessian(self, theta: Tensor, kind: Any = "observed") -> SymmetricOperator:
        """Return the Hessian of the kind named."""


Callback = Callable[[Step], None]
"""Called after every iteration, say to show progress."""


class History:
    """Collects one ``Step`` per iteration and tells a callback."""

    def __init__(self, callback: Callback | None) -> None:
        self.steps: list[Step] = []
        self._callback = callback
        self._start = time.perf_counter()

    def begin(self, at: Evaluation) -> None:
        """Record the state at the start, unless there are steps already that led there."""
        if not self.steps:
            self.add(at)

    def add(self, at: Evaluation) -> None:
        """Record the state after one more iteration."""
        step = Step(len(self.steps), time.perf_counter() - self._start, at.value, at.norm)
        self.steps.append(step)
        if self._callback is not None:
            self._callback(step)
