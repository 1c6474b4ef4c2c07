r"""Blocks in the eigenbasis of their factors, with second moments of the gradients there (EKFAC).

With eigenvectors :math:`Q_L, Q_R` of the averaged factors the damped solve is exact in that basis:
:math:`Q_L [(Q_L^T V Q_R) / (s + \lambda)] Q_R^T`, where s is the running average of the squared per-example gradients
in it (George et al. 2018). With a new basis s starts from the eigenvalues of the Kronecker product. Other powers
of the damped inverse are as easy in that basis.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from raphson.network import Factors, KroneckerBlock
from raphson.optim._blocks import AveragedFactors, State, block_row, spectrum, times, transposed


class EigenState:
    """The averages of both factors, their eigenvectors, and second moments along pairs of these.

    Args:
        block: The block.
    """

    def __init__(self, block: KroneckerBlock) -> None:
        self.block = block
        self._average = AveragedFactors(block, "vectors")
        self._moments: Tensor | None = None
        self._damping, self._exponent = 0.0, 1.0

    @property
    def basis(self) -> Factors | None:
        """The eigenvectors; None before there are any."""
        return self._average.derived

    def trace(self) -> float:  # noqa: D102
        return self._average.trace()

    def reach(self) -> float:  # noqa: D102
        return self._average.reach()

    def update(self, factors: Factors, moments: Tensor | None, keep: float) -> None:  # noqa: D102
        self._average.update(factors, keep)
        if moments is not None and self._moments is not None:
            self._moments.lerp_(moments, 1.0 - keep)

    def refresh(self, damping: float, exponent: float, due: bool) -> None:  # noqa: D102
        self._damping, self._exponent = damping, exponent
        if not due and self._average.derived is not None:
            return
        (values_left, left), (values_right, right) = (spectrum(t) for t in self._average.now[:2])
        self._average.put(left, right)
        self._moments = values_left.unsqueeze(2) * values_right.unsqueeze(1)

    def solve(self, values: Tensor) -> Tensor:  # noqa: D102
        return self.trials(values, self._exponent)(self._damping)

    def trials(self, values: Tensor, exponent: float) -> Callable[[float], Tensor]:  # noqa: D102
        assert self._average.derived is not None and self._moments is not None
        (left, right, _), moments = self._average.derived, self._moments
        turned = times(values, transposed(left), right)
        return lambda damping: times(turned / (moments + damping).pow(exponent), left, transposed(right))

    def state(self) -> State:  # noqa: D102
        found = self._average.state()
        return found if self._moments is None else {**found, "moments": self._moments}

    def load(self, state: State) -> None:  # noqa: D102
        self._average.load(state)
        self._moments = state.get("moments")

    def report(self) -> tuple[str, int, str, int]:  # noqa: D102
        return block_row(self.block, self._average.factors, "Kronecker eigenbasis", self.state())
