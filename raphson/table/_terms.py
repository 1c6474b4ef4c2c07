"""The right side of a formula as a sum of products of factors (Wilkinson and Rogers, 1973, Appl. Statist. 22, 392-399).

``a * b`` is ``a + b + a:b``, ``a / b`` is ``a + a:b``, ``b %in% a`` likewise, ``(a + b)**2`` has all products of two,
``-`` takes a term out, and the intercept ``1`` is there unless ``0 +`` or ``- 1`` takes it out.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

from raphson._errors import InputError
from raphson.table._expression import Expression, Token, quote, read_expression, shown, tokens
from raphson.table._foreign import MIXED

MOST_TERMS = 10_000
"""Products beyond this many are a slip of the pen; every one is a column at least."""
LARGEST_POWER = 100
LONGEST_FORMULA = 30_000
"""Characters that are read in less than a second."""

Term = tuple[str, ...]
"""The factors of a term by their text, numbers in parentheses; a lone ``"(1)"`` is the intercept."""
INTERCEPT: Term = ("(1)",)


@dataclass(frozen=True)
class Terms:
    """The terms of a formula's right side.

    Attributes:
        terms: In order of appearance.
        factors: What each factor is: a column by its name, an expression, or a number.
    """

    terms: tuple[Term, ...]
    factors: dict[str, str | Expression | float]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the formula reads, in order."""
        found: dict[str, None] = {}
        for factor in self.factors.values():
            names = (factor,) if isinstance(factor, str) else factor.columns if isinstance(factor, Expression) else ()
            found.update(dict.fromkeys(names))
        return tuple(found)


def split_formula(formula: str) -> tuple[str | None, str]:
    """Return the target column (None without one; the time, of ``Surv``) and the right side of a formula."""
    target, _, right = split_survival(formula)
    return target, right


def split_survival(formula: str) -> tuple[str | None, str | None, str]:
    """Return the target column, the event column of ``Surv(time, event)`` and the right side of a formula.

    Raises:
        InputError: If the left side is not one column or ``Surv`` of two, or the right side is empty.
    """
    if len(formula) > LONGEST_FORMULA:
        raise InputError(
            f"formula '{shown(formula)}' is longer than {LONGEST_FORMULA} characters; keep the columns it uses in the "
            "table, and write '.' for all of them."
        )
    depth, sides = 0, [list[Token]()]
    for piece in tokens(formula):
        mark = piece.text if piece.kind == "mark" else ""
        depth += (mark in ("(", "{")) - (mark in (")", "}"))
        if mark == "~" and depth == 0:
            sides.append([])
            right = formula[piece.start + 1 :].strip()
        else:
            sides[-1].append(piece)
    left = sides[0] if len(sides) > 1 else []
    event: str | None = None
    if len(sides) == 1:
        right = formula.strip()
    elif len(left) > 1 and left[0].text == "Surv":
        if [piece.text for piece in left[1::2]] != ["(", ",", ")"] or not all(p.column for p in left[2:5:2]):
            raise InputError(
                f"formula '{shown(formula)}': Surv takes two columns, the time and whether the event was seen, as in "
                "'Surv(time, event) ~ age'."
            )
        left, event = [left[2]], left[4].column
    if len(sides) > 2 or len(left) > 1 or any(piece.column is None for piece in left):
        raise InputError(
            f"formula '{shown(formula)}': the left side must be one column, as in 'party ~ age + C(educ)', or "
            "Surv(time, event); a function of columns is computed in the table before the fit."
        )
    if not right:
        raise InputError(f"formula '{shown(formula)}': the right side is empty; write 1 for an intercept alone.")
    return (left[0].column if left else None), event, right


def expand_dot(right: str, names: list[str]) -> str:
    """Return the right side of a formula with ``.`` replaced by all of ``names``, quoted."""
    everything = "(" + " + ".join(map(quote, names)) + ")"
    for piece in reversed(tokens(right)):
        if piece.kind == "mark" and piece.text == ".":
            right = right[: piece.start] + everything + right[piece.start + 1 :]
    return right


@lru_cache(maxsize=32)
def read_terms(right: str) -> Terms:
    """Return the terms of the right side of a formula."""
    reader = _Reader(right)
    terms = reader.sum([INTERCEPT])
    if reader.piece is not None:
        reader.fail()
    for term in terms:
        numbers = [name for name in term if isinstance(reader.factors.get(name), float)]
        if len(numbers) == len(term) and term != INTERCEPT:
            reader.fail("a number other than 0 and 1 only scales a term, as in 2:x")
    used = {name for term in terms for name in term}
    return Terms(tuple(terms), {name: factor for name, factor in reader.factors.items() if name in used})


