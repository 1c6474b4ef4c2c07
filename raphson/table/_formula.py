"""Model formulas (``party ~ age + C(educ)``), coded through formulaic and restorable from JSON.

A formula may come from a file, and a saved model must not be able to run any code when it is loaded. Terms and
expressions are read and computed in raphson (``_terms``, ``_expression``, ``_evaluate``); formulaic is given finished
columns, and codes and multiplies them.
"""

from __future__ import annotations

import re
import warnings
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raphson._errors import InputError
from raphson.table._columns import (
    Number,
    learn_column,
    level_text,
    nearly_equal,
    refuse_inexact,
    refuse_level,
    refuse_same_text,
    to_numbers,
)
from raphson.table._evaluate import evaluate
from raphson.table._expression import Expression, shown
from raphson.table._terms import INTERCEPT, Terms, read_terms

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FormulaCoding:
    """The right side of a formula with everything learned from the data.

    Attributes:
        formula: The right side, as text.
        labels: Names of the matrix columns, without the intercept.
        intercept: Whether the formula has an intercept (``0 +`` or ``- 1`` takes it out).
        levels: Levels of each categorical factor, by its expression; None for a numeric factor.
        state: What stateful transforms (``center``, ``poly``, splines) learned, by expression.
        variables: Columns of the table that the formula reads; True where a bare name is used as a number.
    """

    formula: str
    labels: tuple[str, ...]
    intercept: bool
    levels: dict[str, list[Any] | None]
    state: dict[str, Any]
    variables: dict[str, bool]

    def encode(self, frame: pd.DataFrame) -> np.ndarray:
        """Return the ``(N, D)`` matrix, without intercept, of a table without missing values in the columns it reads.

        Raises:
            InputError: If a level was not seen in the fit, or a value cannot be computed.
        """
        terms = read_terms(self.formula)
        for name, factor in terms.factors.items():
            column = factor.category if isinstance(factor, Expression) else factor
            levels = self.levels.get(name)
            if not isinstance(column, str):
                continue
            if levels is not None:
                frame = _at_levels(frame, column, levels)
            elif not self.variables[column] and _plain(frame[column]).dtype.kind not in "biuf":
                to_numbers(frame[column], column)  # truth values at the fit: names the first cell that is none
        columns, state = _numeric(frame, self.variables), deepcopy(self.state)
        matrix, labels, _ = _materialize(self.formula, terms, columns, self.levels, state)
        if labels != self.labels:
            raise InputError(
                f"the formula '{shown(self.formula)}' gives other columns on these data than when it was fitted."
            )
        return matrix


def _at_levels(frame: pd.DataFrame, column: str, levels: list[Any]) -> pd.DataFrame:
    """Return a table with a column of the levels of a fit, which are told by their texts; another one is refused.

    A file without a level that made them texts has numbers there; truth values and the numbers 0 and 1, which Python
    takes for the same, are not.
    """
    import pandas as pd

    codes, unique = pd.factorize(frame[column].astype(object))
    by_text = {level_text(level): level for level in levels}
    known = [by_text.get(level_text(value)) for value in unique]
    for place, level in enumerate(known):
        if level is None:
            refuse_level(frame[column], int((codes == place).argmax()), column, levels)
    if all(isinstance(level, str) == isinstance(value, str) for level, value in zip(known, unique, strict=True)):
        return frame
    values = np.empty(len(known), dtype=object)
    values[:] = known
    return frame.assign(**{column: pd.Series(values[codes], index=frame.index).infer_objects()})


def variables(right: str) -> list[str]:
    """Return the columns that the right side of a formula reads, in order of appearance, after checking it."""
    return list(read_terms(right).columns)


def learn_formula(right: str, frame: pd.DataFrame) -> tuple[FormulaCoding, list[str]]:
    """Return the coding of a formula, learned from complete rows, and a sentence for each categorical factor."""
    notes: list[str] = []
    terms = read_terms(right)
    uses: dict[str, bool] = {name: False for name in terms.columns}
    for name in terms.factors.values():
        if isinstance(name, str):
            column, note = learn_column(frame[name], name)
            uses[name] = isinstance(column, Number)
            if note and uses[name]:
                notes.append(note)
        elif isinstance(name, Expression) and name.category is not None:
            refuse_inexact(frame[name.category], name.category)
    state: dict[str, Any] = {}
    columns = _numeric(frame, uses)
    _, labels, learned = _materialize(right, terms, _telling(right, terms, columns, state), {}, state)
    levels = {
        name: list(found["categories"]) if "categories" in found else None
        for name, (_, found) in learned.encoder_state.items()
        if not isinstance(terms.factors[name], float)
    }
    for name, found in levels.items():
        refuse_same_text(name, found or ())
    notes += [_level_note(name, learned, found) for name, found in levels.items() if found is not None]
    return FormulaCoding(right, labels, INTERCEPT in terms.terms, levels, state, uses), notes


def _level_note(expression: str, spec: Any, levels: list[Any]) -> str:
    contrasts = spec.encoder_state[expression][1]["contrasts"].contrasts
    if not any(label.startswith(f"{expression}[T.") for label in spec.column_names):
        return f"{expression}: {len(levels)} levels"
    base = contrasts.base if contrasts.base in levels else levels[0]
    return f"{expression}: {len(levels)} levels, coded against '{base}'{nearly_equal(levels)}"


def _said(error: Exception) -> str:
    """Return the first line of a parser's error, without its colors, place and period."""
    text = re.sub(r"\x1b\[[0-9;]*m|[⧛⧚]| \(<unknown>, line \d+\)", "", str(error))
    return text.split("\n")[0].rstrip(".")


