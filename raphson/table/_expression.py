"""Expressions in formulas, such as ``poly(age, 2)``: read into tokens and checked against a list.

Nothing here is run by Python: a formula may come from a file, so its text is only ever data. Names of columns become
numbered identifiers before Python's parser sees them, whatever characters they hold; there are no attributes, and the
only functions are those listed below.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raphson._errors import InputError
from raphson.table._foreign import remedy

LONGEST_EXPRESSION = 2000
"""Characters of one expression; far above what people write, far below what tires a parser."""
DEEPEST = 30
"""Parentheses within parentheses, and operations within operations."""
_LONGEST_SIGNS = 3

_NUMPY = "abs cos exp expm1 log log10 log1p log2 maximum minimum sign sin sqrt tanh".split()
_STATEFUL = "bs cc center cr cs poly scale standardize".split()
_CONTRASTS = "SAS diff helmert poly sum treatment".split()
PLAIN = {name: name for name in ("exp", "log", "log10", "log2")} | {f"np.{name}": name for name in _NUMPY}
FUNCTIONS = {"C", "I", *PLAIN, *_STATEFUL, *(f"contr.{name}" for name in _CONTRASTS)}

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<quoted>`(?:[^`]|``)*`)
    | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<number>(?:\d++\.?\d*+|\.\d++)(?:[eE][+-]?\d++)?+(?![\w.]))
    | (?P<name>(?=[\d.]*+[^\W\d])[\w.]+)
    | (?P<odd>[\d.]{2,})
    | (?P<mark>\*\*|//|<=|>=|==|!=|%in%|.)
    )""",
    re.VERBOSE | re.DOTALL,
)
ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
LOGIC: dict[type, Callable[[Any, Any], Any]] = {ast.BitAnd: operator.and_, ast.BitOr: operator.or_}
COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_SYNTAX = (
    *(ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Name, ast.Constant, ast.keyword, ast.List, ast.Tuple),
    *(ast.Load, ast.UAdd, ast.USub, ast.Invert, *ARITHMETIC, *LOGIC, *COMPARISONS),
)


@dataclass(frozen=True)
class Token:
    """A piece of a formula.

    Attributes:
        kind: ``"quoted"``, ``"string"``, ``"number"``, ``"name"`` or ``"mark"``.
        text: As written, a quoted name without its quotes.
        start: Where it begins in the formula.
    """

    kind: str
    text: str
    start: int

    @property
    def column(self) -> str | None:
        """The column it names, if it is a name."""
        return self.text if self.kind in ("quoted", "name") else None


@dataclass(frozen=True)
class Expression:
    """A checked expression.

    Attributes:
        text: How it is written in labels.
        node: Its syntax tree, whose names are columns and listed functions as written in ``text``.
        columns: Columns it reads, in order.
    """

    text: str
    node: ast.expr
    columns: tuple[str, ...]

    @property
    def category(self) -> str | None:
        """The column whose levels it codes, if it is ``C(column)`` with or without contrasts."""
        node = self.node
        if isinstance(node, ast.Call) and node.func.id == "C" and isinstance(node.args[0], ast.Name):  # type: ignore[attr-defined]
            return self.columns[0]
        return None


def quote(name: str) -> str:
    """Return a column's name as a formula quotes it; a backquote inside is doubled."""
    return "`" + name.replace("`", "``") + "`"


def tokens(formula: str) -> list[Token]:
    """Return the pieces of a formula; an open quote, and heaps of signs or parentheses, are an ``InputError``."""
    found: list[Token] = []
    depth = signs = 0
    for match in _TOKEN.finditer(formula.rstrip()):
        kind = str(match.lastgroup)
        text = match[kind]
        if kind == "odd":
            raise InputError(f"formula '{shown(formula)}' cannot be read ('{shown(text)}' is no number).")
        if kind == "mark" and text in "`'\"":
            raise InputError(f"formula '{shown(formula)}' cannot be read (a {text} is not closed).")
        if kind == "quoted":
            text = text[1:-1].replace("``", "`")
        depth += kind == "mark" and (text in "([{") - (text in ")]}")
        signs = signs + 1 if kind == "mark" and text in "+-~" else 0
        if depth > DEEPEST or signs > _LONGEST_SIGNS:
            what = "signs in a row" if signs > _LONGEST_SIGNS else "parentheses within each other"
            raise InputError(f"formula '{shown(formula)}' has too many {what}; write it plainly.")
        found.append(Token(kind, text, match.start(kind)))
    return found


