"""What the variables of a formula are: numbers, or factors with levels and a base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raphson.table._columns import Category, Column, level_text
from raphson.table._expression import Expression
from raphson.table._formula import FormulaCoding
from raphson.table._terms import read_terms

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Variable:
    """A column of a table as a design uses it.

    Attributes:
        name: The column.
        levels: Its levels as the table holds them, the base first; None for a number.
        linear: Whether every matrix column is a linear function of it, given the others.
    """

    name: str
    levels: tuple[Any, ...] | None
    linear: bool


def find_variables(coding: tuple[Column, ...] | FormulaCoding, frame: pd.DataFrame) -> dict[str, Variable]:
    """Return the variables of a design by name, in the order in which it reads them."""
    if not isinstance(coding, FormulaCoding):
        return {
            column.name: Variable(
                column.name,
                _as_held(column.levels, frame[column.name]) if isinstance(column, Category) else None,
                True,
            )
            for column in coding
        }
    factors = read_terms(coding.formula).factors
    inside = {name for factor in factors.values() if isinstance(factor, Expression) for name in factor.columns}
    return {
        name: Variable(name, _levels(name, number, factors, coding, frame), name not in inside)
        for name, number in coding.variables.items()
    }


def _levels(
    name: str,
    number: bool,
    factors: Mapping[str, str | Expression | float],
    coding: FormulaCoding,
    frame: pd.DataFrame,
) -> tuple[Any, ...] | None:
    import pandas as pd

    for text, factor in factors.items():
        column = factor.category if isinstance(factor, Expression) else factor
        known = coding.levels.get(text)
        if column == name and known is not None:
            treated = [f"{text}[T.{level}]" for level in known]
            named = {part for label in coding.labels for part in label.split(":")}
            base = [level for level, label in zip(known, treated, strict=True) if label not in named]
            first = base[0] if len(base) == 1 else known[0]
            return (first, *(level for level in known if level != first))
    column = frame[name]
    if number or (pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)):
        return None
    if isinstance(column.dtype, pd.CategoricalDtype):
        return tuple(column.cat.remove_unused_categories().cat.categories)
    return tuple(sorted(column.unique()))


def _as_held(levels: tuple[str, ...], column: pd.Series[Any]) -> tuple[Any, ...]:
    held = {level_text(value): value for value in column.dropna().unique()}
    return tuple(held[level] for level in levels)
