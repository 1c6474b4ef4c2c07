"""Limited-memory BFGS, as thin calls: pairs of steps and changes of the gradient, and whole steps of a linear model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raphson._native import _module
from raphson._native._linear import Evaluator
from raphson._native._module import Memory, memory, own
from raphson._native._sparse import UNIT

_PART = 2.0**20
"""Numbers of all pairs that are worth a thread of their own. Where cores share no cache, so that vectors travel, 500 x
2000, ten classes, 360,000 numbers, took 31.8 ms on two threads, 25.4 on one."""

CURVED = 1e-10
"""Share of the mean inverse curvature below which that of a pair is rounding."""


def has_pairs(p: int, pairs: int) -> bool:
    """Return whether compiled code multiplies so many pairs of vectors ``(p,)``, on as many threads as pays."""
    is_shared = bool(_module.runtime()) or torch.get_num_threads() == 1
    return _module.is_available(0.0) and (is_shared or 2 * pairs * p <= _PART)


class Pairs:
    """Pairs of steps s and changes Z of what gradients are solved for, and what is kept of them from step to step.

    Args:
        p: Entries of vectors.
        pairs: Largest number of pairs.
        dtype: Their element type, single or double precision.
        scaled: Whether the last pair tells the scale of the inverse Hessian to begin with.
        scale: That scale before there is a pair; zero for whole steps whose first one has length one.
    """

    def __init__(self, p: int, pairs: int, dtype: torch.dtype, *, scaled: bool, scale: float) -> None:
        # steps and Z in turns, in the places that are free or oldest: memory that no pair has come to is never touched
        self._rows = torch.empty(2 * pairs, p, dtype=dtype)
        threads = _module.threads(2.0 * pairs * p, _PART)
        size = pairs * (2 * pairs + 6) + 2 + threads * (2 * pairs + 2)
        self._numbers = torch.zeros(size, dtype=torch.float64)
        self._own = self._numbers.numpy()[2 * pairs * (pairs + 1) + pairs :]  # scale, number of pairs taken in
        self._own[0], self._pairs = scale, pairs
        numbers, rows = memory("numbers", self._numbers, *self._numbers.shape), own(self._rows)
        self.arguments = pairs, threads, scaled, CURVED, numbers, rows
        """What compiled functions take; see ``take_pairs`` in ``module.c``."""

    @property
    def scale(self) -> float:
        """The scale of the inverse Hessian to begin with."""
        return float(self._own[0])

    @property
    def number(self) -> int:
        """Pairs that there are."""
        return min(int(self._own[1]), self._pairs)

    def clear(self) -> None:
        """Forget the pairs."""
        scale = self.scale
        self._numbers.zero_()
        self._own[0] = scale

    def take(self, step: Tensor, gradient: Tensor, before: Tensor, solved: Tensor, solved_before: Tensor) -> Tensor:
        """Take in a pair.

        Args:
            step: The step, ``(p,)``, as all vectors.
            gradient: The gradient after it.
            before: The gradient before it.
            solved: What the inverse Hessian to begin with makes of the gradient.
            solved_before: What it made of the one before.

        Returns:
            Minus the inverse Hessian times the gradient, ``(p,)``.
        """
        p, dtype = self._rows.shape[1], self._rows.dtype
        out = torch.empty(p, dtype=dtype)
        _module.compiled().pairs(
            self.arguments,
            memory("step", step, p, dtype=dtype),
            memory("gradient", gradient, p, dtype=dtype),
            memory("before", before, p, dtype=dtype),
            memory("solved", solved, p, dtype=dtype),
            memory("solved_before", solved_before, p, dtype=dtype),
            own(out),
        )
        return out


class Stepped(NamedTuple):
    """Where steps led.

    Attributes:
        theta: The last point, ``(p,)``.
        gradient: The gradient there, ``(p,)``.
        path: Of every step the objective where it led, the gradient's norm, as that of ``Point``, and its evaluations;
            empty where no length helped, and the point is none.
        length: That of the last step, in directions.
    """

    theta: Tensor
    gradient: Tensor
    path: list[list[float]]
    length: float


class Descent:
    """Steps of limited-memory BFGS for a linear model, each in one call.

    Args:
        evaluator: The objective.
        diagonal: About the Hessian's, ``(p,)``.
        means: Those of columns that are not centered, ``(D',)``, zero for the intercept that comes first; or None.
        pairs: To hold pairs of steps, none yet.
        most: Steps that one call may take.
    """

    def __init__(
        self, evaluator: Evaluator, diagonal: Tensor, means: Tensor | None, pairs: Pairs, *, most: int = 1
    ) -> None:
        self._size = size = evaluator.constants[0]
        room = torch.empty(5 * size, dtype=torch.float64)
        self._held, self._pairs = (diagonal, means, room), pairs
        means_at = None if means is None else memory("means", means, evaluator.model.d)
        self._inverse = memory("diagonal", diagonal, size), means_at, own(room)
        self._before: tuple[Tensor, Memory] | None = None
        self._is_stuck, self._path = False, np.empty((most, 3))
        self._path_at = own(torch.from_numpy(self._path))
        self._turns: Memory | None = None
        self._last: tuple[Tensor, Memory] | None = None  # the gradient before the last, of several steps
        if most > 1:
            apart = -(-size // UNIT) * UNIT  # whole vectors
            turns = torch.empty(6 * apart, dtype=torch.float64)
            last = turns[5 * apart : 5 * apart + size]
            self._turns, self._last = own(turns), (last, own(last))
        self.read(evaluator)

    def read(self, evaluator: Evaluator) -> None:
        """Make the next steps by what evaluates the same objective from another copy of the table."""
        _, _, threads, linear, units = evaluator.constants
        self._evaluator = evaluator
        evaluation = evaluator.model.arguments, threads, self._pairs.arguments, linear, units, evaluator.reference
        self._constants = *evaluation, *self._inverse

    @property
    def number(self) -> int:
        """Pairs that there are, with the step that led here."""
        return self._pairs.number + (self._before is not None)

    def clear(self) -> None:
        """Forget the pairs, and the step that led here."""
        self._pairs.clear()
        self._before, self._is_stuck = None, False

    def step(
        self,
        theta: Tensor,
        value: float,
        gradient: Tensor,
        length: float,
        lowest: float,
        *,
        growth: float = 1.0,
        tol: float = 0.0,
        rounding: float = 2.0**-52,
        copy: Tensor | None = None,
    ) -> Stepped:
        """Take steps, from where the last one led unless it is the first one since ``clear``.

        Args:
            theta: The point, ``(p,)``.
            value: The objective there.
            gradient: The gradient there, ``(p,)``.
            length: Directions that are tried first.
            lowest: No trial may rise above this value by more than its rounding.
            growth: From the length of one step to the first one that the next one tries, at most 1.
            tol: A gradient's norm not above it ends the steps.
            rounding: Relative rounding of values, which counts 64 times.
            copy: Where an evaluation writes the standardized rows of the table: see ``Evaluator.at``.

        Returns:
            Where they led.
        """
        size, before = self._size, self._before
        if self._is_stuck:  # the last call found out
            return Stepped(theta, gradient, [], length)
        reached, there = torch.empty(size, dtype=torch.float64), torch.empty(size, dtype=torch.float64)
        here = memory("gradient", gradient, size)
        taken, trials, length = _module.compiled().descend(
            *self._constants,
            memory("theta", theta, size),
            here,
            None if before is None else before[1],
            own(reached),
            own(there),
            self._turns,
            None if copy is None else memory("copy", copy, *self._evaluator.model.x.shape, dtype=torch.float32),
            self._path_at,
            value,
            lowest,
            length,
            growth,
            tol,
            64.0 * rounding,
        )
        self._is_stuck = not trials
        if taken:
            self._before = (gradient, here) if self._last is None else self._last
        return Stepped(reached, there, self._path[:taken].tolist(), length)
