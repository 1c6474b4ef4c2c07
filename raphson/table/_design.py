"""From a table to the matrix of a model, and the same way again for new data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raphson import _json
from raphson._errors import InputError
from raphson.table._columns import Category, Column, Number, learn_column, refuse_dates, to_numbers
from raphson.table._expression import quote
from raphson.table._formula import FormulaCoding, learn_formula, variables
from raphson.table._offsets import offset_values, read_offset, split_offsets
from raphson.table._rows import (
    at_rows,
    complete,
    complete_rows,
    event_numbers,
    numbered,
    plain,
    require,
    weight_numbers,
)
from raphson.table._terms import expand_dot, split_survival
from raphson.table._variables import Variable, find_variables

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

_WRITTEN_ROWS = 4096
"""Rows of the matrix that are written at a time: it is filled by columns, and these stay in the cache."""


@dataclass(frozen=True)
class TrainingData:
    """Arrays for a fit: the rows of the table that are complete in every column used.

    Attributes:
        x: Matrix ``(N, D)``, float64, without the intercept.
        names: Its ``D`` column names.
        y: Target ``(N,)``, or None.
        weights: Weights ``(N,)``, or None.
        offset: Offsets ``(N, M)``, one column each, or None.
        groups: Groups ``(N,)`` for clustered standard errors, or None.
        rows: Positions ``(N,)`` in the table of the rows that are used.
        event: Whether the event was seen ``(N,)``, 1 or 0, or None.
    """

    x: np.ndarray
    names: tuple[str, ...]
    y: np.ndarray | None
    weights: np.ndarray | None
    offset: np.ndarray | None
    groups: np.ndarray | None
    rows: np.ndarray
    event: np.ndarray | None = None


@dataclass(frozen=True)
class Design:
    """How the columns of a table become the matrix of a model; made by ``Design.fit``, saved with the model.

    Without a formula every column but the target, weights, offset and groups is used: numbers as they are;
    text, categories and truth values by treatment coding against their first level. With a formula, the
    columns are those of its right side.

    Attributes:
        coding: One entry a column, or the coding of a formula.
        target: Column of the target, or None.
        weights: Column of the weights, or None.
        offset: Columns of the offset, none or one per output.
        groups: Column of the groups, or None.
        notes: What a reader must know: how columns are coded, which rows are left out.
        offset_terms: Expressions that are added to a single offset, ``log(t)`` of ``offset(log(t))``.
        event: Column that says whether the event was seen, beside a target that is a time; or None.
    """

    coding: tuple[Column, ...] | FormulaCoding
    target: str | None = None
    weights: str | None = None
    offset: tuple[str, ...] = ()
    groups: str | None = None
    notes: tuple[str, ...] = ()
    offset_terms: tuple[str, ...] = ()
    event: str | None = None

    @classmethod
    def fit(
        cls,
        frame: pd.DataFrame,
        target: str | None = None,
        formula: str | None = None,
        *,
        weights: str | None = None,
        offset: str | Sequence[str] = (),
        groups: str | None = None,
        exposure: str | None = None,
        event: str | None = None,
        drop: Sequence[str] = (),
        missing: str = "drop",
    ) -> Design:
        """Learn the coding from a table.

        Args:
            frame: The table.
            target: Column of the target; with a formula it may be left out, the left side names it.
            formula: A formula such as ``party ~ age + C(educ)``; ``.`` stands for all other columns.
            weights: Column of the weights.
            offset: Column of the offset, or one column per output.
            groups: Column of the groups.
            exposure: Column of the exposure, whose logarithm is an offset.
            event: Column that says whether the event was seen, for times; ``Surv(time, event) ~`` names it too.
            drop: Columns not to use.
            missing: ``"drop"`` leaves out rows with missing values and counts them in the notes; ``"error"``
                refuses them.

        Returns:
            The design.

        Raises:
            InputError: If a column does not exist or cannot be used, or no complete row or no column is left.
        """
        frame, names = numbered(frame)
        right, terms = None, tuple[str, ...]()
        if formula is not None:
            left, named_event, right = split_survival(formula)
            right, terms = split_offsets(right)
            event = named_event or event
            if left is not None and target is not None and left != target:
                raise InputError(f"the formula has target '{left}' and target= says '{target}'; give one of them.")
            target = left if left is not None else target
        offsets = (offset,) if isinstance(offset, str) else tuple(offset)
        terms = (*terms, f"log({quote(exposure)})") if exposure is not None else terms
        if terms and len(offsets) > 1:
            raise InputError(
                "an exposure or offset(...) does not go with several columns of offsets; give one of them."
            )
        roles = [role for role in (target, weights, *offsets, groups, exposure, event) if role is not None]
        for name in [*drop, *roles]:
            require(name, names)
        _refuse_two_roles(target, {"weights": weights, "groups": groups, "exposure": exposure, "event": event}, offsets)
        for name in (name for name in roles if name in drop):
            raise InputError(f"column '{name}' is to be dropped and to be used; leave out one of the two.")
        if target is not None:
            refuse_dates(frame[target], target, "target")
        others = [name for name in names if name not in (*roles, *drop)]
        if right is None:
            used = others
            if not used:
                raise InputError("no column is left to predict from; the table needs one besides the target.")
        else:
            right = expand_dot(right, others)
            used = variables(right)
            for name in (name for name in used if name in drop):
                raise InputError(
                    f"column '{name}' is to be dropped and stands in the formula; leave out one of the two."
                )
            for name in used:
                require(name, names)
            if target in used:
                raise InputError(f"the target '{target}' is also on the right side of the formula.")
        inside = [name for text in terms for name in read_offset(text).columns]
        for name in inside:
            require(name, names)
        needed = list(dict.fromkeys([*used, *roles, *inside]))
        rows, notes = complete_rows(frame, needed, missing)
        coding: tuple[Column, ...] | FormulaCoding
        if right is None:
            learned = [learn_column(at_rows(frame[name], rows), name) for name in used]
            coding, sentences = tuple(column for column, _ in learned), [note for _, note in learned if note]
        else:
            coding, sentences = learn_formula(right, at_rows(frame, rows))
        return cls(coding, target, weights, offsets, groups, (*sentences, *notes), terms, event)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the matrix columns."""
        if isinstance(self.coding, FormulaCoding):
            return self.coding.labels
        return tuple(label for column in self.coding for label in column.labels)

    @property
    def fit_intercept(self) -> bool:
        """Whether the model has an intercept: always, unless a formula takes it out."""
        return self.coding.intercept if isinstance(self.coding, FormulaCoding) else True

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns of a table that the matrix is made from."""
        if isinstance(self.coding, FormulaCoding):
            return tuple(self.coding.variables)
        return tuple(column.name for column in self.coding)

    def variables(self, frame: pd.DataFrame) -> dict[str, Variable]:
        """Return what each column in ``inputs`` is: a number, or a factor with levels.

        Args:
            frame: The complete rows that the design was learned from.

        Returns:
            The variables by name.
        """
        return find_variables(self.coding, frame)

    def matrix(self, frame: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the matrix of new data; a missing value or a level that the fit did not see is an error.

        Args:
            frame: A table with the columns in ``inputs``; others are ignored.

        Returns:
            The float64 array ``(N, D)`` and the names of its columns.
        """
        return self._encode(complete(frame, self.inputs)), self.names

    def offsets(self, frame: pd.DataFrame) -> np.ndarray | None:
        """Return the offset columns of new data.

        Args:
            frame: A table with those columns.

        Returns:
            The float64 array ``(N, M)``, or None if the model has no offset.
        """
        if not self.offset and not self.offset_terms:
            return None
        frame = complete(frame, self.offset_columns)
        found = [to_numbers(frame[name], name) for name in self.offset]
        added = [offset_values(text, frame) for text in self.offset_terms]
        return np.column_stack([np.sum([*found, *added], axis=0)] if added else found)

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that the matrix and the offset are made from."""
        return tuple(dict.fromkeys([*self.inputs, *self.offset_columns]))

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of the table that a fit needs."""
        roles = (self.target, self.weights, self.groups, self.event)
        return tuple(dict.fromkeys([*self.reads, *(role for role in roles if role is not None)]))

    def survival(self, frame: pd.DataFrame) -> np.ndarray:
        """Return times and events.

        Args:
            frame: A table with the columns of the target and the event.

        Returns:
            ``(N, 2)``, the time and 1 for an event or 0 for a censored time.
        """
        assert self.target is not None and self.event is not None
        frame = complete(frame, (self.target, self.event))
        return np.column_stack([
            to_numbers(frame[self.target], self.target),
            event_numbers(frame[self.event], self.event),
        ])

    @property
    def offset_columns(self) -> list[str]:
        """Columns that the offset is made from."""
        inside = [name for text in self.offset_terms for name in read_offset(text).columns]
        return list(dict.fromkeys([*self.offset, *inside]))

    def _encode(self, frame: pd.DataFrame) -> np.ndarray:
        if isinstance(self.coding, FormulaCoding):
            return self.coding.encode(frame)
        widths = [len(column.labels) for column in self.coding]
        places = [slice(end - width, end) for width, end in zip(widths, np.cumsum(widths), strict=True)]
        held = [column.read(frame[column.name]) for column in self.coding]
        matrix = np.empty((len(frame), sum(widths)))
        for start in range(0, len(frame), _WRITTEN_ROWS):
            rows = slice(start, start + _WRITTEN_ROWS)
            for column, place, values in zip(self.coding, places, held, strict=True):
                column.write(values[rows], matrix[rows, place])
        return matrix

    def training(self, frame: pd.DataFrame) -> TrainingData:
        """Return the arrays for a fit, from the rows that are complete.

        Args:
            frame: The table that the design was learned from, or one with the same columns.

        Returns:
            The arrays.
        """
        needed = list(self.columns)
        frame, names = numbered(frame)
        for name in needed:
            require(name, names)
        rows, _ = complete_rows(frame, needed, "drop")
        used = at_rows(frame, rows)
        x = self._encode(used)
        weights = None if self.weights is None else weight_numbers(frame[self.weights], self.weights)[rows]
        offset = self.offsets(used)
        y = None if self.target is None else plain(used[self.target])
        groups = None if self.groups is None else plain(used[self.groups])
        event = None if self.event is None else event_numbers(used[self.event], self.event)
        return TrainingData(x, self.names, y, weights, offset, groups, rows, event)

    def to_json(self) -> dict[str, Any]:
        """Return the design as a dictionary for ``json.dumps``.

        Returns:
            The dictionary; ``from_json`` restores the design from it.
        """
        if isinstance(self.coding, FormulaCoding):
            coding: Any = {
                "kind": "formula",
                **_json.encode(asdict(self.coding), f"formula '{self.coding.formula}'"),
            }
        else:
            coding = [
                {"kind": "category", "name": column.name, "levels": list(column.levels)}
                if isinstance(column, Category)
                else {"kind": "number", "name": column.name}
                for column in self.coding
            ]
        roles = {
            "target": self.target,
            "weights": self.weights,
            "offset": list(self.offset),
            "groups": self.groups,
            "event": self.event,
            "offset_terms": list(self.offset_terms),
        }
        return {"coding": coding, **roles, "notes": list(self.notes)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Design:
        """Restore a design.

        Args:
            value: What ``to_json`` returned.

        Returns:
            The design.

        Raises:
            InputError: If the dictionary does not describe a design.
        """
        try:
            return cls._restored(value)
        except InputError as error:
            raise InputError(f"the design of the model cannot be read: {error}") from None

    @classmethod
    def _restored(cls, value: dict[str, Any]) -> Design:
        _DESIGN(value, "design")
        coding: tuple[Column, ...] | FormulaCoding
        if isinstance(value["coding"], dict):
            fields = _json.decode({key: item for key, item in value["coding"].items() if key != "kind"})
            _FORMULA(fields, "design.coding")
            coding = FormulaCoding(**fields)
            if set(variables(coding.formula)) != set(coding.variables):
                raise InputError("the formula of the model reads other columns than it says; the file was changed.")
        else:
            if not value["coding"]:
                _json.refuse("design.coding", "one or more columns", [])
            coding = tuple(
                Category(item["name"], tuple(item["levels"])) if "levels" in item else Number(item["name"])
                for item in value["coding"]
            )
        offset, notes = tuple(value["offset"]), tuple(value["notes"])
        terms = tuple(value["offset_terms"])
        for text in terms:
            read_offset(text)
        return cls(coding, value["target"], value["weights"], offset, value["groups"], notes, terms, value["event"])


def _refuse_two_roles(target: str | None, roles: dict[str, str | None], offsets: Sequence[str]) -> None:
    """Raise ``InputError`` where the target is given another role: it would explain or weigh itself."""
    for role, name in [*roles.items(), *(("offset", name) for name in offsets)]:
        if target is not None and name == target:
            raise InputError(f"column '{name}' is the target and given as {role}; one column has one role.")


_TEXTS = _json.list_of(_json.TEXT)
_LEVEL = _json.instance("a text, a number or a truth value", str, float, bool)
_LEARNED = _json.either(
    _json.instance("a number, or numbers", float, bool, type(None), np.ndarray),
    _json.list_of(_json.NUMBER, (list, tuple)),
    _json.map_of(_json.NUMBER, _json.WHOLE),
)
_FORMULA = _json.record({
    "formula": _json.TEXT,
    "labels": _json.list_of(_json.TEXT, (tuple,)),
    "intercept": _json.FLAG,
    "levels": _json.map_of(_json.maybe(_json.list_of(_LEVEL))),
    "state": _json.map_of(_json.map_of(_LEARNED)),
    "variables": _json.map_of(_json.FLAG),
})
_COLUMN = _json.either(
    _json.record({"kind": _json.one_of("number"), "name": _json.TEXT}),
    _json.record({"kind": _json.one_of("category"), "name": _json.TEXT, "levels": _TEXTS}),
)
_DESIGN = _json.record({
    "coding": _json.either(_json.instance("columns or a formula", dict), _json.list_of(_COLUMN)),
    "target": _json.maybe(_json.TEXT),
    "weights": _json.maybe(_json.TEXT),
    "offset": _TEXTS,
    "groups": _json.maybe(_json.TEXT),
    "event": _json.maybe(_json.TEXT),
    "offset_terms": _TEXTS,
    "notes": _TEXTS,
})
