"""The arguments of ``fit``: with a formula, the rows that are complete in every column the formulas read."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raphson._errors import InputError
from raphson.data import ColumnSums
from raphson.estimators.input._aligned import check_index, row_index
from raphson.estimators.input._arrays import plain_table, plain_values
from raphson.estimators.input._formulas import Formulas
from raphson.estimators.input._rows import Rows, make_rows
from raphson.estimators.input._tables import is_tables
from raphson.estimators.input._validate import check_length

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Given:
    """The arguments of ``fit``, of the rows that are complete where there are formulas.

    Attributes:
        x: The table, or tables by parameter.
        y: Targets.
        sample_weight: Weights, or None.
        offset: Offsets, or None.
        formulas: The formulas, learned, or None: then all arguments are as they were given.
        frame: With formulas the complete rows of the user's table.
        complete: Which of its rows are complete, bool ``(N,)``.
        index: Row labels of the user's table, or None.
    """

    x: Any
    y: Any
    sample_weight: Any
    offset: Any
    formulas: Formulas | None = None
    frame: pd.DataFrame | None = None
    complete: NDArray[np.bool_] | None = None
    index: Any = None

    @classmethod
    def of(cls, formula: Any, x: Any, y: Any, sample_weight: Any, offset: Any) -> Given:
        """Learn the formulas, if there are any, from the arguments of ``fit``, and leave out incomplete rows."""
        x, index = plain_rows(x)
        y, sample_weight, offset = beside(index, y=y, sample_weight=sample_weight, offset=offset)
        if formula is None:
            return cls(x, y, sample_weight, offset, index=index)
        formulas, positions = Formulas.learn(formula, x)
        frame, n = x, len(x)
        complete = np.ones(n, dtype=bool)
        if positions is not None:
            complete[:] = False
            complete[positions] = True
            y, sample_weight, offset = (
                _picked(name, value, positions, n)
                for name, value in (("y", y), ("sample_weight", sample_weight), ("offset", offset))
            )
            frame = frame.iloc[positions]
        # without copy-on-write (pandas 2) what the user does to the table later would show in margins
        frame = frame.copy()
        found = cls(None, None, sample_weight, offset, formulas, frame, complete, index)
        with found.naming_rows():
            return replace(found, x=formulas.tables(frame), y=formulas.response(frame, y))

    @property
    def is_censored(self) -> bool:
        """Whether a formula names times with events, ``Surv(time, event)``."""
        return self.formulas is not None and self.formulas.event is not None

    def naming_rows(self) -> AbstractContextManager[None]:
        """Let messages raised inside name rows as they were given, those with missing values counted."""
        return nullcontext() if self.complete is None else InputError.naming_rows(np.flatnonzero(self.complete))

    def rows(
        self, table: Any, y: Tensor, weights: Tensor | None, offset: Tensor | None, sums: ColumnSums | None
    ) -> Rows:
        """Return the rows of positive weight, checked; with formulas they know the table they were made from."""
        rows = make_rows(table, y, weights, offset, sums, self.index)
        if self.complete is None or self.frame is None:
            return rows
        kept = self.complete.copy()
        kept[self.complete] = rows.kept
        return replace(rows, kept=kept, frame=self.frame if rows.kept.all() else self.frame[rows.kept])


def plain_rows(x: Any) -> tuple[Any, Any]:
    """Return a table, or tables by parameter, as arrays and pandas frames, and its row labels, or None.

    Tables of two parameters with contradicting row labels are an ``InputError``, as is what is no table.
    """
    if not is_tables(x):
        return plain_table(x), row_index(x)  # tables of other libraries have no row labels
    tables = {parameter: plain_table(table) for parameter, table in x.items()}
    index, first = None, ""
    for parameter in tables:
        check_index(index, x[parameter], f"X['{parameter}']", f"X['{first}']")
        if index is None:
            index, first = row_index(x[parameter]), parameter
    return tables, index


def beside(index: Any, **values: Any) -> tuple[Any, ...]:
    """Return arguments that go with the rows of a table, by their names, as arrays and pandas objects.

    One that is no such thing, or has row labels that contradict those of the table, is an ``InputError``.
    """
    found = tuple(plain_values(name, value) for name, value in values.items())
    for name, value in values.items():
        check_index(index, value, name)
    return found


def _picked(name: str, value: Any, positions: NDArray[np.intp], n: int) -> Any:
    if value is None or np.ndim(value) == 0:
        return value
    check_length(name, len(value), n)
    if hasattr(value, "iloc"):
        return value.iloc[positions]
    return np.asarray(value)[positions]
