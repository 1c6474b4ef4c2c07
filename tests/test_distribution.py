"""What is given away: a source distribution that holds the repository, a wheel built from it, pinned versions."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import raphson

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "site", "results", "*.egg-info", "*.so"
)


def build(kind: str, source: Path, out: Path) -> Path:
    """The distribution that the build backend makes in ``out``."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.splitlines()[-1]


def copy_repository(target: Path) -> None:
    """What git knows, if it is there to be asked; else what is no environment, cache or result."""
    listed = ""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8").stdout
    if not listed:
        shutil.copytree(ROOT, target, ignore=LEFT_OUT)
    for name in listed.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_the_source_distribution_holds_the_repository_and_a_wheel_builds_from_it(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="the build backend is not installed: run install.py dev")
    copy, out = tmp_path / "copy", tmp_path / "out"
    copy_repository(copy)
    kept = files(copy)
    assert {"tests/test_distribution.py", "benchmarks/fit.py", "constraints.txt", "install.py", ".ci/run"} <= kept
    with tarfile.open(build("sdist", copy, out)) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / f"raphson-{raphson.__version__}"
    assert kept <= files(source)

    wheel = build("wheel", source, out)
    # one wheel for every Python from 3.11 on: the compiled modules keep to the limited C API
    assert wheel.name.startswith(f"raphson-{raphson.__version__}-cp311-abi3-")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {
        f"raphson/{name}" for name in files(copy / "raphson") if name.endswith((".py", ".pyi", "py.typed", ".html"))
    }
    assert modules <= held
    assert {Path(name).suffix for name in held} <= {".py", ".pyi", ".typed", ".so", ".html"}
    assert all(name.startswith("raphson/") for name in held)


def pins() -> set[str]:
    """The canonical names in constraints.txt, each pinned to one version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+-]+", line) for line in lines)
    return {canonicalize_name(line.partition("==")[0]) for line in lines}


def test_every_dependency_is_pinned() -> None:
    """Of raphson, its development and its build: all that this environment needs, by way of others too."""
    project = PROJECT["project"]
    waiting = [*project["dependencies"], *PROJECT["build-system"]["requires"]]
    waiting += [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    needed: set[tuple[str, str]] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {known for package, known in needed if package == name}:
            needed.add((name, extra))
            try:
                found = [Requirement(text) for text in requires(name) or []]
            except PackageNotFoundError:  # an extra that this environment does without
                continue
            waiting += [str(one) for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]
    # PyTorch's builds for GPUs pin their own parts
    names = {name for name, _ in needed if not re.match("nvidia|cuda|triton|pytorch-triton", name)}
    assert {"torch", "pre-commit", "virtualenv", "setuptools", "markupsafe"} <= names
    assert names <= pins()


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["project"]["version"] == raphson.__version__ == citation["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires


WORKFLOWS = sorted((ROOT / ".github").rglob("*.yml"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_files_of_github_are_read_as_meant(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    if file.parent.name == "workflows":
        assert {"name", "jobs"} <= content.keys()
        used = re.findall(r"uses: (\S+)", text)
        assert used and all(re.search(r"@(v\d[\d.]*|release/v1)$", action) for action in used)
        assert all({"runs-on", "steps"} <= job.keys() for job in content["jobs"].values())
    elif file.name != "config.yml":
        assert {"name", "description", "body"} <= content.keys()
        assert all({"type", "attributes"} <= part.keys() for part in content["body"])


def test_the_oldest_versions_that_are_tested_are_the_oldest_that_are_allowed() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    torch = next(one for one in PROJECT["project"]["dependencies"] if one.startswith("torch>=")).removeprefix("torch>=")
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert re.search(rf'python: "{oldest}", torch: "=={re.escape(torch)}(\.0)?"', text)
    newest = max(re.findall(r"Python :: (3\.\d+)", str(PROJECT["project"]["classifiers"])), key=lambda v: int(v[2:]))
    assert f'python: "{newest}"' in text


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md"), *(ROOT / ".github").rglob("*.md")])


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_links_between_documents_lead_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", file.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#")):
            assert (file.parent / target.partition("#")[0]).exists(), f"{file.name} links to {target}"
