"""``raphson explain``: the formulas of a likelihood, printed or written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import raphson as rp
from raphson.explain import explain_name


def run_explain(name: str, arguments: dict[str, Any], *, latex: bool, html: Path | None) -> None:
    """Print the explanation of a likelihood with arguments (None for those not given), or write it as a page."""
    explanation = explain_name(name, **{key: value for key, value in arguments.items() if value is not None})
    if html is None:
        if not latex and hasattr(sys.stdout, "reconfigure"):
            # formulas are Unicode, whatever the locale of a pipe is
            sys.stdout.reconfigure(encoding="utf-8")
        print(explanation.to_latex() if latex else explanation)
        return
    try:
        explanation.to_html(html)
    except OSError as error:
        raise rp.InputError(f"cannot write '{html}': {error.strerror or error}.") from error
    print(f"wrote {html}")
