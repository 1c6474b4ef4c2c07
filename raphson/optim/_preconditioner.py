"""The running curvature of a network: blocks and a diagonal, updated and inverted from time to time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.network import FactorPlan, KroneckerBlock, LayerReport, Measured, ParameterSpace, TrainingPass
from raphson.optim._blocks import BlockState, KroneckerState
from raphson.optim._eigen import EigenState
from raphson.optim._options import CurvatureOptions
from raphson.optim._saved_state import refuse_other_factors

_SHARE = 0.14
"""What factors, and inverses, may cost a step, in gradients: by count of operations, where no period is given. With 0.2
a step on a CNN takes 1.35 gradients in place of 1.30 and one on the autoencoder of 1400 digits a twentieth longer,
which ends 500 steps at 13.874 in place of 13.879; with 0.1 they end at 13.881 and 250 on 10,000 digits at 59.5 (59.25,
and 59.16 with 0.2; measured)."""

_EIGEN = 5.0
"""Cost of an eigen-decomposition in inverses (measured)."""

_GROWTH = 4
"""A period grows from 1 to what it is: nothing is older than a quarter of the steps so far. On the autoencoder of 1400
digits 30 steps end at 15.85 in 0.58 s, in place of 15.80 in 0.75 where periods grow over 100 steps; with half of the
steps in place of a quarter they end at 17.2 (measured)."""

_SETTLING = 100
"""Steps over which a longer period grows: inverses of a network of convolutions, at every 171 steps, would else cost
three gradients a step more from the 25th to the 50th (measured)."""

_PRIOR = 4.0
"""Samples that the mean over a tensor counts as in its diagonal: a single sampled square is near zero too often."""

_VANISHING = 1e-3
"""Share of the mean eigenvalue below which no reach falls: a layer whose units are all off has none."""

Damped = Callable[[str], float]
"""From a parameter's name to what is added to its curvature."""


