"""A save that dies anywhere, meets others, or finds the disk full costs no model and no file of anyone."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raphson as rp
from raphson.cli import main

PREAMBLE = """
import os, sys
import numpy as np
import raphson as rp
def fitted(l2):
    return rp.MultinomialLogisticRegression(l2=l2).fit(np.arange(8.0)[:, None], [0, 1, 0, 1, 1, 0, 1, 0])
"""


def fitted(l2: float) -> Any:
    return rp.MultinomialLogisticRegression(l2=l2).fit(np.arange(8.0)[:, None], [0, 1, 0, 1, 1, 0, 1, 0])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "m"


def dies_at(model: Any, place: Path, step: int) -> bool:
    """Save in a child process that is killed at its n-th call that changes the disk; whether it was."""
    child = os.fork()
    if child == 0:
        count = 0

        def deadly(call: Any) -> Any:
            def run(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return call(*arguments, **options)

            return run

        for name in ("mkdir", "rename", "fsync", "unlink", "rmdir"):
            setattr(os, name, deadly(getattr(os, name)))
        try:
            rp.save(model, place)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("over_an_older_one", [False, True])
def test_a_kill_at_any_point_loses_no_model(place: Path, over_an_older_one: bool) -> None:
    old, new = fitted(1.0), fitted(2.0)
    for step in range(40):
        if over_an_older_one:
            rp.save(old, place)
        killed = dies_at(new, place, step)
        if over_an_older_one or place.exists() or not killed:
            assert rp.load(place).model.l2 in ((1.0, 2.0) if killed else (2.0,))
            assert place.is_dir()  # what was left aside is back in its place
        rp.save(new, place)
        assert rp.load(place).model.l2 == 2.0
        assert os.listdir(place.parent) == ["m"]  # nothing is left lying about
        if not killed:
            break
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
    assert 4 < step < 39


def test_two_processes_save_to_one_place(place: Path) -> None:
    code = PREAMBLE + "model = fitted(float(sys.argv[1]))\nfor _ in range(60): rp.save(model, sys.argv[2])\n"
    command = [sys.executable, "-c", code]
    running = [
        subprocess.Popen([*command, str(l2), str(place)], stderr=subprocess.PIPE, text=True) for l2 in (1.0, 2.0)
    ]
    seen = set()
    while any(process.poll() is None for process in running):
        if place.exists():
            seen.add(rp.load(place).model.l2)
    for process in running:
        assert process.communicate()[1] == "" and process.returncode == 0
    assert seen <= {1.0, 2.0} and rp.load(place).model.l2 in (1.0, 2.0)
    assert os.listdir(place.parent) == ["m"]


def test_a_full_disk_is_one_sentence_and_leaves_the_older_model(place: Path) -> None:
    rp.save(fitted(1.0), place)
    code = PREAMBLE + "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "model = fitted(2.0)\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    code += "try: rp.save(model, sys.argv[1])\nexcept rp.InputError as error: sys.exit('sentence: ' + str(error))\n"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100
    ran = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stderr.startswith("sentence: ") and "cannot be written" in ran.stderr
    assert rp.load(place).model.l2 == 1.0 and os.listdir(place.parent) == ["m"]


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize(
    "kind", ["foreign json", "folder", "symlink", "dangling", "damaged", "more", "file", "link in"]
)
def test_what_raphson_did_not_write_is_never_touched(
    tmp_path: Path, place: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    rp.save(fitted(1.0), other)
    if kind == "symlink":
        place.symlink_to(other)
    elif kind == "dangling":
        place.symlink_to(tmp_path / "nowhere")
    elif kind == "file":
        place.write_text("mine")
    elif kind == "foreign json":
        place.mkdir()
        (place / "model.json").write_text(json.dumps({"format": "raphson-model", "weights": [1, 2]}))
    elif kind == "folder":
        (place / "model.json").mkdir(parents=True)
        (place / "model.json" / "thesis.txt").write_text("mine")
    else:
        rp.save(fitted(1.0), place)
        if kind == "damaged":
            (place / "tensors.safetensors").write_bytes(b"mine")
        elif kind == "more":
            (place / "notes.txt").write_text("mine")
        else:
            (place / "model.json").rename(tmp_path / "elsewhere.json")
            (place / "model.json").symlink_to(tmp_path / "elsewhere.json")
    before = contents(tmp_path)
    data = tmp_path / "d.csv"
    data.write_text("x,y\n" + "\n".join(f"{i},{'ab'[i * i % 3 % 2]}" for i in range(20)))
    arguments = ["raphson", "fit", str(data), "--target", "y", "--save", str(place)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        main()
    data.unlink()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and error.startswith("raphson: ")
    assert contents(tmp_path) == before


def test_a_reader_leaves_what_a_writer_that_lives_has_ready(place: Path) -> None:
    """The first save of a model: written aside and not yet in its place, which is not a crash."""
    from raphson.saved import _place

    rp.save(fitted(1.0), place)
    whole = {file.name: file.read_bytes() for file in place.iterdir()}
    for file in place.iterdir():
        file.unlink()
    place.rmdir()
    with _place.aside(place) as part:
        for name, data in whole.items():
            (part / name).write_bytes(data)
        with pytest.raises(rp.InputError, match="does not exist"):
            rp.load(place)
        with _place.locked(place.parent):
            _place.put(part, place)
    assert rp.load(place).model.l2 == 1.0
