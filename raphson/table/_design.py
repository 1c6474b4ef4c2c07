"""From a table to the matrix of a model, and the same way again for new data."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raphson import _json
from raphson._errors import InputError
from raphson.table._columns import LARGEST_WHOLE, Category, Column, Number, learn_column, to_numbers
from raphson.table._expression import shown
from raphson.table._formula import FormulaCoding, learn_formula, variables
from raphson.table._terms import expand_dot, split_formula

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


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
    """

    x: np.ndarray
    names: tuple[str, ...]
    y: np.ndarray | None
    weights: np.ndarray | None
    offset: np.ndarray | None
    groups: np.ndarray | None
    rows: np.ndarray


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
    """

    coding: tuple[Column, ...] | FormulaCoding
    target: str | None = None
    weights: str | None = None
    offset: tuple[str, ...] = ()
    groups: str | None = None
    notes: tuple[str, ...] = ()

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
            drop: Columns not to use.
            missing: ``"drop"`` leaves out rows with missing values and counts them in the notes; ``"error"``
                refuses them.

        Returns:
            The design.

        Raises:
            InputError: If a column does not exist or cannot be used, or no complete row or no column is left.
        """
        frame, names = _numbered(frame)
        right = None
        if formula is not None:
            left, right = split_formula(formula)
            if left is not None and target is not None and left != target:
                raise InputError(f"the formula has target '{left}' and target= says '{target}'; give one of them.")
            target = left if left is not None else target
        offsets = (offset,) if isinstance(offset, str) else tuple(offset)
        roles = [role for role in (target, weights, *offsets, groups) if role is not None]
        for name in [*drop, *roles]:
            _require(name, names)
        others = [name for name in names if name not in (*roles, *drop)]
        if right is None:
            used = others
            if not used:
                raise InputError("no column is left to predict from; the table needs one besides the target.")
        else:
            right = expand_dot(right, others)
            used = variables(right)
            for name in used:
                _require(name, names)
            if target in used:
                raise InputError(f"the target '{target}' is also on the right side of the formula.")
        needed = list(dict.fromkeys([*used, *roles]))
        rows, notes = _complete_rows(frame, needed, missing)
        coding: tuple[Column, ...] | FormulaCoding
        if right is None:
            learned = [learn_column(frame[name].iloc[rows], name) for name in used]
            coding, sentences = tuple(column for column, _ in learned), [note for _, note in learned if note]
        else:
            coding, sentences = learn_formula(right, frame.iloc[rows])
        return cls(coding, target, weights, offsets, groups, (*sentences, *notes))

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

    def matrix(self, frame: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the matrix of new data; a missing value or a level that the fit did not see is an error.

        Args:
            frame: A table with the columns in ``inputs``; others are ignored.

        Returns:
            The float64 array ``(N, D)`` and the names of its columns.
        """
        frame, names = _numbered(frame)
        for name in self.inputs:
            _require(name, names)
        _refuse_missing(frame, self.inputs)
        return self._encode(frame), self.names

    def offsets(self, frame: pd.DataFrame) -> np.ndarray | None:
        """Return the offset columns of new data.

        Args:
            frame: A table with those columns.

        Returns:
            The float64 array ``(N, M)``, or None if the model has no offset.
        """
        if not self.offset:
            return None
        frame, names = _numbered(frame)
        for name in self.offset:
            _require(name, names)
        _refuse_missing(frame, self.offset)
        return np.column_stack([to_numbers(frame[name], name) for name in self.offset])

    def _encode(self, complete: pd.DataFrame) -> np.ndarray:
        if isinstance(self.coding, FormulaCoding):
            return self.coding.encode(complete)
        return np.concatenate([column.encode(complete[column.name]) for column in self.coding], axis=1)

    def training(self, frame: pd.DataFrame) -> TrainingData:
        """Return the arrays for a fit, from the rows that are complete.

        Args:
            frame: The table that the design was learned from, or one with the same columns.

        Returns:
            The arrays.
        """
        roles = [role for role in (self.target, self.weights, *self.offset, self.groups) if role is not None]
        needed = list(dict.fromkeys([*self.inputs, *roles]))
        frame, names = _numbered(frame)
        for name in needed:
            _require(name, names)
        rows, _ = _complete_rows(frame, needed, "drop")
        complete = frame if len(rows) == len(frame) else frame.iloc[rows]
        x = self._encode(complete)
        weights = None if self.weights is None else _weights(frame[self.weights], self.weights)[rows]
        offset = self.offsets(complete)
        y = None if self.target is None else _plain(complete[self.target])
        groups = None if self.groups is None else _plain(complete[self.groups])
        return TrainingData(x, self.names, y, weights, offset, groups, rows)

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
        return cls(coding, value["target"], value["weights"], offset, value["groups"], notes)


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
    "notes": _TEXTS,
})


def _numbered(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with rows numbered from 1, as messages count them, and its column names."""
    names = list(frame.columns)
    odd = next((name for name in names if not isinstance(name, str)), None)
    if odd is not None:
        raise InputError(f"the column name {odd!r} is not text; name the columns of the table by text.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the column name '{twice}' occurs more than once; rename one of them.")
    return frame.set_axis(range(1, len(frame) + 1), axis=0), names


def _require(name: str, names: Sequence[str]) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1) or [
        other for other in names if other.casefold() == name.casefold()
    ]
    known = ", ".join(f"'{other}'" for other in names[:12]) + (", ..." if len(names) > 12 else "")
    hint = f"did you mean '{near[0]}'?" if near else f"the columns are {known}."
    raise InputError(f"there is no column '{shown(name)}'; {hint}")