def shown(formula: str) -> str:
    """Return the beginning of a formula, as messages show it."""
    text = " ".join(formula[:1000].split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def read_expression(pieces: list[Token], formula: str) -> Expression:
    """Return the expression that pieces of a formula are, checked to hold only what may be computed."""
    if pieces[-1].start - pieces[0].start > LONGEST_EXPRESSION:
        raise InputError(
            f"formula '{shown(formula)}': an expression is longer than {LONGEST_EXPRESSION} characters; compute the "
            "column before the fit."
        )
    names: dict[str, tuple[str, str]] = {}  # identifier -> (written, column or "" for a function)
    source = []
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        follows = following.text if following is not None and following.kind == "mark" else ""
        source.append(_as_python(piece, follows, names, formula))
    try:
        tree = ast.parse(" ".join(source), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        written = "".join(piece.text for piece in pieces)
        raise InputError(f"formula '{shown(formula)}': '{shown(written)}' cannot be read.") from None
    _check_depth(tree, formula)
    columns: dict[str, None] = {}
    for node in _in_order(tree):
        if isinstance(node, ast.Name):
            node.id, column = names[node.id]
            if column:
                columns[column] = None
                node.column = column  # type: ignore[attr-defined]
    _check(tree, formula)
    if not columns:
        raise InputError(f"formula '{shown(formula)}': '{shown(ast.unparse(tree))}' reads no column.")
    return Expression(ast.unparse(tree), tree, tuple(columns))


def _as_python(piece: Token, follows: str, names: dict[str, tuple[str, str]], formula: str) -> str:
    """Return a token as Python's parser may see it; names become numbered identifiers."""
    if piece.kind in ("string", "number") or (piece.kind == "name" and piece.text in ("True", "False", "None")):
        return piece.text
    if piece.kind == "mark":
        if piece.text not in ("%in%", ":", "{", "}", "@", ";", "\\", ".", "\n"):
            return piece.text
        raise InputError(f"formula '{shown(formula)}': '{piece.text}' is not allowed inside a function.")
    if piece.kind == "name" and follows == "=" and re.fullmatch(r"[A-Za-z]\w*", piece.text, re.ASCII):
        return piece.text  # a keyword, which goes with the function's parameters
    function = piece.kind == "name" and (follows == "(" or piece.text in FUNCTIONS and "." in piece.text)
    if function and piece.text not in FUNCTIONS:
        _refuse(piece.text, formula)
    written = quote(piece.text) if piece.kind == "quoted" else piece.text
    identifier = f"_{len(names)}"
    names[identifier] = written, "" if function else piece.text
    return identifier


def _refuse(what: str, formula: str) -> None:
    if (instead := remedy(what)) is not None:
        what = "^" if what == "BitXor" else what
        raise InputError(f"formula '{shown(formula)}': '{what}' is not known here; {instead}.")
    raise InputError(
        f"formula '{shown(formula)}': '{shown(what)}' is not allowed; use columns, numbers, operators, "
        f"{', '.join(sorted(FUNCTIONS))}."
    )


def _in_order(tree: ast.AST) -> list[ast.AST]:
    """Return the nodes of a tree in the order of the text."""
    found = [tree]
    for child in ast.iter_child_nodes(tree):
        found += _in_order(child)
    return found


def _check_depth(tree: ast.AST, formula: str) -> None:
    level, depth = [tree], 0
    while level:
        level, depth = [child for node in level for child in ast.iter_child_nodes(node)], depth + 1
        if depth > 4 * DEEPEST:
            raise InputError(f"formula '{shown(formula)}' is nested too deeply; compute the column before the fit.")


def _check(tree: ast.expr, formula: str) -> None:
    for node in ast.walk(tree):
        fine = isinstance(node, _SYNTAX)
        if isinstance(node, ast.Call):
            fine = isinstance(node.func, ast.Name) and not hasattr(node.func, "column")
            fine = fine and bool(node.args) | (ast.unparse(node.func).startswith("contr."))
            fine = fine and all(keyword.arg and not keyword.arg.startswith("_") for keyword in node.keywords)
        elif isinstance(node, ast.Constant):
            value = node.value
            fine = value is None or isinstance(value, str | bool | int | float)
            fine = fine and (not isinstance(value, int | float) or abs(value) < 1e308)
        elif isinstance(node, ast.Compare):
            fine = len(node.ops) == 1
        if not fine:
            _refuse(ast.unparse(node) or type(node).__name__, formula)
