"""What a solver needs to know of an objective, what it returns, and the bookkeeping that all solvers share."""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from raphson._errors import NotEstimableError
from raphson.linalg import SymmetricOperator


class Status(enum.Enum):
    """How an iteration ended, each with its sentence."""

    CONVERGED = "The gradient is below the tolerance."
    PRECISION_REACHED = "The gradient is as small as the rounding of the data and the objective allows."
    MAX_ITERATIONS = "The iteration limit was reached before the gradient fell below the tolerance."
    STALLED = "No step along the search direction lowered the objective any further."
    BOUNDARY = "The likelihood is largest on the edge of what the outputs may be, where there are no standard errors."
    DIVERGING = "The coefficients grow without bound while the objective levels off: there is no finite optimum."
    NOT_FINITE = "The objective or its gradient is not a finite number."

    @property
    def sentence(self) -> str:
        """The status as a sentence."""
        return self.value

    @property
    def converged(self) -> bool:
        """Whether the point found is a stationary point to the accuracy asked for, or attainable."""
        return self in (Status.CONVERGED, Status.PRECISION_REACHED)


class Step(NamedTuple):
    """One line of a solver's history.

    Attributes:
        iteration: Steps taken so far; 0 is the start.
        seconds: Wall-clock seconds since the start.
        value: Objective.
        gradient_norm: Infinity norm of the gradient.
    """

    iteration: int
    seconds: float
    value: float
    gradient_norm: float


@dataclass(frozen=True)
class Solution:
    """Where a solver ended and how it got there.

    Attributes:
        theta: Parameters found, ``(p,)``.
        status: How it ended.
        value: Objective at ``theta``.
        gradient_norm: Infinity norm of the gradient at ``theta``, on the scale of the objective.
        newton_decrement: ``sqrt(g^T H^-1 g)`` at the last point where the Newton direction was computed; its
            square over two predicts how far the value lies above the optimum. NaN for first-order methods.
        last_step: The last full Newton direction computed, ``(p,)``, or None: along it coefficients diverge if
            there is no finite optimum.
        iterations: Number of steps taken.
        method: Name of the solver.
        hessian: The Hessian at or next to ``theta``, where the solver had it in full precision; None elsewhere.
        history: One ``Step`` per iteration, the start included.
        certify: What bounds the error of the result, for whoever asks for ``error_bound``; None where nothing can.
        reason: Why this solver was taken, in a sentence; empty where there was no choice.
    """

    theta: Tensor
    status: Status
    value: float
    gradient_norm: float
    iterations: int
    method: str
    newton_decrement: float = math.nan
    last_step: Tensor | None = None
    hessian: SymmetricOperator | None = field(default=None, repr=False)
    history: tuple[Step, ...] = field(default=(), repr=False)
    certify: Callable[[], Any] | None = field(default=None, repr=False, compare=False)
    reason: str = ""

    def __repr__(self) -> str:
        return (
            f"<Solution of {self.theta.numel()} parameters: {self.status.name}, value {self.value:.8g}, gradient norm "
            f"{self.gradient_norm:.1e}, {self.method}, {self.iterations} iterations>"
        )

    @property
    def converged(self) -> bool:
        """Whether ``theta`` is a stationary point to the accuracy asked for, or attainable."""
        return self.status.converged

    @property
    def error_bound(self) -> Any:
        """A rigorous bound on the distance of each reported coefficient from the exact optimum.

        It is worked out when it is asked for, from the rows of the fit: some passes over them in extended precision.

        Raises:
            NotEstimableError: The solution has no rows: it is not that of an estimator that was fitted here.
        """
        if self.certify is None:
            raise NotEstimableError(
                "The error of this solution cannot be bounded without the rows it was fitted to, which a saved or "
                "unpickled model does not have. Use attach(X, y) of the estimator first, or 'raphson check DIR DATA'."
            )
        return self.certify()


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
        self.reach(at.value, at.norm)

    def reach(self, value: float, norm: float) -> None:
        """Record the objective and the gradient's norm after one more iteration."""
        step = Step(len(self.steps), time.perf_counter() - self._start, value, norm)
        self.steps.append(step)
        if self._callback is not None:
            self._callback(step)

    def solution(self, theta: Tensor, at: Evaluation, status: Status, method: str) -> Solution:
        """Return where a first-order method ended."""
        steps = tuple(self.steps)
        return Solution(theta, status, at.value, at.norm, len(steps) - 1, method, history=steps)
