"""Every block of the site: its Python runs as it stands there, page by page, and prints what the page says."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib import pyplot

import raphson
from raphson.likelihoods import catalogue
from tests.test_readme import check_session

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```([\w ]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# "text" is what the Python block before it prints; "sh" installs
IMAGE = re.compile(r"!\[([^]]*)\]\(([^)]+)\)")
LANGUAGES = {"python", "text", "console", "sh"}


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


GENERATE = generator()


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
    pyplot.close("all")  # what other tests left open is not the page's
    names: dict[str, Any] = {"__name__": "page"}
    blocks = GENERATE.blocks(page.read_text(encoding="utf-8"))
    for i, (kind, block, images) in enumerate(blocks):
        if kind != "python":
            continue
        exec(compile(block, str(page), "exec"), names)  # noqa: S102
        GENERATE.take_figures(images)
        printed = capsys.readouterr().out
        expected = blocks[i + 1].code if i + 1 < len(blocks) and blocks[i + 1].language == "text" else ""
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        same = doctest.OutputChecker().check_output(expected, printed, flags)
        assert same, f"{name(page)} says\n{expected}\nbut its code prints\n{printed}"


def test_figures_are_drawn_by_the_page_and_have_a_text_for_those_who_do_not_see_them() -> None:
    shown = [(name(page), *image) for page in PAGES for image in IMAGE.findall(page.read_text(encoding="utf-8"))]
    assert {page for page, *_ in shown} >= {name(page) for page in (DOCS / "tutorials").glob("*.md")}
    for page, alt, path in shown:
        assert len(alt) > 60 and re.fullmatch(r"figures/[a-z-]+\.(svg|png)", path), (page, path)
    drawn = [(name(page), b.language, b.images) for page in PAGES for b in GENERATE.blocks(page.read_text("utf-8"))]
    assert sum(len(images) for *_, images in drawn) == len(shown)
    assert all(language == "python" for _, language, images in drawn if images)
    with pytest.raises(ValueError, match="draws 0 figures"):
        GENERATE.take_figures([("alt", "figures/none.svg")])


def test_a_figure_is_the_same_file_each_time(tmp_path: Path) -> None:
    page = "```python\nfrom matplotlib import pyplot\npyplot.subplots()[1].plot([1, 2])\n```\n\n![a](figures/a.svg)\n"
    for folder in ("one", "two"):
        GENERATE.draw_figures(page, tmp_path / folder)
    one, two = (tmp_path / folder / "figures" / "a.svg" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes() and b"<svg" in one.read_bytes()


@pytest.mark.parametrize(
    ("tex", "has", "has_not"),
    [
        (r"\log p", ["log", "mspace"], []),
        (r"\mathbb R^{D+1}", ["ℝ"], ["mathvariant"]),
        (r"\varphi''^-", ["&#x02032;"], []),
        (r"a * b_n | \{c\}", [], ["_", "*", "|"]),
        (r"\operatorname E[x]", ["<mi"], ["<mo />"]),
    ],
)
def test_formulas_become_elements_that_markdown_leaves_alone(tex: str, has: list[str], has_not: list[str]) -> None:
    pytest.importorskip("latex2mathml")
    made = GENERATE.formulas_to_mathml(f"before ${tex}$ after `$code$`\n\n```python\n$no$\n```\n")
    assert made.startswith('before <span class="math"><math') and made.endswith("`$code$`\n\n```python\n$no$\n```\n")
    formula = made.partition("</span>")[0]
    assert all(part in formula for part in has) and not any(part in formula for part in has_not)


SESSIONS = [(name(page), text) for page in PAGES for kind, text in BLOCK.findall(page.read_text()) if kind == "console"]


@pytest.mark.parametrize(("page", "session"), SESSIONS, ids=lambda text: text.splitlines()[0][:50])
def test_the_commands_of_the_page_print_what_it_says(page: str, session: str) -> None:
    check_session(session, page)


def test_the_generated_pages_have_every_likelihood_and_the_benchmarks(tmp_path: Path) -> None:
    pytest.importorskip("latex2mathml")
    GENERATE.write(tmp_path, figures=False)
    made = {page.relative_to(tmp_path).as_posix(): page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.md")}
    kinds = [kind for kind in catalogue().values() if kind.examples()]
    assert len(made) == len(kinds) + 2 + len(PAGES)
    titles = {text.partition("\n")[0] for text in made.values()}
    assert {f"# {kind.__name__}" for kind in kinds} < titles
    for file, text in made.items():
        if file.startswith("likelihoods/") and not file.endswith("index.md"):
            assert "<math" in text and "Fisher information" in text, file
    assert "| anes96 (944x5, K=7) |" in made["benchmarks.md"]
    # the navigation names each page of the site once
    listed = nav_files(config()["nav"])
    assert sorted(listed) == sorted(made)
    assert not any(re.search(r"\$[^$\n]+\$", re.sub("`[^`]*`", "", text)) for text in made.values())


def test_links_between_pages_lead_somewhere() -> None:
    known = set(nav_files(config()["nav"]))
    for page in PAGES:
        for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http", "#")):
                aim = (page.parent / target.partition("#")[0]).resolve().relative_to(DOCS.resolve()).as_posix()
                assert aim in known, f"{name(page)} links to {target}"


def test_the_pages_of_the_interface_have_every_public_name() -> None:
    written = set(re.findall(r"^::: raphson\.(\w+)", "".join(p.read_text() for p in PAGES), re.MULTILINE))
    own_page = {kind.__name__ for kind in catalogue().values() if kind.examples()}
    assert written | own_page == set(raphson.__all__) - {"__version__"}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("_tables")


def test_the_tables_of_benchmarks_are_drawn_from_their_figures(tables: Any) -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    found = tables.parts(text)
    assert set(found) == set(tables.TABLES) and text.count("<!-- table: ") == len(found)
    kept = {name: tables.drawn(name) for name in found}
    assert {"fits", "updates", "training", "regressors"} <= {name for name, table in kept.items() if table is not None}
    for name, table in kept.items():
        before = text.partition(f"<!-- table: {name} -->")[0].rstrip().rpartition("\n")[2]
        if table is not None:
            assert found[name] == table, f"run python benchmarks/_tables.py: {name}"
            assert "before figures were kept" not in before
        else:  # a table from before, or none
            assert "before figures were kept" in before or found[name].startswith("No figures are kept yet")
        # the page of the site is the README
        assert found[name] in GENERATE.benchmark_page()
    assert tables.redrawn(text) == text


def test_figures_of_every_benchmark_become_tables(tables: Any, tmp_path: Path) -> None:
    def row(seconds: float, credited: bool = True) -> dict[str, Any]:
        return {"seconds": seconds, "credited": credited, "gradient": 1e-7 if credited else 1e-2}

    stage = {"s": 0.5, "processor s": 0.4}
    whole = dict.fromkeys(("start", "import", "read", "code", "fit", "table"), stage) | {"peak memory, tables": 1.5}
    figures = {
        "glm.json": {
            "results": {
                "poisson 100x2": {
                    "fit": {"raphson": row(0.1), "scikit-learn lbfgs": row(0.4), "glum": row(0.2, False)},
                    "with errors": {"raphson": row(0.1), "statsmodels irls": row(0.9), "statsmodels bfgs": row(0.8)},
                }
            }
        },
        "curvature.json": {
            "networks": {
                "MLP": {
                    "counts": {"gradient": 10.0, "GGN product": 5.0},
                    "quantities": {"GGN product": {"gradient": 2.0, "raphson": 1.0, "curvlinops": 4.0}},
                }
            }
        },
        "grid.json": {
            "a": {"n": 5, "d": 9, "ratio": 4.0, "short": False, "peer": "lbfgs"},
            "b": {"n": 9, "d": 5, "ratio": 0.25, "short": False, "peer": "glum"},
            "c": {"n": 9, "d": 5, "short": True},
        },
        "fit_end_to_end.json": {"end to end": {"csv": {"raphson": whole, "the whole process, s": 3.0}}},
        "uci.json": [
            {"data": "yacht", "method": "raphson", "loglik_mean": 0.7, "loglik_se": 0.05, "seconds_per_fit": 2.0},
            {"data": "energy", "method": "ensemble", "loglik_mean": 0.1, "loglik_se": None, "seconds_per_fit": 6.0},
        ],
        "regressors.json": [
            {"problem": "energy, natural", "split": split, "seed": seed, "method": method, "rate": rate, "budget": 60}
            | {"loss": -1.0, "test_loss": -0.5, "rmse": rmse + 0.02 * split + 0.2 * seed, "seconds": 2.0}
            for method, rate, rmse in (("K-FAC", 1.0, 0.3), ("Adam, beta-NLL", 0.1, 0.5), ("Adam, beta-NLL", 0.01, 0.4))
            for split in range(2)
            for seed in range(2)
            if (method, split, seed) != ("K-FAC", 1, 1)
        ],
        "laplace.json": {
            "turns": [
                {"task": "kfac", "library": "raphson", "fit_s": 0.2, "fit_mb": 3.0},
                {"task": "kfac", "library": "laplace-torch", "trouble": "no result"},
            ],
            "calibration": [{"data": "digits", "posterior": "plain", "repeats": 3, "nll": 0.1234}],
        },
    }
    for name, content in figures.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    made = {name: tables.drawn(name, tmp_path) for name in tables.TABLES}
    assert made["fits"] is made["updates"] is made["training"] is None
    assert (
        "| poisson 100x2 | 0.1000 | 0.4000 lbfgs | 0.2000 (gradient 1e-02) | 0.1000 | 0.8000 bfgs | 4.0 | 8.0 |"
        in (made["glm"])
    )
    assert "least 4.00" in made["glm"] and "| GGN product | 0.50 | 0.50 | 2.00 |  | **0.25** |" in made["curvature"]
    assert (
        "- all: 2 cells, geometric mean 1.00, least 0.25" in made["grid"] and "- below 1: b 0.25 (glum)" in made["grid"]
    )
    assert "| csv | raphson | 0.50 (0.40) |" in made["end to end"] and "| 2.00 | 1.5 |" in made["end to end"]
    assert "| raphson | 0.700 (0.050), 2.0 s |  |" in made["uci"] and "| ensemble |  | 0.100, 6.0 s |" in made["uci"]
    # splits at 0.4 and 0.32, beside 0.5 and 0.52 with the better rate
    assert "| energy, natural: K-FAC, 60 | -1.00 | -0.50 | 0.360 | -0.150 (0.050) | 2.00 |" in made["regressors"]
    assert "| energy, natural: Adam, beta-NLL, 0.01, 60 | -1.00 | -0.50 | 0.510 |  | 2.00 |" in made["regressors"]
    assert "| kfac | 0.200 s; 3 MB | no result |  |" in made["laplace"]
    assert "| digits | plain | 0.123 |" in made["calibration"]
    widths = {
        name: {line.count("|") for line in text.splitlines() if line.startswith("|")}
        for name, text in made.items()
        if text
    }
    assert all(len(counts) <= 1 for counts in widths.values()), widths
