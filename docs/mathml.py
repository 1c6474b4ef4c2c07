"""Formulas as MathML, which browsers show without a script or a font from elsewhere; in the pages they are TeX."""

from __future__ import annotations

import re

_TEX = re.compile(
    r"(?P<code>^```.*?^```$|`[^`\n]+`)|^(?P<indent>[ ]*)\$\$(?P<block>.+?)\$\$|\$(?P<line>[^$\n]+)\$",
    re.DOTALL | re.MULTILINE,
)
_FUNCTION = re.compile(
    r"((?:<msub>)?<mi(?: mathvariant=\"normal\")?>(?:log|ln|exp|det|tr|max|min)</mi>(?:<mi>\w</mi></msub>)?)"
    r"(?=<m(?!o stretchy))"
)
_DOUBLE_STRUCK = {"R": "ℝ", "N": "ℕ", "E": "𝔼"}


def mathml(tex: str, display: str = "inline") -> str:
    """Return a formula as MathML that Markdown leaves alone.

    Args:
        tex: The formula.
        display: ``"inline"`` or ``"block"``.

    Returns:
        An element in one line.
    """
    from latex2mathml.converter import convert

    text = re.sub(r"\\operatorname\s+(\w)", r"\\operatorname{\1}", " ".join(tex.split()))
    text = re.sub(r"('+)\^(\{[^}]*\}|.)", lambda m: "^{" + r"\prime " * len(m[1]) + m[2].strip("{}") + "}", text)
    made = convert(text, display=display)
    made = re.sub(r'<mi mathvariant="double-struck">(\w)</mi>', lambda m: f"<mi>{_DOUBLE_STRUCK[m[1]]}</mi>", made)
    # names of functions are identifiers with a thin space before an argument without brackets
    made = re.sub(r"<mo>([A-Za-z]{3,}|tr|E)</mo>", r'<mi mathvariant="normal">\1</mi>', made)
    made = _FUNCTION.sub(r'\1<mspace width="0.17em"></mspace>', made)
    for mark, entity in (("*", "&#42;"), ("_", "&#95;"), ("|", "&#124;"), ("`", "&#96;"), ("\\", "&#92;")):
        made = made.replace(mark, entity)
    tag = "div" if display == "block" else "span"
    return f'<{tag} class="math">{made}</{tag}>'


def formulas_to_mathml(text: str) -> str:
    """Return Markdown with its ``$...$`` and ``$$...$$`` as MathML; code stays as it is.

    Args:
        text: Markdown.

    Returns:
        The same with elements of HTML.
    """

    def one(found: re.Match[str]) -> str:
        if found["code"] is not None:
            return found[0]
        if found["block"] is not None:
            return f"\n{found['indent']}{mathml(found['block'], 'block')}\n"
        return mathml(found["line"])

    return _TEX.sub(one, text)
