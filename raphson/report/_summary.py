"""A fitted model as the table that a statistician expects, in plain text and HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_LONG = 1e9
"""Statistics from here on are written with an exponent."""

NOT_ESTIMABLE = "not estimable"

_HEADERS = {
    "coef": "coef",
    "effect": "effect",
    "std_err": "std err",
    "z": "z",
    "p_value": "P>|z|",
    "kind": "kind",
}


@dataclass(frozen=True)
class Summary:
    """Facts about a fit and its coefficient table.

    Prints as plain text and shows as HTML in notebooks.

    Attributes:
        title: Heading.
        facts: ``(name, value)`` pairs of the header block, set in two columns.
        table: Coefficients as `Estimates.to_frame` gives them: rows ``(class, feature)``.
        notes: Sentences below the table.
        level: Coverage of the interval in ``table``.

    Examples:
        >>> import numpy as np
        >>> import raphson as rp
        >>> x, y = np.linspace(-1, 1, 40)[:, None], np.tile([0, 1, 1, 2, 0, 3, 1, 2], 5)
        >>> summary = rp.VectorGLM(rp.Poisson()).fit(x, y).summary()
        >>> summary.facts[0]
        ('Observations', '40')
    """

    title: str
    facts: tuple[tuple[str, Any], ...]
    table: pd.DataFrame
    notes: tuple[str, ...] = ()
    level: float = 0.95

    def to_frame(self) -> pd.DataFrame:
        """Return the coefficient table."""
        return self.table

    def __str__(self) -> str:
        headers = column_headers(self)
        blocks = [(heading, list(rows)) for heading, rows in self._blocks()]
        names = [name for _, rows in blocks for name, _ in rows] + [heading for heading, _ in blocks]
        widths = [max(len(text) for text in [*names, ""])]
        for i, header in enumerate(headers):
            widths.append(max([len(header), 9, *(len(cells[i]) for _, rows in blocks for _, cells in rows)]))
        lines = [
            "=" * (total := sum(widths) + 2 * len(headers)),
            self.title.center(total).rstrip(),
            "=" * total,
            *self._fact_lines(total),
            "=" * total,
        ]
        for heading, rows in blocks:
            lines += [_line(heading, headers, widths), "-" * total]
            lines += [_line(name, cells, widths) for name, cells in rows]
            lines.append("-" * total)
        if blocks:
            lines[-1] = "=" * total
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        facts = "".join(f"<tr>{_th(name)}{_td(_fact(value))}</tr>" for name, value in self.facts)
        head = "".join(_th(header) for header in column_headers(self))
        body = "".join(
            f"<tbody><tr>{_th(heading)}{head}</tr>"
            + "".join(f"<tr>{_th(name)}{''.join(map(_td, cells))}</tr>" for name, cells in rows)
            + "</tbody>"
            for heading, rows in self._blocks()
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        title = f"<caption>{html.escape(self.title)}</caption>"
        return f"<div><table>{title}{facts}</table><table>{body}</table>{notes}</div>"

    def _blocks(self) -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
        """Yield one block per class: its heading, and the name and cells of every row."""
        blocks: dict[Hashable, list[tuple[str, list[str]]]] = {}
        for (output, feature), row in zip(self.table.index, self.table.to_dict("records"), strict=True):
            blocks.setdefault(output, []).append((str(feature), row_cells(row)))
        name = self.table.index.names[0]
        for output, rows in blocks.items():
            yield (f"{name}: {output}" if name and str(output) else str(output)), rows

    def _fact_lines(self, total: int) -> list[str]:
        texts = [(f"{name}:", _fact(value)) for name, value in self.facts]
        half = (len(texts) + 1) // 2
        left, right = texts[:half], [*texts[half:], ("", "")][:half]
        columns = []
        for column in (left, right):
            width = max((total - 4) // 2, *(len(name) + len(value) + 1 for name, value in [*column, ("", "")]))
            columns.append([name + value.rjust(width - len(name)) for name, value in column])
        return [f"{a}    {b}".rstrip() for a, b in zip(*columns, strict=True)]


def column_headers(summary: Summary) -> list[str]:
    """Return what stands above the columns of a summary's table."""
    tail = (1 - summary.level) / 2
    bounds = {"lower": f"[{tail:.4g}", "upper": f"{1 - tail:.4g}]"}
    if "chi2" in summary.table.columns:
        bounds["p_value"] = "P>chi2"
    return [(_HEADERS | bounds).get(str(name), str(name)) for name in summary.table.columns]


def row_cells(row: Mapping[Any, Any]) -> list[str]:
    """Return the cells of a coefficient's row as texts."""
    import pandas as pd

    first, *_ = row
    if pd.isna(row[first]):
        return [NOT_ESTIMABLE, *("" for _ in range(len(row) - 1))]
    return ["" if pd.isna(value) else _number(str(name), value) for name, value in row.items()]


def _number(column: str, value: Any) -> str:
    if value == math.inf:
        return ">1e308"  # the exponential of a large coefficient
    if isinstance(value, str | int):
        return str(value)
    if column == "p_value":
        return "<0.001" if value < 0.0005 else f"{value:.3f}"
    if column in {"z", "chi2"}:
        return f"{value:.3f}" if abs(value) < _LONG else f"{value:.5g}"
    return _trim(f"{value:#.5g}")


def _trim(text: str) -> str:
    return text[:-1] if text.endswith(".") else text


def _fact(value: Any) -> str:
    return _trim(f"{value:#.7g}") if isinstance(value, float) else str(value)


def _line(name: str, cells: list[str], widths: list[int]) -> str:
    padded = [f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
    return (f"{name:<{widths[0]}}" + "".join(padded)).rstrip()


def _th(text: str) -> str:
    return f"<th>{html.escape(text)}</th>"


def _td(text: str) -> str:
    return f"<td>{html.escape(text)}</td>"
