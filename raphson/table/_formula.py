"""Model formulas (``party ~ age + C(educ)``) through formulaic, restorable from JSON.

A formula holds Python expressions, and a saved model must not be able to run any code when it is loaded. Each
expression is therefore read first, and only columns, numbers, operators and the functions listed below pass.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raphson._errors import InputError
from raphson.table._columns import Number, learn_column, to_numbers, unseen_level

if TYPE_CHECKING:
    import pandas as pd
    from formulaic import ModelSpec

_NUMPY = {
    "log",
    "log1p",
    "log2",
    "log10",
    "exp",
    "expm1",
    "sqrt",
    "abs",
    "sign",
    "sin",
    "cos",
    "tanh",
    "minimum",
    "maximum",
}
_FUNCTIONS = {
    "C",
    "I",
    "log",
    "log2",
    "log10",
    "exp",
    "center",
    "scale",
    "standardize",
    "poly",
    "bs",
    "cs",
    "cr",
    "cc",
}
_CONTRASTS = {"treatment", "SAS", "sum", "helmert", "diff", "poly"}
_SYNTAX = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Attribute, ast.Name),
    *(ast.Constant, ast.keyword, ast.List, ast.Tuple),
    *(ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)


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
        """Return the ``(N, D)`` matrix of a table without missing values in the columns it reads.

        Args:
            frame: The table.

        Returns:
            A float64 array, without the intercept.

        Raises:
            InputError: If a level was not seen in the fit, or a value cannot be computed.
        """
        for expression, levels in self.levels.items():
            if levels is not None:
                self._check_levels(frame, expression, levels)
        spec = _spec(self.formula, self.levels, self.state)
        matrix, labels, _ = _materialize(spec, _numeric(frame, self.variables))
        if labels != self.labels:
            raise InputError(f"the formula '{self.formula}' gives other columns on these data than when it was fitted.")
        return matrix

    def _check_levels(self, frame: pd.DataFrame, expression: str, levels: list[Any]) -> None:
        names = _names(expression)
        if len(names) != 1 or not re.match(r"^(C\(.*\)|[^()]*)$", expression):
            return
        column = frame[names[0]]
        unknown = ~column.isin(levels).to_numpy()
        if unknown.any():
            raise InputError(unseen_level(column, int(unknown.argmax()), names[0], levels))


def split(formula: str) -> tuple[str | None, str]:
    """Return the target column (None without a left side) and the right side of a formula.

    Args:
        formula: The formula.

    Returns:
        Target name and right side.

    Raises:
        InputError: If the left side is not one column, or the right side is empty.
    """
    left, tilde, right = formula.rpartition("~")
    target = left.strip().strip("`")
    if "~" in left or (tilde and not re.fullmatch(r"`[^`]+`|\w+", left.strip())):
        raise InputError(f"formula '{formula}': the left side must be one column, as in 'party ~ age + C(educ)'.")
    if not right.strip():
        raise InputError(f"formula '{formula}': the right side is empty; write 1 for an intercept alone.")
    return (target if tilde else None), right.strip()


def expand_dot(right: str, names: list[str]) -> str:
    """Return the right side with ``.`` replaced by all of ``names``.

    Args:
        right: Right side of a formula.
        names: Columns that ``.`` stands for.

    Returns:
        The right side, with each name quoted.
    """
    return re.sub(r"(?<![\w.`)\]])\.(?![\w`.])", "(" + " + ".join(f"`{name}`" for name in names) + ")", right)


def variables(right: str) -> list[str]:
    """Return the columns that the right side of a formula reads, after checking that it runs no other code.

    Args:
        right: Right side of a formula.

    Returns:
        Column names, in order of appearance.
    """
    found: dict[str, None] = {}
    for expression, lookup in _factors(right):
        for name in [expression] if lookup else _names(expression):
            found[name] = None
    return list(found)


def learn_formula(right: str, frame: pd.DataFrame) -> tuple[FormulaCoding, list[str]]:
    """Learn the coding of a formula from a table without missing values in the columns it reads.

    Args:
        right: Right side of the formula.
        frame: The table.

    Returns:
        The coding, and a sentence for each categorical factor.
    """
    notes: list[str] = []
    uses: dict[str, bool] = {name: False for name in variables(right)}
    for expression, lookup in _factors(right):
        if lookup:
            column, note = learn_column(frame[expression], expression)
            uses[expression] = isinstance(column, Number)
            if note and uses[expression]:
                notes.append(note)
    spec = _spec(right, {}, {})
    _, labels, learned = _materialize(spec, _numeric(frame, uses))
    levels = {
        expression: list(state["categories"]) if "categories" in state else None
        for expression, (_, state) in learned.encoder_state.items()
    }
    notes += [_level_note(expression, learned, found) for expression, found in levels.items() if found is not None]
    intercept = "Intercept" in learned.column_names
    return FormulaCoding(right, labels, intercept, levels, dict(learned.transform_state), uses), notes


def _level_note(expression: str, spec: Any, levels: list[Any]) -> str:
    contrasts = spec.encoder_state[expression][1]["contrasts"].contrasts
    if not any(label.startswith(f"{expression}[T.") for label in spec.column_names):
        return f"{expression}: {len(levels)} levels"
    base = contrasts.base if contrasts.base in levels else levels[0]
    return f"{expression}: {len(levels)} levels, coded against '{base}'"


def _said(error: Exception) -> str:
    """Return the first line of a parser's error, without its colors, place and period."""
    text = re.sub(r"\x1b\[[0-9;]*m|[⧛⧚]| \(<unknown>, line \d+\)", "", str(error))
    return text.split("\n")[0].rstrip(".")


