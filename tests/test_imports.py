"""The import table of ARCHITECTURE.md, held by reading the source of every module."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

LONGEST_FILE = 450
PACKAGE = Path(__file__).parent.parent / "raphson"
MODULES = sorted(PACKAGE.rglob("*.py"))
BASE = {"_callable", "_errors", "_json"}

ROW = re.compile(r"^\| (`[^|]*) \| [^|]* \| ([^|]*) \|$", re.MULTILINE)


def table() -> dict[str, set[str]]:
    """The import table of ARCHITECTURE.md: what each package may import, besides itself and the base."""
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = [(re.findall(r"`(\w+)`", names), re.findall(r"`(\w+)`", others)) for names, others in ROW.findall(text)]
    return {name: set(others) for names, others in rows for name in names}


MAY_IMPORT = table()

# Outside libraries that a package must do without.
NEVER: dict[str, set[str]] = {
    "linalg": {"torch.nn", "pandas", "sklearn"},
    "likelihoods": {"pandas", "sklearn"},
    "solve": {"torch.nn", "pandas", "sklearn"},
    "diagnose": {"torch.nn"},
    "report": {"torch"},
    "table": {"torch", "sklearn"},
    "cli": {"torch", "sklearn"},
}

# What `raphson --help` and plain fitting must not wait for: imported inside the function that needs them.
HEAVY = {"formulaic", "pyarrow", "scipy.optimize", "statsmodels", "matplotlib"}
# A command's own file is read only when the command runs.
LAZY_FILES = {"cli/_fit.py", "cli/_predict.py", "cli/_render.py"}

# Imports for types only that close a circle: a likelihood has a definition, and a definition is that of a likelihood;
# what a posterior can do is in files of its own, which are about posteriors.
_POSTERIOR = {"raphson.laplace._posterior", "raphson.laplace._posterior.Posterior"}
FOR_TYPES = {
    "raphson.laplace._state": _POSTERIOR,
    "raphson.laplace._tune": _POSTERIOR,
    "raphson.laplace._update": _POSTERIOR,
    "raphson.likelihoods.formulas._definition": {
        "raphson.likelihoods._likelihood",
        "raphson.likelihoods._likelihood.Likelihood",
    },
}


def package_of(file: Path) -> str:
    part = file.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def imports(file: Path, top_level: bool = False, typing: bool = False) -> set[str]:
    """Absolute names of the modules that a file imports; those under TYPE_CHECKING only if asked for."""
    package = ["raphson", *file.relative_to(PACKAGE).parent.parts]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (origin, node.module) if part)
            found.update({base, *(f"{base}.{alias.name}" for alias in node.names)})
        for child in ast.iter_child_nodes(node):
            if not typing and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if top_level and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return found


def packages_imported(file: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports(file) if name.startswith("raphson.")}
    return {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_follow_the_table(file: Path) -> None:
    name = package_of(file)
    if name in ("__init__", "cli"):
        return
    if name in BASE:
        assert packages_imported(file) <= BASE
        return
    assert name in MAY_IMPORT, f"add '{name}' to the table here and in ARCHITECTURE.md"
    # `import raphson` itself (for its version) is a name of its own and brings nothing in.
    assert packages_imported(file) - BASE - {name} <= MAY_IMPORT[name]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_forbidden_library(file: Path) -> None:
    for name in imports(file):
        for library in NEVER.get(package_of(file), set()):
            assert not f"{name}.".startswith(f"{library}."), f"{file} imports {name}"
        assert not f"{name}.".startswith("torch.distributed."), f"{file} imports {name}"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_where_they_are_used(file: Path) -> None:
    if file.relative_to(PACKAGE).as_posix() in LAZY_FILES:
        return
    for name in imports(file, top_level=True):
        assert not any(f"{name}.".startswith(f"{library}.") for library in HEAVY), f"{file} imports {name}"


def test_the_command_line_uses_the_public_face_only() -> None:
    for file in (PACKAGE / "cli").glob("*.py"):
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "raphson" and parts[1:2] != ["cli"]:
                assert not any(part.startswith("_") for part in parts[1:]), f"{file} imports {name}"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_other_packages_are_used_by_their_public_names(file: Path) -> None:
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "raphson" and len(parts) > 2 and parts[1] not in BASE and parts[1] != package_of(file):
            assert not any(part.startswith("_") for part in parts[2:]), f"{file} imports {name}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Imports inside functions count, too, and those for types only, but for two: formulas are of a likelihood."""
    known = {module_name(file): file for file in MODULES}
    graph = {}
    for name, file in known.items():
        found = set()
        for target in imports(file) | imports(file, typing=True) - FOR_TYPES.get(name, set()):
            while target not in known and "." in target:
                target = target.rpartition(".")[0]
            # a package's own face is read before its files are; that a file needs it back is no circle of its own
            if target in known and target != name and not name.startswith(f"{target}."):
                found.add(target)
        graph[name] = found

    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle of imports: {' -> '.join(path[path.index(name) :])} -> {name}"
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_table_is_acyclic() -> None:
    below: dict[str, set[str]] = {}

    def reach(name: str, path: tuple[str, ...] = ()) -> set[str]:
        assert name not in path, f"cycle: {(*path, name)}"
        if name not in below:
            below[name] = {name}.union(*(reach(other, (*path, name)) for other in MAY_IMPORT[name]))
        return below[name]

    for name in MAY_IMPORT:
        reach(name)


def test_files_have_a_readable_size() -> None:
    for file in MODULES:
        assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE, file


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_raphson_or_its_command_line_is_light() -> None:
    code = "import sys, {}; print(sorted(set(sys.modules) & {{'torch', 'numpy', 'pandas', 'sklearn', 'scipy'}}))"
    assert run(code.format("raphson")) == "[]"
    assert run(code.format("raphson.cli")) == "[]"


def test_a_name_that_is_brought_in_leaves_the_garbage_collector_as_it_was() -> None:
    code = """
import gc
import raphson
found = []
raphson.InputError
found.append(gc.isenabled())
raphson._HOME["missing"] = "nowhere"
try:
    raphson.missing
except ImportError:
    found.append(gc.isenabled())
gc.disable()
raphson.NotEstimableError
found.append(gc.isenabled())
print(found)
"""
    assert run(code) == "[True, True, False]"


def test_every_public_name_exists_and_is_the_one_type_checkers_see() -> None:
    import raphson

    tree = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    seen = [alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(["__version__", *seen]) == sorted(raphson.__all__) == dir(raphson)
    for name in raphson.__all__:
        assert getattr(raphson, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Categorial'"):
        _ = raphson.Categorial


CALLED_AS_THEIR_PACKAGE = re.compile(r"^from \.(\w+) import \1 as", re.MULTILINE)


def test_no_module_takes_a_package_by_a_name_that_may_be_its_function() -> None:
    """``raphson.diagnose`` is the package or the function of that name, whichever was asked for first."""
    names = set(CALLED_AS_THEIR_PACKAGE.findall((PACKAGE / "__init__.pyi").read_text(encoding="utf-8")))
    assert names == {"diagnose", "explain", "laplace"}
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "raphson":
                assert not names & {alias.name for alias in node.names}, file
