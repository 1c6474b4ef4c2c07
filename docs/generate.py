"""Write the pages of the site: those of this folder with their figures drawn, and those that are made from the code.

python docs/generate.py && mkdocs build    the pages go to build/docs, where mkdocs.yml looks for them
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("MPLBACKEND", "agg")

from mathml import formulas_to_mathml  # noqa: E402

import raphson as rp  # noqa: E402
from raphson.likelihoods import catalogue  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```([\w ]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
IMAGE = re.compile(r"^!\[([^]]*)\]\(([^)]+)\)$", re.MULTILINE)


class Block(NamedTuple):
    """A block of code of a page.

    Attributes:
        language: As the page names it.
        code: Its text.
        images: Files ``(alt text, path)`` of the figures that it draws: those shown before the next block.
    """

    language: str
    code: str
    images: list[tuple[str, str]]


def blocks(text: str) -> list[Block]:
    """Return the blocks of a page; figures after what a block prints belong to the block."""
    found = list(BLOCK.finditer(text))
    ends = [*(match.start() for match in found), len(text)][1:]
    made = [Block(m[1], m[2], IMAGE.findall(text[m.end() : end])) for m, end in zip(found, ends, strict=False)]
    for i, block in enumerate(made):
        if block.language == "text" and i:
            made[i - 1].images.extend(block.images)
            block.images.clear()
    return made


def take_figures(images: list[tuple[str, str]], folder: Path | None = None) -> None:
    """Close the figures that a block left open, and save them.

    Args:
        images: What the page shows of them, in their order.
        folder: The folder of the page; None to save nothing.

    Raises:
        ValueError: The page shows more or fewer.
    """
    from matplotlib import pyplot

    numbers = pyplot.get_fignums()
    if len(numbers) != len(images):
        raise ValueError(f"A block draws {len(numbers)} figures, and its page shows {images} after it.")
    for number, (_, path) in zip(numbers, images, strict=True):
        if folder is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            pyplot.figure(number).savefig(folder / path, metadata={"Date": None}, facecolor="white")
        pyplot.close(number)


def draw_figures(text: str, folder: Path) -> None:
    """Run the Python of a page up to its last figure, and save its figures.

    Args:
        text: The page.
        folder: Its folder in the built tree.
    """
    import matplotlib

    python = [block for block in blocks(text) if block.language == "python"]
    while python and not python[-1].images:
        python.pop()
    names: dict[str, Any] = {"__name__": "page"}
    with (
        matplotlib.rc_context({"svg.hashsalt": "raphson", "font.size": 9, "figure.max_open_warning": 0}),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for block in python:
            exec(compile(block.code, str(folder), "exec"), names)  # noqa: S102
            take_figures(block.images, folder)


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


def written_pages() -> Iterator[tuple[str, str]]:
    """Yield the pages of this folder: name and text."""
    for page in sorted(DOCS.rglob("*.md")):
        yield page.relative_to(DOCS).as_posix(), page.read_text(encoding="utf-8")


def write(folder: Path, figures: bool = True) -> None:
    """Write all pages.

    Args:
        folder: Where to; what was there is replaced.
        figures: Whether figures are drawn, which runs the code of the pages.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "likelihoods").mkdir(parents=True)
    shutil.copytree(DOCS / "assets", folder / "assets")
    for name, text in written_pages():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(formulas_to_mathml(text), encoding="utf-8")
        if figures:
            draw_figures(text, target.parent)
    for name, text in likelihood_pages().items():
        (folder / "likelihoods" / name).write_text(text, encoding="utf-8")
    (folder / "benchmarks.md").write_text(benchmark_page(), encoding="utf-8")


if __name__ == "__main__":
    os.chdir(ROOT)  # the pages read examples/
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs")
