"""Expressions in formulas, computed node by node, without Python's ``eval``: what is not listed here is not run."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raphson._errors import InputError
from raphson.table._columns import LARGEST_WHOLE
from raphson.table._expression import ARITHMETIC, COMPARISONS, LOGIC, PLAIN, Expression

_MOST_BASIS_COLUMNS = 500
"""Of one polynomial or spline; more is a slip of the pen."""

_ORTHOGONAL = 1e-6
"""Largest product of two polynomials that should be orthogonal; what rounding made has products near one."""


def evaluate(expression: Expression, columns: Mapping[str, Any], state: dict[str, Any]) -> Any:
    """Return the series that an expression of columns gives; what its functions learn is put into ``state``."""
    return _Evaluation(expression.text, columns, state).value(expression.node)


@dataclass(frozen=True)
class _Evaluation:
    text: str
    columns: Mapping[str, Any]
    state: dict[str, Any]

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value):
                return value
            case ast.List(items) | ast.Tuple(items):
                return [self.value(item) for item in items]
            case ast.Name():
                if not hasattr(node, "column"):
                    return _function(node.id)
                return self.columns[node.column]
            case ast.UnaryOp(op, operand):
                value = self.number(operand)
                if isinstance(op, ast.Invert):
                    return ~self.truth(operand)
                return -value if isinstance(op, ast.USub) else value
            case ast.BinOp(left, op, right) if type(op) in LOGIC:
                return LOGIC[type(op)](self.truth(left), self.truth(right))
            case ast.BinOp(left, op, right):
                return _arithmetic(op, self.number(left), self.number(right))
            case ast.Compare(left, [op], [right]):
                return COMPARISONS[type(op)](self.value(left), self.value(right))
            case ast.Call(func, args, keywords):
                assert isinstance(func, ast.Name)
                return self.call(node, func.id, args, keywords)
        raise AssertionError(node)

    def number(self, node: ast.expr) -> Any:
        """Return a value that numbers can be computed from."""
        value = self.value(node)
        value = getattr(value, "__wrapped__", value)
        kind = np.asarray(value).dtype.kind if not hasattr(value, "dtype") else getattr(value.dtype, "kind", "O")
        if kind not in "biuf" or isinstance(value, list):
            raise InputError(
                f"'{self.text}': '{ast.unparse(node)}' is not numeric, so nothing can be computed from it."
            )
        return value

    def truth(self, node: ast.expr) -> Any:
        value = self.number(node)
        if np.asarray(value).dtype.kind != "b":
            raise InputError(f"'{self.text}': '{ast.unparse(node)}' is no comparison; '&', '|' and '~' join those.")
        return value

    def call(self, node: ast.Call, name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> Any:
        options = {str(keyword.arg): self.value(keyword.value) for keyword in keywords}
        if name.startswith("contr."):
            return _function(name)(*map(self.value, args), **options)
        if name == "I" or name in PLAIN:
            function = _function(name)
            needed = 1 if name == "I" else function.nin  # more arguments of a ufunc would be written to
            if len(args) != needed or options:
                raise InputError(f"'{self.text}': '{name}' has {needed} argument{'s' * (needed > 1)}.")
            return self.value(args[0]) if name == "I" else function(*map(self.number, args))
        first = self.value(args[0])
        if np.ndim(first) == 0 or isinstance(first, list):
            raise InputError(f"'{self.text}': the first argument of '{name}' is a column.")
        values = [first, *map(self.value, args[1:])]
        function = _function(name)
        if name == "C":
            _check_contrasts(self.text, function, values, options)
            return function(*values, **options)
        values[0] = self.number(args[0])
        given = _check_basis(self.text, function, values, options)
        learned = self.state.setdefault(ast.unparse(node), {})
        is_new = not learned
        result = function(*values, **options, _state=learned)
        if name == "poly" and is_new and not given.get("raw"):
            _check_orthogonal(self.text, np.asarray(values[0], dtype=np.float64), result)
        return result


def _function(name: str) -> Any:
    from formulaic.transforms import TRANSFORMS

    if name in PLAIN:
        return getattr(np, PLAIN[name])
    return getattr(TRANSFORMS["contr"], name[6:]) if name.startswith("contr.") else TRANSFORMS[name]


def _arithmetic(op: ast.operator, left: Any, right: Any) -> Any:
    """Compute in float64, so that nothing wraps around; whole numbers come back as integers where they are exact."""
    whole = all(np.asarray(value).dtype.kind in "iu" for value in (left, right)) and not isinstance(op, ast.Div)
    result = ARITHMETIC[type(op)](*(np.float64(v) if np.ndim(v) == 0 else v.astype(np.float64) for v in (left, right)))
    if whole and bool(np.all(np.abs(result) < LARGEST_WHOLE)) and bool(np.all(result == np.floor(result))):
        return int(result) if np.ndim(result) == 0 else result.astype(np.int64)
    return result


def _check_contrasts(text: str, function: Any, values: list[Any], options: dict[str, Any]) -> None:
    given = _bound(text, function, values, options)
    contrasts, levels = given.get("contrasts"), given.get("levels")
    if isinstance(contrasts, bool | int | float | str):
        raise InputError(
            f"'{text}': contrasts are given as contr.treatment('level'), contr.sum() and so on, not as {contrasts!r}."
        )
    if levels is not None and not isinstance(levels, list):
        raise InputError(f"'{text}': levels are given as a list, such as levels=['low', 'high'].")


def _check_basis(text: str, function: Any, values: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    given = _bound(text, function, values, options)
    for name in ("df", "degree"):
        size = given.get(name)
        if size is not None and not (isinstance(size, int) and 0 <= size <= _MOST_BASIS_COLUMNS):
            raise InputError(f"'{text}': {name} is a whole number up to {_MOST_BASIS_COLUMNS}.")
    for name in ("lower_bound", "upper_bound"):
        if given.get(name) is not None and not (isinstance(given[name], int | float) and math.isfinite(given[name])):
            raise InputError(f"'{text}': {name} is a number.")
    return given


def _check_orthogonal(text: str, column: np.ndarray, polynomials: Any) -> None:
    """Refuse polynomials that rounding has made: of a degree that the column cannot tell from a lower one."""
    found = getattr(polynomials, "__wrapped__", polynomials)
    basis = np.column_stack([*(found.values() if isinstance(found, dict) else np.asarray(found).T)])
    distinct = len(np.unique(column))
    if basis.shape[1] >= distinct:
        raise InputError(
            f"'{text}': a polynomial of degree {basis.shape[1]} needs {basis.shape[1] + 1} different values, and there "
            f"{'is' if distinct == 1 else 'are'} {distinct}; lower the degree."
        )
    with np.errstate(all="ignore"):
        error = np.abs(basis.T @ basis - np.eye(basis.shape[1])).max(initial=0.0)
    if not error < _ORTHOGONAL:
        raise InputError(
            f"'{text}': polynomials of degree {basis.shape[1]} cannot be told apart in double precision; lower the "
            "degree, or use a spline such as bs(x, df=10)."
        )


def _bound(text: str, function: Any, values: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(inspect.signature(function).bind(*values, **options).arguments)
    except TypeError as error:
        raise InputError(f"'{text}' cannot be computed ({error}).") from None
