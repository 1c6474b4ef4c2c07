r"""``shapes``: how large outputs, Jacobians and Hessians are, per example and averaged."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from raphson._errors import InputError

if TYPE_CHECKING:
    import pandas as pd


class Sizes(NamedTuple):
    """The numbers that shapes are made of.

    Attributes:
        n: Examples ``N``.
        c: Outputs ``C`` of one example (of one position of it).
        p: Parameters ``P``.
        t: Lengths of the axes between examples and outputs: sequence positions ``T``.
        itemsize: Bytes of a number.
    """

    n: int
    c: int
    p: int
    t: tuple[int, ...] = ()
    itemsize: int = 8


class Row(NamedTuple):
    """One quantity.

    Attributes:
        name: What it is.
        formula: As a formula.
        per_example: Shape of one example's.
        all_examples: Shape of all examples' together.
        averaged: Shape of the weighted mean over the examples, None where that is of no use.
        note: How the library holds it.
    """

    name: str
    formula: str
    per_example: tuple[int, ...]
    all_examples: tuple[int, ...]
    averaged: tuple[int, ...] | None
    note: str


_ANSWER = (
    "The Hessian in the outputs is one C x C matrix per example, whatever the likelihood: two outputs (a mean and a "
    "scale, say) for each of M responses make C = 2M. N counts examples and indexes a stack of such matrices, never "
    "rows or columns of one. What a fit uses is an average over examples: C x C for outputs that all examples share, "
    "P x P for parameters. Neither grows with N."
)


@dataclass(frozen=True)
class Shapes:
    """A table of shapes and of the memory that each array would take if it were formed.

    Attributes:
        sizes: The numbers.
        rows: One per quantity.
    """

    sizes: Sizes
    rows: tuple[Row, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per quantity: shapes as tuples, memory in bytes."""
        import pandas as pd

        records = [
            {
                "formula": row.formula,
                "per_example": row.per_example,
                "per_example_bytes": self._bytes(row.per_example),
                "all_examples": row.all_examples,
                "all_examples_bytes": self._bytes(row.all_examples),
                "averaged": row.averaged,
                "averaged_bytes": None if row.averaged is None else self._bytes(row.averaged),
                "note": row.note,
            }
            for row in self.rows
        ]
        frame = pd.DataFrame(records, index=pd.Index([row.name for row in self.rows], name="quantity"))
        return frame.astype({"averaged_bytes": "Int64"})

    def _bytes(self, shape: tuple[int, ...]) -> int:
        total = self.sizes.itemsize
        for length in shape:
            total *= length
        return total

    def _title(self) -> str:
        s = self.sizes
        positions = f", T = {' x '.join(f'{t:,}' for t in s.t)} positions" if s.t else ""
        return (
            f"N = {s.n:,} examples{positions}, C = {s.c:,} outputs, P = {s.p:,} parameters; {s.itemsize} bytes a number"
        )

    def _cells(self) -> list[list[str]]:
        def cell(shape: tuple[int, ...] | None) -> str:
            return "" if shape is None else f"{_shape(shape)}  {_memory(self._bytes(shape))}"

        return [
            [row.name, row.formula, cell(row.per_example), cell(row.all_examples), cell(row.averaged)]
            for row in self.rows
        ]

    def __repr__(self) -> str:
        return f"<Shapes of {len(self.rows)} quantities: print it, or to_frame()>"

    def __str__(self) -> str:
        import textwrap

        rows = [list(_HEAD), *self._cells()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
        lines = [
            "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        total = max(map(len, lines))
        lines.insert(1, "─" * total)
        notes = [line for row in self.rows if row.note for line in textwrap.wrap(f"{row.name}: {row.note}", total)]
        return "\n".join([self._title(), "", *lines, "", *textwrap.wrap(_ANSWER, total), "", *notes])

    def _repr_html_(self) -> str:
        def row(cells: list[str], tag: str) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

        body = "".join(row(cells, "td") for cells in self._cells())
        notes = "".join(f"<li>{html.escape(f'{r.name}: {r.note}')}</li>" for r in self.rows if r.note)
        table = f"<table><thead>{row(list(_HEAD), 'th')}</thead><tbody>{body}</tbody></table>"
        return f"<div><p>{html.escape(self._title())}</p>{table}<p>{html.escape(_ANSWER)}</p><ul>{notes}</ul></div>"


_HEAD = ("", "formula", "per example", "all examples", "averaged")


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{length:,}" for length in shape) if shape else "1"


def _memory(size: int) -> str:
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < 1000 or unit == "PiB":
            break
        amount /= 1024
    return f"{amount:,.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.3g} {unit}"


def shapes(
    objective: Any = None,
    *,
    n: int | None = None,
    c: int | None = None,
    p: int | None = None,
    t: int | tuple[int, ...] = (),
    itemsize: int = 8,
) -> Shapes:
    r"""Say which shape every derivative has, with the numbers filled in and the memory each would take.

    With outputs :math:`f_n` (C) of a model with parameters :math:`\theta` (P): the Jacobian
    :math:`J_n = \partial f_n/\partial\theta` is C x P, the output Hessian :math:`H_n = \partial^2\ell/\partial f^2` is
    C x C, and the parameter Hessian of the objective, the mean of :math:`J_n^\top H_n J_n + \sum_c g_{nc} \nabla^2
    f_{nc}`, is P x P whatever N is.

    Args:
        objective: An `Objective` of a network, or a fitted linear estimator; None if the numbers are given.
        n: Number of examples ``N``.
        c: Number of outputs ``C``.
        p: Number of parameters ``P``.
        t: Sequence positions: the lengths of the axes of the outputs between examples and ``C``.
        itemsize: Bytes of a number; taken from an objective's type otherwise.

    Returns:
        The table.

    Raises:
        InputError: Neither an objective nor ``n``, ``c`` and ``p`` are given, or one of them is not positive.

    Examples:
        A linear model with 2 outputs and 5 columns for each:

        >>> import raphson as rp
        >>> table = rp.shapes(n=1000, c=2, p=10).to_frame()
        >>> table.loc["output Hessian", ["per_example", "all_examples", "averaged"]].tolist()
        [(2, 2), (1000, 2, 2), (2, 2)]
        >>> int(table.loc["parameter Hessian", "averaged_bytes"])
        800
    """
    if objective is not None:
        if any(number is not None for number in (n, c, p)):
            raise InputError("Give shapes() an objective or the numbers n, c and p, not both.")
        sizes = _sizes_of(objective)
    else:
        given = {"n": n, "c": c, "p": p}
        missing = [name for name, number in given.items() if number is None]
        if missing:
            raise InputError(
                f"shapes() needs {', '.join(missing)}: give it an Objective, a fitted estimator, or the numbers of "
                "examples, outputs and parameters, as in shapes(n=1000, c=2, p=50)."
            )
        positions = (t,) if isinstance(t, int) else tuple(t)
        sizes = Sizes(int(n or 0), int(c or 0), int(p or 0), positions, itemsize)
    for name, number in [("n", sizes.n), ("c", sizes.c), ("p", sizes.p), *(("t", t) for t in sizes.t)]:
        if number < 1:
            raise InputError(f"{name} is {number}, but it must be 1 or more.")
    return Shapes(sizes, _rows(sizes))


def _sizes_of(objective: Any) -> Sizes:
    if hasattr(objective, "batches") and hasattr(objective, "n_parameters"):
        return Sizes(
            objective.n_examples,
            objective.n_outputs,
            objective.n_parameters,
            _positions(objective),
            objective.dtype.itemsize,
        )
    if hasattr(objective, "df_model_") and hasattr(objective, "n_obs_"):
        return Sizes(round(objective.n_obs_), _n_outputs(objective), objective.df_model_)
    if hasattr(objective, "fit"):
        raise InputError(f"This {type(objective).__name__} is not fitted yet: call fit first, or give the numbers.")
    raise InputError(
        f"shapes() does not know the sizes of a {type(objective).__name__}: give it an Objective, a fitted estimator, "
        "or the numbers, as in shapes(n=1000, c=2, p=50)."
    )


def _positions(objective: Any) -> tuple[int, ...]:
    """Return the lengths of the axes between examples and outputs, by the outputs of one example."""
    import torch

    with torch.no_grad():
        outputs = objective.outputs(next(iter(objective.batches())).rows(slice(0, 1)), 0)
    return tuple(outputs.shape[1:-1])


def _n_outputs(estimator: Any) -> int:
    coefficients = estimator.coef_
    return int(coefficients.shape[0]) if getattr(coefficients, "ndim", 1) > 1 else 1


def _rows(s: Sizes) -> tuple[Row, ...]:
    t, c, p = s.t, s.c, s.p
    every = (s.n, *t)
    return (
        Row("outputs", "f", (*t, c), (*every, c), None, ""),
        Row("output gradient", "g = ∂ℓ/∂f", (*t, c), (*every, c), (c,), ""),
        Row("Jacobian", "J = ∂f/∂θ", (*t, c, p), (*every, c, p), None, "products J v and Jᵀu need no such array"),
        Row(
            "output Hessian",
            "H = ∂²ℓ/∂f²",
            (*t, c, c),
            (*every, c, c),
            (c, c),
            "stored by its structure: diagonal, one small block per response, or a diagonal minus a rank-one term",
        ),
        Row("expected output Hessian", "E[H]", (*t, c, c), (*every, c, c), (c, c), ""),
        Row("gradient", "Jᵀg", (p,), (s.n, p), (p,), ""),
        Row(
            "Gauss-Newton term",
            "JᵀHJ",
            (p, p),
            (s.n, p, p),
            (p, p),
            "its rank is at most " + f"{min(s.n * _product(t) * c, p):,}" + " (N T C or P, whichever is smaller)",
        ),
        Row("model curvature", "∂²f/∂θ²", (*t, c, p, p), (*every, c, p, p), None, "zero for a model linear in θ"),
        Row(
            "parameter Hessian",
            "JᵀHJ + Σ g ∂²f/∂θ²",
            (p, p),
            (s.n, p, p),
            (p, p),
            "implicit products need a few vectors of length P",
        ),
    )


def _product(t: tuple[int, ...]) -> int:
    total = 1
    for length in t:
        total *= length
    return total
