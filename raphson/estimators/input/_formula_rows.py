"""The arguments of ``fit`` with a formula: the rows that are complete in every column the formulas read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raphson.estimators.input._formulas import Formulas
from raphson.estimators.input._rows import Rows
from raphson.estimators.input._validate import check_length

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FormulaRows:
    """What a formula makes of the arguments of ``fit``.

    Attributes:
        formulas: The formulas, learned.
        frame: The complete rows of the table.
        y: Their targets.
        sample_weight: Their weights, or None.
        offset: Their offsets, or None.
        complete: Which rows of the table given are complete, bool ``(N,)``.
    """

    formulas: Formulas
    frame: pd.DataFrame
    y: Any
    sample_weight: Any
    offset: Any
    complete: NDArray[np.bool_]

    @classmethod
    def learn(cls, formula: Any, frame: Any, y: Any, sample_weight: Any, offset: Any) -> FormulaRows:
        """Learn the formulas from the arguments of ``fit`` and leave out incomplete rows."""
        formulas, positions = Formulas.learn(formula, frame)
        complete = np.ones(len(frame), dtype=bool)
        if positions is not None:
            complete[:] = False
            complete[positions] = True
            n = len(frame)
            y, sample_weight, offset = (
                _picked(name, value, positions, n)
                for name, value in (("y", y), ("sample_weight", sample_weight), ("offset", offset))
            )
            frame = frame.iloc[positions]
        # without copy-on-write (pandas 2) what the user does to the table later would show in margins
        frame = frame.copy()
        return cls(formulas, frame, formulas.response(frame, y), sample_weight, offset, complete)

    def attach(self, rows: Rows) -> Rows:
        """Return rows that know the table they were made from, and all rows that were given."""
        kept = self.complete.copy()
        kept[self.complete] = rows.kept
        return replace(rows, kept=kept, frame=self.frame if rows.kept.all() else self.frame[rows.kept])


def _picked(name: str, value: Any, positions: NDArray[np.intp], n: int) -> Any:
    if value is None or np.ndim(value) == 0:
        return value
    check_length(name, len(value), n)
    if hasattr(value, "iloc"):
        return value.iloc[positions]
    return (value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value))[positions]