class _Reader:
    """Reads tokens from left to right, one method a level of precedence."""

    def __init__(self, right: str) -> None:
        self.text, self.pieces, self.position = right, tokens(right), 0
        self.factors: dict[str, str | Expression | float] = {}

    @property
    def piece(self) -> Token | None:
        return self.pieces[self.position] if self.position < len(self.pieces) else None

    @property
    def mark(self) -> str:
        return self.piece.text if self.piece is not None and self.piece.kind == "mark" else ""

    def take(self, *marks: str) -> str:
        """Return the mark that is next and go on behind it, or an empty text if it is none of these."""
        found = self.mark
        if found not in marks:
            return ""
        self.position += 1
        return found

    def fail(self, why: str | None = None) -> NoReturn:
        if self.mark == "|":
            why = MIXED
        elif why is None and self.mark in ("==", "!=", "<", "<=", ">", ">="):
            why = "a comparison stands inside I(...), as in I(x > 0)"
        near = f"'{shown(self.piece.text)}'" if self.piece is not None else "its end"
        why = why or f"at {near} an operator or a name is missing or misplaced"
        raise InputError(f"formula '{shown(self.text)}' cannot be read ({why}).")

    def sum(self, start: list[Term]) -> list[Term]:
        terms = {frozenset(term): term for term in start}
        first = True
        while True:
            minus, signs = False, 0
            while mark := self.take("+", "-"):
                minus, signs = minus != (mark == "-"), signs + 1
            if not signs and not first:
                return list(terms.values())
            if self.piece is not None and self.piece.kind == "number" and float(self.piece.text) == 0:
                self.position += 1  # 0 is the intercept with the other sign
                found, minus = [INTERCEPT], not minus
            else:
                found = self.product()
            for term in found:
                if minus:
                    terms.pop(frozenset(term), None)
                else:
                    terms.setdefault(frozenset(term), term)
            first = False

    def product(self) -> list[Term]:
        terms = self.interaction()
        while mark := self.take("*", "/", "%in%"):
            other = self.interaction()
            if mark == "*":
                terms = _unique([*terms, *other, *self.products(terms, other)])
                continue
            parents, nested = (other, terms) if mark == "%in%" else (terms, other)
            common = tuple(dict.fromkeys(name for term in parents for name in term))
            terms = _unique([*parents, *self.products([common], nested)])
        return terms

    def interaction(self) -> list[Term]:
        terms = self.power()
        while self.take(":"):
            terms = self.products(terms, self.power())
        return terms

    def power(self) -> list[Term]:
        terms = self.primary()
        while self.take("**", "^"):
            exponent = self.piece
            if exponent is None or exponent.kind != "number" or not exponent.text.isdigit():
                self.fail("the right side of ** is a whole number")
            if len(exponent.text) > 3 or not 1 <= int(exponent.text) <= LARGEST_POWER:
                self.fail(f"the right side of ** is a whole number from 1 to {LARGEST_POWER}")
            self.position += 1
            found = terms
            for _ in range(int(exponent.text) - 1):
                more = self.products(found, terms)
                if more == found:
                    break
                found = more
            terms = found
        return terms

    def products(self, left: list[Term], right: list[Term]) -> list[Term]:
        """Return the product of each of ``left`` with each of ``right``, a factor that occurs twice once."""
        if len(left) * len(right) > MOST_TERMS:
            self.fail(f"it has more than {MOST_TERMS} products")
        return _unique([_product(a, b) for a in left for b in right])

    def primary(self) -> list[Term]:
        piece = self.piece
        if piece is None or piece.kind == "string":
            self.fail()
        if self.take("("):
            terms = self.sum([])
            if not self.take(")"):
                self.fail("a parenthesis is not closed")
            return terms
        if self.mark == "{":
            return [self.expression(self.position + 1, "}")]
        if piece.kind == "mark":
            self.fail()
        self.position += 1
        if piece.kind == "number":
            value = float(piece.text)
            name = INTERCEPT[0] if value == 1 else f"({piece.text})"
            return [self.factor(name, value)]
        if self.mark == "(" and piece.kind == "name":
            return [self.expression(self.position - 1, ")")]
        return [self.factor(piece.text, piece.text)]

    def expression(self, start: int, end: str) -> Term:
        """Read the expression that begins at a token and lasts to the closing mark of its outer pair."""
        depth = 0
        for position in range(self.position, len(self.pieces)):
            piece = self.pieces[position]
            if piece.kind == "mark":
                depth += (piece.text in "([{") - (piece.text in ")]}")
            if depth == 0:
                break
        else:
            self.fail("a parenthesis is not closed")
        self.position = position + 1
        inside = self.pieces[start : position + (end == ")")]
        if not inside or self.pieces[position].text != end:
            self.fail("a parenthesis is not closed")
        found = read_expression(inside, self.text)
        if isinstance(found.node, ast.Name):  # {age} is the column age
            return self.factor(found.columns[0], found.columns[0])
        return self.factor(found.text, found)

    def factor(self, name: str, value: str | Expression | float) -> Term:
        known = self.factors.setdefault(name, value)
        if type(known) is not type(value):
            self.fail(f"the column '{name}' is called like an expression in it; rename the column")
        return (name,)


def _product(left: Term, right: Term) -> Term:
    factors = dict.fromkeys(left + right)
    if len(factors) > 1:
        factors.pop(INTERCEPT[0], None)
    return tuple(factors)


def _unique(terms: list[Term]) -> list[Term]:
    """Return terms without those that are a product of the same factors as one before."""
    found: dict[frozenset[str], Term] = {}
    for term in terms:
        found.setdefault(frozenset(term), term)
    return list(found.values())
