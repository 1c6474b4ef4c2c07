"""Every block of the site: its Python runs as it stands there, page by page, and prints what the page says."""

from __future__ import annotations

import doctest
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import raphson
from raphson.likelihoods import catalogue
from tests.test_readme import check_session

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GENERATED = {"benchmarks.md", *(f"likelihoods/{page.name}" for page in (DOCS / "likelihoods").glob("*.md"))}
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.relative_to(DOCS).as_posix() not in GENERATED]
BLOCK = re.compile(r"^```([\w ]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# "text" is what the Python block before it prints; "sh" installs
LANGUAGES = {"python", "text", "console", "sh"}


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def config() -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        """Reads past the tags that only mkdocs knows."""

    Loader.add_multi_constructor("tag:", lambda *_: None)
    content: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)  # noqa: S506
    return content


def nav_files(entries: list[Any]) -> list[str]:
    files: list[str] = []
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        files += nav_files(value) if isinstance(value, list) else [value]
    return files


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_of_a_kind_that_is_tested(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert len(blocks) * 2 == len(re.findall("^```", text, re.MULTILINE))
    kinds = [kind for kind, _ in blocks]
    assert set(kinds) <= LANGUAGES
    assert all(kinds[i - 1] == "python" for i, kind in enumerate(kinds) if kind == "text")


@pytest.mark.filterwarnings("ignore::raphson.RaphsonWarning")
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_code_of_the_page_runs_and_prints_what_it_says(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {"__name__": "page"}
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    for i, (kind, block) in enumerate(blocks):
        if kind != "python":
            continue
        exec(compile(block, str(page), "exec"), names)  # noqa: S102
        printed = capsys.readouterr().out
        expected = blocks[i + 1][1] if i + 1 < len(blocks) and blocks[i + 1][0] == "text" else ""
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        same = doctest.OutputChecker().check_output(expected, printed, flags)
        assert same, f"{name(page)} says\n{expected}\nbut its code prints\n{printed}"


SESSIONS = [(name(page), text) for page in PAGES for kind, text in BLOCK.findall(page.read_text()) if kind == "console"]


@pytest.mark.parametrize(("page", "session"), SESSIONS, ids=lambda text: text.splitlines()[0][:50])
def test_the_commands_of_the_page_print_what_it_says(page: str, session: str) -> None:
    check_session(session, page)


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_pages_have_every_likelihood_and_the_benchmarks(tmp_path: Path) -> None:
    generator().write(tmp_path)
    made = {page.relative_to(tmp_path).as_posix(): page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.md")}
    kinds = [kind for kind in catalogue().values() if kind.examples()]
    assert len(made) == len(kinds) + 2
    titles = {text.partition("\n")[0] for text in made.values()}
    assert {f"# {kind.__name__}" for kind in kinds} < titles
    for file, text in made.items():
        if file.startswith("likelihoods/") and not file.endswith("index.md"):
            assert "<math" in text and "Fisher information" in text, file
    assert "| anes96 (944x5, K=7) |" in made["benchmarks.md"]
    # the navigation names each page of the site once
    listed = nav_files(config()["nav"])
    assert sorted(listed) == sorted({*made, *map(name, PAGES)})


def test_links_between_pages_lead_somewhere() -> None:
    known = set(nav_files(config()["nav"]))
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http", "#")):
                aim = (page.parent / target.partition("#")[0]).resolve().relative_to(DOCS.resolve()).as_posix()
                assert aim in known, f"{name(page)} links to {target}"


def test_the_pages_of_the_interface_have_every_public_name() -> None:
    written = set(re.findall(r"^::: raphson\.(\w+)", "".join(p.read_text() for p in PAGES), re.MULTILINE))
    own_page = {kind.__name__ for kind in catalogue().values() if kind.examples()}
    assert written | own_page == set(raphson.__all__) - {"__version__"}
