"""One report of a fit in three forms: a page, Markdown and JSON. It is told everything; nothing is computed here."""

from __future__ import annotations

import base64
import enum
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raphson._errors import InputError
from raphson.report._summary import column_headers, row_cells

if TYPE_CHECKING:
    from raphson.report._summary import Summary

FORMS = (".html", ".md", ".json")


class Verdict(enum.Enum):
    """What a check found.

    Examples:
        >>> Verdict.LOOK.value
        'look'
    """

    PASS = "pass"
    LOOK = "look"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What was looked at.
        verdict: What was found, in a word.
        finding: What was found, in sentences with numbers.
        remedy: What to do; empty where nothing is to be done.

    Examples:
        >>> Check("Convergence", Verdict.PASS, "The gradient is below the tolerance.").verdict.value
        'pass'
    """

    name: str
    verdict: Verdict
    finding: str
    remedy: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture with what it shows in words.

    Attributes:
        title: Heading.
        image: The file's bytes.
        kind: ``"svg+xml"`` or ``"png"``.
        description: What it shows, for those who do not see it.

    Examples:
        >>> Figure("Empty", b"<svg/>", "svg+xml", "Nothing.").address
        'data:image/svg+xml;base64,PHN2Zy8+'
    """

    title: str
    image: bytes = field(repr=False)
    kind: str
    description: str

    @property
    def address(self) -> str:
        """The picture itself as a web address, so that a page needs no other file."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.image).decode()}"


@dataclass(frozen=True)
class Report:
    """Everything about a fit that a reader needs to judge it and to make it again.

    Attributes:
        summary: Title, facts, table of coefficients and notes.
        checks: What was looked at, in the order of their numbers.
        draw: Draws the pictures, of the page only, when they are first wanted.
        reproduce: How to make it again: ``(name, value)`` pairs.
        numbers: More numbers, of the JSON form only.
        table_name: Heading of the table.
        caption: What the table's columns are; None for estimates with their intervals.

    Examples:
        >>> import numpy as np
        >>> import raphson as rp
        >>> x, y = np.linspace(-1, 1, 40)[:, None], np.tile([0, 1, 1, 2, 0, 3, 1, 2], 5)
        >>> report = rp.VectorGLM(rp.Poisson()).fit(x, y).report()
        >>> report.to_markdown().splitlines()[0]
        '# Poisson regression, outputs log_mean'
    """

    summary: Summary
    checks: tuple[Check, ...]
    draw: Callable[[], tuple[Figure, ...]] = field(repr=False)
    reproduce: tuple[tuple[str, str], ...]
    numbers: Mapping[str, Any]
    table_name: str = "Coefficients"
    caption: str | None = None

    def __str__(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        return self.to_html()

    @cached_property
    def figures(self) -> tuple[Figure, ...]:
        """The pictures of the page."""
        return self.draw()

    @property
    def verdicts(self) -> str:
        """How many checks passed, need a look and are problems, in a sentence."""
        counts = {v: sum(check.verdict is v for check in self.checks) for v in Verdict}
        looks, problems = counts[Verdict.LOOK], counts[Verdict.PROBLEM]
        return (
            f"{len(self.checks)} checks: {counts[Verdict.PASS]} passed, {looks} to look at, "
            f"{problems} problem{'s' * (problems != 1)}."
        )

    def to_html(self) -> str:
        """Return one page without scripts that loads nothing."""
        from jinja2 import Environment, PackageLoader

        pages = Environment(loader=PackageLoader("raphson.report", "."), autoescape=True, trim_blocks=True)
        rows = [(str(output), str(feature), row_cells(row)) for (output, feature), row in self._rows()]
        return pages.get_template("page.html").render(
            report=self, summary=self.summary, headers=column_headers(self.summary), rows=rows, axes=self._axes()
        )

    def to_markdown(self) -> str:
        """Return text with tables, without the figures."""
        names = [*self._axes(), *column_headers(self.summary)]
        table = [[str(part) for part in label] + row_cells(row) for label, row in self._rows()]
        checks = [
            f"{i}. **{check.verdict.value}**: {check.name}. {check.finding}"
            + (f" What to do: {check.remedy}" if check.remedy else "")
            for i, check in enumerate(self.checks, 1)
        ]
        notes = ["", "## Notes", "", *(f"- {note}" for note in self.summary.notes)] if self.summary.notes else []
        parts = [
            f"# {self.summary.title}",
            "",
            self.verdicts,
            "",
            *_markdown_table(["", ""], [[name, str(value)] for name, value in self.summary.facts]),
            "",
            f"## {self.table_name}",
            "",
            *_markdown_table(names, table),
            *notes,
            "",
            "## Checks",
            "",
            *checks,
            "",
            "## How to make it again",
            "",
            *_markdown_table(["", ""], [list(pair) for pair in self.reproduce]),
            "",
        ]
        return "\n".join(parts)

    def to_json(self) -> str:
        """Return all numbers in full precision; what is missing or infinite is null."""
        table = [{**dict(zip(self._axes(), map(str, label), strict=True)), **row} for label, row in self._rows()]
        made = {
            "title": self.summary.title,
            "facts": dict(self.summary.facts),
            "level": self.summary.level,
            self.table_name.lower().replace(" ", "_"): table,
            "notes": list(self.summary.notes),
            "checks": [
                {"number": i, "name": c.name, "verdict": c.verdict.value, "finding": c.finding, "remedy": c.remedy}
                for i, c in enumerate(self.checks, 1)
            ],
            **self.numbers,
            "reproduce": dict(self.reproduce),
        }
        return json.dumps(_plain(made), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the form that the name of the file asks for; the file appears whole or not at all.

        Args:
            path: A name that ends in .html, .md or .json.

        Raises:
            InputError: The name ends otherwise, or the file cannot be written.
        """
        target = check_report(path)
        text = {".html": self.to_html, ".md": self.to_markdown, ".json": self.to_json}[target.suffix.lower()]()
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, target)
        except OSError as error:
            raise InputError(f"The report {target} cannot be written: {error.strerror or error}.") from None
        finally:
            part.unlink(missing_ok=True)

    def _rows(self) -> list[tuple[tuple[Any, Any], dict[str, Any]]]:
        frame = self.summary.table
        return list(zip(frame.index, frame.to_dict("records"), strict=True))

    def _axes(self) -> list[str]:
        return [str(name or "") for name in self.summary.table.index.names]


def check_report(path: str | os.PathLike[str]) -> Path:
    """Return where a report goes, or say, before any work, why it cannot.

    Args:
        path: Name of a file.

    Returns:
        The path.

    Raises:
        InputError: Its name ends otherwise than in .html, .md or .json, or its directory does not exist.

    Examples:
        >>> check_report("fit.html").name
        'fit.html'
    """
    target = Path(path)
    if target.suffix.lower() not in FORMS:
        raise InputError(f"The report {target} has no form of that name: it must end in .html, .md or .json.")
    if not target.absolute().parent.is_dir():
        raise InputError(f"The report {target} cannot be written: there is no directory {target.absolute().parent}.")
    if target.exists() and not target.is_file():
        raise InputError(f"The report {target} cannot be written: there is something else than a file of that name.")
    return target


def _markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _plain(value: Any) -> Any:
    import pandas as pd

    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is pd.NA:
        return None
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
