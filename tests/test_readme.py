"""Every block of the README: its Python code and its commands run as they stand there, and print what it says."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
SESSIONS = [block for language, block in BLOCKS if language == "console"]

# These download packages. What they do is what .ci/run does in a fresh clone.
NEEDS_NETWORK = [
    "python3 install.py && .venv/bin/raphson fit examples/anes96.csv --target party\n",
    "python3 install.py dev && OMP_NUM_THREADS=1 .venv/bin/pytest -q -n 2\n",
]


def test_every_block_is_run_or_needs_the_network() -> None:
    assert len(BLOCKS) * 2 == TEXT.count("```")
    assert {language for language, _ in BLOCKS} == {"sh", "python", "console"}
    assert [block for language, block in BLOCKS if language == "sh"] == NEEDS_NETWORK
    assert "python3 install.py dev\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_code_of_the_readme_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)  # some of it writes files
    names: dict[str, Any] = {}
    blocks = [block for language, block in BLOCKS if language == "python"]
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102
    # what the README prints of this fit is what the code prints
    assert "-2952.354620" in TEXT and "-2952.354620" in capsys.readouterr().out


def output(command: str) -> tuple[str, int]:
    """What a ``raphson`` command prints where there is no terminal, and its exit code."""
    program, *arguments = shlex.split(command)
    assert program == "raphson"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    environment.pop("COLUMNS", None)
    code = "import sys; from raphson.cli import main; sys.argv[0] = 'raphson'; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    return done.stdout + done.stderr, done.returncode


def comparable(text: str) -> str:
    """The text without the gradient's norm at the optimum, which is rounding and differs between machines."""
    return re.sub(r"(Gradient norm +)[\d.e+-]+", r"\1rounding", text)


def check_session(session: str, document: str) -> None:
    """Run the commands of a block one after another, and compare what they print with what stands below them."""
    status = 0
    for step in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command, _, expected = step.partition("\n")
        if command == "echo $?":
            assert expected.strip() == str(status)
            continue
        printed, status = output(command)
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        same = doctest.OutputChecker().check_output(comparable(expected), comparable(printed), flags)
        assert same, f"{document} says\n{expected}\nbut 'raphson' prints\n{printed}"


@pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session.splitlines()[0][2:50])
def test_the_commands_of_the_readme_print_what_it_says(session: str) -> None:
    check_session(session, "README.md")
