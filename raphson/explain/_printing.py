"""SymPy expressions as Unicode text, LaTeX and MathML."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from sympy.printing.latex import LatexPrinter  # type: ignore[import-untyped]
from sympy.printing.mathml import MathMLPresentationPrinter  # type: ignore[import-untyped]
from sympy.printing.pretty.pretty import PrettyPrinter  # type: ignore[import-untyped]

from raphson.likelihoods.formulas import Expr, sympy

psi = sympy.Function("psi")
psi_prime = sympy.Function("psiprime")


def as_printed(expression: Expr) -> Expr:
    r"""Replace special functions by the signs that people write for them, and sums of halves by half of a sum."""
    expression = expression.replace(sympy.loggamma, _log_gamma)
    expression = expression.replace(sympy.polygamma, lambda n, x: (psi if n == 0 else psi_prime)(x))
    return expression.replace(_is_sum_of_halves, lambda x: sympy.Mul(sympy.S.Half, 2 * x, evaluate=False))


def _log_gamma(x: Expr) -> Expr:
    return sympy.log(sympy.factorial(x - 1) if x.as_coeff_Add()[0] == 1 else sympy.gamma(x))


def _is_sum_of_halves(x: Expr) -> bool:
    parts = [term.as_coeff_Mul() for term in x.args] if x.is_Add else []
    return bool(parts) and all(
        number.is_Rational and number.q == 2 and (part.is_Symbol or part == 1) for number, part in parts
    )


def _printer(kind: Any, **settings: Any) -> Any:
    """Return a printer that begins a sum with a term without a minus sign, as people do."""
    printer = kind(settings)
    in_order = printer._as_ordered_terms

    printer._as_ordered_terms = lambda expression, order=None: _people_order(in_order(expression, order=order))
    return printer


def _people_order(terms: Sequence[Expr]) -> list[Expr]:
    return sorted(terms, key=lambda term: bool(term.could_extract_minus_sign()))


def sum_terms(expression: Expr) -> list[Expr]:
    """Return the terms of a sum in the order in which they are printed; the expression itself if it is none."""
    return _people_order(expression.as_ordered_terms())


def to_text(expression: Expr, width: int) -> list[str]:
    """Return the lines of an expression in Unicode, folded at a width."""
    form = _printer(PrettyPrinter, use_unicode=True)._print(as_printed(expression))
    return [line.rstrip() for line in form.render(use_unicode=True, num_columns=width, wrap_line=True).split("\n")]


def text_block(expression: Expr) -> tuple[list[str], int]:
    """Return the unfolded lines of an expression in Unicode and which of them is on the level of an equals sign."""
    form = _printer(PrettyPrinter, use_unicode=True)._print(as_printed(expression))
    return [line.rstrip() for line in form.render(use_unicode=True, wrap_line=False).split("\n")], form.baseline


def to_latex(expression: Expr) -> str:
    """Return LaTeX without dollar signs."""
    text: str = _printer(LatexPrinter, mat_delim="[").doprint(as_printed(expression))
    text = text.replace("φ", r"\varphi")
    return text.replace(r"\operatorname{{\psi}'}", r"\psi'").replace(r"E{\left(", r"\operatorname{E}{\left(")


# SymPy's MathML printer writes the names of functions in lower case and knows no Greek among them.
_MATHML = {"psi": "ψ", "psiprime": "ψ′", "phi": "Φ", "e": "E"}


def to_mathml(expression: Expr, left: str = "", bare: bool = False) -> str:
    """Return presentation MathML, which browsers show without any script."""
    printer = _printer(MathMLPresentationPrinter)
    text: str = printer._print(as_printed(expression)).toxml()
    for name, sign in _MATHML.items():
        text = re.sub(rf"<mi>{name}</mi>(?=<mrow><mo>\()", f"<mi>{sign}</mi>", text)
    # XML knows none of HTML's names for signs
    text = re.sub(r"&(?!lt;|gt;|amp;)\w+;", lambda name: html.unescape(name[0]), text.replace("&ExponentialE;", "e"))
    if bare:
        return text
    return f'<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">{left}{text}</math>'
