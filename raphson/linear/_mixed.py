"""Evaluations in single precision while the gradient is far above its rounding, from a copy that is made on the way.

A table that is read in place takes half the time in single precision. Its standardized copy is written by an
evaluation in double precision, while the rows are in the cache, once as many evaluations were made as that costs, and
where the gradient is so large that more follow. What the tolerance is judged by, and steps near the rounding, are in
double precision again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raphson.data import new_table
from raphson.linear._hessian import Evaluation
from raphson.linear._objective import LinearObjective
from raphson.linear._stepper import CompiledStepper, Passed, State, reached

_COPY = 0.6
"""Nanoseconds an entry of the copy: 50000 x 300, 15.1 ms with it and 9.8 without, 5000 x 2000 10.3 and 6.3."""

_COPY_BYTES = 2**29
"""Largest copy, half the size of the table."""

_SAVED = 0.5
"""Share of an evaluation that single precision saves; milliseconds in double and in single precision: 50000 x 300, one
output 9.8 and 5.7, three 13.6 and 7.8, ten 21.7 and 12.7; 500 x 2000, 0.21 and 0.12, 0.33 and 0.18, 1.25 and 0.59."""

_LEAST = 1e5
"""Nanoseconds of an evaluation from which it is worth the calls."""

_PENALTY = 1e30
"""Largest penalty of a column: single precision has no numbers above 1e38. It is that of columns in tiny units."""

_COLUMNS = 32
"""Columns from which any vectors read rows in place."""

_FALL = 4.0
"""By what a step lowers the gradient at least when it is told how many follow: columns without correlations do so."""

_RATE_FROM = 2
"""Evaluations from which a rate is known."""

_NEAR = 3.0
"""Times the tolerance at which the next step may end the fit."""

_REPAID = 1.5
"""Times what a copy costs that it must promise to save."""

_ROUNDED = 2.0**-18
"""Share of the first gradient that is some ten times what single precision makes of it: 1e-7 to 7e-7."""

_VALUE = 2.0**-25
"""Relative rounding of a value, which counts 64 times: outputs are in single precision, their sums in double. One of
0.05 differs by 1e-7 where outputs are large: with a quarter of this share line searches went on for nothing."""


class MixedStepper(CompiledStepper):
    """Makes steps of L-BFGS for an objective whose dense table compiled code reads in place.

    Args:
        objective: The objective, which ``suits``.
        diagonal: See ``CompiledStepper``, as the next two.
        means: Those of columns that are not centered.
        length: Inverse Hessians that the first step is.
        first: Norm of the gradient where the fit begins.
        tol: Bound on the norm where it ends; a norm that is not above it is one in double precision.
    """

    def __init__(
        self,
        objective: LinearObjective,
        diagonal: Tensor,
        means: Tensor | None,
        length: float | None,
        first: float,
        tol: float,
    ) -> None:
        assert objective.compiled is not None
        super().__init__(objective.compiled.evaluator, diagonal, means, length)
        self._compiled = objective.compiled
        self._first = self._last = first
        self._floor = max(_NEAR * tol, _ROUNDED * first)
        self._price: float = _COPY * objective.design.x.numel() / (_SAVED * objective.cost.evaluation)
        self._shape = objective.n_rows, int(objective.design.x.shape[1])
        self._made, self._ended, self._lowest, self._previous = 0, False, math.inf, 0.0
        self.leads = False
        """Whether evaluations are in single precision."""

    @classmethod
    def suits(cls, objective: LinearObjective) -> bool:
        """Return whether a copy in single precision may pay."""
        family = objective.compiled
        if family is None or family.negative or not objective.is_in_place or objective.cost.evaluation < _LEAST:
            return False
        n, d = map(int, objective.design.x.shape)
        penalty = float(objective.ridge.columns.max())
        return d >= _COLUMNS and 4 * n * d <= _COPY_BYTES and penalty < _PENALTY

    def step(
        self, theta: Tensor, at: State, length: float, lowest: float, growth: float, tol: float
    ) -> tuple[Tensor, Evaluation, int, float, Passed] | None:
        """Take a step: see ``solve.Stepper``."""
        if self.leads:
            return self._step_in_single(theta, at, length)
        return self._step_in_double(theta, at, length)

    def _step_in_double(
        self, theta: Tensor, at: State, length: float
    ) -> tuple[Tensor, Evaluation, int, float, Passed] | None:
        """Take a step in double precision, which writes the copy in single where that pays."""
        copy = new_table(*self._shape, torch.float32) if self._pays() else None
        self._lowest = min(self._lowest, at.value)
        found = reached(self._descent.step(theta, at.value, at.gradient, length, self._lowest, copy=copy))
        if found is None:
            return None
        _, new, trials, _, _ = found
        self._previous = at.norm
        self._made, self._last = self._made + trials, new.norm
        self._first = new.norm if self._made == trials else self._first
        if copy is not None:
            self._descent.read(self._compiled.in_single(copy).evaluator)
            self.leads, self._lowest = True, math.inf
        return found

    def _step_in_single(
        self, theta: Tensor, at: State, length: float
    ) -> tuple[Tensor, Evaluation, int, float, Passed] | None:
        """Take a step in single precision, or go on in double where that leads no further or near the end."""
        self._lowest = min(self._lowest, at.value)
        # where the next step, at the rate of the last one, is the last in single precision, its end is wanted in double
        near = at.norm * at.norm <= self._floor * self._previous
        if near:
            self._go_on_in_double()
        found = reached(self._descent.step(theta, at.value, at.gradient, length, self._lowest, rounding=_VALUE))
        self._previous = at.norm
        if found is not None and (near or found[1].norm > self._floor):
            return found
        self._go_on_in_double()
        if found is None:  # its rounding may be what stopped it
            self.clear()
            return self._step_in_double(theta, self._in_double(theta), 1.0)
        there, _, trials, length, _ = found
        return there, self._in_double(there), trials + 1, length, []

    def _go_on_in_double(self) -> None:
        """Evaluate in double precision from now on; pairs stay, of which rounding makes little."""
        self.leads, self._ended, self._lowest = False, True, math.inf
        self._descent.read(self._compiled.evaluator)

    def _in_double(self, theta: Tensor) -> Evaluation:
        found = self._compiled.at(theta, None)
        return Evaluation(found.value, found.gradient, found.norm, None)

    def _pays(self) -> bool:
        """Return whether the copy costs no more than evaluations that were made, and fewer than are to come."""
        if self._ended or self._made < max(self._price, _RATE_FROM) or not self._floor < self._last < math.inf:
            return False
        # the first step finds the scale: the gradient falls by far more
        fall = (self._first / self._last) ** (1.0 / (self._made - 1))
        return math.log(self._last / self._floor) >= (1.0 + _REPAID * self._price) * math.log(max(fall, _FALL))
