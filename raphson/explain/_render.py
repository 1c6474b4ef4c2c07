"""An explanation as Unicode text, LaTeX and HTML."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence

from raphson.explain._printing import sum_terms, text_block, to_latex, to_mathml, to_text
from raphson.explain._sections import Formula, Grid, Label, Section
from raphson.likelihoods.formulas import Expr

_INDENT = "  "

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:54rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "h1{font-size:1.5rem}h2{font-size:1.1rem;margin:1.6rem 0 .4rem;border-bottom:1px solid #ddd}"
    "math{font-size:1.15rem;margin:.5rem 0;padding:.2em 0;overflow:auto hidden;text-align:left}mtd{padding:.35em .5em}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}"
    "td math{margin:0;padding:0;overflow:visible;font-size:1rem}"
)


def text(title: str, sections: Sequence[Section], width: int) -> str:
    """Return Unicode text."""
    lines = [title, "═" * min(len(title), width)]
    for section in sections:
        lines += ["", section.heading, "─" * len(section.heading)]
        before: list[str] = []
        for item in section.items:
            if isinstance(item, Formula):
                block = _text_formula(item, width)
                # formulas of several lines need air between them
                lines += [*([""] if max(len(before), len(block)) > 1 and before else []), *block]
                before = block
                continue
            before = []
            if isinstance(item, str):
                lines += textwrap.wrap(item, width - 2, initial_indent=_INDENT, subsequent_indent=_INDENT)
            else:
                lines += _text_grid(item, width)
    return "\n".join(line.rstrip() for line in lines)


def _text_formula(formula: Formula, width: int) -> list[str]:
    matrix = getattr(formula.expression, "is_Matrix", False)
    label = f"{_INDENT}{_text_label(formula.label)} = "
    block, baseline = text_block(formula.expression)
    if max(map(len, block)) <= width - len(label):
        return [(label if i == baseline else " " * len(label)) + line for i, line in enumerate(block)]
    if matrix:
        size = formula.expression.shape[0]
        lines = []
        for i in range(size):
            for j in range(i, size):
                place = Label(f"{formula.label.name}[{i},{j}]")
                lines += ["", *_text_formula(Formula(place, formula.expression[i, j]), width)]
        return lines[1:]
    terms = sum_terms(formula.expression)
    if len(terms) > 1:
        return _text_sum(label, terms, width)
    return [label.rstrip(), *(f"{_INDENT * 2}{line}" for line in to_text(formula.expression, width - 4))]


def _text_sum(label: str, terms: Sequence[Expr], width: int) -> list[str]:
    """Return a sum with each term on lines of its own."""
    lines: list[str] = []
    for i, term in enumerate(terms):
        minus = i > 0 and term.could_extract_minus_sign()
        sign = ("- " if minus else "+ ") if i else ""
        lead = (" " * (len(label) - 2) + sign) if i else label
        block, baseline = text_block(-term if minus else term)
        if max(map(len, block)) > width - len(label):
            block, baseline = to_text(-term if minus else term, width - len(label)), 0
        lines += [(lead if n == baseline else " " * len(label)) + line for n, line in enumerate(block)]
    return lines


_SIGNS = {
    "nll": ("ℓ", r"\ell", "<mi>ℓ</mi>"),
    "hessian": ("H", "H", "<mi>H</mi>"),
    "fisher": ("F", "F", "<mi>F</mi>"),
    "det_hessian": ("det H", r"\det H", "<mi>det</mi><mi>H</mi>"),
    "det_fisher": ("det F", r"\det F", "<mi>det</mi><mi>F</mi>"),
}
"""Left-hand sides as text, LaTeX and MathML."""


def _text_label(label: Label) -> str:
    name, _, place = label.name.partition("[")
    if name == "gradient":
        return f"∂ℓ/∂{to_text(label.of[0], 80)[0]}"
    if name == "symbol":
        return to_text(label.of[0], 80)[0]
    return _SIGNS[name][0] + (f"[{place}" if place else "")


def _text_grid(grid: Grid, width: int) -> list[str]:
    rows = [grid.head, *(tuple(c if isinstance(c, str) else to_text(c, 80)[0] for c in row) for row in grid.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(grid.head))]
    # the widest column gives way where the table does not fit
    widest = widths.index(max(widths))
    widths[widest] = max(12, min(widths[widest], width - 2 - sum(widths) + widths[widest] - 3 * (len(widths) - 1)))
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, widths[i]) or [""] for i, cell in enumerate(row)]
        for n in range(max(map(len, cells))):
            parts = [(cell[n] if n < len(cell) else "").ljust(widths[i]) for i, cell in enumerate(cells)]
            lines.append(_INDENT + "   ".join(parts))
    return lines


def _latex_label(label: Label) -> str:
    if label.name == "gradient":
        return rf"\frac{{\partial \ell}}{{\partial {to_latex(label.of[0])}}}"
    return to_latex(label.of[0]) if label.name == "symbol" else _SIGNS[label.name][1]


def latex(title: str, sections: Sequence[Section]) -> str:
    """Return LaTeX: headings in bold, displayed formulas, tables as text."""
    parts = [rf"\textbf{{{_escape(title)}}}"]
    for section in sections:
        parts.append(rf"\textbf{{{_escape(section.heading)}}}")
        for item in section.items:
            if isinstance(item, str):
                parts.append(_escape(item))
            elif isinstance(item, Formula):
                parts.append(rf"$$ {_latex_label(item.label)} = {to_latex(item.expression)} $$")
            else:
                parts.append(_latex_grid(item))
    return "\n\n".join(parts)


def _latex_grid(grid: Grid) -> str:
    def cell(value: str | Expr) -> str:
        return rf"\text{{{_escape(value)}}}" if isinstance(value, str) else to_latex(value)

    rows = [rf"{' & '.join(cell(value) for value in row)} \\" for row in (grid.head, *grid.rows)]
    return rf"$$ \begin{{array}}{{{'l' * len(grid.head)}}} {' '.join(rows)} \end{{array}} $$"


_ESCAPES = {"_": r"\_", "&": r"\&", "%": r"\%", "#": r"\#", "^": r"\^{}", "{": r"\{", "}": r"\}", "≤": r"$\le$"}
_ESCAPES |= {
    "≥": r"$\ge$",
    "²": "$^2$",
    "₀": "$_0$",
    "₁": "$_1$",
    "×": r"$\times$",
    "³": "$^3$",
    "′": "$'$",
    "″": "$''$",
    "ᵀ": r"$^\top$",
}
_ESCAPES |= {
    sign: rf"$\{name}$"
    for name, sign in zip(
        ("tau", "rho", "sigma", "nu", "delta", "mu", "phi", "alpha", "eta", "psi", "epsilon", "lambda", "Phi", "ell"),
        "τρσνδμφαηψελΦℓ",
        strict=True,
    )
}


def _escape(sentence: str) -> str:
    # neighbors in mathematics are one formula: $$ would begin a display
    return "".join(_ESCAPES.get(sign, sign) for sign in sentence).replace("$$", "")


def fragment(title: str, sections: Sequence[Section]) -> str:
    """Return HTML whose formulas are LaTeX, for a notebook."""
    return f"<div>{_html(title, sections, _mathjax_formula, lambda cell: f'${to_latex(cell)}$')}</div>"


def page(title: str, sections: Sequence[Section]) -> str:
    """Return a whole HTML page with MathML."""
    body = _html(title, sections, _mathml_formula, to_mathml)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _mathjax_formula(formula: Formula) -> str:
    return f"<p>$$ {html.escape(_latex_label(formula.label))} = {html.escape(to_latex(formula.expression))} $$</p>"


def _mathml_formula(formula: Formula) -> str:
    label = formula.label
    if label.name == "gradient":
        below = to_mathml(label.of[0], bare=True)
        left = f"<mfrac><mrow><mo>∂</mo><mi>ℓ</mi></mrow><mrow><mo>∂</mo>{below}</mrow></mfrac>"
    else:
        left = to_mathml(label.of[0], bare=True) if label.name == "symbol" else _SIGNS[label.name][2]
    return to_mathml(formula.expression, left=f"{left}<mo>=</mo>")


def _html(title, sections, formula, symbol) -> str:  # type: ignore[no-untyped-def]
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.heading)}</h2>")
        for item in section.items:
            if isinstance(item, str):
                parts.append(f"<p>{html.escape(item)}</p>")
            elif isinstance(item, Formula):
                parts.append(formula(item))
            else:
                parts.append(_html_grid(item, symbol))
    return "\n".join(parts)


def _html_grid(grid: Grid, symbol) -> str:  # type: ignore[no-untyped-def]
    def row(cells: Sequence[str | Expr], tag: str) -> str:
        inside = (html.escape(c) if isinstance(c, str) else symbol(c) for c in cells)
        return "<tr>" + "".join(f"<{tag}>{c}</{tag}>" for c in inside) + "</tr>"

    return f"<table>{row(grid.head, 'th')}{''.join(row(cells, 'td') for cells in grid.rows)}</table>"
