"""Docstrings have their mathematics as Sphinx reads it; the site's pages need it as Markdown has it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mathml import formulas_to_mathml  # noqa: E402

BLOCK = re.compile(r"^([ ]*)\.\. math::[ ]*(.*)\n((?:(?:\1[ ]+.*)?\n)*(?:\1[ ]+.*)?)", re.MULTILINE)


def to_markdown(text: str) -> str:
    """Return a docstring with its ``.. math::`` and ``:math:`` as MathML, and code as Markdown has it."""
    text = BLOCK.sub(lambda m: f"{m[1]}$${m[2]} {m[3].strip()}$$\n\n", text + "\n")
    text = re.sub(r":math:`([^`]+)`", lambda m: f"${' '.join(m[1].split())}$", text).replace("``", "`")
    return formulas_to_mathml(text).rstrip("\n")


class DocstringMath(griffe.Extension):
    """Changes each docstring once, when its object has been read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute.

        Args:
            obj: The object that was read.
        """
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
