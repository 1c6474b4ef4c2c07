from __future__ import annotations

import io
import subprocess
import sys
import time

import pytest

from raphson.report import progress_line
from raphson.solve import Step


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Make standard error a terminal; called in the test, as pytest sets the stream anew after fixtures."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def step(iteration: int) -> Step:
    return Step(iteration, 0.0, 1.548646, 3.2e-5)


def test_a_short_fit_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    line = progress_line()
    for i in range(5):
        line(step(i))
    line.close()
    assert screen.getvalue() == ""


def test_a_long_fit_shows_one_line_and_wipes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    line = progress_line(patience=0.01)
    time.sleep(0.02)
    line(step(7))
    shown = screen.getvalue()
    assert "iteration 7   objective 1.548646   gradient norm 3.2e-05   0 s" in shown
    line(step(8))  # too soon after the one before
    assert screen.getvalue() == shown
    time.sleep(0.11)
    line(step(9))
    assert "iteration 9" in screen.getvalue()
    line.close()
    assert screen.getvalue().endswith("\x1b[2K")  # the line is erased ...
    assert "\x1b[?25h" in screen.getvalue()  # ... and the cursor back


def test_a_file_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    line = progress_line(patience=0.0)
    line(step(1))
    line.close()
    assert written.getvalue() == ""


def test_report_imports_nothing_that_computes() -> None:
    heavy = ("torch", "numpy", "pandas", "rich")
    code = f"import sys, raphson.report; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
