"""Docstrings have their mathematics as Sphinx reads it; the site's pages need it as Markdown has it."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

BLOCK = re.compile(r"^([ ]*)\.\. math::[ ]*(.*)\n((?:(?:\1[ ]+.*)?\n)*(?:\1[ ]+.*)?)", re.MULTILINE)


def to_markdown(text: str) -> str:
    """Return a docstring with ``.. math::`` and ``:math:`` as Markdown has them, and code as code."""

    def block(found: re.Match[str]) -> str:
        indent, first, rest = found.groups()
        body = f"{first}\n{textwrap.dedent(rest).strip()}".strip()
        lines = "\n".join(f"{indent}{line}" for line in body.splitlines() if line.strip())
        return f"{indent}$$\n{lines}\n{indent}$$\n\n"

    text = BLOCK.sub(block, text + "\n")
    return re.sub(r":math:`([^`]+)`", r"$\1$", text).replace("``", "`").rstrip("\n")


class DocstringMath(griffe.Extension):
    """Changes each docstring once, when its object has been read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute.

        Args:
            obj: The object that was read.
        """
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
