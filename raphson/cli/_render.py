"""A summary on the terminal: facts in two columns, one block of coefficients per class, notes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_MIN_WIDTH = 100


def render(summary: Any, notes: Sequence[str], heading: str) -> None:
    """Print a summary and notes; ``heading`` stands above a block, with ``{}`` for its class or parameter."""
    console = Console(highlight=False)
    if not console.is_terminal:
        # Nobody sees a file's or a pipe's width: do not fold lines there.
        console = Console(highlight=False, width=_MIN_WIDTH)
    console.print(Text(summary.title, style="bold"))
    console.print(_facts(summary.facts))
    frame = summary.to_frame()
    for label, block in frame.groupby(level=0, sort=False):
        console.print()
        console.print(Text(heading.replace("{}", str(label)), style="bold"))
        console.print(_coefficients(block.droplevel(0), summary.level))
    if notes:
        console.print()
    for note in dict.fromkeys(notes):
        console.print(Text(f"- {note}"), soft_wrap=not console.is_terminal)


def _facts(facts: Sequence[tuple[str, Any]]) -> Table:
    grid = Table.grid(padding=(0, 3))
    half = (len(facts) + 1) // 2
    for i in range(half):
        pairs = [facts[i], facts[half + i] if half + i < len(facts) else ("", "")]
        grid.add_row(*(Text(str(cell)) for pair in pairs for cell in pair))
    return grid


def _coefficients(block: pd.DataFrame, level: float) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    tail = (1 - level) / 2
    # exp(coef) if ratios were asked for, and chi2 for profiles
    coef, _, statistic, *_ = map(str, block.columns)
    probability = "P>|z|" if statistic == "z" else f"P>{statistic}"
    headers = [coef, "std err", statistic, probability, f"[{tail:.4g}", f"{1 - tail:.4g}]"]
    for header in headers:
        table.add_column(Text(header), justify="right", no_wrap=True)
    for name, row in block.iterrows():
        values = [row[column] for column in (coef, "std_err", statistic, "p_value", "lower", "upper")]
        table.add_row(Text(str(name)), *(Text(cell) for cell in _cells(values)))
    return table


def _cells(values: list[Any]) -> list[str]:
    if pd.isna(values[0]):
        return ["not estimable", "", "", "", "", ""]
    coef, std_err, z, p_value, lower, upper = values
    formats = [
        (coef, "#.4g"),
        (std_err, "#.4g"),
        (z, ".2f"),
        (p_value, ".3f"),
        (lower, "#.4g"),
        (upper, "#.4g"),
    ]
    # the exponential of a large coefficient may be beyond the largest number
    cells = [
        "" if pd.isna(value) else ">1e308" if value == math.inf else format(value, style) for value, style in formats
    ]
    if cells[3] == "0.000":
        cells[3] = "<0.001"
    return cells
