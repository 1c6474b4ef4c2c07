"""``offset(log(t))`` in a formula: a term with the coefficient one."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import numpy as np

from raphson._errors import InputError
from raphson.table._columns import to_numbers
from raphson.table._evaluate import evaluate
from raphson.table._expression import PLAIN, Expression, Token, read_expression, shown, tokens

if TYPE_CHECKING:
    import pandas as pd

_NAME = "offset"


def split_offsets(right: str) -> tuple[str, tuple[str, ...]]:
    """Return the right side of a formula without its terms ``offset(...)``, and the expressions inside these.

    Raises:
        InputError: If an offset stands elsewhere than between plus signs.
    """
    pieces, found, kept = tokens(right), list[str](), right
    depth, i = 0, 0
    cuts: list[tuple[int, int]] = []
    while i < len(pieces):
        piece = pieces[i]
        if piece.kind == "name" and piece.text == _NAME and _mark(pieces, i + 1) == "(":
            end = _closing(pieces, i + 1, right)
            if depth or _mark(pieces, i - 1) not in ("", "+") or _mark(pieces, end + 1) not in ("", "+", "-"):
                raise InputError(
                    f"formula '{shown(right)}': offset(...) is a term of its own, as in 'x + offset(log(t))'."
                )
            found.append(right[pieces[i + 1].start + 1 : pieces[end].start].strip())
            cuts.append((pieces[i - 1].start if i else piece.start, pieces[end].start + 1))
            i = end
        elif piece.kind == "mark":
            depth += (piece.text in "([{") - (piece.text in ")]}")
        i += 1
    for start, end in reversed(cuts):
        kept = kept[:start] + " " + kept[end:]
    return kept.strip() or "1", tuple(found)


def _mark(pieces: list[Token], i: int) -> str:
    if not 0 <= i < len(pieces):
        return ""
    return pieces[i].text if pieces[i].kind == "mark" else "a name"


def _closing(pieces: list[Token], start: int, right: str) -> int:
    depth = 0
    for i in range(start, len(pieces)):
        if pieces[i].kind == "mark":
            depth += (pieces[i].text in "([{") - (pieces[i].text in ")]}")
        if depth == 0:
            return i
    raise InputError(f"formula '{shown(right)}' cannot be read (a parenthesis is not closed).")


def read_offset(text: str) -> Expression:
    """Return the expression of an offset; it is not empty, and calls nothing that learns from the data."""
    pieces = tokens(text)
    if not pieces:
        raise InputError("offset() in a formula is empty; it holds an expression, such as log(t).")
    found = read_expression(pieces, text)
    for node in ast.walk(found.node):
        if isinstance(node, ast.Call) and node.func.id not in ("I", *PLAIN):  # type: ignore[attr-defined]
            raise InputError(f"'offset({shown(text)})': only plain functions such as log are possible in an offset.")
    return found


def offset_values(text: str, frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Return the offset ``(N,)`` that an expression gives for complete rows; a value that is not finite is refused."""
    import pandas as pd

    expression = read_offset(text)
    columns = {name: pd.Series(to_numbers(frame[name], name), index=frame.index) for name in expression.columns}
    with np.errstate(all="ignore"):
        values = np.asarray(evaluate(expression, columns, {}), dtype=np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        at = int(bad.argmax())
        row = int(frame.index[at])
        held = ", ".join(f"{name} = {columns[name].iloc[at]:g}" for name in expression.columns)
        raise InputError(
            f"'offset({shown(text)})', row {row}: the value is {values[at]}, because {held}; an exposure must be "
            "positive.",
            row=row,
        )
    return values
