"""What an explanation says, in order, before it is text, LaTeX or HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from raphson.explain._check import Check
from raphson.likelihoods.formulas import Definition, Expr, Symbol, factored, sympy


class Label(NamedTuple):
    """The left-hand side of a formula; ``of`` are the outputs that it is differentiated in.

    ``name`` is ``nll``, ``gradient``, ``hessian``, ``fisher``, ``det_hessian``, ``det_fisher`` or ``symbol``.
    """

    name: str
    of: tuple[Symbol, ...] = ()


class Formula(NamedTuple):
    """An equation: its left-hand and its right-hand side."""

    label: Label
    expression: Expr


class Grid(NamedTuple):
    """A table of text with names of its columns; cells that are SymPy expressions are set as such."""

    head: tuple[str, ...]
    rows: tuple[tuple[str | Expr, ...], ...]


class Section(NamedTuple):
    """A heading with the sentences, formulas and tables below it."""

    heading: str
    items: tuple[str | Formula | Grid, ...]


def sections(definition: Definition, check: Check) -> list[Section]:
    """Arrange a definition and its check."""
    outputs = definition.outputs
    where = [
        Formula(Label("symbol", (piece.symbol,)), piece.meaning if piece.shown is None else piece.shown)
        for piece in definition.abbreviations
        if _is_used(piece.symbol, definition)
    ]
    where += [Formula(Label("symbol", (s,)), sympy.Symbol(f"{v:.6g}")) for s, v in definition.constants.items()]
    observed = _matrix(definition, "hessian", definition.hessian)
    expected = _matrix(definition, "fisher", definition.fisher)
    return [
        Section("Negative log-likelihood of one response", (Formula(Label("nll"), definition.nll), *_where(where))),
        Section("Outputs and target", (_domains(definition),)),
        Section(
            "Gradient",
            tuple(
                Formula(Label("gradient", (output,)), part)
                for output, part in zip(outputs, definition.gradient, strict=True)
            ),
        ),
        Section("Observed Hessian", observed),
        Section("Fisher information (expected Hessian)", expected),
        *([Section("Notes", definition.notes)] if definition.notes else []),
        Section("Convexity", (definition.convexity.sentence,)),
        Section("Shapes", (_shapes(definition),)),
        Section("Numeric check", _check(definition, check)),
        Section("Source", (definition.source,)),
    ]


# operations beyond which a determinant, or what it is of, no longer fits a line or two
_LONGEST_MATRIX = 50
_LONGEST_DETERMINANT = 22
_LONG = 12
_TRIGAMMA_ERROR = 1e-12


def _matrix(definition: Definition, name: str, matrix: Expr) -> tuple[Formula, ...]:
    if matrix.shape == (1, 1):
        return (Formula(Label(name), matrix[0, 0]),)
    whole = Formula(Label(name), matrix)
    if matrix.shape != (2, 2):
        return (whole,)
    if sympy.count_ops(list(matrix)) > _LONGEST_MATRIX:
        return (whole,)
    value = determinant(definition, matrix)
    if value.count_ops() > _LONGEST_DETERMINANT:
        return (whole,)
    return (whole, Formula(Label(f"det_{name}"), value))


def determinant(definition: Definition, matrix: Expr) -> Expr:
    """Return the determinant of a 2 x 2 matrix in its shortest form, with abbreviations or without one of them."""
    value = matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]
    forms = [factored(value).subs(definition.identities), definition.arrange(value)]
    if forms[0].count_ops() > _LONG:
        used = [piece for piece in definition.abbreviations if value.has(piece.symbol)]
        forms += [factored(value.subs(piece.symbol, piece.meaning)) for piece in used if piece.shown is None]
    return min(forms, key=lambda form: (form.count_ops(), len(str(form))))


def _is_used(symbol: Symbol, definition: Definition) -> bool:
    used = definition.nll.free_symbols | definition.hessian.free_symbols | definition.fisher.free_symbols
    used |= definition.gradient.free_symbols
    later = [piece.meaning.free_symbols for piece in definition.abbreviations if piece.shown is None]
    return symbol in used.union(*later)


def _where(formulas: Sequence[Formula]) -> tuple[str | Formula, ...]:
    return ("where", *formulas) if formulas else ()


def _domains(definition: Definition) -> Grid:
    likelihood = definition.likelihood
    names, count = definition.names, len(likelihood.domains)
    rows: list[tuple[str | Expr, ...]] = [
        (symbol, names[i], likelihood.domains[i % count].description) for i, symbol in enumerate(definition.outputs)
    ]
    words = definition.target_words or likelihood.support.description
    first, *rest = definition.targets
    rows.append((first, "target", words))
    rows += [(symbol, "target", "") for symbol in rest]
    return Grid(("symbol", "name", "is"), tuple(rows))


def _shapes(definition: Definition) -> str:
    k = len(definition.outputs)
    if definition.joint:
        return (
            "For N examples and C outputs: gradient (N, C), Hessian (N, C, C), one matrix per example. Averaged over "
            "the examples it is C×C and does not grow with N."
        )
    block = "one number" if k == 1 else f"one {k}×{k} block"
    return (
        f"For N examples and M responses there are C = {'M' if k == 1 else f'{k}M'} outputs: gradient (N, C); Hessian "
        f"(N, C, C), {block} for each response and zeros between responses. Averaged over the examples it is "
        "C×C and does not grow with N; N is never an axis of it."
    )


def _check(definition: Definition, check: Check) -> tuple[str | Grid, ...]:
    f = ", ".join(f"{name} = {value:.6g}" for name, value in zip(definition.names, check.f.tolist(), strict=True))
    rows = tuple(
        (row.name, _numbers(row.value), "" if row.automatic is None else f"{row.automatic:.1e}", f"{row.symbolic:.1e}")
        for row in check.rows
    )
    head = ("", "closed form", "automatic", "SymPy")
    sentence = (
        f"At {f}, target {_numbers(check.y)}: values of the closed form, and how far from them automatic "
        "differentiation and the formulas above are at most."
    )
    if any(row.automatic is not None and row.automatic > _TRIGAMMA_ERROR for row in check.rows):
        sentence += (
            " (Automatic differentiation goes through torch's trigamma function, which has about nine digits; the "
            "closed form does not.)"
        )
    return (sentence, Grid(head, rows))


def _numbers(x: Tensor) -> str:
    if x.ndim == 0:
        return f"{x.item():.5g}"
    return f"[{', '.join(_numbers(part) for part in x)}]"