def _factors(right: str) -> list[tuple[str, bool]]:
    """Return each factor as (expression, whether it is a bare column), checked to be harmless."""
    from formulaic import Formula
    from formulaic.errors import FormulaicError

    try:
        formula = Formula(right)
        terms = list(formula)
    except (FormulaicError, SyntaxError, ValueError, TypeError) as error:
        raise InputError(f"formula '{right}' cannot be read ({_said(error)}).") from None
    found: dict[tuple[str, bool], None] = {}
    for term in terms:
        factors = getattr(term, "factors", None)
        if factors is None:
            raise InputError(f"formula '{right}': only one right side is possible, without '|'.")
        for factor in factors:
            kind = factor.eval_method.value
            if kind == "lookup":
                found[factor.expr, True] = None
            elif kind == "python":
                _check_harmless(factor.expr, right)
                found[factor.expr, False] = None
    return list(found)


def _bare(expression: str) -> tuple[str, dict[str, str]]:
    """Return an expression with each backquoted name replaced by an identifier, and what each stands for."""
    quoted: dict[str, str] = {}

    def swap(match: re.Match[str]) -> str:
        return quoted.setdefault(match[1], f"_quoted_{len(quoted)}")

    return re.sub(r"`([^`]+)`", swap, expression), {alias: name for name, alias in quoted.items()}


def _names(expression: str) -> list[str]:
    if not re.search(r"[(`+*/<>=-]", expression):
        return [expression]
    source, quoted = _bare(expression)
    try:
        tree = ast.parse(source, mode="eval")
    except SyntaxError:
        return [expression]
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    called |= {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    names = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called]
    return list(dict.fromkeys(quoted.get(name, name) for name in names))


def _check_harmless(expression: str, right: str) -> None:
    try:
        tree = ast.parse(_bare(expression)[0], mode="eval")
    except SyntaxError:
        raise InputError(f"formula '{right}': '{expression}' cannot be read.") from None
    for node in ast.walk(tree):
        fine = isinstance(node, _SYNTAX)
        if isinstance(node, ast.Call):
            fine = (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS) or isinstance(
                node.func, ast.Attribute
            )
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            fine = (owner == "np" and node.attr in _NUMPY) or (owner == "contr" and node.attr in _CONTRASTS)
        if not fine:
            raise InputError(
                f"formula '{right}': '{ast.unparse(node)}' is not allowed; use columns, numbers, operators, "
                f"{', '.join(sorted(_FUNCTIONS))}, np.{', np.'.join(sorted(_NUMPY))}, or contr.* inside C()."
            )


def _numeric(frame: pd.DataFrame, uses: dict[str, bool]) -> pd.DataFrame:
    """Return the columns a formula reads: numbers checked, categories without unused levels."""
    import pandas as pd

    columns = {}
    for name, number in uses.items():
        column = frame[name]
        if number or (pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)):
            checked = to_numbers(column, name)
            # Integer levels of C(n) keep their type, so that they read "2" and not "2.0".
            columns[name] = pd.Series(checked, index=frame.index) if number else column
        elif isinstance(column.dtype, pd.CategoricalDtype):
            columns[name] = column.cat.remove_unused_categories()
        else:
            columns[name] = column
    return pd.DataFrame(columns, index=frame.index)


def _spec(right: str, levels: dict[str, list[Any] | None], state: dict[str, Any]) -> ModelSpec:
    from copy import deepcopy

    from formulaic import Formula, ModelSpec
    from formulaic.parser.types import Factor

    kinds = Factor.Kind
    encoder = {
        expression: (kinds.NUMERICAL, {}) if known is None else (kinds.CATEGORICAL, {"categories": list(known)})
        for expression, known in levels.items()
    }
    return ModelSpec(
        formula=Formula(right),
        output="numpy",
        na_action="ignore",
        encoder_state=encoder,
        transform_state=deepcopy(state),
    )


def _materialize(spec: ModelSpec, frame: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...], Any]:
    from formulaic.errors import DataMismatchWarning, FormulaicError

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error", DataMismatchWarning)
            # The result of a logarithm of zero is named below, by row, rather than warned about.
            result = spec.get_model_matrix(frame, context={})
    except (FormulaicError, DataMismatchWarning, ValueError, TypeError, KeyError) as error:
        raise InputError(f"formula '{spec.formula}' cannot be computed on these data ({_said(error)}).") from None
    learned = result.model_spec
    matrix = np.asarray(result, dtype=np.float64)
    keep = [i for i, name in enumerate(learned.column_names) if name != "Intercept"]
    labels = tuple(learned.column_names[i] for i in keep)
    matrix = matrix[:, keep]
    bad = ~np.isfinite(matrix)
    if bad.any():
        row, position = np.argwhere(bad)[0]
        raise InputError(
            f"'{labels[position]}', data row {frame.index[row]}: the value is {matrix[row, position]}; "
            "a logarithm, root or division is outside its domain there."
        )
    return matrix, labels, learned