def _numeric(frame: pd.DataFrame, uses: dict[str, bool]) -> pd.DataFrame:
    """Return the columns a formula reads: numbers checked, categories without unused levels."""
    import pandas as pd

    columns = {}
    for name, number in uses.items():
        column = frame[name]
        if number or (pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)):
            checked = to_numbers(column, name)
            # Integer levels of C(n) keep their type, so that they read "2" and not "2.0".
            columns[name] = pd.Series(checked, index=frame.index) if number else _plain(column)
        elif isinstance(column.dtype, pd.CategoricalDtype):
            columns[name] = column.cat.remove_unused_categories()
        else:
            columns[name] = _plain(column)
    return pd.DataFrame(columns, index=frame.index)


def _plain(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a complete column of one of pandas' own types (Int64, string, boolean, Arrow's) as one of NumPy's."""
    import pandas as pd

    if isinstance(column.dtype, np.dtype):
        return column.infer_objects()
    kind = getattr(column.dtype, "kind", "O")
    dtype = {"i": np.int64, "u": np.uint64, "f": np.float64, "b": np.bool_}.get(kind, object)
    return pd.Series(column.to_numpy(dtype=dtype), index=column.index)


def _telling(right: str, terms: Terms, frame: pd.DataFrame, state: dict[str, Any]) -> pd.DataFrame:
    """Return the rows that tell the columns of the matrix, the first one of each level; ``state`` is filled.

    The matrix of all rows is made once, for the fit. Where a number is not finite all rows are returned: their matrix
    names the one.
    """
    import pandas as pd
    from formulaic.parser.types import Factor

    first = [np.zeros(1, dtype=np.intp)]
    for value in _values(right, terms, frame, state).values():
        kind = getattr(getattr(value, "__formulaic_metadata__", None), "kind", None)
        plain = getattr(value, "__wrapped__", value)
        if kind is not Factor.Kind.CATEGORICAL and (isinstance(plain, dict) or plain.dtype.kind in "iuf"):
            columns = plain.values() if isinstance(plain, dict) else [plain]
            if not all(np.isfinite(column).all() for column in columns):
                return frame
        else:
            first.append(np.flatnonzero(~pd.Series(plain).duplicated().to_numpy()))
    return frame.iloc[np.unique(np.concatenate(first))]


def _values(right: str, terms: Terms, frame: pd.DataFrame, state: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the factors, by name; ``state`` is filled where empty."""
    try:
        # The result of a logarithm of zero is named by row, rather than warned about.
        with np.errstate(all="ignore"):
            return {
                name: frame[factor] if isinstance(factor, str) else evaluate(factor, frame, state)
                for name, factor in terms.factors.items()
                if not isinstance(factor, float)
            }
    except InputError:
        raise
    except Exception as error:  # whatever a function of formulaic, pandas or NumPy says to these data
        raise _not_computed(right, error) from None


def _not_computed(right: str, error: Exception) -> InputError:
    return InputError(f"formula '{shown(right)}' cannot be computed on these data ({_said(error)}).")


def _materialize(
    right: str, terms: Terms, frame: pd.DataFrame, levels: dict[str, list[Any] | None], state: dict[str, Any]
) -> tuple[np.ndarray, tuple[str, ...], Any]:
    """Return the matrix without the intercept, its labels, and what was learned; ``state`` is filled where empty."""
    import pandas as pd
    from formulaic import Formula, ModelSpec
    from formulaic.errors import DataMismatchWarning
    from formulaic.parser.types import Factor
    from formulaic.parser.types import Term as FormulaicTerm

    encoder = {
        name: (Factor.Kind.NUMERICAL, {}) if known is None else (Factor.Kind.CATEGORICAL, {"categories": list(known)})
        for name, known in levels.items()
    }
    # formulaic looks finished columns up by their name; it is given no text to evaluate
    factors = {
        name: Factor(name, eval_method="literal" if isinstance(factor, float) else "lookup")
        for name, factor in {INTERCEPT[0]: 1.0, **terms.factors}.items()
    }
    formula = Formula([FormulaicTerm([factors[name] for name in term]) for term in terms.terms])
    spec = ModelSpec(formula=formula, output="numpy", na_action="ignore", encoder_state=encoder)
    values = _values(right, terms, frame, state)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error", DataMismatchWarning)
            result = spec.get_model_matrix(pd.DataFrame(index=frame.index), context=values)
            matrix = np.asarray(result, dtype=np.float64)
    except Exception as error:
        raise _not_computed(right, error) from None
    learned = result.model_spec
    first = int(INTERCEPT in terms.terms)  # terms without factors come first
    matrix, labels = matrix[:, first:], _scaled_labels(learned, terms)[first:]
    bad = ~np.isfinite(matrix)
    if bad.any():
        at, position = np.argwhere(bad)[0]
        row = int(frame.index[at])
        raise InputError(
            f"'{labels[position]}', row {row}: the value is {matrix[at, position]}; a logarithm, root or division is "
            "outside its domain there, or a number overflows.",
            row=row,
        )
    return matrix, labels, learned


def _scaled_labels(spec: Any, terms: Terms) -> tuple[str, ...]:
    """Return the names of a matrix's columns with the numbers that scale them: the column of ``2:x`` is not ``x``."""
    labels = list(spec.column_names)
    for term, columns in spec.term_slices.items():
        numbers = [terms.factors[factor.expr] for factor in term.factors if factor.expr != INTERCEPT[0]]
        for number in numbers:
            if isinstance(number, float):
                labels[columns] = [f"{number:g}:{label}" for label in labels[columns]]
    return tuple(labels)