class Preconditioner:
    """Curvature of all parameters of a network, averaged over mini-batches.

    Args:
        space: The parameters.
        options: How curvature is estimated.

    Attributes:
        exponent: Power of the damped inverse that ``solve`` multiplies with while steps are whole; to be set before
            the first batch.
    """

    def __init__(self, space: ParameterSpace, options: CurvatureOptions) -> None:
        self._space, self._options = space, options
        self.exponent = self._wanted = self._power = 1.0
        self._plan: FactorPlan | None = None
        self._blocks: list[BlockState] = []
        self._diagonal: Tensor | None = None
        self._saved: dict[str, Any] | None = None
        self._shift: Tensor | None = None
        self._reaches: list[float] = []
        self._measured_at, self._inverted_at, self._updates = -1, -1, 0
        self._factor_period = self._inverse_period = 1
        self._generator = options.generator or torch.Generator(space.device).manual_seed(0)

    @property
    def diagonal_names(self) -> tuple[str, ...]:
        """Names of the parameters in no block."""
        return () if self._plan is None else self._plan.diagonal

    @property
    def mean(self) -> float:
        """The mean eigenvalue of the curvature, by its blocks' traces."""
        total = 0.0 if self._diagonal is None else float(self._diagonal.sum())
        return (total + sum(state.trace() for state in self._blocks)) / self._space.numel

    def reach(self) -> Tensor:
        r"""Return for each parameter what damping is spread by where a batch has no noise, ``(P,)``.

        It is :math:`\tfrac1O \operatorname{tr} L \cdot \operatorname{tr} R` for a layer whose outputs have the
        curvature L and whose inputs the second moments R: the curvature that a weight would have if all inputs pointed
        its way. With a multiple of it as damping a step is paid for by what it may do to outputs of the layer for *any*
        input as long as those of the batch. A multiple of the identity hardly holds the last layer, whose curvature is
        20 times that of the first in a regressor of 50 hidden units: its weights then grow and cancel on the batch, and
        nowhere else.
        """
        assert self._plan is not None and self._diagonal is not None
        out = self._diagonal.new_empty(self._space.numel)
        for state, value in zip(self._blocks, self._spread, strict=True):
            for place in state.block.places:
                out[place] = value
        for place in self._plan.diagonal_places.values():
            out[self._plan.rest[place]] = self._floored(float(self._diagonal[place].mean()))
        return out

    @property
    def _spread(self) -> list[float]:
        """The reach of each block."""
        if not self._reaches:
            self._reaches = [self._floored(state.reach()) for state in self._blocks]
        return self._reaches

    def _floored(self, reach: float) -> float:
        return max(reach, _VANISHING * self.mean, torch.finfo(self._space.dtype).tiny)

    def measure(self, made: TrainingPass, count: int) -> Measured | None:
        """Return the curvature of a batch, if step ``count`` (from 0) is one of those that update it."""
        plan = self._planned(made)
        if not due(count, self._measured_at, self._factor_period):
            return None
        bases = [state.basis for state in self._blocks]
        return plan.measure(
            made,
            self._options.estimator,
            self._options.samples,
            self._generator,
            [basis for basis in bases if basis is not None],
        )

    def take(self, measured: Measured | None, count: int) -> None:
        """Take the curvature of a step's batches into the averages."""
        if measured is None:
            return
        # as much is forgotten a step, however seldom the averages are updated
        keep = min(1.0 - 1.0 / (self._updates + 1), self._options.decay ** max(1, count - self._measured_at))
        for i, (state, factors) in enumerate(zip(self._blocks, measured.factors, strict=True)):
            state.update(factors, measured.moments[i] if measured.moments else None, keep)
        if self._diagonal is None:
            self._diagonal = measured.diagonal
        else:
            self._diagonal.lerp_(measured.diagonal, 1.0 - keep)
        self._updates += 1
        self._measured_at = count
        self._reaches = []

    def shorten(self, lr: float) -> None:
        """Let the power be that for steps of this factor from the next inverses on.

        A step carries less noise along the less of it is taken, so that it can be closer to the natural gradient where
        a schedule ends. Linear schedules, with powers that stay at 0.7, that fall with ``lr`` itself to 1, and this
        one: 125, 250 and 500 steps on 10,000 digits end at 63.7, 59.3 and 56.9; -, 59.7 and 56.8; 63.4, 59.2 and 56.7;
        500 and 1000 on 1400 digits at 13.91 and 13.81, 13.87 and 13.78, 13.87 and 13.79 (measured).
        """
        self._wanted = 1.0 - (1.0 - self.exponent) * math.sqrt(min(lr, 1.0))

    def refresh(self, damped: Damped, count: int, share: float = 0.0) -> None:
        """Make inverses for a damping, if step ``count`` is one of those that do.

        Args:
            damped: What is added to the curvature of a parameter.
            count: The step, from 0.
            share: Of the parameters' reach, which is added, too.
        """
        again = due(count, self._inverted_at, self._inverse_period)
        if self._options.structure == "ekfac":  # eigenvectors of the same factors are the same, whatever the damping
            again = again and self._measured_at > self._inverted_at
        if again:
            self._power = self._wanted
        spread = self._spread if share else [0.0] * len(self._blocks)
        for state, reach in zip(self._blocks, spread, strict=True):
            state.refresh(damped(state.block.parameter) + share * reach, self._power, again)
        self._shift = self._diagonal_shift(damped, share)
        if again:
            self._inverted_at = count

    def solve(self, v: Tensor) -> Tensor:
        """Return the damped inverse, to the power that it was made for, times a vector ``(P,)``."""
        parts = [state.solve(state.block.take(v)) for state in self._blocks]
        return self._put_together(v, parts, self._shift, self._power)

    def apart(self, v: Tensor) -> list[Tensor]:
        """Return a vector ``(P,)`` with zeros outside the layer that makes the outputs, if it gets a length of its own.

        It does where there are other layers and the power is not that of the inverse, which alone weighs layers.
        """
        if self._plan is None or self._plan.at_output is None or len(self._blocks) == 1 or self.exponent == 1.0:
            return []
        out = torch.zeros_like(v)
        for place in self._plan.blocks[self._plan.at_output].places:
            out[place] = v[place]
        return [out]

    def output_jvp(self, made: TrainingPass, v: Tensor) -> Tensor:
        """Return the Jacobian of a pass times such a vector."""
        assert self._plan is not None
        return self._plan.output_jvp(made, v)

    def trials(self, v: Tensor, count: int, share: float = 0.0) -> Callable[[Damped], Tensor]:
        """Return the same at step ``count`` by damping, after what does not depend on it was done once.

        Args:
            v: The vector.
            count: The step, from 0.
            share: Of the parameters' reach, which is added to the damping.

        Returns:
            From dampings to the product.
        """
        if self._options.structure == "ekfac":
            self.refresh(lambda name: 0.0, count)
        power = self._wanted
        by_block = [state.trials(state.block.take(v), power) for state in self._blocks]

        spread = [share * reach for reach in self._spread] if share else [0.0] * len(self._blocks)

        def at(damped: Damped) -> Tensor:
            parts = [
                found(damped(state.block.parameter) + more)
                for found, state, more in zip(by_block, self._blocks, spread, strict=True)
            ]
            return self._put_together(v, parts, self._diagonal_shift(damped, share), power)

        return at

    def _put_together(self, v: Tensor, parts: Sequence[Tensor], shift: Tensor | None, power: float) -> Tensor:
        assert self._plan is not None and shift is not None
        out = torch.empty_like(v)
        for state, part in zip(self._blocks, parts, strict=True):
            state.block.put(out, part)
        if self._plan.diagonal:
            rest = self._plan.rest
            out[rest] = v[rest] / shift.pow(power)
        return out

    def report(self, vectors: int) -> LayerReport:
        """Return what is stored, with so many vectors of all parameters."""
        rows = [state.report() for state in self._blocks]
        itemsize = self._space.dtype.itemsize
        if self._plan is not None and self._plan.diagonal:
            n = len(self._plan.rest)
            rows.append((", ".join(self._plan.diagonal), n, "diagonal, sampled", 2 * n * itemsize))
        size = vectors * self._space.numel * itemsize
        rows.append(("previous step, averages of gradients and iterates", 0, f"{vectors} vectors", size))
        return LayerReport(tuple(rows))

    def state_dict(self) -> dict[str, Any]:
        """Return all averages and inverses, and where the generator is."""
        found: dict[str, Any] = {
            "measured_at": self._measured_at,
            "inverted_at": self._inverted_at,
            "updates": self._updates,
            "power": self._power,
            "diagonal": self._diagonal,
            "generator": self._generator.get_state(),
            "blocks": {state.block.owner: state.state() for state in self._blocks},
        }
        return self._saved or found

    def refuse_other(self, state: dict[str, Any]) -> None:
        """Raise ``InputError`` for a state that does not fit the blocks, where a batch has shown which there are."""
        if self._plan is not None:
            self._refuse_other(state, self._plan)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back; those of blocks when the first batch has shown which there are."""
        self.refuse_other(state)
        self._measured_at, self._inverted_at = state["measured_at"], state["inverted_at"]
        self._updates, self._power, self._diagonal = state["updates"], state["power"], state["diagonal"]
        self._generator.set_state(state["generator"].cpu())
        self._saved = state
        if self._plan is not None:
            self._put_back(self._plan)

    def _refuse_other(self, state: dict[str, Any], plan: FactorPlan) -> None:
        saved, diagonal = state["blocks"], state["diagonal"]
        if diagonal is not None and len(diagonal) != len(plan.rest):
            raise InputError(
                f"The saved state of the optimizer has a diagonal of {len(diagonal)} entries, and {len(plan.rest)} "
                "parameters have one here: it is of another network, or of other options. Make the optimizer anew."
            )
        for block in plan.blocks if saved else ():
            if block.owner not in saved:
                raise InputError(
                    f"The saved state of the optimizer has no factors of the layer with parameter "
                    f"'{block.owner}', but of {', '.join(map(repr, saved))}: it is of another network."
                )
            g, rows, columns = block.shape
            refuse_other_factors(block.owner, (g, rows, columns + (block.bias is not None)), saved[block.owner])

    def _put_back(self, plan: FactorPlan) -> None:
        """Make the blocks of a plan, with the saved averages if there are some."""
        if self._saved is not None:
            self._refuse_other(self._saved, plan)
        self._blocks = [self._state(block) for block in plan.blocks]
        saved = {} if self._saved is None else self._saved["blocks"]
        for state in self._blocks if saved else ():
            state.load(saved[state.block.owner])
        self._saved = None

    @property
    def _decomposed(self) -> bool:
        return self._options.structure == "ekfac" or self.exponent != 1.0

    def _state(self, block: KroneckerBlock) -> BlockState:
        if self._options.structure == "ekfac":
            return EigenState(block)
        return KroneckerState(block)

    def _planned(self, made: TrainingPass) -> FactorPlan:
        if self._plan is None:
            plan = FactorPlan(made, self._options.sharing)
            self._put_back(plan)
            self._plan = plan
            gradient, factors, inverses = plan.flops()
            inverses *= _EIGEN if self._decomposed else 1.0
            self._factor_period = _period(self._options.factor_period, factors, gradient)
            self._inverse_period = _period(self._options.inverse_period, inverses, gradient)
        return self._plan

    def _diagonal_shift(self, damped: Damped, share: float = 0.0) -> Tensor | None:
        """Return the damped diagonal, ``(R,)``, drawn towards its mean by tensor while few samples made it."""
        assert self._plan is not None and self._diagonal is not None
        seen = min(float(self._updates), 1.0 / (1.0 - self._options.decay)) * self._options.samples
        out = torch.empty_like(self._diagonal)
        for name, place in self._plan.diagonal_places.items():
            part = self._diagonal[place]
            out[place] = (seen * part + _PRIOR * part.mean()) / (seen + _PRIOR) + damped(name)
            if share:
                out[place] += share * self._floored(float(part.mean()))
        return out


def _period(given: int | None, flops: float, gradient: float) -> int:
    """Return the steps between what costs so many operations, where a gradient costs so many."""
    if given is not None:
        return given
    return max(1, math.ceil(flops / (_SHARE * gradient))) if gradient else 10


def due(count: int, last: int, period: int) -> bool:
    """Whether something is due at step ``count``: more often at the start, when everything changes."""
    return last < 0 or count - last >= min(period, 1 + max(count // _GROWTH, count * period // _SETTLING))