def _refuse_missing(frame: pd.DataFrame, needed: Sequence[str]) -> None:
    for name in needed:
        absent = frame[name].isna().to_numpy()
        if absent.any():
            raise InputError(
                f"column '{name}', data row {int(absent.argmax()) + 1}: the value is missing "
                f"({int(absent.sum())} such in all); fill it in or leave the row out."
            )


def _complete_rows(frame: pd.DataFrame, needed: list[str], missing: str) -> tuple[np.ndarray, list[str]]:
    """Return positions of the rows without a missing value in ``needed``, and a note if there are others."""
    if missing not in ("drop", "error"):
        raise InputError(f"missing must be 'drop' or 'error', not '{missing}'.")
    absent = frame[needed].isna().to_numpy()
    incomplete = absent.any(axis=1)
    if not incomplete.any():
        return np.arange(len(frame)), []
    counts = {name: int(count) for name, count in zip(needed, absent.sum(axis=0), strict=True) if count}
    per_column = ", ".join(f"{name} {count}" for name, count in counts.items())
    if missing == "error":
        row = int(incomplete.argmax())
        column = needed[int(absent[row].argmax())]
        raise InputError(
            f"column '{column}', data row {row + 1}: the value is missing (rows with missing values: "
            f"{int(incomplete.sum())}; {per_column}); fill in the values or let the rows be dropped."
        )
    if incomplete.all():
        raise InputError(f"every row has a missing value ({per_column}); drop the columns that are mostly missing.")
    note = f"{int(incomplete.sum())} of {len(frame)} rows left out for missing values ({per_column})"
    return np.flatnonzero(~incomplete), [note]


def _weights(series: pd.Series[Any], name: str) -> np.ndarray:
    values = to_numbers(series, name)
    if (values < 0).any():
        row = int((values < 0).argmax())
        raise InputError(f"column '{name}', data row {series.index[row]}: the weight {values[row]:g} is negative.")
    if not (values > 0).any():
        raise InputError(f"column '{name}': no weight is positive.")
    return values


def _plain(series: pd.Series[Any]) -> np.ndarray:
    """Return a complete column as an array; whole numbers that became floats are integers again, if they are exact."""
    values = np.asarray(series.to_numpy())
    if values.dtype.kind == "f" and (np.abs(values) <= LARGEST_WHOLE).all() and (values == np.round(values)).all():
        return values.astype(np.int64)
    return values
