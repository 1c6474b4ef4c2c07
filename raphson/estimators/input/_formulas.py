"""Formulas by parameter: each learned once from the table of the fit, and applied in the same way to new tables."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raphson._errors import InputError
from raphson.table import Design, Variable, complete_rows, split_survival

if TYPE_CHECKING:
    import pandas as pd

ALL = ""
"""In place of a parameter's name: the formula that is given alone, whose columns act as they do without one."""


@dataclass(frozen=True)
class Formulas:
    """How a table of raw columns becomes the tables of the parameters.

    Attributes:
        designs: By parameter, or a single one for ``ALL``.
        target: Column of the target, or None if no formula names one.
        event: Column that says whether the event was seen, of ``Surv(time, event)``, or None.
        note: How many rows were left out for missing values; empty if none.
    """

    designs: dict[str, Design]
    target: str | None
    event: str | None = None
    note: str = ""

    @classmethod
    def learn(cls, given: Any, frame: Any) -> tuple[Formulas, NDArray[np.intp] | None]:
        """Learn the coding of all formulas from the rows of a table that are complete in the columns they read.

        Returns:
            The formulas, and the positions of the complete rows, None for all.

        Raises:
            InputError: If a formula or column cannot be used, or two targets are named; the message says in which
                parameter's formula.
        """
        _require_table(frame)
        texts = {ALL: given} if isinstance(given, str) else given
        if not isinstance(texts, Mapping) or not texts or not all(isinstance(t, str) for t in texts.values()):
            raise InputError(
                "formula must be a text such as 'y ~ x1 + C(g)', or a dictionary from parameters to texts, such as "
                f"{{'mean': 'y ~ x1', 'log_scale': '~ x1'}}; got {given!r:.80}."
            )
        sides = {}
        for parameter, text in texts.items():
            with _naming(parameter):
                # an empty left side: the target is named elsewhere
                sides[parameter] = split_survival(text)
        named = {(target, event): parameter for parameter, (target, event, _) in sides.items() if target is not None}
        if len(named) > 1:
            (first, _), (second, _) = list(named)[:2]
            one, other = list(named.values())[:2]
            raise InputError(
                f"The formula of '{one}' has the target '{first}', that of '{other}' has '{second}'; "
                "all parameters belong to one target: name it once."
            )
        target, event = next(iter(named), (None, None))
        rights = {parameter: right for parameter, (_, _, right) in sides.items()}
        designs = _learned(frame, target, event, rights)
        needed = dict.fromkeys(name for design in designs.values() for name in design.columns)
        complete, notes = complete_rows(frame, list(needed), "drop")
        if not notes:
            return cls(designs, target, event), None
        return cls(_learned(frame.iloc[complete], target, event, rights), target, event, f"{notes[0]}."), complete

    @property
    def without_intercept(self) -> tuple[str, ...]:
        """Parameters whose formula takes the intercept out."""
        return tuple(parameter for parameter, design in self.designs.items() if not design.fit_intercept)

    def tables(self, frame: Any) -> Any:
        """Return a table coded as at the fit: a frame of numbers, or a dictionary of one for each parameter."""
        _require_table(frame)
        found = {}
        for parameter, design in self.designs.items():
            with _naming(parameter):
                found[parameter] = _numbers(design, frame)
        return found[ALL] if ALL in found else found

    def offsets(self, frame: Any) -> dict[str, NDArray[Any]]:
        """Return what ``offset(...)`` in the formulas adds, ``(N,)`` by parameter that has one."""
        found = {}
        for parameter, design in self.designs.items():
            with _naming(parameter):
                added = design.offsets(frame)
            if added is not None:
                found[parameter] = added[:, 0]
        return found

    def variables(self, frame: Any) -> dict[str, Variable]:
        """Return the variables of all formulas by name, from complete rows; a factor in one of them is a factor."""
        found: dict[str, Variable] = {}
        for design in self.designs.values():
            for name, variable in design.variables(frame).items():
                known = found.get(name, variable)
                found[name] = Variable(name, known.levels or variable.levels, known.linear and variable.linear)
        return found

    @property
    def reads(self) -> set[str]:
        """Columns that the right sides read, offsets included."""
        return {name for design in self.designs.values() for name in design.reads}

    @property
    def offset_reads(self) -> set[str]:
        """Columns that ``offset(...)`` reads."""
        return {name for design in self.designs.values() for name in design.offset_columns}

    def response(self, frame: Any, y: Any) -> Any:
        """Return the targets: ``y``, or the column that a formula names; both or neither are an ``InputError``."""
        if self.event is not None and y is None:
            return next(iter(self.designs.values())).survival(frame)
        if y is not None and self.target is not None:
            raise InputError(f"The formula has the target '{self.target}' and y was passed too; give one of them.")
        if y is not None:
            return y
        if self.target is None:
            raise InputError("No formula names the target: write it on a left side ('y ~ x1'), or pass y.")
        if self.target not in frame.columns:
            raise InputError(f"The table has no column '{self.target}', which is the target of the formula.")
        return frame[self.target]

    def to_json(self) -> dict[str, Any]:
        """Return the formulas as a dictionary for ``json.dumps``."""
        return {
            "target": self.target,
            "event": self.event,
            "designs": {name: design.to_json() for name, design in self.designs.items()},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Formulas:
        """Restore formulas from what ``to_json`` returned."""
        return cls(
            {name: Design.from_json(design) for name, design in value["designs"].items()},
            value["target"],
            value["event"],
        )


def _learned(frame: Any, target: str | None, event: str | None, rights: Mapping[str, str]) -> dict[str, Design]:
    designs = {}
    for parameter, right in rights.items():
        with _naming(parameter):
            designs[parameter] = Design.fit(frame, target, right, event=event)
    return designs


def _numbers(design: Design, frame: pd.DataFrame) -> Any:
    import pandas as pd

    matrix, names = design.matrix(frame)
    if not names:  # scikit-learn does not take a frame without columns
        return matrix
    return pd.DataFrame(matrix, columns=list(names), index=range(len(frame)), copy=False)


def _require_table(frame: Any) -> None:
    if not hasattr(frame, "columns"):
        raise InputError(
            f"A formula needs a table with named columns, such as a pandas frame; X is a {type(frame).__name__}."
        )


@contextlib.contextmanager
def _naming(parameter: str) -> Generator[None]:
    """Put the parameter in front of what a message says."""
    try:
        yield
    except InputError as error:
        if parameter == ALL:
            raise
        raise InputError(f"In the formula of '{parameter}': {error}", row=error.row) from None
