"""Formulas by parameter: each learned once from the table of the fit, and applied to new tables alike."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raphson._errors import InputError
from raphson.table import Design

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
    """

    designs: dict[str, Design]
    target: str | None

    @classmethod
    def learn(cls, given: Any, frame: Any) -> Formulas:
        """Learn the coding of all formulas from a table.

        Args:
            given: A formula, or a mapping from parameters to formulas; a left side names the target.
            frame: The table.

        Returns:
            The formulas.

        Raises:
            InputError: If a formula or column cannot be used, a value is missing, or two targets are named; the message
                says in which parameter's formula.
        """
        _require_table(frame)
        texts = {ALL: given} if isinstance(given, str) else given
        if not isinstance(texts, Mapping) or not texts or not all(isinstance(t, str) for t in texts.values()):
            raise InputError(
                "formula must be a text such as 'y ~ x1 + C(g)', or a dictionary from parameters to texts, such as "
                f"{{'mean': 'y ~ x1', 'log_scale': '~ x1'}}; got {given!r:.80}."
            )
        lefts = {parameter: text.split("~")[0].strip(" `") for parameter, text in texts.items() if "~" in text}
        named = {left: parameter for parameter, left in lefts.items() if left}
        if len(named) > 1:
            first, second = list(named)[:2]
            raise InputError(
                f"The formula of '{named[first]}' has the target '{first}', that of '{named[second]}' has '{second}'; "
                "all parameters belong to one target: name it once."
            )
        target = next(iter(named), None)
        designs = {}
        for parameter, text in texts.items():
            with _naming(parameter):
                right = text.strip().removeprefix("~")  # no left side: the target is named elsewhere
                designs[parameter] = Design.fit(frame, target, right, missing="error")
        return cls(designs, target)

    @property
    def without_intercept(self) -> tuple[str, ...]:
        """Parameters whose formula takes the intercept out."""
        return tuple(parameter for parameter, design in self.designs.items() if not design.fit_intercept)

    def tables(self, frame: Any) -> Any:
        """Return a frame of numbers, or one for each parameter, from a table coded as at the fit.

        Args:
            frame: A table with the columns that the formulas read.

        Returns:
            A frame for a single formula, else a dictionary of frames.
        """
        _require_table(frame)
        found = {}
        for parameter, design in self.designs.items():
            with _naming(parameter):
                found[parameter] = _numbers(design, frame)
        return found[ALL] if ALL in found else found

    def response(self, frame: Any, y: Any) -> Any:
        """Return the targets: ``y``, or the column that a formula names.

        Args:
            frame: The table.
            y: Targets, or None.

        Returns:
            ``y`` or the column.

        Raises:
            InputError: If there are both, or neither.
        """
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
        return {"target": self.target, "designs": {name: design.to_json() for name, design in self.designs.items()}}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Formulas:
        """Restore formulas from what ``to_json`` returned."""
        return cls({name: Design.from_json(design) for name, design in value["designs"].items()}, value["target"])


def _numbers(design: Design, frame: pd.DataFrame) -> Any:
    import pandas as pd

    matrix, names = design.matrix(frame)
    if not names:  # scikit-learn does not take a frame without columns
        return matrix
    return pd.DataFrame(matrix, columns=list(names), index=range(len(frame)))


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
        raise InputError(f"In the formula of '{parameter}': {error}") from None
