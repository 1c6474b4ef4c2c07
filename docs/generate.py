"""Write the pages that are made from the code: a page for each likelihood, and the benchmark tables.

python docs/generate.py    before mkdocs build; the pages are not kept in git
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import raphson as rp
from raphson.likelihoods import catalogue

ROOT = Path(__file__).resolve().parent.parent


def name_of(kind: type) -> str:
    """Return the name of a class as a file has it: ``student-t``."""
    return re.sub(r"(?<=.)(?=[A-Z])", "-", kind.__name__).lower()


def outputs_of(kind: type[rp.Likelihood]) -> str:
    """Return the names of a likelihood's outputs as the cell of a table."""
    return ", ".join(kind.examples()[0].parameters).replace("|", "\\|")


def likelihood_page(kind: type[rp.Likelihood]) -> str:
    """Return the page of a likelihood: formulas by ``rp.explain``, then the class."""
    explanation = rp.explain(kind.examples()[0])
    # MathML, which a browser shows without a script; a blank line would end the block of HTML
    body = re.search(r"<body>(?:.*?</h1>)?(.*)</body>", explanation.to_html(), re.DOTALL)
    assert body is not None
    formulas = re.sub(r"\n\s*\n", "\n", body[1])
    commands = ", ".join(f"`--likelihood {command.name}`" for command in kind.commands)
    line = f"On the command line: {commands}.\n\n" if commands else ""
    first = f"The formulas are those of `rp.{explanation.title}`.\n\n"
    return f"# {kind.__name__}\n\n{line}{first}<div>{formulas}</div>\n\n## In Python\n\n::: raphson.{kind.__name__}\n"


def likelihood_pages() -> dict[str, str]:
    """Return the pages of the likelihoods and their index, by file name."""
    kinds = [kind for kind in catalogue().values() if kind.examples()]
    pages = {f"{name_of(kind)}.md": likelihood_page(kind) for kind in kinds}
    rows = "\n".join(f"| [{kind.__name__}]({name_of(kind)}.md) | {outputs_of(kind)} |" for kind in kinds)
    intro = (
        "# Likelihoods\n\nA likelihood knows the loss of one example as a function of the model's outputs, and its "
        "first and second derivatives. Each page has the formulas that `rp.explain` derives with SymPy, and how far "
        "the code is from them.\n\n"
    )
    return {"index.md": f"{intro}| likelihood | outputs |\n| --- | --- |\n{rows}\n", **pages}


def benchmark_page() -> str:
    """Return the README of the benchmarks, with links that lead out of its folder as text."""
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\[([^]]+)\]\((?!http|#)[^)]+\)", r"`benchmarks/\1`", text)


def write(folder: Path) -> None:
    """Write all generated pages.

    Args:
        folder: The folder of the pages, ``docs``.
    """
    (folder / "likelihoods").mkdir(parents=True, exist_ok=True)
    for name, text in likelihood_pages().items():
        (folder / "likelihoods" / name).write_text(text, encoding="utf-8")
    (folder / "benchmarks.md").write_text(benchmark_page(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
