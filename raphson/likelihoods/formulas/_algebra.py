"""The door to SymPy: symbols, tidying and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy as sympy  # type: ignore[import-untyped]

Expr = Any  # SymPy ships no types
Symbol = Any
Matrix = Any

mean_of = sympy.Function("E")


def real(names: str) -> Any:
    """Return one or several real symbols."""
    return sympy.symbols(names, real=True)


def positive(names: str) -> Any:
    """Return one or several positive symbols."""
    return sympy.symbols(names, positive=True)


def tidy(expression: Expr) -> Expr:
    """Return the shortest of a few equal forms, which is mostly the one that a textbook prints."""
    expanded = sympy.expand(expression)
    forms = [sympy.factor(expression), sympy.factor_terms(expanded), expanded, expression]
    return min(map(polish, forms), key=lambda form: (form.count_ops(), not form.is_Mul, len(str(form))))


def factored(expression: Expr) -> Expr:
    """Return the expression as one fraction of products."""
    return polish(sympy.factor(expression))


def grouped(expression: Expr, symbols: Sequence[Expr]) -> Expr:
    """Return a sum of products, one for each power of ``symbols``, each factored."""
    groups = sympy.collect(sympy.expand(expression), symbols, evaluate=False)
    return sympy.Add(*(factored(part) * key for key, part in groups.items()))


def polish(expression: Expr) -> Expr:
    """Write ``1 - x**2`` for ``-(x - 1)(x + 1)``, and draw a minus sign into a difference."""
    return expression.replace(lambda part: part.is_Mul, _polish_product)


def _polish_product(product: Expr) -> Expr:
    factors = list(product.args)
    for x in product.free_symbols:
        if x - 1 in factors and x + 1 in factors:
            factors.remove(x - 1)
            factors.remove(x + 1)
            factors.append(x**2 - 1)
    below = [i for i, part in enumerate(factors) if part.is_Add and part.as_coeff_Add()[0].is_negative]
    for i in below[: len(below) // 2 * 2]:
        factors[i] = -factors[i]
    result = sympy.Mul(*factors)
    if not result.could_extract_minus_sign() or not result.is_Mul:
        return result
    factors = list(result.args)
    for i, part in enumerate(factors):
        if part.is_Add and any(term.could_extract_minus_sign() for term in part.args):
            factors[i] = -part
            return -sympy.Mul(*factors)
    return result


def evaluator(expressions: Sequence[Expr], symbols: Sequence[Symbol], digits: int = 40) -> Callable[..., list[float]]:
    """Return a function from numbers for symbols to values of expressions, by way of so many digits, as doubles."""
    import mpmath  # type: ignore[import-untyped]

    function = sympy.lambdify(list(symbols), list(expressions), modules="mpmath", cse=True)

    def evaluate(*values: float) -> list[float]:
        with mpmath.workdps(digits):
            return [float(value) for value in function(*map(mpmath.mpf, values))]

    return evaluate
