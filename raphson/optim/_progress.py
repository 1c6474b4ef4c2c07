"""What a step of K-FAC leaves for the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from raphson.optim._kept_length import KeptLength


@dataclass
class Progress:
    """How far an optimizer has come.

    Attributes:
        count: Steps taken.
        previous: The last step, ``(P,)``; None before the first.
        gradient: The running average of the gradients, ``(P,)``.
        promised: The change of the loss that the last step's model promised; None where it is not compared.
        expected: The loss that every batch so far would have now if they are all the same one; None where they are not.
        loss: That of the last step's batch, before the step.
        same: Whether all batches are known to be the same one where the likelihood is concave.
        length: The lengths of steps.
    """

    count: int = 0
    previous: Tensor | None = None
    gradient: Tensor | None = None
    promised: float | None = None
    expected: float | None = None
    loss: Tensor | None = None
    same: bool = False
    length: KeptLength = field(default_factory=KeptLength)

    def state(self) -> dict[str, Any]:
        """Return what a state dictionary holds."""
        return {**vars(self), "length": dict(vars(self.length))}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take it back; what else the dictionary holds is left alone."""
        for name in vars(self):
            if name != "length":
                setattr(self, name, state[name])
        vars(self.length).update(state["length"])
